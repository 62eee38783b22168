"""Losses of a reconstruction, each a plain mean over the batch.

Signed distances `(B, 1, n, n, n)` are in mm. An occupancy is `sigmoid(-d / tau)`. The band is where the truth is
closer to the surface than `band` mm: what is far away is easy and would drown the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.models.sam3d.surface import DecodedSurface
from voxelry.ops.chamfer import chamfer, zero_crossings

__all__ = [
    "LOSSES",
    "chamfer_loss",
    "eikonal_loss",
    "mask_loss",
    "occupancy_loss",
    "on_plane_loss",
    "overlap_loss",
    "sdf_loss",
    "smoothness_loss",
    "stage_of",
    "structure_loss",
    "surface_distance_loss",
    "surface_mesh_loss",
]

LOSSES = ("mask", "occupancy", "overlap", "size", "offset", "plane", "sdf", "eikonal", "chamfer", "smoothness")
"""Names of the losses, as weights are given for them."""

DENSE = ("sdf", "eikonal", "chamfer", "smoothness")
"""Those of the second stage of the curriculum: they say something once there is a surface at about the right place."""

_FAR = 0.05  # weight of what is outside of the band
_POINTS = 2000  # of each surface


def stage_of(name: str, seen: float, steps: float) -> float:
    """How much of a loss counts: all of the first stage's, and of the second's the more, the later it is.

    Args:
        name: of `LOSSES`.
        seen: batches trained on.
        steps: batches until everything counts.
    """
    if name not in DENSE or steps <= 0:
        return 1.0
    return min(1.0, seen / steps)


def sdf_loss(sdf: Tensor, truth: Tensor, band: float | Tensor) -> Tensor:
    """Mean absolute error in mm, the band weighing twenty times as much as the rest."""
    weight = torch.where(truth.abs() < band, 1.0, _FAR)
    return ((sdf - truth).abs() * weight).sum() / weight.sum()


def occupancy_loss(sdf: Tensor, truth: Tensor, tau: float, band: float | Tensor) -> Tensor:
    """Binary cross entropy of the occupancies within the band."""
    near = (truth.abs() < band).to(sdf)
    each = F.binary_cross_entropy_with_logits(-sdf / tau, torch.sigmoid(-truth / tau), reduction="none")
    return (each * near).sum() / near.sum().clamp(min=1)


def overlap_loss(sdf: Tensor, truth: Tensor, tau: float) -> Tensor:
    """1 - Dice of the occupancy with the true cells, the mean over samples.

    A soft truth would have a Dice of less than 1 with itself, and a larger one with a shape that is too large.
    """
    return _soft_dice(torch.sigmoid(-sdf / tau), (truth < 0).to(sdf), dims=(1, 2, 3, 4))


def mask_loss(logits: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
    """Cross entropy and 1 - Dice of the slices' masks, `(B, S, H, W)`, over the pixels that are known."""
    known = pixels.to(logits)
    each = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    entropy = (each * known).sum() / known.sum().clamp(min=1)
    slices = known.flatten(2).amax(dim=2) > 0
    overlap = _soft_dice(torch.sigmoid(logits) * known, mask * known, dims=(2, 3), valid=slices)
    return entropy + overlap


def on_plane_loss(sdf: Tensor, points: Tensor, mask: Tensor, pixels: Tensor, tau: float) -> Tensor:
    """What the shape says of the slices' pixels against their masks: cross entropy, half of it from inside.

    Args:
        sdf: `(B, 1, n, n, n)` mm.
        points: `(B, S, 3, H, W)`, frame coordinates x, y, z of the pixels.
        mask, pixels: `(B, S, H, W)`, see `mask_loss`.
        tau: mm.
    """
    places = 2 * points.movedim(2, -1)
    cut = F.grid_sample(sdf, places, padding_mode="border", align_corners=False)[:, 0]
    each = F.binary_cross_entropy_with_logits(-cut / tau, mask, reduction="none")
    inside, outside = mask * pixels, (1 - mask) * pixels
    parts = [(each * part).sum() / part.sum().clamp(min=1) for part in (inside, outside)]
    return (parts[0] + parts[1]) / 2


def eikonal_loss(sdf: Tensor, truth: Tensor, step: Tensor, band: float | Tensor) -> Tensor:
    """How far the length of the gradient is from 1 within the band (Gropp et al. 2020, arXiv:2002.10099, eq. 2).

    Args:
        sdf, truth: `(B, 1, n, n, n)` mm; a truth that is clipped has no gradient, so nothing is asked there.
        step: `(B, 1, 1, 1, 1)` mm per cell.
        band: mm.
    """
    slopes = torch.stack(torch.gradient(sdf, dim=(2, 3, 4))) / step
    length = slopes.square().sum(dim=0).add(1e-8).sqrt()
    near = (truth.abs() < band).to(sdf)
    return ((length - 1).square() * near).sum() / near.sum().clamp(min=1)


def smoothness_loss(sdf: Tensor, truth: Tensor, step: Tensor, band: float | Tensor) -> Tensor:
    """Roughness of the surface: mean squared Laplacian of the distance within the band, in 1 / mm².

    The Laplacian of a signed distance is the sum of the principal curvatures of its level set there, so this is what
    smoothing a mesh's vertices towards their neighbours' mean makes small.
    """
    total = F.pad(sdf, (1,) * 6, mode="replicate")
    middle = total[:, :, 1:-1, 1:-1, 1:-1]
    around = (
        total[:, :, 2:, 1:-1, 1:-1] + total[:, :, :-2, 1:-1, 1:-1] + total[:, :, 1:-1, 2:, 1:-1]
        + total[:, :, 1:-1, :-2, 1:-1] + total[:, :, 1:-1, 1:-1, 2:] + total[:, :, 1:-1, 1:-1, :-2]
    )  # fmt: skip
    laplacian = (around - 6 * middle) / step.square()
    near = (truth.abs() < band).to(sdf)
    return (laplacian.square() * near).sum() / near.sum().clamp(min=1)


def chamfer_loss(sdf: Tensor, truth: Tensor, step: Tensor) -> Tensor:
    """Chamfer distance of the two surfaces in mm, the mean over samples that have both; it moves the surface."""
    found = []
    for own, true, size in zip(sdf[:, 0], truth[:, 0], step.flatten(), strict=True):
        clouds = [_thinned(zero_crossings(field)) for field in (own, true.detach())]
        if all(len(cloud) for cloud in clouds):
            found.append(chamfer(clouds[0], clouds[1]) * size)
    return torch.stack(found).mean() if found else sdf.sum() * 0


def structure_loss(logits: Tensor, occupied: Tensor) -> Tensor:
    """Occupancies that came through an autoencoder: cross entropy, half of it of occupied cells, and 1 - Dice.

    Few cells are occupied: without the halves all empty is where a training would begin, and stay.

    Args:
        logits: `(B, 1, G, G, G)`.
        occupied: as the logits, bool.
    """
    truth = occupied.to(logits)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    parts = [(each * part).sum() / part.sum().clamp(min=1) for part in (truth, 1 - truth)]
    return (parts[0] + parts[1]) / 2 + overlap_loss(-logits, 0.5 - truth, 1.0)


def surface_distance_loss(surface: DecodedSurface, truth: Tensor, edge: Tensor) -> Tensor:
    """What a decoder says of points near its surface against the truth there: mean absolute error in mm.

    Args:
        surface: of one item.
        truth: `(n, n, n)` mm.
        edge: of the frame, mm.
    """
    places = 2 * surface.points.flip(-1)[None, None, None]
    there = F.grid_sample(truth[None, None], places, padding_mode="border", align_corners=False)
    return (surface.sdf * edge - there.flatten()).abs().mean()


def surface_mesh_loss(surface: DecodedSurface, truth: Tensor, edge: Tensor) -> Tensor:
    """Chamfer distance of a decoder's vertices and the true surface in mm; it moves the vertices.

    Arguments as `surface_distance_loss`; 0 where one of the two has no surface.
    """
    wanted = _thinned(zero_crossings(truth.detach()))
    if not len(wanted) or not len(surface.vertices):
        return surface.sdf.sum() * 0
    there = (wanted + 0.5) / truth.shape[-1] - 0.5
    return chamfer(_thinned(surface.vertices), there.to(surface.vertices)) * edge


def _thinned(points: Tensor) -> Tensor:
    if len(points) <= _POINTS:
        return points
    return points[torch.randperm(len(points), device=points.device)[:_POINTS]]


def _soft_dice(probability: Tensor, truth: Tensor, *, dims: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
    shared = (probability * truth).sum(dim=dims)
    total = probability.sum(dim=dims) + truth.sum(dim=dims)
    loss = 1 - (2 * shared + 1) / (total + 1)
    if valid is None:
        return loss.mean()
    return (loss * valid).sum() / valid.sum().clamp(min=1)

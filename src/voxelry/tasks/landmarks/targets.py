"""What the network should answer: heatmaps and presence from a batch's points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from voxelry.core.errors import DataError
from voxelry.data.sample import Batch
from voxelry.ops.heatmaps import disc_heatmaps, gaussian_heatmaps, within

__all__ = ["TARGETS", "UNITS", "LandmarkTargets", "in_unit", "make_targets"]

TARGETS = ("gaussian", "disc")
UNITS = ("mm", "voxel")


@dataclass(frozen=True)
class LandmarkTargets:
    """Targets of one batch.

    Attributes:
        heatmaps: `(B, N, *spatial)` float32 in [0, 1], or summing to 1 if `normalised`; zero where absent.
        points: `(B, N, ndim)` index coordinates, NaN where absent.
        present: `(B, N)` bool, the point is annotated and lies on the image (a patch may miss it).
        spacing: `(B, ndim)` mm per voxel.
    """

    heatmaps: Tensor
    points: Tensor
    present: Tensor
    spacing: Tensor


def make_targets(
    batch: Batch,
    num_landmarks: int,
    *,
    sigma: float | Sequence[float],
    normalised: bool,
    target: str = "gaussian",
    unit: str = "mm",
) -> LandmarkTargets:
    """Heatmaps of a batch's landmarks, of `sigma` mm whatever the spacing (or `sigma` voxels).

    Args:
        unit: of sigma, `mm` or `voxel`.
        normalised: make each map a distribution over the voxels (for the cross entropy over space).
        target: `gaussian` at the sub-voxel position, or the original's binary `disc`.

    Raises:
        DataError: the batch has no landmarks or another number of them.
    """
    if batch.landmarks is None:
        raise DataError(f"{batch.names[0]}: no landmarks; expected {num_landmarks} points to train on")
    if batch.landmarks.shape[1] != num_landmarks:
        raise DataError(f"{batch.names[0]}: {batch.landmarks.shape[1]} landmarks, but the model has {num_landmarks}")
    shape = batch.image.shape[2:]
    present = within(batch.landmarks, shape)
    points = torch.where(present[..., None], batch.landmarks, torch.nan)
    scale = in_unit(batch.spacing, unit)
    if target == "disc":
        heatmaps = disc_heatmaps(points, shape, sigma=sigma, spacing=scale)
        if normalised:
            heatmaps = heatmaps / heatmaps.sum(dim=list(range(2, heatmaps.ndim)), keepdim=True).clamp(min=1.0)
    else:
        heatmaps = gaussian_heatmaps(points, shape, sigma=sigma, spacing=scale, normalised=normalised)
    return LandmarkTargets(heatmaps, points, present, batch.spacing)


def in_unit(spacing: Tensor, unit: str) -> Tensor:
    """The length of a voxel in `unit`, `(B, ndim)`: its mm, or 1."""
    return spacing if unit == "mm" else torch.ones_like(spacing)

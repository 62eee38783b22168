"""What the task answers: a shape in the world, as distances, as a mesh and as voxels of any grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.data.slices.augment import move_space
from voxelry.io import read_image
from voxelry.io.notebook import notebook_view
from voxelry.metrics.slices import contour_error
from voxelry.metrics.surfaces import surface_spread
from voxelry.ops.prompt import Prompt, frame_points, project, sample_plane
from voxelry.ops.sdf import largest_shape, resample_sdf, signed_distance, voxelise_sdf
from voxelry.ops.surface import Mesh, extract_surface

__all__ = ["ReconstructPrediction", "cut_iou", "meet_contours", "plane_distances"]


@dataclass
class ReconstructPrediction:
    """An organ reconstructed from slices.

    Attributes:
        name: of the case.
        label: the organ's value in label volumes.
        sdf: `(n, n, n)` float32 mm, negative inside, on `frame`; one connected part.
        frame: the canonical cube, its axes along the volume's own.
        space: the volume's grid; of rank 2 where there was only a slice.
        clicks: `(S, 3)` world mm.
        planes: grids of the slices as they were given.
        views: grids of rank 2 on which the network saw them.
        probability: `(S, H, W)`, the predicted masks on `views`.
        given: `(S, H, W)` bool on `views` where masks were given, else None.
        hypotheses: shapes on `frame` that `sdf` is the mean of, one for each look; empty after a single one.
        pose: `scale`, `rotation` and `translation` into a scene, of a network that says them; see
            `models.sam3d.pose`.
    """

    name: str
    label: int
    sdf: NDArray[np.float32]
    frame: Space
    space: Space
    clicks: NDArray[np.float64]
    planes: tuple[Space, ...]
    views: tuple[Space, ...]
    probability: NDArray[np.float32]
    given: NDArray[np.bool_] | None = None
    hypotheses: tuple[NDArray[np.float32], ...] = field(default=())
    pose: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @cached_property
    def mesh(self) -> Mesh:
        """The closed surface, world mm, faces outwards; with hypotheses `spread_mm` at each vertex."""
        mesh = extract_surface(self.sdf, self.frame)
        if mesh.is_empty or not self.hypotheses:
            return mesh
        others = [extract_surface(other, self.frame) for other in self.hypotheses]
        return mesh.with_values(spread_mm=surface_spread(mesh, others))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found."""
        return not bool((self.sdf < 0).any())

    @property
    def volume_ml(self) -> float:
        """Enclosed volume."""
        return self.mesh.volume_ml

    def moved(self, motion: NDArray[np.float64], space: Space) -> Self:
        """The same shape after an affine motion `(4, 4)` of the world, in a volume whose grid is `space` then.

        Surfaces move exactly; distances are in mm again afterwards, to first order where the motion is no similarity.
        """
        frame = move_space(self.frame, motion)
        sdf, *others = (_in_millimetres(one, self.frame, frame) for one in (self.sdf, *self.hypotheses))
        return replace(
            self,
            sdf=sdf,
            hypotheses=tuple(others),
            frame=frame,
            space=space,
            clicks=self.clicks @ motion[:3, :3].T + motion[:3, 3],
            planes=tuple(move_space(one, motion) for one in self.planes),
            views=tuple(move_space(one, motion) for one in self.views),
        )

    def show(self, image: str | PathLike[str] | None = None) -> Any:
        """The mesh in a notebook, over an image, such as the one that was clicked in, or without one over its voxels.

        Raises:
            FileError: the image can't be read.
            MissingDependencyError: ipyniivue isn't installed.
        """
        mesh = None if self.is_empty else self.mesh
        if image is None:
            return notebook_view(self.mask()[None], self.space, mesh=mesh)
        under = read_image(as_path(image))
        return notebook_view(under.array, under.space, mesh=mesh)

    def distances(self, space: Space) -> NDArray[np.float32]:
        """Signed distances in mm on any grid, a volume or a plane; beyond the frame they are the truncation."""
        return resample_sdf(self.sdf, self.frame, space)

    def mask(self, space: Space | None = None) -> NDArray[np.bool_]:
        """The voxels of a grid, by default the volume's, whose centres are inside."""
        return voxelise_sdf(self.sdf, self.frame, self.space if space is None else space)

    @property
    def on_slice_mm(self) -> float:
        """Mean distance between the outline of each slice's mask, given or predicted, and that of the shape's cut."""
        errors = []
        for place, view in enumerate(self.views):
            inside = self.probability[place] >= 0.5 if self.given is None else self.given[place]
            outline = signed_distance(inside, view.spacing)
            wanted = np.ones(view.shape, dtype=np.float32) if outline is None else outline
            errors.append(contour_error(self.distances(view), wanted, view))
        return float(np.mean(errors))


def _in_millimetres(sdf: NDArray[np.float32], before: Space, after: Space) -> NDArray[np.float32]:
    """Distances on a grid that was moved: divided by how much steeper or flatter they have become there."""
    stretch = after.affine[:3, :3] @ np.linalg.inv(before.affine[:3, :3])
    scale = float(np.cbrt(abs(np.linalg.det(stretch))))
    if np.allclose(stretch.T @ stretch, scale**2 * np.eye(3), atol=1e-9 * scale**2):
        return sdf if np.isclose(scale, 1, atol=1e-9) else sdf * np.float32(scale)
    slopes = np.stack([np.gradient(sdf.astype(np.float64), axis=axis) for axis in range(sdf.ndim)], axis=-1)
    old, new = (np.linalg.norm(slopes @ np.linalg.inv(grid.affine[:3, :3]), axis=-1) for grid in (before, after))
    return (sdf * np.where(new > 1e-6, old / np.maximum(new, 1e-6), scale)).astype(np.float32)


def one_part(sdf: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest connected part of a shape; an organ has no crumbs."""
    return largest_shape(sdf)


def plane_distances(masks: Tensor, views: Sequence[Space], truncation: float) -> Tensor:
    """Signed distances within slices, `(S, H, W)` bool to float32 mm; NaN where a mask is empty."""
    found = []
    for mask, view in zip(masks.cpu().numpy(), views, strict=True):
        near = signed_distance(mask, view.spacing, truncation=truncation)
        found.append(np.full(mask.shape, np.nan, dtype=np.float32) if near is None else near)
    return torch.from_numpy(np.stack(found))


def cuts(sdf: Tensor, prompt: Prompt) -> Tensor:
    """Distances of shapes `(B, 1, n, n, n)` at the pixels of their slices, `(B, S, H, W)`."""
    places = 2 * prompt.pointmap.movedim(2, -1)
    return torch.nn.functional.grid_sample(sdf, places, padding_mode="border", align_corners=False)[:, 0]


def cut_iou(sdf: Tensor, prompt: Prompt, masks: Tensor) -> Tensor:
    """Intersection over union of shapes' cuts and masks `(B, S, H, W)` bool in the slices, `(B, S)`; 0 of nothing."""
    inside = (cuts(sdf, prompt) < 0) & (prompt.validity > 0)
    both, either = ((one.flatten(2).sum(dim=-1)) for one in (inside & masks, inside | masks))
    return both / either.clamp(min=1)


def meet_contours(sdf: Tensor, prompt: Prompt, edge: Tensor, wanted: Tensor, *, reach: float, most: float) -> Tensor:
    """Bend shapes so that their cuts are the slices' masks: what a cut is off is taken off, less and less with height.

    A cell at a height `h` over a slice changes by `exp(-(h / reach)²)` times the difference at its foot. Of several
    slices the changes are averaged by these weights where they sum up to more than one.

    Args:
        sdf: `(B, 1, n, n, n)` mm.
        prompt: the slices.
        edge: `(B,)` mm.
        wanted: `(B, S, H, W)`, signed distances within the slices in mm; NaN for slices that tell nothing.
        reach: mm.
        most: mm beyond which distances aren't told apart.

    Returns:
        `(B, 1, n, n, n)` mm.
    """
    cut = cuts(sdf, prompt)
    known = wanted.isfinite() & (prompt.validity > 0)
    difference = torch.where(known, wanted.clamp(-most, most) - cut.clamp(-most, most), 0.0)
    cells = frame_points(sdf.shape[-1], sdf).flatten(0, 2)
    index, away = project(cells, prompt.plane.flatten(0, 1))
    maps = torch.stack((difference, known.to(sdf)), dim=2).flatten(0, 1)
    change, seen = sample_plane(maps, index, difference.shape[2:]).unbind(dim=1)
    count = difference.shape[1]
    height = away.norm(dim=-1).unflatten(0, (-1, count)) * edge[:, None, None]
    weight = torch.exp(-(height / reach).square()) * prompt.slice_valid[..., None]
    weight = weight * (seen.unflatten(0, (-1, count)) > 0)
    moved = (weight * change.unflatten(0, (-1, count))).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    return sdf + moved.view_as(sdf)

"""What a reconstruction has to beat: shapes put at the prompt without looking at the image.

- The class's mean shape, at its usual size, with its centroid at the frame's centre: all that a click tells.
- An ellipsoid from the slice's true mask: its moments in the plane, the geometric mean of the two axes across it.
- The nearest training shape: of the kept shapes and their cuts parallel to the slice, that whose outline, with the
  centroids on each other, overlaps the slice's true mask most.

The last two are told the true mask also where the network isn't.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from voxelry.core.space import Space
from voxelry.data.slices.case import SliceBatch, SliceCase
from voxelry.data.slices.cut import plane_normal
from voxelry.data.slices.pointmaps import pointmap
from voxelry.ops.sdf import canonical_space, decode_int8, encode_int8, resample_sdf, voxelise_sdf
from voxelry.tasks.base import Row

__all__ = ["BASELINE_METRICS", "Baselines", "dice_of", "ellipsoid", "nearest_shape"]

BASELINE_METRICS = ("mean_shape_dice", "ellipsoid_dice", "nearest_shape_dice")

GRID = 32
TRUNCATION = 8.0  # mm, of the kept shapes
_CUTS = 24  # per shape


class Baselines(nn.Module):
    """Training shapes, kept as int8 distances with a bundle.

    Args:
        count: the most that are kept.
    """

    shapes: Tensor
    kept_edges: Tensor
    kept_labels: Tensor

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("shapes", torch.zeros(count, GRID, GRID, GRID, dtype=torch.int8))
        self.register_buffer("kept_edges", torch.zeros(count))
        self.register_buffer("kept_labels", torch.full((count,), -1))

    def fit(self, cases: Iterable[SliceCase], organs: Sequence[Sequence[int]], edges: Sequence[float]) -> None:
        """Keep the first shapes of each name and organ."""
        usual = {organ[0]: edge for organ, edge in zip(organs, edges, strict=True)}
        known: set[tuple[str, int]] = set()
        for case in cases:
            if len(known) == len(self.shapes):
                return
            label = int(case.label)
            if case.sdf is None or case.centroid is None or (case.name, label) in known:
                continue
            place = len(known)
            known.add((case.name, label))
            edge = 0.6 * usual[label]
            source = canonical_space(case.centre.double().numpy(), float(case.edge), case.sdf.shape[-1])
            target = canonical_space(case.centroid.double().numpy(), edge, GRID)
            near = resample_sdf(case.sdf[0].numpy(), source, target)
            self.shapes[place] = torch.from_numpy(encode_int8(near, TRUNCATION))
            self.kept_edges[place], self.kept_labels[place] = edge, label

    def dice(self, task: Any, batch: SliceBatch, place: int, truth: NDArray[np.bool_]) -> Row:
        """Dice of the baselines for one prompt, by name; the last two need the slice's true mask."""
        space, label = batch.spaces[place], int(batch.label[place])
        organ = [one[0] for one in task.organs].index(label)
        centre = batch.centre[place].double().cpu().numpy()
        mean = task.network.prior.distances[organ, 0].cpu().numpy() * task.edges[organ]
        frame = canonical_space(centre, task.edges[organ], mean.shape[0])
        row: Row = {"mean_shape_dice": dice_of(voxelise_sdf(mean, frame, space), truth)}
        slice = batch.slices[place][0]
        if slice.mask is None or not bool(slice.mask.any()):
            return row
        mask = slice.mask.cpu().numpy()
        row["ellipsoid_dice"] = dice_of(ellipsoid(mask, slice.space, space), truth)
        kept = torch.nonzero(self.kept_labels == label).flatten().cpu()
        if len(kept):
            distances = decode_int8(self.shapes[kept].cpu().numpy(), TRUNCATION)
            found = nearest_shape(distances, self.kept_edges[kept].tolist(), mask, slice.space, space)
            row["nearest_shape_dice"] = dice_of(found, truth)
        return row


def ellipsoid(mask: NDArray[np.bool_], plane: Space, space: Space) -> NDArray[np.bool_]:
    """The voxels of `space` in the ellipsoid that a mask `(H, W)` of a slice suggests.

    In the plane it has the mask's second moments (an ellipse's semi-axis is twice the root of its moment).
    """
    points = np.asarray(plane.to_world(np.argwhere(mask).astype(np.float64)))
    middle = points.mean(axis=0)
    normal = plane_normal(plane)
    pixel = np.asarray(plane.affine[:3, :2])
    covariance = (points - middle).T @ (points - middle) / len(points) + pixel @ pixel.T / 12
    sizes, axes = np.linalg.eigh(covariance)  # the smallest belongs to the normal, where there is no extent
    semi = 2 * np.sqrt(sizes[1:])
    across = float(np.sqrt(semi[0] * semi[1]))
    offset = pointmap(space) - middle
    inside = (offset @ axes[:, 1] / semi[0]) ** 2 + (offset @ axes[:, 2] / semi[1]) ** 2
    found: NDArray[np.bool_] = inside + (offset @ normal / across) ** 2 < 1
    return found


def nearest_shape(
    shapes: NDArray[np.float32], edges: Sequence[float], mask: NDArray[np.bool_], plane: Space, space: Space
) -> NDArray[np.bool_]:
    """The voxels of `space` in the shape, of `shapes`, that has the cut most like a slice's mask.

    Args:
        shapes: `(K, m, m, m)` mm, each around its centroid.
        edges: mm, of their frames.
        mask: `(H, W)` bool on `plane`, not empty.
        plane: the slice.
        space: the grid of the answer.
    """
    points = np.asarray(plane.to_world(np.argwhere(mask).astype(np.float64)))
    middle = points.mean(axis=0)
    normal = plane_normal(plane)
    axes = np.linalg.svd(normal[None])[2][1:]
    reach = 1.3 * float(np.abs((points - middle) @ axes.T).max()) + 2 * max(plane.spacing)
    side = np.linspace(-reach, reach, 32)
    grid = side[:, None, None] * axes[0] + side[None, :, None] * axes[1]  # (32, 32, 3) around a centroid
    at = plane.to_index((grid + middle).reshape(-1, 3))
    index = np.round(at).astype(int)
    within = ((index >= 0) & (index < mask.shape)).all(axis=1)
    wanted = np.zeros(len(index), dtype=bool)
    wanted[within] = mask[tuple(index[within].T)]
    best, chosen, shift = -1.0, 0, np.zeros(3)
    for number, (shape, edge) in enumerate(zip(shapes, edges, strict=True)):
        heights = np.linspace(-edge / 2, edge / 2, _CUTS + 2)[1:-1]
        start = heights[:, None] * normal
        coarse = _read(shape, edge, start[:, None] + grid.reshape(1, -1, 3)) < 0
        weight = coarse.sum(axis=1)
        if not weight.any():
            continue
        centroid = (coarse[..., None] * grid.reshape(1, -1, 3)).sum(axis=1) / np.maximum(weight, 1)[:, None]
        cut = _read(shape, edge, (start + centroid)[:, None] + grid.reshape(1, -1, 3)) < 0
        overlap = 2 * (cut & wanted).sum(axis=1) / np.maximum(cut.sum(axis=1) + wanted.sum(), 1)
        place = int(np.argmax(overlap))
        if overlap[place] > best:
            best, chosen, shift = float(overlap[place]), number, start[place] + centroid[place]
    frame = canonical_space(middle - shift, edges[chosen], shapes.shape[-1])
    return voxelise_sdf(shapes[chosen], frame, space)


def _read(shape: NDArray[np.float32], edge: float, points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Distances at places relative to a shape's centroid, `(..., 3)` mm to `(...)`."""
    places = torch.from_numpy((2 * points / edge).astype(np.float32)).view(1, 1, 1, -1, 3)
    field = torch.from_numpy(shape)[None, None]
    read = F.grid_sample(field, places, padding_mode="border", align_corners=False)
    return read.view(points.shape[:-1]).numpy()


def dice_of(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0

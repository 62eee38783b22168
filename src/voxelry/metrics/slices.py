"""How well a shape agrees with the slices it was made from, and how it fares away from them.

A plane is a `Space` of rank 2 in the world. Where nothing of either shape lies on a plane they agree: overlap 1,
distance 0; where only one does, overlap 0 and the diagonal of the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.sdf import resample_sdf

__all__ = ["DISTANCES_MM", "contour_error", "dice_by_distance", "mask_metrics", "on_slice_metrics"]

Field = NDArray[np.floating]

DISTANCES_MM = (0.0, 5.0, 10.0, 20.0)

_POINTS = 4  # per edge of a contour, an edge being within one pixel


def on_slice_metrics(
    prediction: Field | None, truth: Field | None, space: Space, planes: Sequence[Space]
) -> dict[str, float]:
    """The shapes cut by the planes they were prompted with, means over the planes.

    Args:
        prediction, truth: signed distances `(D, H, W)` in mm on `space`; None for an empty shape.
        space: their grid.
        planes: at least one grid of rank 2.

    Returns:
        `on_slice_iou` in [0, 1] and `on_slice_contour_mm`, see `contour_error`.
    """
    ious, errors = [], []
    for plane in planes:
        cuts = [
            np.ones(plane.shape, dtype=np.float32) if field is None else resample_sdf(field, space, plane)
            for field in (prediction, truth)
        ]
        ious.append(_iou(cuts[0] < 0, cuts[1] < 0))
        errors.append(contour_error(cuts[0], cuts[1], plane))
    return {"on_slice_iou": float(np.mean(ious)), "on_slice_contour_mm": float(np.mean(errors))}


def contour_error(prediction: Field, truth: Field, plane: Space) -> float:
    """Mean distance of two outlines in mm: each point of one to the nearest of the other, mean of both directions.

    Args:
        prediction, truth: `(H, W)` signed distances (or anything that is negative inside and crosses zero at the
            outline); an outline that leaves the plane runs along its edge.
        plane: their grid, of rank 2.
    """
    from scipy.spatial import cKDTree

    for field, name in ((prediction, "prediction"), (truth, "truth")):
        if tuple(field.shape) != plane.shape:
            raise SettingError(f"{name}: expected shape {plane.shape} of its plane, got {tuple(field.shape)}")
    outlines = [_outline(field, plane) for field in (prediction, truth)]
    missing = [not len(outline) for outline in outlines]
    if any(missing):
        return 0.0 if all(missing) else float(np.linalg.norm(plane.extent))
    there, _ = cKDTree(outlines[1]).query(outlines[0])
    back, _ = cKDTree(outlines[0]).query(outlines[1])
    return float(there.mean() + back.mean()) / 2


def mask_metrics(probability: Field, truth: NDArray[np.bool_], *, threshold: float = 0.5) -> dict[str, float]:
    """A predicted mask of a slice against the true one.

    Args:
        probability: `(H, W)` in [0, 1].
        truth: `(H, W)` bool.
        threshold: at and above it a pixel counts as inside.

    Returns:
        `mask_iou` of the thresholded mask and `mask_mse`, the mean squared difference of probability and truth.
    """
    if probability.shape != truth.shape:
        raise SettingError(f"probability: expected shape {truth.shape} like the truth, got {probability.shape}")
    inside = np.asarray(truth, dtype=bool)
    difference = np.asarray(probability, dtype=np.float64) - inside
    return {"mask_iou": _iou(np.asarray(probability) >= threshold, inside), "mask_mse": float((difference**2).mean())}


def dice_by_distance(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    space: Space,
    planes: Sequence[Space],
    *,
    distances: Sequence[float] = DISTANCES_MM,
) -> dict[str, float]:
    """Dice of the voxels at growing distances from the nearest plane.

    Args:
        prediction, truth: `(D, H, W)` masks on `space`.
        space: their grid.
        planes: at least one grid of rank 2; a plane goes on beyond its edges.
        distances: mm, growing; a slab reaches from one to just before the next, the last one to the end.

    Returns:
        `dice_0_5_mm`, `dice_5_10_mm`, ..., `dice_20_mm_on`; NaN for a slab that neither shape reaches, so that
        an average over cases leaves it out.
    """
    index = np.argwhere(prediction | truth)
    places = space.to_world(index.astype(np.float64))
    away = np.full(len(places), np.inf)
    for plane in planes:
        normal = np.cross(plane.affine[:3, 0], plane.affine[:3, 1])
        height = (places - plane.origin) @ (normal / np.linalg.norm(normal))
        away = np.minimum(away, np.abs(height))
    first, second = prediction[tuple(index.T)], truth[tuple(index.T)]
    result = {}
    for name, (low, high) in zip(slab_names(distances), pairwise([*distances, np.inf]), strict=True):
        slab = (away >= low) & (away < high)
        shared = int(np.count_nonzero(first & second & slab))
        total = int(np.count_nonzero(first & slab) + np.count_nonzero(second & slab))
        result[name] = 2 * shared / total if total else float("nan")
    return result


def slab_names(distances: Sequence[float] = DISTANCES_MM) -> list[str]:
    """The names of `dice_by_distance`."""
    return [
        *(f"dice_{low:g}_{high:g}_mm" for low, high in pairwise(distances)),
        f"dice_{distances[-1]:g}_mm_on",
    ]


def _outline(field: Field, plane: Space) -> Field:
    """World points along the zero of a field, `(K, 3)`, several per pixel."""
    from skimage.measure import find_contours

    if not bool((np.asarray(field) < 0).any()):
        return np.zeros((0, 3))
    # beyond the plane the mirror image of what is inside it: an outline that leaves it runs along its edge
    closed = np.abs(np.pad(np.asarray(field, dtype=np.float64), 1, mode="edge"))
    closed[1:-1, 1:-1] = field
    parts = []
    for line in find_contours(closed, 0.0):
        share = np.arange(_POINTS)[:, None, None] / _POINTS
        parts.append((line[:-1] + share * (line[1:] - line[:-1])).reshape(-1, 2) - 1)
    return plane.to_world(np.concatenate(parts))


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0

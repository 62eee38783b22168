"""How far a reconstructed shape is from the true one: filled volumes, surfaces in mm, volumes in ml.

Nothing is aligned or rescaled before. Definitions, with `A` the prediction and `B` the truth:

| name | definition |
|---|---|
| `dice`, `iou` | of the filled masks |
| `hd95_mm` | larger of the two directed 95th percentiles of the distances between border voxel centres (as MONAI) |
| `assd_mm` | mean of those distances, both directions pooled |
| `msd_mm` | mean of those distances from `A` to `B` alone |
| `chamfer_mm` | mean distance (not squared) of points spread over one mesh to the other mesh, mean of both directions |
| `normal_consistency` | mean cosine, without sign, of the normals at those points, mean of both directions |
| `volume_error` | `(V_A - V_B) / V_B` |

A border voxel belongs to the mask and has a face neighbour that doesn't; beyond the grid is background.

Nothing to compare: where both are empty the overlap is 1, distances and errors are 0. Where one is empty the
overlap and the normal consistency are 0, the distances are the diagonal of the grid (nothing in it can be further
away), and `volume_error` is -1 or 1. So a missed organ costs what it should, and means stay finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.metrics.slices import dice_by_distance, on_slice_metrics, slab_names
from voxelry.ops.mask_window import mask_window
from voxelry.ops.sdf import signed_distance
from voxelry.ops.surface import Mesh, distance_to_surface, empty_mesh, extract_surface, sample_surface

__all__ = [
    "METRICS",
    "SURFACE_METRICS",
    "mesh_metrics",
    "reconstruction_metrics",
    "signed_error",
    "surface_distances",
    "surface_spread",
    "voxel_metrics",
]

Floats = NDArray[np.floating]

SURFACE_METRICS = ("chamfer_mm", "normal_consistency")
METRICS = (
    *("dice", "iou", "hd95_mm", "assd_mm", "msd_mm", "volume_ml", "truth_volume_ml", "volume_error_ml", "volume_error"),
    *SURFACE_METRICS,
    *("on_slice_iou", "on_slice_contour_mm", *slab_names()),
)
"""What `reconstruction_metrics` gives, with planes."""

_ROUNDS = 10  # of smoothing


def reconstruction_metrics(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    space: Space,
    *,
    planes: Sequence[Space] = (),
    prediction_mesh: Mesh | None = None,
    truth_mesh: Mesh | None = None,
    surfaces: bool = True,
    **sampling: int,
) -> dict[str, float]:
    """All of the above, and with `planes` how well the prompt slices are met and what happens away from them.

    Args:
        prediction, truth: `(D, H, W)` on `space`: a bool mask, whose surface is smoothed without losing volume,
            or signed distances in mm (negative inside).
        space: the grid they share, usually that of the original labels.
        planes: grids of rank 2, the slices that were given; adds the keys of `on_slice_metrics` and
            `dice_by_distance`.
        prediction_mesh, truth_mesh: surfaces to use instead of those of the arrays, such as one made on a finer
            grid than the labels have.
        surfaces: whether `chamfer_mm` and `normal_consistency` are among them, which take the most time.
        sampling: `samples` and `seed` of `mesh_metrics`.

    Returns:
        plain numbers by name: those of `voxel_metrics` and `mesh_metrics` first.

    Raises:
        SettingError: arrays that don't have the shape of `space`, integer labels instead of a mask.
    """
    fields = [_distances(array, space, name) for array, name in ((prediction, "prediction"), (truth, "truth"))]
    masks = [np.zeros(space.shape, dtype=bool) if field is None else field < 0 for field in fields]
    result = voxel_metrics(masks[0], masks[1], space)
    if surfaces:
        ours = _surface(prediction, fields[0], space) if prediction_mesh is None else prediction_mesh
        theirs = _surface(truth, fields[1], space) if truth_mesh is None else truth_mesh
        result |= mesh_metrics(ours, theirs, penalty=_diagonal(space), **sampling)
    if planes:
        result |= on_slice_metrics(fields[0], fields[1], space, planes)
        result |= dice_by_distance(masks[0], masks[1], space, planes)
    return result


def _surface(array: NDArray[Any], field: Floats | None, space: Space) -> Mesh:
    """The surface of a mask or of distances, empty where there are no distances."""
    # the steps of a mask aren't the organ's: between masks of spheres 5 mm apart they cost 0.2 mm
    rounds = _ROUNDS if np.asarray(array).dtype == np.bool_ else 0
    return empty_mesh() if field is None else extract_surface(field, space, smooth=rounds)


def voxel_metrics(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], space: Space) -> dict[str, float]:
    """What two masks `(D, H, W)` on one grid have in common.

    Returns:
        `dice`, `iou`, `hd95_mm`, `assd_mm`, `msd_mm`, `volume_ml`, `truth_volume_ml`, `volume_error_ml`,
        `volume_error`.

    Raises:
        SettingError: masks that aren't bool or don't have the shape of `space`.
    """
    prediction, truth = _mask(prediction, space, "prediction"), _mask(truth, space, "truth")
    predicted, true = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    shared = int(np.count_nonzero(prediction & truth))
    there, back = surface_distances(prediction, truth, space)
    voxel_ml = abs(float(np.linalg.det(space.affine[:3, : space.ndim]))) / 1000
    return {
        "dice": 2 * shared / (predicted + true) if predicted + true else 1.0,
        "iou": shared / (predicted + true - shared) if predicted + true else 1.0,
        "hd95_mm": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd_mm": float(np.concatenate([there, back]).mean()),
        "msd_mm": float(there.mean()),
        "volume_ml": predicted * voxel_ml,
        "truth_volume_ml": true * voxel_ml,
        "volume_error_ml": (predicted - true) * voxel_ml,
        "volume_error": (predicted - true) / true if true else float(predicted > 0),
    }


def mesh_metrics(
    prediction: Mesh, truth: Mesh, *, penalty: float, samples: int = 5000, seed: int = 0
) -> dict[str, float]:
    """Chamfer distance and normal consistency of two surfaces.

    Args:
        prediction, truth: meshes in world mm.
        penalty: mm that count as their distance where one of them is empty.
        samples: points on each.
        seed: of those points.

    Returns:
        `chamfer_mm` and `normal_consistency` in [0, 1].
    """
    if prediction.is_empty or truth.is_empty:
        both = prediction.is_empty and truth.is_empty
        return {"chamfer_mm": 0.0 if both else float(penalty), "normal_consistency": float(both)}
    distances, cosines = [], []
    for source, target in ((prediction, truth), (truth, prediction)):
        points, normals = sample_surface(source, samples, np.random.default_rng(seed))
        distance, faces = distance_to_surface(points, target)
        distances.append(float(distance.mean()))
        cosines.append(float(np.abs(np.einsum("na,na->n", normals, target.face_normals[faces])).mean()))
    return {"chamfer_mm": sum(distances) / 2, "normal_consistency": sum(cosines) / 2}


def surface_distances(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], space: Space) -> tuple[Floats, Floats]:
    """Distances in mm of each border voxel of one mask to the nearest of the other, both ways.

    Measured in the world, so anisotropic, oblique and sheared grids are all the same. Where both masks are empty
    there is one distance of 0 each way, where one is, one distance of the grid's diagonal.
    """
    from scipy.spatial import cKDTree

    borders = [_border(mask, space) for mask in (prediction, truth)]
    missing = [not len(border) for border in borders]
    if any(missing):
        only = np.array([0.0 if all(missing) else _diagonal(space)])
        return only, only.copy()
    there, _ = cKDTree(borders[1]).query(borders[0])
    back, _ = cKDTree(borders[0]).query(borders[1])
    return there, back


def signed_error(mesh: Mesh, truth: Mesh) -> Floats:
    """How far each vertex of a mesh lies outside the true surface, `(V,)` mm; inside is negative.

    Raises:
        SettingError: an empty truth.
    """
    distance, faces = distance_to_surface(mesh.vertices, truth)
    outwards = mesh.vertices - truth.vertices[truth.faces[faces]].mean(axis=1)
    return np.where(np.einsum("na,na->n", outwards, truth.face_normals[faces]) < 0, -distance, distance)


def surface_spread(mesh: Mesh, hypotheses: Sequence[Mesh]) -> Floats:
    """How far the surfaces of other hypotheses are from each vertex, `(V,)` mm: root of the mean square.

    Empty hypotheses have no surface and aren't counted; without any the spread is 0.
    """
    distances = [distance_to_surface(mesh.vertices, other)[0] for other in hypotheses if not other.is_empty]
    return np.sqrt(np.mean(np.square(distances), axis=0)) if distances else np.zeros(len(mesh.vertices))


def _border(mask: NDArray[np.bool_], space: Space) -> Floats:
    """World places of the border voxels, `(K, 3)`."""
    from scipy.ndimage import binary_erosion

    window = mask_window(mask)
    if window is None:
        return np.zeros((0, 3))
    part = np.pad(mask[window], 1)
    index = np.argwhere(part & ~binary_erosion(part)) - 1 + [side.start for side in window]
    return space.to_world(index.astype(np.float64))


def _distances(array: NDArray[Any], space: Space, name: str) -> NDArray[np.floating] | None:
    """The shape as signed distances, None where it is empty."""
    array = np.asarray(array)
    if array.dtype.kind == "f":
        if array.shape != space.shape:
            raise SettingError(f"{name}: expected shape {space.shape} of its grid, got {array.shape}")
        return array if bool((array < 0).any()) else None
    # the surface is all that is wanted of a mask
    return signed_distance(_mask(array, space, name), space.spacing, truncation=4 * max(space.spacing))


def _mask(array: NDArray[Any], space: Space, name: str) -> NDArray[np.bool_]:
    array = np.asarray(array)
    if array.dtype != np.bool_:
        raise SettingError(f"{name}: expected a bool mask or signed distances (float), got {array.dtype}")
    if array.shape != space.shape:
        raise SettingError(f"{name}: expected shape {space.shape} of its grid, got {array.shape}")
    return array


def _diagonal(space: Space) -> float:
    return float(np.linalg.norm(space.extent))

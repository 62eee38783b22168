"""The points of a case, whatever layout they are kept in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import DataError, FileError
from voxelry.core.space import Space
from voxelry.data.layouts.case import Case
from voxelry.io.points.landmark_set import numbered
from voxelry.io.points.landmarks import read_landmarks
from voxelry.io.points.pixels import CEPHALOMETRIC_NAMES, observer_points, pixel_row, pixel_table

__all__ = ["read_case_landmarks"]


def read_case_landmarks(case: Case, space: Space) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Points of a case in index coordinates of its image's grid.

    Args:
        case: with at least one file in `landmarks`.
        space: the grid of `case.image`.

    Returns:
        `(N, ndim)` in array order, NaN for an absent point, and one name per point.

    Raises:
        FileError: a file of points can't be read, or two of them have one name.
        DataError: no points for this case, or observers who disagree on their number.
    """
    if not case.landmarks:
        raise DataError(f"{case.image}: no landmarks for this image")
    if case.layout == "hand":
        points = pixel_row(pixel_table(case.landmarks[0]), case.name)
        if points is None:
            raise DataError(f"{case.landmarks[0]}: no row {case.name}, which {case.image} needs")
        return points, numbered(len(points))
    if case.layout == "cephalometric":
        points = observer_points(case.landmarks)
        known = len(points) == len(CEPHALOMETRIC_NAMES)
        return points, CEPHALOMETRIC_NAMES if known else numbered(len(points))
    sets = [read_landmarks(path, space=space, **case.point_options) for path in case.landmarks]
    for path, points_of in zip(case.landmarks, sets, strict=True):
        names = points_of.names
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            raise FileError(path, f"two landmarks are called {twice!r}; expected a name for each")
        if names != sets[0].names:
            raise DataError(f"{path}: other landmarks than in {case.landmarks[0]}; expected {', '.join(sets[0].names)}")
    return np.mean([points_of.index(space) for points_of in sets], axis=0), sets[0].names

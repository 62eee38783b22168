"""Single attributes of DICOM headers, wherever a kind of object keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom

from voxelry.core.errors import FileError

__all__ = ["directions", "first_value", "functional", "point"]


def functional(header: pydicom.Dataset, sequence: str, key: str, frame: int = 0) -> Any:
    """An attribute of one frame: in its own functional groups, else the shared ones, else the image's.

    DICOM PS3.3, C.7.6.16. None where it is nowhere, or empty.

    Args:
        header: header of the file.
        sequence: the functional group that holds the attribute, such as `PixelMeasuresSequence`.
        key: the attribute, such as `PixelSpacing`.
        frame: which frame, from 0.
    """
    own = getattr(header, "PerFrameFunctionalGroupsSequence", None) or ()
    shared = getattr(header, "SharedFunctionalGroupsSequence", None) or ()
    for group in (*(own[frame : frame + 1] if frame < len(own) else ()), *shared):
        for item in getattr(group, sequence, None) or ():
            value = getattr(item, key, None)
            if value is not None and value != "":
                return value
    value = getattr(header, key, None)
    return None if value == "" else value


def first_value(*values: Any) -> Any:
    """The first that isn't None and isn't empty."""
    return next((value for value in values if value is not None and value != "" and value != []), None)


def directions(header: pydicom.Dataset, rotation: Sequence[float]) -> np.ndarray:
    """ImageOrientationPatient as two unit vectors `(2, 3)`: along a row, along a column; its digits may be few.

    Raises:
        FileError: they aren't two orthogonal unit vectors.
    """
    vectors = np.asarray(rotation, dtype=np.float64)
    if vectors.size == 6 and np.isfinite(vectors).all():
        vectors = vectors.reshape(2, 3)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if np.allclose(lengths, 1.0, atol=1e-2) and abs(vectors[0] @ vectors[1]) <= 1e-2:
            return vectors / lengths
    raise FileError(
        header.filename, f"ImageOrientationPatient isn't two orthogonal unit vectors: {vectors.ravel().tolist()}"
    )


def point(header: pydicom.Dataset, position: Sequence[float]) -> np.ndarray:
    """ImagePositionPatient, `(3,)` LPS mm.

    Raises:
        FileError: it isn't three numbers.
    """
    place = np.asarray(position, dtype=np.float64)
    if place.shape != (3,) or not np.isfinite(place).all():
        raise FileError(header.filename, f"expected three numbers in ImagePositionPatient, got {place.tolist()}")
    return place

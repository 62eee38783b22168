"""Arrays that are packed as netCDF does it: value = stored * scale_factor + add_offset, and a number for nothing.

CF conventions 1.11, 8.1 (packed data) and 2.5.1 (missing data, whose numbers are stored ones); `_Unsigned` is that of
the netCDF users' guide. Of whole numbers that are only marked as missing in places, labels take the stored ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import FileError
from voxelry.io.images.record import ImageFile, Loader

__all__ = ["unpacked"]

_MISSING = ("_FillValue", "missing_value")


def unpacked(image: ImageFile, attributes: Mapping[str, Any]) -> ImageFile:
    """The image with the values that are meant, NaN where there is none; as it is where it isn't packed.

    Args:
        image: as it is stored.
        attributes: those of the array.

    Raises:
        FileError: a factor, an offset or a missing value that isn't a number.
    """
    kind = image.dtype
    if kind.kind == "i" and _word(attributes.get("_Unsigned")) == "true":
        kind = np.dtype(f"u{kind.itemsize}")
    scale, offset = (_number(image.path, attributes, name) for name in ("scale_factor", "add_offset"))
    missing = [value for name in _MISSING if (value := _number(image.path, attributes, name)) is not None]
    if kind != image.dtype:
        image = dataclasses.replace(image, dtype=kind, order=None, loader=partial(_as_unsigned, image.loader, kind))
        missing = [value % 2 ** (8 * kind.itemsize) for value in missing]
    missing = [value for value in missing if not np.isnan(value)]
    scaled = (1.0 if scale is None else scale, offset or 0.0)
    if scaled == (1.0, 0.0) and not missing:
        return image
    dtype = np.dtype(np.float64 if kind.itemsize > 4 or (kind.kind in "iu" and kind.itemsize > 2) else np.float32)
    values = partial(_load, image.loader, *scaled, tuple(missing), dtype)
    whole = kind.kind in "iu" and scaled == (1.0, 0.0)
    return dataclasses.replace(image, dtype=dtype, order=None, loader=values, indices=image if whole else None)


def _number(path: Path, attributes: Mapping[str, Any], name: str) -> float | None:
    value = attributes.get(name)
    if value is None:
        return None
    try:
        number = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        number = np.array([])
    if (
        number.size != 1
        or (name not in _MISSING and not np.isfinite(number).all())
        or (name == "scale_factor" and not number.any())
    ):
        shown = " ".join(str(value).split())[:40]
        raise FileError(
            path, f"its attribute {name} is {shown}, expected a number", "save its values as they are meant"
        )
    return float(number.ravel()[0])


def _word(value: Any) -> str:
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).lower()


def _as_unsigned(load: Loader, dtype: np.dtype, window: tuple[slice, ...]) -> NDArray[Any]:
    return load(window).astype(dtype)


def _load(
    load: Loader, scale: float, offset: float, missing: tuple[float, ...], dtype: np.dtype, window: tuple[slice, ...]
) -> NDArray[Any]:
    stored = load(window)
    values = stored.astype(np.float64) * scale + offset
    values[np.isin(stored, np.asarray(missing).astype(stored.dtype))] = np.nan
    return values.astype(dtype)

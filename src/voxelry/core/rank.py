"""Scalars to per-axis tuples, and the ranks that are supported.

Whatever may differ per axis (kernels, strides, sizes, spacings) is given as one number or as one per
spatial axis in array order, and is expanded here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from voxelry.core.errors import SettingError

__all__ = ["RANKS", "check_ndim", "per_axis"]

RANKS = (2, 3)

Number = TypeVar("Number", int, float)


def check_ndim(ndim: int) -> int:
    """Return `ndim` if it is 2 or 3.

    Raises:
        SettingError: any other rank.
    """
    if ndim not in RANKS:
        raise SettingError(f"ndim: expected 2 or 3, got {ndim!r}")
    return ndim


def per_axis(value: Number | Sequence[Number], ndim: int, name: str = "value") -> tuple[Number, ...]:
    """Expand one number to `ndim` of them; a sequence must already have `ndim`.

    Raises:
        SettingError: a sequence of another length; the message names the setting.
    """
    if isinstance(value, (str, bytes)):
        raise SettingError(f"{name}: expected a number or {ndim} numbers, got {value!r}")
    given: Any = value  # numpy's numbers are scalars too
    if not hasattr(given, "__len__"):
        return (given,) * ndim
    values = tuple(given)
    if len(values) != ndim:
        raise SettingError(f"{name}: expected 1 or {ndim} values (one per spatial axis), got {len(values)}: {values}")
    return values

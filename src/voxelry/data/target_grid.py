"""The grid that a target has beside its condition's: thin slices beside thick ones.

A network that learned pairs on two grids is asked about the coarse one alone. What the pairs have in common says how
fine the answer is to be: how many target voxels there are to one of the condition along each axis of the patient, or
else the target's spacing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from voxelry.core.errors import SettingError
from voxelry.core.orientation import orientation_steps
from voxelry.core.space import Space

__all__ = ["TargetGrid"]

_ALIKE = 0.05  # slices of one protocol aren't equally far apart to the last digit


@dataclass(frozen=True)
class TargetGrid:
    """How a target's grid follows from its condition's, per axis in canonical order.

    Args:
        ratio: target voxels to one of the condition; None where `spacing` counts.
        spacing: mm of the target; of no meaning where there is a ratio.

    Raises:
        SettingError: other lengths, or numbers that aren't positive.
    """

    ratio: tuple[float | None, ...]
    spacing: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", tuple(None if one is None else float(one) for one in self.ratio))
        object.__setattr__(self, "spacing", tuple(float(one) for one in self.spacing))
        numbers = [*(one for one in self.ratio if one is not None), *self.spacing]
        if len(self.ratio) != len(self.spacing) or not all(number > 0 for number in numbers):
            raise SettingError(
                f"target_grid: expected positive numbers, one per axis, got {self.ratio}, {self.spacing}"
            )

    @classmethod
    def between(cls, pairs: Iterable[tuple[Space, Space]]) -> Self | None:
        """What pairs of a condition's grid and its target's have in common; None where they are equally fine.

        Raises:
            SettingError: no pair.
        """
        found = [(_canonical(one), _canonical(other)) for one, other in pairs]
        if not found:
            raise SettingError("target_grid: expected at least one pair of grids")
        fine = np.array([target.spacing for _, target in found])
        ratios = np.array([given.spacing for given, _ in found]) / fine
        middle = np.median(ratios, axis=0)
        alike = np.all(np.abs(ratios / middle - 1) <= _ALIKE, axis=0)
        if np.all(np.abs(ratios - 1) <= _ALIKE):
            return None
        ratio = tuple(float(one) if known else None for one, known in zip(middle, alike, strict=True))
        return cls(ratio, tuple(np.median(fine, axis=0).tolist()))

    def of(self, space: Space) -> Space:
        """The target's grid for a condition's: the same field of view in other voxels."""
        axes, _ = orientation_steps(space)
        shape = list(space.shape)
        for axis, ratio, spacing in zip(axes, self.ratio, self.spacing, strict=True):
            wanted = space.shape[axis] * ratio if ratio is not None else space.extent[axis] / spacing
            shape[axis] = max(1, round(wanted))
        return space if tuple(shape) == space.shape else space.resize(shape)

    def settings(self) -> dict[str, Sequence[Any]]:
        """Plain values; `TargetGrid(**settings)` is the same again."""
        return {"ratio": list(self.ratio), "spacing": list(self.spacing)}


def _canonical(space: Space) -> Space:
    return space.reorder(*orientation_steps(space))

"""The augmentation of a sample: one random movement, then random intensities."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

import numpy as np

from voxelry.core.errors import SettingError
from voxelry.core.settings import plain
from voxelry.data.augment.intensity import IntensityAugment
from voxelry.data.augment.spatial import SpatialAugment
from voxelry.data.sample import Sample

__all__ = ["Augment"]


class Augment:
    """Move a sample and change its intensities, both at random.

    Args:
        settings: any field of `SpatialAugment` and `IntensityAugment` by its name, such as `rotation=15`
            or `noise=0.05`; what is left out keeps its default.

    Raises:
        SettingError: an unknown setting, or a value that one can't take.
    """

    def __init__(self, **settings: Any):
        spatial = {field.name for field in fields(SpatialAugment)}
        intensity = {field.name for field in fields(IntensityAugment)}
        for name in settings:
            if name not in spatial | intensity:
                near = difflib.get_close_matches(name, sorted(spatial | intensity), n=1)
                raise SettingError(
                    f"augment: unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        self.spatial = SpatialAugment(**{name: value for name, value in settings.items() if name in spatial})
        self.intensity = IntensityAugment(**{name: value for name, value in settings.items() if name in intensity})

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """A changed copy of `sample`, on the same grid; all randomness comes from `generator`."""
        return self.intensity(self.spatial(sample, generator), generator)

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values: `Augment(**augment.settings())` does the same."""
        return {
            field.name: plain(getattr(part, field.name))
            for part in (self.spatial, self.intensity)
            for field in fields(part)
        }

    def __repr__(self) -> str:
        return f"Augment({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

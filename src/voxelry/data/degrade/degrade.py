"""Images made worse the way scanners do, to learn from good images what to do with bad ones.

    degrade = Degrade([{"name": "kspace", "axis": "IS", "keep": "1/3"}, {"name": "rician", "sigma": 0.03}])
    bad = degrade(good, space, np.random.default_rng(0))

Steps follow each other as the physics does: what the scanner samples first, its noise after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.settings import plain
from voxelry.core.space import Space
from voxelry.data.degrade.steps import STEPS, Scan, Step
from voxelry.data.sample import Sample

__all__ = ["Degrade"]


class Degrade:
    """A chain of degradations.

    Args:
        steps: mappings, `name` one of `voxelry.data.degrade.steps.STEPS` and the rest its settings.

    Raises:
        SettingError: no steps, an unknown name or setting, or a value that one can't take; one line naming it.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]]):
        if isinstance(steps, (str, Mapping)) or not steps:
            raise SettingError(f"steps: expected a list of degradations, got {steps!r}")
        self._settings = [dict(plain(step)) for step in steps]
        self.steps = [_step(settings) for settings in self._settings]

    def settings(self) -> dict[str, Any]:
        """Plain values that can go to JSON; `Degrade(**settings)` does the same again."""
        return {"steps": plain(self._settings)}

    def __call__(
        self, image: Tensor, space: Space, generator: np.random.Generator, *, levels: Tensor | None = None
    ) -> Tensor:
        """The image as a worse scanner would have seen it.

        Args:
            image: `(C, *spatial)` float32, values about 0 to 1.
            space: its grid.
            generator: of all that is drawn; the same one gives the same image.
            levels: `(C, 2)`, the physical values of 0 and 1 (`Sample.levels`); None: the values are physical.

        Returns:
            `(C, *spatial)` float32; noise may lead beyond 0 and 1.

        Raises:
            SettingError: a step that needs an axis the image doesn't have.
        """
        return self._run(image, space, generator, levels).image

    def apply(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """The sample with its image degraded from its target, and `present` as channels were taken away.

        Raises:
            SettingError: it has no target, or a step needs an axis that it doesn't have.
        """
        target = sample.target
        if target is None:
            raise SettingError(f"{sample.source or sample.name}: expected a target to degrade")
        levels = None if sample.levels is None else sample.levels[-len(target) :]
        scan = self._run(target, sample.space, generator, levels)
        return sample.replace(
            image=scan.image,
            present=scan.present,
            levels=None if levels is None else torch.cat([levels, levels]),
        )

    def _run(self, image: Tensor, space: Space, generator: np.random.Generator, levels: Tensor | None) -> Scan:
        if levels is None:
            levels = torch.tensor([[0.0, 1.0]]).expand(len(image), 2)
        scan = Scan(image, space, generator, levels, torch.ones(len(image), dtype=torch.bool))
        for step in self.steps:
            scan = step(scan)
        return scan

    def __repr__(self) -> str:
        return f"Degrade({self._settings!r})"


def _step(settings: Mapping[str, Any]) -> Step:
    rest = dict(settings)
    name = str(rest.pop("name", None))
    known = {field.name for field in fields(STEPS[name])}
    for setting in rest:
        if setting not in known:
            raise SettingError(f"{name}: unknown setting {setting!r}; expected {', '.join(sorted(known))}")
    try:
        step: Step = STEPS[name](**rest)
    except TypeError as error:
        missing = str(error).rpartition(": ")[2]
        raise SettingError(f"{name}: expected the setting {missing}") from None
    return step

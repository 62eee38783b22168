"""Where slices and true shapes come from: volumes, cut as they are needed, or a folder that `prepare` wrote."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import DataError
from voxelry.data.dataset import VolumeDataset
from voxelry.data.demands import no_foreground
from voxelry.data.sample import Sample
from voxelry.data.segment_names import segment_names
from voxelry.data.slices.augment import move_space
from voxelry.data.slices.choice import Choice, Cut, Draw, choose_cuts
from voxelry.data.slices.cut import SliceSample
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.upright import upright
from voxelry.data.units import Unit

__all__ = ["SliceSource", "VolumeSlices"]


class SliceSource(Protocol):
    """What `SliceDataset` draws from. An organ is a tuple of label values that count as one.

    Slices and shapes of a case lie in the world as `upright` turns it for its volume.
    """

    @property
    def names(self) -> list[str]:
        """Of the cases."""

    def organs_of(self, case: int, organs: Sequence[tuple[int, ...]]) -> list[int]:
        """Places in `organs` of those that a case has, at least one."""

    def has(self, case: int, organ: tuple[int, ...]) -> bool:
        """Whether a case has an organ."""

    def organ_name(self, organ: tuple[int, ...]) -> str:
        """What an organ is called, its label values where nobody named it."""

    def listed(self, case: int, organ: tuple[int, ...], choice: Choice) -> list[Cut | str]:
        """The slices that there are, where they aren't drawn at random."""

    def slices(self, draw: Draw, generator: np.random.Generator) -> list[SliceSample]:
        """Slices without clicks; `draw.first` is one of `listed`."""

    def shape(self, case: int, organ: tuple[int, ...], truncation: float) -> OrganShape:
        """The true shape."""

    def truth(self, case: int, organ: tuple[int, ...]) -> Tensor:
        """`(D, H, W)` bool on the grid of the volume."""

    def units(self) -> list[Unit]:
        """The cases and their files, whatever the numbers of the samples."""


class VolumeSlices:
    """Slices cut from volumes with labels when they are asked for.

    Args:
        volumes: cases with labels; its preprocessing makes the intensities and the grid. Give it a cache.
        remember: how many distance maps are kept in memory; by default those of all cases where the volumes are
            kept there too, else eight.
    """

    def __init__(self, volumes: VolumeDataset, *, remember: int | None = None):
        for case in volumes.cases:
            if case.labels is None:
                raise DataError(f"{case.image}: no labels for this image, which the true shape is made from")
        self.volumes = volumes
        self._kept: OrderedDict[tuple[int, tuple[int, ...], float], OrganShape] = OrderedDict()
        self._present: dict[int, set[int]] = {}
        self._class_names: dict[int, str] | None = None
        in_memory = volumes.in_memory
        self._remember = remember if remember is not None else 4 * len(volumes) if in_memory else 8

    @property
    def names(self) -> list[str]:
        """Of the cases."""
        return [case.name for case in self.volumes.cases]

    def organs_of(self, case: int, organs: Sequence[tuple[int, ...]]) -> list[int]:
        """Places in `organs` of those that a case has.

        Raises:
            DataError: none.
        """
        found = [place for place, organ in enumerate(organs) if self.has(case, organ)]
        if not found:
            fault = no_foreground(("+".join(map(str, organ)) for organ in organs), self._present[case])
            raise DataError(f"{self.volumes.cases[case].labels}: {fault}")
        return found

    def has(self, case: int, organ: tuple[int, ...]) -> bool:
        """Whether any voxel of a case has one of the organ's labels."""
        if case not in self._present:
            self._present[case] = set(torch.unique(self._labels(case)).tolist())
        return bool(self._present[case] & set(organ))

    def units(self) -> list[Unit]:
        """Those of the volumes."""
        return self.volumes.units()

    def organ_name(self, organ: tuple[int, ...]) -> str:
        """What the folder or its files of segments call it, its label values where they don't."""
        if self._class_names is None:
            self._class_names = {} if self.volumes.reads_own() else segment_names(self.volumes.cases)
        return "+".join(self._class_names.get(label, str(label)) for label in organ)

    def listed(self, case: int, organ: tuple[int, ...], choice: Choice) -> list[Cut | str]:
        """Every cut of the choice's method."""
        sample = self._sample(case)
        return [*self._cuts(sample, organ, choice, choice.count, np.random.default_rng(0))]

    def slices(self, draw: Draw, generator: np.random.Generator) -> list[SliceSample]:
        """See `SliceSource`."""
        sample = self._sample(draw.case)
        cuts = [draw.first] if isinstance(draw.first, Cut) else []
        choice = replace(draw.choice, method="oblique" if draw.choice.method == "oblique" else "random_axis")
        if draw.count > len(cuts):
            cuts += self._cuts(sample, draw.organ, choice, draw.count - len(cuts), generator)
        about = {"label": draw.organ, "name": sample.name, "source": sample.source}
        return [cut.take(sample.image, sample.labels, sample.space, **about) for cut in cuts]

    def shape(self, case: int, organ: tuple[int, ...], truncation: float) -> OrganShape:
        """See `SliceSource`."""
        key = (case, organ, truncation)
        if key not in self._kept:
            sample = self._sample(case)
            shape = OrganShape.of_mask(self._mask(sample, organ), sample.space, truncation)
            if shape is None:
                raise DataError(f"{sample.source}: no foreground of label {'+'.join(map(str, organ))}")
            self._kept[key] = shape
            while len(self._kept) > self._remember:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def truth(self, case: int, organ: tuple[int, ...]) -> Tensor:
        """See `SliceSource`."""
        return torch.from_numpy(self._mask(self.volumes.preprocessed(case), organ))

    def _sample(self, case: int) -> Sample:
        sample = self.volumes.preprocessed(case)
        return sample.replace(space=move_space(sample.space, upright(sample.space)))

    def _cuts(
        self, sample: Sample, organ: tuple[int, ...], choice: Choice, count: int, generator: np.random.Generator
    ) -> list[Cut]:
        return choose_cuts(self._mask(sample, organ), sample.space, choice, generator, count=count)

    def _labels(self, case: int) -> Tensor:
        labels = self.volumes.preprocessed(case).labels
        if labels is None:
            raise DataError(f"{self.volumes.cases[case].image}: its labels aren't read; add labels to `need`")
        return labels

    @staticmethod
    def _mask(sample: Sample, organ: tuple[int, ...]) -> NDArray[np.bool_]:
        assert sample.labels is not None
        return np.isin(sample.labels.numpy(), organ)

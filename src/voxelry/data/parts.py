"""What a run trains and is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from voxelry.core.errors import VoxelryError
from voxelry.data.prepare.template import Template
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.data.splits import CaseType, read_names, split_cases

__all__ = ["First", "SampleSource", "Splits", "named_cases", "plain"]


class SampleSource(Protocol):
    """Samples by number: `data.dataset.VolumeDataset`, `data.crops.dataset.CropDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def sample(self, index: int, epoch: int) -> Sample:
        """A sample as it is in that pass over the data."""


@dataclass(frozen=True)
class First:
    """The first `count` samples of a source."""

    source: SampleSource
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    def sample(self, index: int, epoch: int) -> Sample:
        """As the source's."""
        return self.source.sample(index, epoch)


@dataclass
class Splits:
    """The three parts of the data; only `train` is augmented and cut into patches.

    Attributes:
        train, validation, test: samples; the last two may be empty.
        preprocess: what makes of an image what the samples hold.
        names: of the cases of each part.
        unaltered: a training case without augmentation and patches, by its number.
        template: the frame that the cases were registered to, where that is to be remembered.
    """

    train: Any
    validation: Any
    test: Any
    preprocess: Preprocess
    names: dict[str, list[str]]
    unaltered: Callable[[int], Sample]
    template: Template | None = None


def named_cases(found: Sequence[CaseType], file: Path | None) -> list[CaseType]:
    """The cases of a list of names; of a split file its test cases, or all where there are none.

    Args:
        found: the cases that there are.
        file: a name on each line, or whatever `data.splits.read_split` reads; None for every case.
    """
    if file is None:
        return list(found)
    names = read_names(file)
    parts = split_cases(found, file={"test": names} if names else file)
    return parts["test"] or [case for part in parts.values() for case in part]


def plain(config: DictConfig | None) -> dict[str, Any]:
    """A configuration node as ordinary values."""
    if not config:
        return {}
    container = OmegaConf.to_container(config, resolve=True)
    if not isinstance(container, dict):
        raise VoxelryError(f"expected a mapping in the configuration, got {container!r}")
    return {str(key): value for key, value in container.items() if key != "_target_"}

"""What a run trains and is measured on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError, DataError
from voxelry.data.cache import Cache
from voxelry.data.cache_fill import fill_cache
from voxelry.data.dataset import VolumeDataset
from voxelry.data.prepare.template import Template
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.data.splits import SPLITS, CaseType, few_shot, read_names, split_cases

__all__ = ["SampleSource", "Splits", "checked_splits", "divide", "named_cases"]

CHOICES = ("drawn", "first")


class SampleSource(Protocol):
    """Samples by number: `data.dataset.VolumeDataset`, `data.crops.dataset.CropDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def sample(self, index: int, epoch: int) -> Sample:
        """A sample as it is in that pass over the data."""


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

    @property
    def held_out(self) -> tuple[str, Any]:
        """What a trained model is measured on, `test` or, where there is none, `validation`, and its samples."""
        return ("test", self.test) if len(self.test) else ("validation", self.validation)


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


def divide(cases: Sequence[CaseType], config: DictConfig, seed: int) -> dict[str, list[CaseType]]:
    """The cases of each part as `config.split` has it, `config.training_samples` of them for training.

    Raises:
        DataError: none are left for training; or see `data.splits`.
    """
    split = config.split
    parts = split_cases(
        cases,
        file=split.file,
        fractions=None if split.fractions is None else [float(share) for share in split.fractions],
        fold=split.fold if split.folds else None,
        folds=split.folds or 5,
        seed=split.seed,
    )
    choice = config.get("training_choice", CHOICES[0])
    check_choice("data.training_choice", choice, CHOICES, ConfigError)
    training = few_shot(parts["train"], config.training_samples, seed if choice == "drawn" else None)
    if not training:
        raise DataError(f"{config.root}: no cases are left for training after the split (of {len(cases)} in all)")
    return {**parts, "train": training}


def checked_splits(
    train: VolumeDataset, validation: VolumeDataset, test: VolumeDataset, *, unaltered: Callable[[int], Sample]
) -> Splits:
    """The parts of a run, looked through and, with a cache on disk, all of them in it.

    Raises:
        FileError, DataError: the first fault of a case; one line naming the file.
    """
    datasets = dict(zip(SPLITS, (train, validation, test), strict=True))
    for dataset in datasets.values():
        dataset.check()
        if isinstance(dataset.cache, Cache):
            fill_cache(dataset, workers=min(4, os.cpu_count() or 1))
    return Splits(
        train,
        validation,
        test,
        preprocess=train.preprocess,
        names={part: [case.name for case in dataset.cases] for part, dataset in datasets.items()},
        unaltered=unaltered,
    )

"""The datasets of a reconstruction run: volumes with labels, seen as slices with clicks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from voxelry.core.errors import DataError
from voxelry.data.dataset import VolumeDataset
from voxelry.data.slice_augment import SliceAugment
from voxelry.data.slice_case import SliceCase
from voxelry.data.slice_dataset import SliceDataset
from voxelry.data.slice_sources import VolumeSlices
from voxelry.engine.splits import Splits, plain

__all__ = ["slice_splits", "still_slices"]


def slice_splits(splits: Splits, config: DictConfig, seed: int) -> Splits:
    """The volumes of a run as prompts: training drawn anew in every pass, the rest always the same.

    Args:
        splits: with `VolumeDataset`s that read labels.
        config: `config.data.slices`, see `configs/data/reconstruct.yaml`.
        seed: of slices, clicks and movements.

    Raises:
        DataError: a case without labels, or none with an organ that is asked for.
    """
    settings = plain(config)
    augment = settings.pop("augment", None)
    train = SliceDataset(
        _source(splits.train),
        augment=None if augment is None else SliceAugment(**augment),
        seed=seed,
        **settings,
    )
    return replace(
        splits,
        train=train,
        validation=still_slices(splits.validation, train, slices=1, mask=0.0),
        test=still_slices(splits.test, train, slices=1, mask=0.0),
        unaltered=_Unaltered(splits.train, train),  # type: ignore[arg-type]  # the task is given what it wants
    )


def still_slices(
    volumes: VolumeDataset, like: SliceDataset, *, slices: int, mask: float, repeats: int = 1
) -> SliceDataset:
    """Prompts of held-out cases, in the frame of the training, with the truth to measure on.

    Args:
        volumes: the cases.
        like: the training's.
        slices: slices of a prompt.
        mask: chance that a prompt has its slices' masks.
        repeats: prompts of each case.
    """
    return SliceDataset(
        _source(volumes),
        organs=like.organs,
        slices=slices,
        axes=like.choice.axes,
        min_pixels=like.choice.min_pixels,
        mask=mask,
        repeats=repeats,
        edge=like.edges,
        truth=True,
        seed=1000,
        **like.build,  # type: ignore[arg-type]
    )


def _source(volumes: VolumeDataset) -> VolumeSlices:
    for case in volumes.cases:
        if case.labels is None:
            raise DataError(f"{case.image}: no labels for this image; expected labels/{case.name}.* beside volumes/")
    return VolumeSlices(volumes)


class _Unaltered:
    """A training case with its shape and nothing moved, by its number."""

    def __init__(self, volumes: VolumeDataset, train: SliceDataset):
        self.dataset: Any = still_slices(volumes, train, slices=1, mask=0.0, repeats=train.repeats)

    def __call__(self, index: int) -> SliceCase:
        case: SliceCase = self.dataset[index]
        return case

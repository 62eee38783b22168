"""The datasets of a run, from the `data` part of its configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voxelry.core.errors import DataError, VoxelryError
from voxelry.data.augment import Augment
from voxelry.data.cache import Cache, build
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts import find_cases
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.splits import few_shot, split_cases

__all__ = ["Splits", "build_data"]

MEMORY_BYTES = 2 * 1024**3


@dataclass
class Splits:
    """The three parts of the data; only `train` is augmented and cut into patches."""

    train: VolumeDataset
    validation: VolumeDataset
    test: VolumeDataset


def build_data(
    config: DictConfig, *, ndim: int, augment: DictConfig | None = None, seed: int = 0, task: str = "landmarks"
) -> Splits:
    """Find, split and wrap the cases of `config.root`.

    Args:
        config: as `configs/data/volumes.yaml`.
        ndim: rank that the images must have.
        augment: settings of `Augment` for the training part; empty or None for none.
        seed: draws the few-shot subset and everything random in the training part.
        task: `landmarks` needs a landmark file per case, `pretrain` images alone.

    Raises:
        DataError: no cases, an empty training part, images of another rank.
    """
    need_landmarks = task == "landmarks"
    cases = find_cases(
        config.root,
        config.layout,
        need_landmarks=need_landmarks,
        options=plain(config.options),
        point_options=plain(config.point_options),
    )
    split = config.split
    parts = split_cases(
        cases,
        file=split.file,
        fractions=None if split.fractions is None else [float(share) for share in split.fractions],
        fold=split.fold if split.folds else None,
        folds=split.folds or 5,
        seed=split.seed,
    )
    training = few_shot(parts["train"], config.training_samples, seed)
    if not training:
        raise DataError(f"{config.root}: no cases are left for training after the split (of {len(cases)} in all)")
    common: dict[str, Any] = {
        "preprocess": Preprocess(**plain(config.preprocess)),
        "need": ("landmarks", "labels") if need_landmarks else (),
        "seed": seed,
    }
    cache = config.cache
    if cache == "auto":
        cache = "memory" if _fits(VolumeDataset(training[:1], **common), len(cases)) else None
    common["cache"] = cache
    train = VolumeDataset(
        training,
        augment=Augment(**plain(augment)) if augment else None,
        patches=None if config.patches is None else Patches(**plain(config.patches)),
        **common,
    )
    check_rank(train, ndim)
    names = train.landmark_names if need_landmarks else None
    held_out = [VolumeDataset(parts[part], landmark_names=names, **common) for part in ("validation", "test")]
    for dataset in (train, *held_out):
        dataset.check()
        if isinstance(dataset.cache, Cache):
            build(dataset, workers=min(4, os.cpu_count() or 1))
    return Splits(train, *held_out)


def _fits(first: VolumeDataset, count: int) -> bool:
    """Whether `count` preprocessed samples of the first one's size can stay in memory."""
    return first[0].image.nbytes * count <= MEMORY_BYTES


def check_rank(dataset: VolumeDataset, ndim: int) -> None:
    """Refuse images of another rank than the run's.

    Raises:
        DataError: names the first image and both ranks.
    """
    sample = dataset[0]
    if sample.ndim != ndim:
        raise DataError(f"{sample.source}: an image of rank {sample.ndim}, but ndim={ndim} is configured")


def plain(config: DictConfig | None) -> dict[str, Any]:
    """A configuration node as ordinary values."""
    if not config:
        return {}
    container = OmegaConf.to_container(config, resolve=True)
    if not isinstance(container, dict):
        raise VoxelryError(f"expected a mapping in the configuration, got {container!r}")
    return {str(key): value for key, value in container.items() if key != "_target_"}

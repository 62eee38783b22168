"""The datasets of a run, from the `data` part of its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig

from voxelry.core.errors import ConfigError, DataError
from voxelry.data.augment import Augment
from voxelry.data.cache import Cache, build
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts import Case, find_cases
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.data.splits import SPLITS, CaseType, few_shot, split_cases
from voxelry.engine.kinds import Kind
from voxelry.engine.splits import Splits, plain

__all__ = ["Splits", "build_data", "changes", "check_rank", "checked_splits", "choose_cache", "divide"]

MEMORY_BYTES = 2 * 1024**3


def build_data(
    config: DictConfig, *, ndim: int, kind: Kind, augment: DictConfig | None = None, seed: int = 0
) -> Splits:
    """Find, split and wrap the cases of `config.root`: the one entry point to the data of a run.

    Args:
        config: as `configs/data/volumes.yaml`; or as `crops.yaml`, `reconstruct.yaml`, `pairs.yaml` or `degraded.yaml`.
        ndim: rank that the images must have.
        augment: settings of `Augment` for the training part; empty or None for none.
        seed: draws the few-shot subset and everything random in the training part.
        kind: of task; decides what is read, and what every case must have.

    Raises:
        ConfigError: settings that the task has no use for.
        DataError: no cases, an empty training part, images of another rank.
    """
    if "index" in config:
        from voxelry.engine.crop_data import build_crop_data

        return build_crop_data(config, ndim=ndim, kind=kind, augment=augment, seed=seed)
    if config.get("pairs") is not None or config.get("degrade") is not None:
        from voxelry.engine.pair_data import build_pair_data

        return build_pair_data(config, ndim=ndim, kind=kind, augment=augment, seed=seed)
    if "slices" in config:
        from voxelry.engine.prepared_data import build_prepared_data, reads_prepared

        if reads_prepared(config.root, config.layout):
            return build_prepared_data(config, ndim=ndim, augment=augment, seed=seed)
    cases = find_cases(
        config.root,
        config.layout,
        need_landmarks=kind.required == "landmarks",
        options=plain(config.options),
        point_options=plain(config.point_options),
    )
    check_annotated(cases, kind.required)
    if config.get("borders") is not None and not kind.bordered:
        raise ConfigError(f"data.borders: task={kind.name} has no use for it; expected null")
    parts = divide(cases, config, seed)
    common: dict[str, Any] = {
        "preprocess": Preprocess(**plain(config.preprocess)),
        "need": kind.needs,
        "seed": seed,
        "borders": config.get("borders") is not None,
    }
    common["cache"] = choose_cache(config.cache, VolumeDataset(parts["train"][:1], **common), len(cases))
    train = VolumeDataset(parts["train"], **common, **changes(config, augment))
    check_rank(train, ndim)
    names = train.landmark_names or None
    validation, test = (VolumeDataset(parts[part], landmark_names=names, **common) for part in SPLITS[1:])
    splits = checked_splits(train, validation, test, unaltered=train.preprocessed)
    if "slices" in config:
        from voxelry.engine.reconstruct_data import slice_splits

        return slice_splits(splits, config.slices, seed)
    return splits


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
    training = few_shot(parts["train"], config.training_samples, seed)
    if not training:
        raise DataError(f"{config.root}: no cases are left for training after the split (of {len(cases)} in all)")
    return {**parts, "train": training}


def choose_cache(wanted: str | None, first: VolumeDataset, count: int) -> str | None:
    """Where preprocessed samples are kept; `auto` is memory if `count` like the only one of `first` fit there."""
    if wanted != "auto":
        return wanted
    sample = first.preprocessed(0)
    held = sample.image.nbytes + (0 if sample.target is None else sample.target.nbytes)
    return "memory" if held * count <= MEMORY_BYTES else None


def changes(config: DictConfig, augment: DictConfig | None) -> dict[str, Any]:
    """What is done to training samples alone: their augmentation and patches."""
    return {
        "augment": Augment(**plain(augment)) if augment else None,
        "patches": None if config.patches is None else Patches(**plain(config.patches)),
    }


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
            build(dataset, workers=min(4, os.cpu_count() or 1))
    return Splits(
        **datasets,
        preprocess=train.preprocess,
        names={part: [case.name for case in dataset.cases] for part, dataset in datasets.items()},
        unaltered=unaltered,
    )


def check_annotated(cases: Sequence[Case], required: str | None) -> None:
    """Refuse cases without what the task learns from; landmarks are asked for while the cases are looked for.

    Raises:
        DataError: names the first image without instances.
    """
    if required != "instances":
        return
    for case in cases:
        if case.instances is None:
            raise DataError(
                f"{case.image}: no instances for this image; expected a label volume instances/{case.name}.* "
                "beside volumes/, or a dataset label in its HDF5 file"
            )


def check_rank(dataset: VolumeDataset, ndim: int) -> None:
    """Refuse images of another rank than the run's.

    Raises:
        DataError: names the first image and both ranks.
    """
    sample = dataset[0]
    if sample.ndim != ndim:
        raise DataError(f"{sample.source}: an image of rank {sample.ndim}, but ndim={ndim} is configured")

"""The datasets of a run, from the `data` part of its configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np
from omegaconf import DictConfig
from torch import distributed
from torch.utils.data import DataLoader

from voxelry.core.errors import ConfigError, DataError
from voxelry.data.augment import Augment
from voxelry.data.cache import Cache, build
from voxelry.data.dataset import VolumeDataset
from voxelry.data.doctor.demands import GREY_AND_COLOUR, lacking
from voxelry.data.layouts.find import Case, find_cases
from voxelry.data.loader import evaluation_loader, pass_loader
from voxelry.data.own_dataset import check_own_rank, dataset_class, own_suffix
from voxelry.data.parts import Splits, plain
from voxelry.data.patches import Patches, window_size
from voxelry.data.prepare.source import folder_template
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.data.segment_names import segment_names
from voxelry.data.splits import SPLITS, CaseType, few_shot, split_cases
from voxelry.engine.kinds import Kind
from voxelry.io import open_image

__all__ = [
    "Loaders",
    "Splits",
    "build_data",
    "changes",
    "check_channels",
    "check_rank",
    "checked_splits",
    "choose_cache",
    "divide",
    "preprocessing",
]

MEMORY_BYTES = 2 * 1024**3
MOST_VOXELS = 2**20  # of a batch, which the default networks train on within some GB
MARGIN = 8  # voxels around a window, for its augmentation
CHOICES = ("drawn", "first")

log = logging.getLogger("voxelry")


@dataclass(frozen=True)
class Loaders:
    """Loaders over the parts of a run's data; one of an empty part has no batches.

    Attributes:
        train: batches of `data.batch_size`, one pass each time it is gone through, shuffled and augmented anew.
        validation, test: single samples in order.
    """

    train: DataLoader[Any]
    validation: DataLoader[Any]
    test: DataLoader[Any]


@overload
def build_data(
    config: DictConfig,
    *,
    ndim: int,
    kind: Kind,
    augment: DictConfig | None = None,
    seed: int = 0,
    return_dataloaders: Literal[False] = False,
) -> Splits: ...


@overload
def build_data(
    config: DictConfig,
    *,
    ndim: int,
    kind: Kind,
    augment: DictConfig | None = None,
    seed: int = 0,
    return_dataloaders: Literal[True],
) -> Loaders: ...


def build_data(
    config: DictConfig,
    *,
    ndim: int,
    kind: Kind,
    augment: DictConfig | None = None,
    seed: int = 0,
    return_dataloaders: bool = False,
) -> Splits | Loaders:
    """Find, split and wrap the cases of `config.root`: the one entry point to the data of a run.

    Args:
        config: as `configs/data/volumes.yaml`; or as `crops.yaml`, `reconstruct.yaml`, `pairs.yaml` or `degraded.yaml`.
        ndim: rank that the images must have.
        augment: settings of `Augment` for the training part; empty or None for none.
        seed: draws the few-shot subset and everything random in the training part.
        kind: of task; decides what is read, and what every case must have.
        return_dataloaders: hand out loaders over the parts instead of the data sets; of several processes of
            `torch.distributed` each gets its share.

    Raises:
        ConfigError: settings that the task has no use for.
        DataError: no cases, an empty training part, images of another rank.
    """
    splits = _build_splits(config, ndim=ndim, kind=kind, augment=augment, seed=seed)
    return _loaders(splits, config, seed) if return_dataloaders else splits


def _loaders(splits: Splits, config: DictConfig, seed: int) -> Loaders:
    known = distributed.is_available() and distributed.is_initialized()
    common: dict[str, Any] = {"num_workers": config.get("num_workers"), "pin_memory": bool(config.get("pin_memory"))}
    if known:
        common |= {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
    return Loaders(
        pass_loader(splits.train, batch_size=config.batch_size, seed=seed, **common),
        evaluation_loader(splits.validation, **common),
        evaluation_loader(splits.test, **common),
    )


def _build_splits(config: DictConfig, *, ndim: int, kind: Kind, augment: DictConfig | None, seed: int) -> Splits:
    """The parts of the data, by the kind of its configuration."""
    apart = config.get("pairs") is not None or config.get("degrade") is not None or "slices" in config
    if apart and config.get("image_channels") is not None:
        raise ConfigError(f"data.image_channels: task={kind.name} has no use for it; expected null")
    if "index" in config:
        from voxelry.tasks.crops import build_crop_data

        return build_crop_data(config, ndim=ndim, kind=kind, augment=augment, seed=seed)
    if config.get("pairs") is not None or config.get("degrade") is not None:
        from voxelry.tasks.translate.data import build_pair_data

        return build_pair_data(config, ndim=ndim, kind=kind, augment=augment, seed=seed)
    if "slices" in config:
        from voxelry.tasks.reconstruct.prepared import build_prepared_data, reads_prepared

        if reads_prepared(config.root, config.layout):
            return build_prepared_data(config, ndim=ndim, augment=augment, seed=seed)
    suffix = own_suffix(config, VolumeDataset)
    cases = find_cases(
        config.root,
        config.layout,
        need_landmarks=kind.required == "landmarks",
        options=plain(config.options),
        point_options=plain(config.point_options),
        suffix=suffix,
    )
    check_annotated(cases, kind.required)
    if suffix is None and "labels" in kind.needs:
        segment_names(cases)
    if config.get("borders") is not None and not kind.bordered:
        raise ConfigError(f"data.borders: task={kind.name} has no use for it; expected null")
    if suffix is None:
        check_rank(cases, ndim)
    parts = divide(cases, config, seed)
    common: dict[str, Any] = {
        "preprocess": preprocessing(config, cases if suffix is None else ()),
        "need": kind.needs,
        "seed": seed,
        "borders": config.get("borders") is not None,
    }
    make = dataset_class(config, VolumeDataset)
    common["cache"] = choose_cache(config.cache, make(parts["train"][:1], **common), len(cases))
    train = make(parts["train"], **common)
    if suffix is not None:
        check_own_rank(train, ndim)
    train = make(parts["train"], **common, **changes(config, augment, train))
    check_channels(train, config.get("image_channels"))
    names = train.landmark_names or None
    validation, test = (make(parts[part], landmark_names=names, **common) for part in SPLITS[1:])
    splits = checked_splits(train, validation, test, unaltered=train.preprocessed)
    if "slices" in config:
        from voxelry.tasks.reconstruct.data import slice_splits

        return slice_splits(replace(splits, template=folder_template(config.root)), config.slices, seed)
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
    choice = config.get("training_choice", CHOICES[0])
    if choice not in CHOICES:
        raise ConfigError(f"data.training_choice: expected {' or '.join(CHOICES)}, got {choice!r}")
    training = few_shot(parts["train"], config.training_samples, seed if choice == "drawn" else None)
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


def changes(config: DictConfig, augment: DictConfig | None, train: VolumeDataset) -> dict[str, Any]:
    """What is done to training samples alone: their augmentation and patches.

    Args:
        train: the training cases, as they are without either.

    Raises:
        ConfigError: `patches` is neither `auto` nor a mapping.
    """
    return {
        "augment": Augment(**plain(augment)) if augment else None,
        "patches": _patches(config, train),
    }


def _patches(config: DictConfig, train: VolumeDataset) -> Patches | None:
    """What `config.patches` says; `auto`: windows, if a batch of the largest images is too much."""
    if config.patches is None:
        return None
    if isinstance(config.patches, DictConfig):
        return Patches(**plain(config.patches))
    if config.patches != "auto":
        raise ConfigError(
            f"data.patches: expected auto, null or a mapping such as {{size: 64}}, got {config.patches!r}"
        )
    largest = np.max([space.shape for space in train.spaces()], axis=0).tolist()
    size = window_size(largest, MOST_VOXELS // config.batch_size)
    if size == tuple(largest):
        return None
    log.info(
        "images of up to %s voxels are learned from in windows of %s (data.patches={size: [...]} for others)",
        " x ".join(map(str, largest)),
        " x ".join(map(str, size)),
    )
    return Patches(size, margin=MARGIN, fill="edge")


def check_rank(cases: Sequence[Case], ndim: int) -> None:
    """Refuse images of another rank than the run's, by their headers.

    Raises:
        FileError: a header can't be read.
        DataError: names the first image of another rank.
    """
    for case in cases:
        rank = open_image(case.image, **case.options).space.ndim
        if rank != ndim:
            raise DataError(f"{case.image}: an image of rank {rank}, but ndim={ndim} is configured")


def preprocessing(config: DictConfig, cases: Sequence[Case]) -> Preprocess:
    """`config.preprocess`; with one channel for all where some cases are grey and others in colour.

    Args:
        cases: those that our readers read.

    Raises:
        FileError: a header can't be read.
        DataError: numbers of channels that can't be brought to one.
    """
    settings = plain(config.preprocess)
    if settings.get("channels") is None and cases:
        counts = {case.image: open_image(case.image, **case.options).channels for case in cases}
        first, *others = counts
        other = next((path for path in others if counts[path] != counts[first]), None)
        if set(counts.values()) == GREY_AND_COLOUR:
            log.info("some images are grey and some in colour: all are taken as grey (data.preprocess.channels=1)")
            settings["channels"] = 1
        elif other is not None:
            raise DataError(
                f"{other}: {counts[other]} channels, but {first} has {counts[first]}; expected one number for all "
                "cases (data.options={channel: 0} reads the first one alone)"
            )
    return Preprocess(**settings)


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
        train,
        validation,
        test,
        preprocess=train.preprocess,
        names={part: [case.name for case in dataset.cases] for part, dataset in datasets.items()},
        unaltered=unaltered,
    )


def check_annotated(cases: Sequence[Case], required: str | None) -> None:
    """Refuse cases without what the task learns from; landmarks are asked for while the cases are looked for.

    Raises:
        DataError: names the first image without instances or labels.
    """
    for case in cases:
        fault = lacking(case, required)
        if fault is not None:
            raise DataError(f"{case.image}: {fault}")


def check_channels(dataset: VolumeDataset, expected: int | None) -> None:
    """Refuse images of other channels than `data.image_channels` says, where it says anything.

    Raises:
        DataError: names the first image, both numbers and the way out.
    """
    if expected is None:
        return
    found = len(dataset.preprocessed(0).image)
    if found != expected:
        raise DataError(
            f"{dataset.cases[0].image}: {found} channels, but data.image_channels={expected} "
            f"(data.preprocess.channels={expected} makes so many of them, data.image_channels=null takes what is there)"
        )

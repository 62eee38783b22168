"""The datasets of a run over whole images, from the `data` part of its configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from voxelry.core.errors import ConfigError, DataError
from voxelry.core.settings import keywords
from voxelry.data.augment import Augment
from voxelry.data.dataset import VolumeDataset
from voxelry.data.demands import GREY_AND_COLOUR, lacking
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.own_dataset import check_own_rank, dataset_class, own_suffix
from voxelry.data.parts import Splits, checked_splits, divide
from voxelry.data.patches import MiddleWindow, Patches, window_size
from voxelry.data.preprocess import Preprocess
from voxelry.data.segment_names import segment_names
from voxelry.data.splits import SPLITS
from voxelry.io import open_image
from voxelry.tasks.recipe import Recipe

__all__ = ["build_volumes", "changes", "check_channels", "check_rank", "choose_cache", "no_channels", "preprocessing"]

MEMORY_BYTES = 2 * 1024**3
MOST_VOXELS = 2**20  # of a batch, which the default networks train on within some GB
MARGIN = 8  # voxels around a window, for its augmentation

log = logging.getLogger("voxelry")


def build_volumes(
    config: DictConfig, *, ndim: int, recipe: Recipe, augment: DictConfig | None = None, seed: int = 0
) -> Splits:
    """Find, split and wrap whole images; arguments and errors as `engine.data.build_data`."""
    suffix = own_suffix(config, VolumeDataset)
    cases = find_cases(
        config.root,
        config.layout,
        need_landmarks=recipe.required == "landmarks",
        options=keywords(config.options),
        point_options=keywords(config.point_options),
        suffix=suffix,
    )
    check_annotated(cases, recipe.required)
    if suffix is None and "labels" in recipe.needs:
        segment_names(cases)
    if config.get("borders") is not None and not recipe.bordered:
        raise ConfigError(f"data.borders: task={recipe.name} has no use for it; expected null")
    if suffix is None:
        check_rank(cases, ndim)
    parts = divide(cases, config, seed)
    common: dict[str, Any] = {
        "preprocess": preprocessing(config, cases if suffix is None else ()),
        "need": recipe.needs,
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
    if recipe.windowed and train.patches is not None:
        common["patches"] = MiddleWindow(train.patches.size)
    validation, test = (make(parts[part], landmark_names=names, **common) for part in SPLITS[1:])
    return checked_splits(train, validation, test, unaltered=train.preprocessed)


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
        "augment": Augment(**keywords(augment)) if augment else None,
        "patches": _patches(config, train),
    }


def _patches(config: DictConfig, train: VolumeDataset) -> Patches | None:
    """What `config.patches` says; `auto`: windows, if a batch of the largest images is too much."""
    if config.patches is None:
        return None
    if isinstance(config.patches, DictConfig):
        return Patches(**keywords(config.patches))
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


def no_channels(config: DictConfig, task: str) -> None:
    """Refuse `image_channels` where nothing follows it.

    Raises:
        ConfigError: it is set.
    """
    if config.get("image_channels") is not None:
        raise ConfigError(f"data.image_channels: task={task} has no use for it; expected null")


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
    settings = keywords(config.preprocess)
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

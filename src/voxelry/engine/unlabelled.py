"""`voxelry train ... data.unlabelled=DIR`: a pretraining on images without labels comes first, in the same command."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voxelry.bundle.registry import recipe_of_config
from voxelry.bundle.seen import digests_of_parts
from voxelry.core.atomic import replacing
from voxelry.core.errors import ConfigError, DataError
from voxelry.core.home import at_home
from voxelry.data.crops.digest import digest
from voxelry.data.layouts.find import find_cases
from voxelry.data.splits import split_cases
from voxelry.engine.check import check_settings, drop_defaults
from voxelry.engine.checkpoints import StoppedError
from voxelry.engine.compose import compose_training, parted, typed, value_of, with_plan
from voxelry.engine.data import build_data
from voxelry.engine.run_folder import checkpoint_to_resume
from voxelry.engine.train import train

__all__ = ["pretrained_first"]

_SETTING = "data.unlabelled"
_MINUTES = "trainer.max_minutes"
_SHARE = 0.5  # of the minutes, that the pretraining takes
# what the pretraining does as the training, where it is said
_SHARED = (
    "model",
    "data.options",
    "data.patches",
    "data.batch_size",
    "data.num_workers",
    "data.pin_memory",
    "data.cache",
    "trainer.grad_accumulation",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "trainer.progress",
    "trainer.logger",
    "launcher",
    "seed",
)
# what few labels were shown to gain from, see benchmarks/RESULTS.md
_OBJECTIVE = ("task.objective=v", "task.schedule=cosine")

log = logging.getLogger("voxelry")


def pretrained_first(arguments: Sequence[str]) -> list[str]:
    """Arguments of `voxelry train`, with weights that are trained now where `data.unlabelled=DIR` is among them.

    The pretraining lies in `output_dir/pretrain`. It sees images as the training does, takes half of the minutes where
    `trainer.max_minutes` gives some, and leaves out the images that the training is measured on. With `resume=true`
    it goes on, or is used as it is when it has ended.

    Raises:
        ConfigError: several runs at once, pretrained weights are given as well, a network that isn't pretrained so, or
            a setting of the training that can't be.
        DataError: all images are those that the training is measured on.
        StoppedError: by Ctrl-C; the same command and `resume=true` go on.
    """
    folder = value_of(arguments, _SETTING)
    if folder in (None, "", "null"):
        return list(arguments)
    if {"--multirun", "-m"} & {*arguments}:
        raise ConfigError(
            f"{_SETTING}: pretrains for a single run; for several, experiment=pretrain_3d and pretrained=RUN"
        )
    complete = with_plan(arguments)
    flags, settings = parted(complete)
    config = compose_training(settings)
    if config.pretrained is not None:
        raise ConfigError(f"{_SETTING}: expected without pretrained, or pretrained without it; both give first weights")
    place = Path(config.output_dir) / "pretrain"
    if not flags:  # of Hydra's, that only show the configuration
        checkpoint_to_resume(place.parent, resume=config.resume, overwrite=config.overwrite)
        _pretrain(config, settings, Path(at_home(folder)), place)
    minutes = config.trainer.max_minutes
    left = {} if minutes is None else {_MINUTES: minutes * (1 - _SHARE)}
    return [*arguments, *typed({"pretrained": str(place)} | left)]


def _parts(argument: str) -> tuple[str, str]:
    name, _, value = argument.partition("=")
    return name.lstrip("+~"), value


def _pretrain(config: DictConfig, settings: Sequence[str], images: Path, place: Path) -> None:
    """Train what `config` begins with, unless it is there."""
    if config.resume and (place / "bundle" / "config.yaml").is_file():
        log.info("%s: pretrained before", place)
        return
    experiment = recipe_of_config(config).pretraining(config)
    if experiment is None:
        raise ConfigError(
            f"{_SETTING}: expected with a U-Net for landmarks, or with backbone=unet or backbone=hiera, which images "
            "without labels can pretrain"
        )
    drop_defaults(config)
    check_settings(config)  # of the training, before hours go into what precedes it
    preprocess: Any = OmegaConf.to_container(config.data.preprocess, resolve=True)
    chosen = {
        "experiment": f"{experiment}_{config.ndim}d",
        "data.root": str(images),
        "output_dir": str(place),
        "resume": config.resume,
        "overwrite": config.overwrite,
        **{f"data.preprocess.{name}": value for name, value in preprocess.items()},
    }
    if config.trainer.max_minutes is not None:
        chosen[_MINUTES] = config.trainer.max_minutes * _SHARE
    shared = [
        one
        for one in settings
        if _parts(one)[0] in _SHARED or _parts(one)[0].startswith(tuple(f"{name}." for name in _SHARED))
    ]
    if experiment != "pretrain":  # the encoder has settings of its own
        shared = [one for one in shared if not one.startswith("model")]
    cases = _without_held_out(config, images, place)
    listed = {} if cases is None else {"data.split.file": str(cases), "data.split.fractions": None}
    log.info("pretraining on %s, in %s", images, place)
    own = _OBJECTIVE if experiment == "pretrain" else ()
    run = train(compose_training([*typed(chosen | listed), *own, *shared]))
    if run.interrupted:
        raise StoppedError(f"stopped; go on with the same command and resume=true ({run.checkpoint})")


def _without_held_out(config: DictConfig, images: Path, place: Path) -> Path | None:
    """A list of the cases to learn from, where some images are those that the training is measured on."""
    data = OmegaConf.merge(config.data, {"cache": None})  # nothing but names is wanted of them
    splits = build_data(
        data, ndim=config.ndim, augment=config.augment, seed=config.seed, recipe=recipe_of_config(config)
    )
    parts = digests_of_parts(splits)
    held_out = {known for part in ("validation", "test") for known in parts.get(part, {}).values() if known}
    cases = find_cases(images, options=OmegaConf.to_container(config.data.options, resolve=True))
    out = {case.name for case in cases if digest(case.image) in held_out}
    if not out:
        return None
    if len(out) == len(cases):
        raise DataError(f"{images}: all images are those that the training is measured on; none is left to learn from")
    log.info(
        "%d of %d images are what the training is measured on, and left out of the pretraining", len(out), len(cases)
    )
    kept = split_cases([case for case in cases if case.name not in out], fractions=(0.9, 0.1, 0.0), seed=config.seed)
    place.mkdir(parents=True, exist_ok=True)
    file = place / "cases.json"
    with replacing(file, "the list can't be written") as part:
        part.write_text(json.dumps({name: [case.name for case in found] for name, found in kept.items()}, indent=1))
    return file

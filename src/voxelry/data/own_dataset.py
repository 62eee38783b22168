"""A dataset class of somebody's own in a training: `data._target_=mymodule.MyDataset`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra.utils import get_class
from omegaconf import DictConfig

import voxelry.configs
from voxelry.core.errors import ConfigError, DataError
from voxelry.core.settings import keywords
from voxelry.data.dataset import VolumeDataset

__all__ = ["check_own_rank", "dataset_class", "own_suffix"]

Own = TypeVar("Own", bound=VolumeDataset)


def dataset_class(config: DictConfig, usual: type[Own]) -> Callable[..., Own]:
    """What makes the datasets of a run: `usual`, or the class that `data._target_` names.

    Keys of `data` that no group of ours has, such as `+data.scanner=3`, are its keywords.

    Raises:
        ConfigError: there is no such class, or it is no child of `usual`.
    """
    name = config.get("_target_")
    if name is None:
        return usual
    found = _imported(str(name))
    if not (isinstance(found, type) and issubclass(found, usual)):
        raise ConfigError(f"data._target_: expected a child of {usual.__module__}.{usual.__name__}, got {name}")
    own = {str(key): keywords(config)[key] for key in config if key not in _known()}

    def make(*args: Any, **settings: Any) -> Own:
        try:
            return found(*args, **{**settings, **own})
        except TypeError as error:
            raise ConfigError(f"data: {name}: {error}") from error

    return make


def own_suffix(config: DictConfig, usual: type[VolumeDataset]) -> str | None:
    """Which files are images, see `data.layouts.find.find_cases`: those of our formats unless the class reads its own.

    Raises:
        ConfigError: `data.suffix` without such a class; or as `dataset_class`.
    """
    name, suffix = config.get("_target_"), config.get("suffix")
    reads = False
    if name is not None:
        dataset_class(config, usual)
        reads = bool(_imported(str(name)).reads_own())
    if suffix is not None and not reads:
        raise ConfigError("data.suffix: expected with data._target_, a class whose read_volume reads such files")
    return (suffix or "") if reads else None


def check_own_rank(dataset: VolumeDataset, ndim: int) -> None:
    """Refuse images of another rank than the run's, by the first that a reader of one's own gives.

    Raises:
        DataError: names it.
    """
    sample = dataset[0]
    if sample.ndim != ndim:
        raise DataError(f"{sample.source}: an image of rank {sample.ndim}, but ndim={ndim} is configured")


def _imported(name: str) -> Any:
    """The class, also of a module in the current folder, as Python itself would find it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return get_class(name)
    except Exception as error:  # whatever a module may raise while it is imported
        told = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"data._target_: {name} can't be imported: {told}") from error


@cache
def _known() -> frozenset[str]:
    """The keys of our own groups."""
    groups = [yaml.safe_load(file.read_text()) for file in (files(voxelry.configs) / "data").iterdir()]
    return frozenset(str(key) for group in groups if isinstance(group, dict) for key in group)

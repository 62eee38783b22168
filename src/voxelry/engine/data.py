"""The datasets of a run, from the `data` part of its configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from omegaconf import DictConfig
from torch import distributed
from torch.utils.data import DataLoader

from voxelry.data.loader import Loading, evaluation_loader, pass_loader
from voxelry.data.parts import Splits
from voxelry.tasks.recipe import Recipe

__all__ = ["Loaders", "build_data"]


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
    recipe: Recipe,
    augment: DictConfig | None = None,
    seed: int = 0,
    return_dataloaders: Literal[False] = False,
) -> Splits: ...


@overload
def build_data(
    config: DictConfig,
    *,
    ndim: int,
    recipe: Recipe,
    augment: DictConfig | None = None,
    seed: int = 0,
    return_dataloaders: Literal[True],
) -> Loaders: ...


def build_data(
    config: DictConfig,
    *,
    ndim: int,
    recipe: Recipe,
    augment: DictConfig | None = None,
    seed: int = 0,
    return_dataloaders: bool = False,
) -> Splits | Loaders:
    """Find, split and wrap the cases of `config.root`: the one entry point to the data of a run.

    Args:
        config: as an entry of `configs/data`; its `source` names what makes the samples.
        ndim: rank that the images must have.
        augment: settings of `Augment` for the training part; empty or None for none.
        seed: draws the few-shot subset and everything random in the training part.
        recipe: of the task; decides what is read, and what every case must have.
        return_dataloaders: hand out loaders over the parts instead of the data sets; of several processes of
            `torch.distributed` each gets its share.

    Raises:
        ConfigError: settings that the task has no use for.
        DataError: no cases, an empty training part, images of another rank.
    """
    splits = recipe.data(config, ndim=ndim, augment=augment, seed=seed)
    return _loaders(splits, config, seed) if return_dataloaders else splits


def _loaders(splits: Splits, config: DictConfig, seed: int) -> Loaders:
    known = distributed.is_available() and distributed.is_initialized()
    one_by_one = Loading(
        num_workers=config.get("num_workers"),
        pin_memory=bool(config.get("pin_memory")),
        rank=distributed.get_rank() if known else 0,
        world_size=distributed.get_world_size() if known else 1,
    )
    return Loaders(
        pass_loader(splits.train, replace(one_by_one, batch_size=config.batch_size), seed=seed),
        evaluation_loader(splits.validation, one_by_one),
        evaluation_loader(splits.test, one_by_one),
    )

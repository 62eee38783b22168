"""How much memory a network takes that needs more than an image: a step of its training, or an answer, is tried.

One case of the data goes through the preprocessing, the network and the losses, forward and backward, or through a
prediction, while every allocation is written down. Larger batches take so many times the memory of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from voxelry.bundle.registry import recipe_of_config
from voxelry.core.settings import plain
from voxelry.data.collate import collate
from voxelry.engine.data import build_data
from voxelry.engine.plan.situation import Situation
from voxelry.engine.train import build_task
from voxelry.models import footprint

__all__ = ["Step", "tried", "tried_answer"]

_LARGEST = 1 << 27  # voxels of an image that is read for it
_DECIDING = ("ndim", "seed", "data", "augment", "model", "backbone", "task", "metrics", "pretrained", "adapter")


@dataclass(frozen=True)
class Step:
    """Bytes of a training step on a single sample.

    Attributes:
        weights: of the network; their gradients are as large.
        computed: alive at the peak beside the weights and their gradients.
    """

    weights: int
    computed: int


def tried(situation: Situation, shape: tuple[int, ...]) -> Step | None:
    """A step on a sample of the data; None where none can be made, or an image is too large to be read for that.

    Args:
        shape: of windows, where the training sees windows.
    """
    text = _described(situation, shape)
    return None if text is None else _step(text)


def tried_answer(situation: Situation, shape: tuple[int, ...]) -> int | None:
    """Bytes of the prediction of such a sample at its peak, the weights among them; None as of `tried`."""
    text = _described(situation, shape)
    return None if text is None else _answer(text)


def _described(situation: Situation, shape: tuple[int, ...]) -> str | None:
    """What is tried, as YAML."""
    if max(prod(case.shape) for case in situation.cases) > _LARGEST:  # any of them may be the first to be learned from
        return None
    config = situation.config
    parts: dict[str, Any] = {name: plain(config.get(name)) for name in _DECIDING}
    parts["data"] |= {"batch_size": 1, "num_workers": 0, "cache": None}
    if "tile_size" in parts["task"]:
        parts["task"]["tile_size"] = None
    if isinstance(config.data.get("patches"), DictConfig):
        parts["data"]["patches"]["size"] = list(shape)
    return OmegaConf.to_yaml(OmegaConf.create(parts))


@lru_cache(maxsize=16)
def _step(text: str) -> Step | None:
    peak = _peak(text, lambda task, batch: task.training_loss(batch)["loss"].backward())
    return None if peak is None else Step(peak.weights, max(0, peak.bytes - peak.weights))


@lru_cache(maxsize=4)
def _answer(text: str) -> int | None:
    peak = _peak(text, lambda task, batch: task.eval().predict(batch))
    return None if peak is None else peak.weights + peak.bytes


@dataclass(frozen=True)
class _Peak:
    weights: int
    bytes: int


def _peak(text: str, work: Callable[[Any, Any], object]) -> _Peak | None:
    """What some work on a new task and a batch of one sample allocates, beside the weights that are learned."""
    config: Any = OmegaConf.create(text)
    recipe = recipe_of_config(config)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        try:
            splits = build_data(config.data, ndim=config.ndim, augment=config.augment, seed=config.seed, recipe=recipe)
            task, _ = build_task(config, recipe, splits)
            batch = getattr(splits.train, "collate", collate)([splits.train[0]])
            peak = footprint.peak_of(task, lambda: work(task, batch))
        except Exception:  # whatever it is, the training says it of the data, or does well without having been tried
            return None
    return _Peak(4 * sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad), peak)

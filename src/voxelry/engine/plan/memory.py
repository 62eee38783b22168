"""How much memory a planned training and its predictions will take, before either begins.

The tensors are those of `models.footprint`. On a processor the libraries' work space, the program itself and the images
that are kept in memory come on top.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.bundle.backbone import configured_backbone
from voxelry.core.space import Space
from voxelry.data.context import border_distances
from voxelry.data.sample import Sample
from voxelry.engine.plan.situation import Situation
from voxelry.engine.precision import resolve_precision
from voxelry.models import footprint
from voxelry.tasks.recipe import DenseRecipe
from voxelry.tasks.volumes import MEMORY_BYTES

__all__ = ["Modelled", "modelled"]

_PROGRAM = 600 << 20  # bytes: Python with what it has loaded, before anything is learned
_WORK_SPACE = 1.35  # of the tensors: what a processor's libraries take beside
_EDGE = 16  # voxels of an image that a network is made by
_TYPES = {"16": torch.float16, "bf16": torch.bfloat16}


class _Called(nn.Module):
    """A network as `footprint` calls it, whatever it takes and answers."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.takes_time = "time" in inspect.signature(network.forward).parameters

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        answer = self.network(x, time) if self.takes_time else self.network(x)
        return torch.cat([part.flatten() for part in answer.values()]) if isinstance(answer, dict) else answer


@dataclass(frozen=True)
class Modelled:
    """A network whose memory can be told.

    Attributes:
        network: without having been trained.
        in_channels: that it is given.
        copies: networks of its kind that are trained together.
        dtype: of activations.
        on_processor: whether it runs on the processor.
        held: bytes of images that stay in memory.
    """

    network: nn.Module
    in_channels: int
    copies: int
    dtype: torch.dtype
    on_processor: bool
    held: int

    def training(self, shape: Sequence[int], batch: int) -> int:
        """Bytes of a training on images of that shape, at its peak."""
        known = {"in_channels": self.in_channels, "batch": batch, "dtype": self.dtype}
        return self._in_all(self.copies * footprint.estimate(self.network, shape, **known))  # type: ignore[arg-type]

    def prediction(self, shape: Sequence[int]) -> int:
        """Bytes of a prediction in tiles of that shape, at its peak, without the image itself."""
        return self._in_all(footprint.of_prediction(self.network, shape, in_channels=self.in_channels))

    def _in_all(self, tensors: int) -> int:
        return int(_WORK_SPACE * tensors) + _PROGRAM + self.held if self.on_processor else tensors


def modelled(situation: Situation) -> Modelled | None:
    """The network of a run, as far as its memory can be told: of dense tasks all of it, of a detector its backbone."""
    config: Any = situation.config
    sample = _sample(situation)
    network: nn.Module
    if isinstance(situation.recipe, DenseRecipe):
        network = situation.recipe.network(config, [sample], None)[0]
        channels = situation.recipe.in_channels(sample, config)
    elif config.get("backbone") is not None:
        network, channels = configured_backbone(config, sample, None), len(sample.image)
    else:
        return None
    two = bool(config.task.get("baseline")) and config.task.get("mode") != "regression"
    precision = resolve_precision(str(config.trainer.precision), config.trainer.accelerator)
    held = sum(4 * prod(grid.shape) * len(sample.image) for grid in situation.grids)
    return Modelled(
        _Called(network),
        channels,
        copies=2 if two else 1,
        dtype=_TYPES.get(precision.partition("-")[0], torch.float32),
        on_processor=not situation.machine.gpu,
        held=held if held <= MEMORY_BYTES else 0,
    )


def _sample(situation: Situation) -> Sample:
    """A small image with everything that the cases have, of zeros."""
    facts, config = situation.cases[0], situation.config
    shape = (_EDGE,) * config.ndim
    space = Space.from_spacing(shape, situation.spacing.tolist())
    channels = config.data.preprocess.get("channels") or sum(facts.conditions) or facts.channels
    names = situation.data.landmark_names
    restored = config.data.get("degrade") is not None or situation.data.pairs
    return Sample(
        torch.zeros(channels, *shape),
        space,
        facts.name,
        source=facts.image,
        landmarks=torch.zeros(len(names), config.ndim) if names else None,
        landmark_names=names,
        target=torch.zeros(facts.channels, *shape) if restored else None,
        borders=None if config.data.get("borders") is None else border_distances(space),
    )

"""How much memory a planned training and its predictions will take, before either begins.

The tensors are those of `models.footprint`. On a processor the libraries' work space, the program itself and the images
that are kept in memory come on top.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from voxelry.bundle.backbone import configured_backbone
from voxelry.bundle.pretrained import read_pretrained
from voxelry.bundle.registry import recipe_of_config
from voxelry.core.settings import plain
from voxelry.core.space import Space
from voxelry.data.context import border_distances
from voxelry.data.sample import Sample
from voxelry.engine.plan.situation import Situation, seen_at_once
from voxelry.engine.plan.trial import Step, tried, tried_answer
from voxelry.engine.precision import resolve_precision
from voxelry.models import footprint
from voxelry.models.unet import UNet
from voxelry.tasks.recipe import DenseRecipe
from voxelry.tasks.volumes import MEMORY_BYTES

__all__ = ["Measured", "Modelled", "modelled"]

_PROGRAM = 620 << 20  # bytes: Python with what it has loaded for a prediction
_LEARNING = 780 << 20  # the same for a training
_WORK_SPACE = 1.35  # of the tensors: what a processor's libraries take beside
_EDGES = {2: 32, 3: 16}  # voxels along each axis of the image that a network is measured with, by rank
_TYPES = {"16": torch.float16, "bf16": torch.bfloat16}
_KEPT = 4  # times the weights: they, two averages of the optimiser and the averaged weights
# parts of a configuration that a network is made from, and what of them isn't
_OF_NETWORK = ("ndim", "model", "backbone", "task", "pretrained")
_BESIDE = ("task.tile_size", "task.sigma")


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
        config: the parts of a configuration that make the network, as YAML.
        sample: what is known of the images that it is made for.
        copies: networks of its kind that are trained together.
        dtype: of activations.
        on_processor: whether it runs on the processor.
        held: bytes of images that stay in memory.
    """

    config: str
    sample: _Content
    copies: int
    dtype: torch.dtype
    on_processor: bool
    held: int

    def training(self, shape: Sequence[int], batch: int) -> int:
        """Bytes of a training on images of that shape, at its peak."""
        network, _ = _network(self.config, self.sample)
        voxels = batch * prod(shape)
        policy = _recomputed(network, voxels, self.dtype)
        step = _of_training(self.config, self.sample, policy, self.dtype, self._device)
        tensors = self.copies * (_KEPT * step.weights + step.peak(voxels))
        return _in_all(tensors, _LEARNING + self.held, self.on_processor)

    def prediction(self, shape: Sequence[int]) -> int:
        """Bytes of a prediction in tiles of that shape, at its peak, without the image itself."""
        answer = _of_prediction(self.config, self.sample, self._device)
        return _in_all(answer.weights + answer.peak(prod(shape)), _PROGRAM, self.on_processor)

    @property
    def _device(self) -> str:
        return "cpu" if self.on_processor else "meta"


def _in_all(tensors: int, beside: int, on_processor: bool) -> int:
    return int(_WORK_SPACE * tensors) + beside if on_processor else tensors


@dataclass(frozen=True)
class Measured:
    """A network of which a step was tried; see `trial`.

    Attributes:
        situation: that it was tried in.
        step: what was found there.
        backbone: the part of it that predictions are told by; None where there is none.
        held: bytes of images that stay in memory.
    """

    situation: Situation
    step: Step
    backbone: Modelled | None
    held: int

    def training(self, shape: Sequence[int], batch: int) -> int:
        """Bytes of a training on windows of that shape, at its peak; as of `step` where that shape can't be tried."""
        step = tried(self.situation, tuple(shape)) or self.step
        tensors = (_KEPT + 1) * step.weights + batch * step.computed
        return _in_all(tensors, _LEARNING + self.held, not self.situation.machine.gpu)

    def prediction(self, shape: Sequence[int]) -> int | None:
        """Bytes of a prediction in tiles of that shape: as far as the backbone tells, or as one was tried."""
        if self.backbone is not None:
            return self.backbone.prediction(shape)
        answer = tried_answer(self.situation, tuple(shape))
        return None if answer is None else _in_all(answer, _PROGRAM, not self.situation.machine.gpu)


@dataclass(frozen=True)
class _Content:
    """What a network is made for.

    Attributes:
        channels: of the image.
        names: of points.
        target: channels of what is to be answered; None without such images.
        borders: whether it is told how far the borders are.
        spacing: of voxels, in units of the shortest.
        source: an image of the data, for messages.
    """

    channels: int
    names: tuple[str, ...]
    target: int | None
    borders: bool
    spacing: tuple[float, ...]
    source: str = field(compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images that are measured with."""
        return (_EDGES[len(self.spacing)],) * len(self.spacing)

    def sample(self) -> Sample:
        """A small image with all of it, of zeros."""
        space = Space.from_spacing(self.shape, list(self.spacing))
        return Sample(
            torch.zeros(self.channels, *self.shape),
            space,
            "a small image",
            self.source,
            landmarks=torch.zeros(len(self.names), space.ndim) if self.names else None,
            landmark_names=self.names,
            target=None if self.target is None else torch.zeros(self.target, *self.shape),
            borders=border_distances(space) if self.borders else None,
        )


def modelled(situation: Situation) -> Modelled | Measured | None:
    """The network of a run, as far as its memory can be told: modelled, or measured in a step that is tried.

    Of a detector that can't be tried its backbone alone.
    """
    config, recipe = situation.config, situation.recipe
    content = _content(situation)
    held = sum(4 * prod(grid.shape) * content.channels for grid in situation.grids)
    held = held if held <= MEMORY_BYTES else 0
    dense = isinstance(recipe, DenseRecipe)
    two = bool(config.task.get("baseline")) and config.task.get("mode") != "regression"
    precision = resolve_precision(str(config.trainer.precision), config.trainer.accelerator)
    found = None
    if dense or config.get("backbone") is not None:
        found = Modelled(
            _described(config),
            content,
            copies=2 if dense and two else 1,
            dtype=_TYPES.get(precision.partition("-")[0], torch.float32),
            on_processor=not situation.machine.gpu,
            held=held,
        )
    step = None if dense else tried(situation, seen_at_once(situation))
    return found if step is None else Measured(situation, step, found, held)


def _described(config: DictConfig) -> str:
    """What a network follows from, as YAML."""
    parts: dict[str, Any] = {name: plain(config.get(name)) for name in _OF_NETWORK}
    parts["task"] = {name: value for name, value in parts["task"].items() if f"task.{name}" not in _BESIDE}
    step = {"trainer": {"accelerator": "cpu", "precision": "32-true"}, "data": {"batch_size": 1}}
    return OmegaConf.to_yaml(OmegaConf.create({**parts, **step}))


def _content(situation: Situation) -> _Content:
    facts, config = situation.cases[0], situation.config
    restored = config.data.get("degrade") is not None or situation.data.pairs
    return _Content(
        channels=config.data.preprocess.get("channels") or sum(facts.conditions) or facts.channels,
        names=situation.data.landmark_names,
        target=facts.channels if restored else None,
        borders=config.data.get("borders") is not None,
        spacing=tuple(float(f"{step:.3g}") for step in situation.spacing / situation.spacing.min()),
        source=str(facts.image),
    )


@lru_cache(maxsize=8)
def _network(text: str, content: _Content) -> tuple[nn.Module, int]:
    """A new network, and the channels that it is given."""
    config: Any = OmegaConf.create(text)
    recipe, sample = recipe_of_config(config), content.sample()
    path = config.get("pretrained")
    pretrained = None if path is None else read_pretrained(Path(path), ndim=config.ndim)
    if isinstance(recipe, DenseRecipe):
        return recipe.network(config, [sample], pretrained)[0], recipe.in_channels(sample, config)
    return configured_backbone(config, sample, pretrained), content.channels


@lru_cache(maxsize=32)
def _of_training(
    text: str, content: _Content, recomputed: str | None, dtype: torch.dtype, device: str
) -> footprint.Growth:
    """How the memory of a training step grows, if the backward pass computes so much of it again."""
    network, channels = _network(text, content)
    own = _Called(copy.deepcopy(network))
    for module in own.modules():
        if recomputed is not None and isinstance(module, UNet):
            module.checkpointing = recomputed
    return footprint.training_growth(own, content.shape, in_channels=channels, dtype=dtype, device=device)


@lru_cache(maxsize=32)
def _of_prediction(text: str, content: _Content, device: str) -> footprint.Growth:
    network, channels = _network(text, content)
    return footprint.prediction_growth(_Called(network), content.shape, in_channels=channels, device=device)


def _recomputed(network: nn.Module, voxels: int, dtype: torch.dtype) -> str | None:
    """What a network's `checkpointing` comes to for images of so many voxels; None where nothing is to be chosen."""
    for module in network.modules():
        if isinstance(module, UNet):
            return module.recomputed(voxels // prod(getattr(module, "fold", ())), dtype.itemsize)
    return None

"""What a plan is made from: data, machine, configuration, and what somebody set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf, open_dict

from voxelry.core import memory
from voxelry.core.rank import per_axis
from voxelry.core.settings import keywords
from voxelry.core.space import Space
from voxelry.data.fingerprint.record import CaseFacts, Fingerprint
from voxelry.data.preprocess import Preprocess
from voxelry.engine.plan_file import Decision, is_settled
from voxelry.engine.precision import fast_half
from voxelry.tasks.recipe import Recipe

__all__ = ["Machine", "Rule", "Situation", "each_axis", "length", "lengths", "listed", "seen_at_once"]

_VOXEL = 4  # bytes, as it is preprocessed
_SMALL = 0.1  # mm, below which lengths are told in µm
_FALLBACK = 4 << 30  # bytes, where a machine doesn't tell how much memory it has


@dataclass(frozen=True)
class Machine:
    """Where a training will run.

    Attributes:
        memory: bytes of the processor's memory that may be taken.
        cores: that this process may use.
        gpu: its name; empty where none is used.
        gpu_memory: bytes of it that may be taken.
        fast_half: whether the device that trains multiplies bfloat16 in hardware.
    """

    memory: int
    cores: int
    gpu: str = ""
    gpu_memory: int = 0
    fast_half: bool = False

    @classmethod
    def here(cls, accelerator: str = "auto") -> Self:
        """This machine, for a training with this `trainer.accelerator`."""
        # a training will have what this process holds, too
        room = (memory.available_memory() or _FALLBACK) + memory.resident_memory()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if accelerator == "cpu" or not torch.cuda.is_available():
            return cls(room, cores, fast_half=fast_half(accelerator))
        free = int(torch.cuda.mem_get_info()[0])
        return cls(room, cores, torch.cuda.get_device_name(), free, fast_half(accelerator))

    @property
    def training_memory(self) -> int:
        """Bytes that may be taken on the device that trains."""
        return self.gpu_memory if self.gpu else self.memory


@dataclass(frozen=True)
class Situation:
    """What a rule decides by.

    Attributes:
        data: the fingerprint.
        machine: where it will run.
        config: of the run, with what was decided so far.
        recipe: of the task.
        given: names of the settings that somebody set, which stay as they are.
    """

    data: Fingerprint
    machine: Machine
    config: DictConfig
    recipe: Recipe
    given: frozenset[str] = frozenset()

    def after(self, decision: Decision) -> Situation:
        """The situation once a setting is decided."""
        config = OmegaConf.create(OmegaConf.to_container(self.config))
        with open_dict(config):
            OmegaConf.update(config, decision.setting, decision.value, merge=False)
        return replace(self, config=config)

    def is_open(self, setting: str) -> bool:
        """Whether the configuration has that setting, and nobody set it."""
        parent, _, key = setting.rpartition(".")
        node = OmegaConf.select(self.config, parent)
        return isinstance(node, Mapping | DictConfig) and key in node and not is_settled(setting, self.given)

    @cached_property
    def cases(self) -> list[CaseFacts]:
        """The cases that can be read and have the rank of the run."""
        return [case for case in self.data.readable if len(case.shape) == self.config.ndim]

    @cached_property
    def grids(self) -> list[Space]:
        """Their grids after preprocessing, as far as it is decided."""
        preprocess = Preprocess(**keywords(self.config.data.preprocess))
        return [preprocess.target(case.space) for case in self.cases]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Median spacing of the preprocessed grids in mm, per axis."""
        return np.median([grid.spacing for grid in self.grids], axis=0)

    @property
    def voxel(self) -> float:
        """Side in mm of a cube as large as the median voxel."""
        return float(prod(self.spacing.tolist()) ** (1 / len(self.spacing)))

    @property
    def largest(self) -> tuple[int, ...]:
        """Voxels along each axis of a grid that holds every preprocessed image."""
        return tuple(int(size) for size in np.max([grid.shape for grid in self.grids], axis=0))

    @property
    def oversized(self) -> list[str]:
        """Names of the images that are larger than the memory once they are preprocessed."""
        room = self.machine.memory
        return [case.name for case in self.cases if case.channels * prod(case.shape) * _VOXEL > room]

    @property
    def is_for_crops(self) -> bool:
        """Whether images are too large for the memory, and the task learns from crops as well."""
        free = "data" not in self.given and self.config.data.get("source") == "volumes"
        return free and self.recipe.required in (None, "instances") and bool(self.oversized)

    @property
    def training_cases(self) -> int:
        """About how many groups of cases the split leaves for training."""
        named = [case for case in self.data.cases if case.split]
        if named:
            return max(1, sum(case.split == "train" for case in named))
        split, groups = self.config.data.split, self.data.groups
        if split.folds:
            return max(1, groups - -(-groups // split.folds))
        return max(1, round(groups * (0.7 if split.fractions is None else split.fractions[0])))


def seen_at_once(situation: Situation) -> tuple[int, ...]:
    """Voxels along each axis of what a training step shows of a case."""
    patches = situation.config.data.get("patches")
    if not isinstance(patches, DictConfig):
        return situation.largest
    return each_axis(patches.size, situation.config.ndim)


def each_axis(value: Any, ndim: int) -> tuple[int, ...]:
    """A number of voxels for each axis, from one or a list."""
    sizes: tuple[int, ...] = per_axis(value, ndim, "size") if isinstance(value, int) else per_axis([*value], ndim)
    return sizes


Rule = Callable[[Situation], Iterator[Decision]]


def length(mm: float) -> str:
    """A length as people of its field write it: mm, or µm where it is small."""
    return lengths([mm])


def listed(values: Iterable[float]) -> str:
    """Sizes along several axes."""
    return " x ".join(f"{value:g}" for value in values)


def lengths(values: Iterable[float]) -> str:
    """Lengths in mm along several axes, as `length` writes them."""
    sizes = [float(value) for value in values]
    small = max(sizes) < _SMALL
    return f"{' x '.join(f'{1000 * size if small else size:.3g}' for size in sizes)} {'µm' if small else 'mm'}"

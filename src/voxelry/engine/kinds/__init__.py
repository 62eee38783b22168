"""All tasks that can be trained, by name. A new task is a class like those here and a line in `KINDS`."""

from __future__ import annotations

from omegaconf import DictConfig

from voxelry.core.errors import ConfigError, SettingError
from voxelry.tasks.base import Task
from voxelry.tasks.landmarks.recipe import LandmarkKind
from voxelry.tasks.pretrain.masked_recipe import MaskedPretrainKind
from voxelry.tasks.pretrain.recipe import PretrainKind
from voxelry.tasks.recipe import Kind
from voxelry.tasks.reconstruct.flow_recipe import ReconstructFlowKind
from voxelry.tasks.reconstruct.recipe import ReconstructKind
from voxelry.tasks.segment.recipe import SegmentKind
from voxelry.tasks.translate.recipe import TranslateKind

__all__ = ["KINDS", "Kind", "kind_of", "kind_of_config"]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        LandmarkKind(),
        PretrainKind(),
        MaskedPretrainKind(),
        SegmentKind(),
        ReconstructKind(),
        ReconstructFlowKind(),
        TranslateKind(),
    )
}


def kind_of(task: Task) -> Kind:
    """The kind of a task at hand.

    Raises:
        SettingError: it is of none of them.
    """
    for kind in KINDS.values():
        if type(task) is kind.task_class():
            return kind
    raise SettingError(f"{type(task).__name__}: expected one of {', '.join(KINDS)}")


def kind_of_config(config: DictConfig) -> Kind:
    """The kind of task that a run's configuration describes.

    Raises:
        ConfigError: `task._target_` is the class of none of them.
    """
    target = config.task.get("_target_")
    for kind in KINDS.values():
        if kind.target == target:
            return kind
    known = ", ".join(kind.target for kind in KINDS.values())
    raise ConfigError(f"task._target_: expected one of {known}, got {target!r}")

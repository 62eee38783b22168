"""The tasks that there are, by name, ours and those of other packages."""

from __future__ import annotations

from functools import cache
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from voxelry.bundle.task import StoredTask
from voxelry.core.errors import ConfigError
from voxelry.core.registry import Registry

__all__ = ["TASKS", "recipe_named", "recipe_of", "recipe_of_config"]

TASKS: Registry[Any] = Registry(
    "tasks",
    "task",
    {
        "landmarks": "voxelry.tasks.landmarks.recipe:LandmarkRecipe",
        "pretrain": "voxelry.tasks.pretrain.recipe:PretrainRecipe",
        "masked_pretrain": "voxelry.tasks.pretrain.masked_recipe:MaskedPretrainRecipe",
        "segment": "voxelry.tasks.segment.recipe:SegmentRecipe",
        "reconstruct": "voxelry.tasks.reconstruct.recipe:ReconstructRecipe",
        "reconstruct_flow": "voxelry.tasks.reconstruct.flow_recipe:ReconstructFlowRecipe",
        "reconstruct_sam3d": "voxelry.tasks.reconstruct.sam3d_recipe:ReconstructTwoStageRecipe",
        "translate": "voxelry.tasks.translate.recipe:TranslateRecipe",
    },
)
"""Recipes, children of `tasks.recipe.Recipe`, by the name that bundles, checkpoints and the command line have."""


@cache
def recipe_named(name: str) -> Any:
    """The recipe of a task.

    Raises:
        SettingError: there is no such task.
    """
    return TASKS[name]()


def recipe_of(task: StoredTask) -> Any:
    """The recipe of a task at hand.

    Raises:
        SettingError: a module without a `name`, or of an unknown one.
    """
    return recipe_named(getattr(task, "name", type(task).__name__))


def recipe_of_config(config: DictConfig) -> Any:
    """The recipe of the task that a run's configuration describes.

    Raises:
        ConfigError: `task._target_` is the class of no known task.
    """
    target = config.task.get("_target_")
    try:
        name = get_class(str(target)).name
    except Exception:  # whatever an unknown module may raise while it is imported
        name = None
    if name not in TASKS:
        raise ConfigError(f"task._target_: expected the class of one of {', '.join(TASKS)}, got {target!r}")
    return recipe_named(name)

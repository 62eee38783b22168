"""The registries of tasks and networks: whatever can be configured is known, what isn't known is refused."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from torch import nn

import voxelry.configs
from voxelry.bundle.registry import TASKS, recipe_named, recipe_of, recipe_of_config
from voxelry.core.errors import ConfigError, SettingError
from voxelry.models.networks import NETWORKS
from voxelry.tasks.base import Task
from voxelry.tasks.options import OPTIONS

CONFIGS = sorted((Path(voxelry.configs.__file__).parent / "task").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_task_that_can_be_configured_is_known(path):
    config = OmegaConf.create({"task": yaml.safe_load(path.read_text())})
    assert issubclass(recipe_of_config(config).task, Task)


@pytest.mark.parametrize("name", TASKS)
def test_a_recipe_has_what_the_engine_asks_for(name):
    recipe = recipe_named(name)
    assert recipe.name == name
    assert recipe.options == OPTIONS.get(name, ())
    assert recipe.formats
    assert set(recipe.truth) <= {"landmarks", "labels", "masks"}
    assert recipe.task.monitor


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match=r"task\._target_: expected the class of one of landmarks, pretrain"):
        recipe_of_config(OmegaConf.create({"task": {"_target_": "os.system"}}))
    with pytest.raises(SettingError, match=r"task: expected one of landmarks.*got 'Linear'"):
        recipe_of(nn.Linear(1, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_a_module_with_settings(name):
    found = NETWORKS[name]
    assert issubclass(found, nn.Module)
    assert callable(found.settings)


def test_an_unknown_network_is_refused():
    with pytest.raises(SettingError, match="network Linear: expected one of unet"):
        NETWORKS.name_of(nn.Linear)


@pytest.mark.parametrize("name", TASKS)
def test_an_adapter_for_a_task_that_has_none_is_refused_by_name(name):
    config = OmegaConf.create({"adapter": {"name": "liver"}})
    if recipe_named(name).adaptable:
        recipe_named(name).check_adapter(config)
    else:
        with pytest.raises(ConfigError, match=f"adapter: the task {name} has none, only reconstruct and"):
            recipe_named(name).check_adapter(config)
        recipe_named(name).check_adapter(OmegaConf.create({"adapter": None}))

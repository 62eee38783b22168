"""The registry of tasks: whatever can be configured is known, and what isn't known is refused."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from torch import nn

import voxelry.configs
from voxelry.core.errors import ConfigError, SettingError
from voxelry.engine.kinds import KINDS, kind_of, kind_of_config
from voxelry.models.networks import NETWORKS
from voxelry.tasks.base import Task

CONFIGS = sorted((Path(voxelry.configs.__file__).parent / "task").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_task_that_can_be_configured_is_known(path):
    config = OmegaConf.create({"task": yaml.safe_load(path.read_text())})
    assert issubclass(kind_of_config(config).task_class(), Task)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_what_the_engine_asks_for(name):
    kind = KINDS[name]
    assert kind.name == name
    assert kind.formats
    assert set(kind.truth) <= {"landmarks", "labels", "masks"}
    assert kind.task_class().monitor


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match=r"task\._target_: expected one of voxelry\.tasks\.landmarks\.LandmarkTask"):
        kind_of_config(OmegaConf.create({"task": {"_target_": "os.system"}}))
    with pytest.raises(SettingError, match="Linear: expected one of landmarks"):
        kind_of(nn.Linear(1, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_a_module_with_settings(name):
    found = NETWORKS[name]
    assert issubclass(found, nn.Module)
    assert callable(found.settings)


def test_an_unknown_network_is_refused():
    with pytest.raises(SettingError, match="network Linear: expected one of unet"):
        NETWORKS.name_of(nn.Linear)


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_for_a_task_that_has_none_is_refused_by_name(name):
    config = OmegaConf.create({"adapter": {"name": "liver"}})
    if KINDS[name].adaptable:
        KINDS[name].check_adapter(config)
    else:
        with pytest.raises(ConfigError, match=f"adapter: the task {name} has none, only reconstruct and"):
            KINDS[name].check_adapter(config)
        KINDS[name].check_adapter(OmegaConf.create({"adapter": None}))

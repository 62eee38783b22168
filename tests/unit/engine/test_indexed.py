"""`data=crops data.root=DIR`: a training that lists its crops first."""

import pytest
import yaml

from voxelry.core.errors import ConfigError
from voxelry.engine.indexed import indexed_first
from voxelry.engine.plan_file import Decision, write_plan
from voxelry.engine.train_command import train
from voxelry.phantoms import write_phantoms


@pytest.fixture
def settings(tmp_path, quick_training):
    write_phantoms(tmp_path / "data", 3, shape=(20, 24, 28), kind="nuclei", spacing=(0.002, 0.001, 0.001))
    return [
        "experiment=pretrain_3d",
        "data=crops",
        f"data.root={tmp_path / 'data'}",
        "data.crop_size=[16,16,16]",
        f"output_dir={tmp_path / 'run'}",
        *quick_training,
        "trainer.max_steps=1",
        "task.n_timestep=20",
        "task.time_bands=2",
        "task.sample_steps=2",
        "task.reconstruct_steps=2",
    ]


def test_the_index_is_made_of_the_folder(settings, tmp_path):
    run = train(*settings)
    record = yaml.safe_load((run.bundle / "config.yaml").read_text())
    assert record["training"]["data"]["index"] == str(tmp_path / "run" / "crops.sqlite")
    assert len(record["data"]["train"]) >= 1
    with pytest.raises(ConfigError, match="holds an earlier run"):
        indexed_first(settings)
    again = indexed_first([*settings, "resume=true"])
    assert again[-1] == "data.root=null"
    plan = write_plan(
        tmp_path / "plan.yaml", [Decision("data", "crops"), Decision("data.root", str(tmp_path / "data"))]
    )
    of_plan = indexed_first(["experiment=pretrain_3d", f"plan={plan}", f"output_dir={tmp_path / 'other'}"])
    assert f"data.index='{tmp_path / 'other' / 'crops.sqlite'}'" in of_plan


def test_an_index_that_is_there_is_taken(settings):
    named = [*settings, "data.index=INDEX"]
    assert indexed_first(named) == named
    assert indexed_first(["experiment=pretrain_3d", "data=crops"]) == ["experiment=pretrain_3d", "data=crops"]
    with pytest.raises(ConfigError, match=r"data\.index: expected an index that voxelry index made, or data\.root"):
        train("experiment=pretrain_3d", "data=crops")

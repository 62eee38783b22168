"""`data.borders`: from one setting to a trained bundle that tells its network where an image ends."""

import numpy as np
import pytest

import voxelry
from voxelry.core.errors import ConfigError
from voxelry.engine.compose import compose_training
from voxelry.engine.train import train
from voxelry.phantoms import write_phantoms


@pytest.fixture(scope="module")
def torsos(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("torsos") / "flat", 4, seed=5, ndim=3, shape=(16, 20, 24))


@pytest.mark.parametrize("patches", ["null", "{size:[12,16,16],margin:2}"])
def test_a_run_with_borders_leaves_a_bundle_that_finds_them_itself(torsos, tmp_path, quick_training, patches):
    run = train(
        compose_training([
            "experiment=landmarks_3d", *quick_training, f"data.root={torsos}", f"output_dir={tmp_path / 'run'}",
            "data.borders=20", f"data.patches={patches}", "data.preprocess.image_size=[16,20,24]",
            "trainer.max_steps=1",
        ])
    )  # fmt: skip
    model = voxelry.load(run.bundle, "cpu")
    assert model.task.borders == 20.0
    assert model.task.network.settings()["in_channels"] == 1 + 6
    found = model.predict(sorted((torsos / "volumes").iterdir())[0])
    assert np.isfinite(found.world).all()


def test_other_tasks_have_no_use_for_borders(torsos, tmp_path, quick_training):
    config = compose_training(
        ["experiment=pretrain_3d", *quick_training, f"data.root={torsos}", f"output_dir={tmp_path}", "data.borders=20"]
    )
    with pytest.raises(ConfigError, match=r"data\.borders: task=pretrain"):
        train(config)

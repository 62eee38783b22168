"""The rank-2 experiments from PNG files to predictions; the volumes are in tests/unit/engine."""

from pathlib import Path

import numpy as np
import pytest

import voxelry
from voxelry.engine.compose import compose_training
from voxelry.engine.train import train
from voxelry.phantoms import write_phantoms


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flat") / "phantoms"
    return write_phantoms(folder, 4, seed=3, ndim=2, shape=(40, 32), format=".png")


@pytest.mark.parametrize("experiment", ["landmarks_2d", "pretrain_2d"])
def test_an_experiment_runs_through(data, tmp_path, experiment):
    sampling = ["task.n_timestep=20", "task.sample_steps=3", "task.reconstruct_steps=2", "model.self_condition=true"]
    config = compose_training(
        [
            f"experiment={experiment}",
            f"data.root={data}",
            f"output_dir={tmp_path}",
            "model=unet_tiny",
            "model.width=8",
            "trainer=smoke",
            "trainer.progress=false",
            "trainer.accelerator=cpu",
            "data.split.fractions=[0.5,0.25,0.25]",
            "data.preprocess.image_size=[24,32]",
            *(sampling if experiment == "pretrain_2d" else ["task.presence=true", "augment=strong"]),
        ]
    )
    run = train(config)
    model = voxelry.load(run.bundle, "cpu")
    image = data / "volumes" / "case_000.png"
    prediction = model.predict(image)
    if experiment == "landmarks_2d":
        assert prediction.world.shape == (8, 3)
        space = voxelry.open_image(image).space
        assert space.contains(space.to_index(prediction.world)).all()
        assert ((prediction.presence >= 0) & (prediction.presence <= 1)).all()
    else:
        assert model.task.self_condition
        assert prediction.reconstruction.shape == (1, 24, 32)
        assert np.isfinite(prediction.reconstruction.numpy()).all()

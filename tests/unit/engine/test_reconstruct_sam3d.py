"""Organs in two stages from a configuration to files: training, bundle, clicks."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import voxelry
from voxelry.bundle.pretrained import Pretrained
from voxelry.cli import app
from voxelry.core.errors import ConfigError, DataError
from voxelry.engine.compose import compose_training
from voxelry.engine.train import train
from voxelry.io import read_image
from voxelry.io.meshes import read_mesh
from voxelry.models.sam3d.net import TwoStageNet
from voxelry.models.sam3d.pose import POSE_METRICS
from voxelry.tasks.reconstruct.sam3d_recipe import ReconstructTwoStageRecipe

LIVER = 6
QUICK = [
    "experiment=reconstruct_sam3d_3d", "data.slices.organs=[6]", "data.split.fractions=[0.5,0.5,0.0]",
    "data.slices.slices=[1,2]", "data.slices.evaluation={slices: 1, clicks: 1}", "task.baseline_shapes=2",
    "task.samples=2", "task.steps=2", "task.recentre=false",
    "task.autoencoder_share=0.5",
    "model.grid=16", "model.prior_grid=16", "model.image_size=16", "model.width=8", "model.multipliers=[1,2]",
    "model.volume_width=8", "model.volume_multipliers=[1,2]", "model.structure.widths=[4,8]",
    "model.structure_flow.grid=4", "model.structure_flow.depth=1", "model.latent_flow.depth=1",
    "model.structure_flow.channels=24", "model.structure_flow.condition_channels=24", "model.structure_flow.heads=2",
    "model.latent_flow.channels=24", "model.latent_flow.condition_channels=24", "model.latent_flow.heads=2",
    "model.latent_flow.widths=[8]", "model.mesh_decoder.grid=8", "model.mesh_decoder.channels=16",
    "model.mesh_decoder.depth=1", "model.mesh_decoder.widths=[8]", "model.mesh_decoder.groups=2",
    "model.encoder_width=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def quick(quick_training, phantoms) -> list[str]:
    common = [override for override in quick_training if not override.startswith("model")]
    return [*QUICK, *common, f"data.root={phantoms}"]


@pytest.fixture(scope="module")
def run(quick, tmp_path_factory):
    """A training of both parts, two steps each, of a network that learns and says poses, too."""
    output = tmp_path_factory.mktemp("sam3d") / "run"
    pose = ["model.structure_flow.include_pose=true", "task.pose_weight=1", "task.pose_decoder=ScaleShiftInvariant"]
    return output, train(compose_training([*quick, *pose, f"output_dir={output}"]))


def test_a_run_trains_both_stages_and_answers_clicks(run, scan, tmp_path):
    output, result = run
    assert np.isfinite(result.summary["dice"])
    assert all(np.isfinite(result.summary[name]) for name in POSE_METRICS)
    model = voxelry.load(output / "bundle")
    assert isinstance(model.task.network, TwoStageNet)
    assert int(model.task.network.structure.batches) == int(model.task.network.surface.batches) == 2
    image, click = scan
    arguments = ["predict", "--model", str(output), str(image), "--click", ",".join(map(str, click)), "--samples", "3"]
    found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    name = image.name.removesuffix(".nii.gz")
    mesh = read_mesh(tmp_path / f"{name}.ply")
    assert mesh.is_watertight
    assert mesh.volume_ml > 0
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["hypotheses"] == 3
    assert read_image(tmp_path / f"{name}.nii.gz").space.shape == read_image(image).space.shape


def test_a_reader_for_another_grid_is_not_kept():
    config = compose_training(
        ["experiment=reconstruct_sam3d_3d", "model=sam3d_small", "data.root=.", "task.stages=[structure,surface]"]
    )
    coarse = Pretrained("shape_net", {"decoder": "transformer", "grid": 64}, {}, (0.0, 1.0), "runs/reader")
    with pytest.raises(ConfigError, match=r"runs/reader answers on 64 cells.* model\.grid=128"):
        ReconstructTwoStageRecipe().network(config, None, coarse)


def test_an_empty_structure_is_refused_in_one_line(run, scan):
    output, _ = run
    model = voxelry.load(output / "bundle")
    with torch.no_grad():
        model.task.network.structure.decoder.leave[-1].bias.fill_(-1e6)
    image, click = scan
    with pytest.raises(DataError, match="structure is empty"):
        model.reconstruct(image, click=click)

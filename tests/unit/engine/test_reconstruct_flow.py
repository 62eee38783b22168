"""Hypotheses of shapes from a configuration to files: training, bundle, clicks, starting weights, faults."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import voxelry
from voxelry.bundle.model import load
from voxelry.cli import app
from voxelry.core.errors import CheckpointError, ConfigError, SettingError
from voxelry.engine.compose import compose_training
from voxelry.engine.predict import predict_files
from voxelry.engine.report import evaluate_folder
from voxelry.engine.train import train
from voxelry.io.meshes import read_mesh
from voxelry.models.shape import ShapeFlow
from voxelry.tasks.reconstruct import ReconstructFlowTask, report
from voxelry.tasks.reconstruct.spread import HypothesisCalibration

LIVER = 6
NETWORK = [
    "model.grid=16", "model.prior_grid=16", "model.image_size=16", "model.width=8", "model.multipliers=[1,2]",
    "model.volume_width=8", "model.volume_multipliers=[1,2]",
]  # fmt: skip
QUICK = [
    "data.slices.organs=[6]", "data.split.fractions=[0.5,0.5,0.0]", "task.baseline_shapes=2",
    "data.slices.slices=[1,2]", "data.slices.evaluation={slices: 1, clicks: 1}", *NETWORK,
]  # fmt: skip
FLOW = [
    "experiment=reconstruct_flow_3d", "model.latent_grid=4", "model.autoencoder_width=8", "model.flow_width=16",
    "model.flow_depth=1", "task.samples=3", "task.steps=2", "task.recentre=false", "task.draws=2",
    "task.autoencoder_share=0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def quick(quick_training, phantoms) -> list[str]:
    common = [override for override in quick_training if not override.startswith("model")]
    return [*common, *QUICK, f"data.root={phantoms}"]


@pytest.fixture(scope="module")
def run(quick, tmp_path_factory):
    """A training of both parts, two steps each."""
    output = tmp_path_factory.mktemp("flow") / "run"
    return output, train(compose_training([*FLOW, *quick, f"output_dir={output}"]))


def test_a_training_has_both_parts_and_leaves_a_bundle(run):
    output, finished = run
    assert {"dice", "without_flow_dice", "coverage_90", "best_hypothesis_dice"} <= set(finished.summary)
    with (output / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["train/flow"]) for row in rows if row["train/coded"]] == [False, False, True, True]
    task = voxelry.load(finished.bundle).task
    assert type(task.network) is ShapeFlow
    assert int(task.network.autoencoder.batches) > 0


def sure(bundle):
    """The model, its shapes made plain: an autoencoder of two steps makes none."""
    model = load(bundle)
    network = model.task.network
    network.latents = lambda sdf: (sdf[..., ::4, ::4, ::4] / 0.2).expand(-1, 4, -1, -1, -1)
    network.shapes = lambda latents: network.autoencoder.truncation * _up(latents[:, :1])
    network.error.fill_(0.2)
    return model


def _up(latents):
    import torch

    return torch.nn.functional.interpolate(latents, scale_factor=4, mode="trilinear")


@pytest.mark.parametrize("format", ["ply", "stl"])
def test_every_hypothesis_is_written_with_the_spread_of_the_mean(run, scan, tmp_path, format):
    image, click = scan
    outcome = predict_files(
        sure(run[1].bundle), [image], tmp_path, format=format, options={"click": click, "samples": 4}
    )
    assert not outcome.failed
    name = outcome.written[0].name.removesuffix(f".{format}")
    meshes = [read_mesh(tmp_path / f"{name}_{number}.{format}") for number in range(1, 5)]
    assert not (tmp_path / f"{name}_5.{format}").exists()
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["hypotheses"] == 4
    assert record["volumes_ml"] == pytest.approx([mesh.volume_ml for mesh in meshes], rel=1e-3)
    mean = read_mesh(outcome.written[0])
    with (tmp_path / f"{name}_spread.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["x", "y", "z", "spread_mm"]
    spread = np.array([float(row["spread_mm"]) for row in rows])
    assert spread.mean() == pytest.approx(record["spread_mm"], abs=1e-3)
    if format == "ply":
        np.testing.assert_allclose(mean.values["spread_mm"], spread, atol=1e-3)
        places = np.array([[float(row[axis]) for axis in "xyz"] for row in rows])
        np.testing.assert_allclose(mean.vertices, places, atol=1e-3)


def test_samples_can_be_asked_for_in_python(run, scan):
    image, click = scan
    model = load(run[1].bundle)
    assert len(model.reconstruct(image, click=click).hypotheses) == 3
    assert len(model.reconstruct(image, click=click, samples=5, steps=1, sampler="euler").hypotheses) == 5
    assert len(load(run[1].bundle, changes={"task.samples": 2}).reconstruct(image, click=click).hypotheses) == 2
    with pytest.raises(SettingError, match="samples: expected at least 1"):
        model.reconstruct(image, click=click, samples=0)


def test_the_command_line_takes_samples_and_wants_a_click(run, scan, tmp_path):
    image, click = scan
    command = ["predict", "--model", str(run[0]), str(image), "--out", str(tmp_path)]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, SettingError)
    assert "--click" in str(refused.exception)
    place = ",".join(f"{value:.2f}" for value in click)
    given = CliRunner().invoke(app, [*command, "--click", place, "--samples", "2", "--steps", "1"])
    written = sorted(path.name for path in tmp_path.iterdir())
    if given.exit_code == 0:  # so short a training may end without any surface, which is told
        assert any(name.endswith("_sdf_2.nii.gz") for name in written)
        assert not any(name.endswith("_sdf_3.nii.gz") for name in written)
    else:
        assert "no shape was found at the click" in given.output


def test_a_flow_starts_from_a_model_that_answers_once_but_not_the_other_way_round(
    run, quick, scan, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "add_cases", lambda page, *_: page)  # pictures take longest
    once = ["experiment=reconstruct_3d", *quick, "task.recentre=false", "trainer.max_steps=1"]
    finished = train(compose_training([*once, f"output_dir={tmp_path / 'once'}"]))
    with pytest.raises(
        SettingError, match=r"samples: expected with .* translate or reconstruct_flow or .*, not reconstruct"
    ):
        load(finished.bundle).reconstruct(scan[0], click=scan[1], samples=3)
    start = [
        *FLOW,
        *quick,
        "trainer.max_steps=2",
        "optimizer.lr=0.0",
        f"output_dir={tmp_path / 'flow'}",
        f"pretrained={tmp_path / 'once'}",
    ]
    flow = load(train(compose_training(start)).bundle).task
    before = load(finished.bundle).task.network.state_dict()
    after = flow.network.state_dict()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    with pytest.raises(CheckpointError, match="holds a shape_flow; expected a shape_net"):
        train(compose_training([*once, f"output_dir={tmp_path / 'back'}", f"pretrained={run[0]}"]))
    with pytest.raises(ConfigError, match="answers once and has no flow to adapt"):
        train(compose_training([*start, "overwrite=true", "adapter={name: liver, rank: 2}"]))


@pytest.mark.usefixtures("drawn")
def test_an_adapter_of_a_flow_is_trained_loaded_switched_merged_and_measured(
    run, quick, scan, phantoms, tmp_path, monkeypatch
):
    def fitted(calibration, predictions, truths):  # so short a training has no surface to learn it from
        calibration.factor.fill_(1.5)
        calibration.cases.fill_(len(predictions))

    monkeypatch.setattr(HypothesisCalibration, "fit", fitted)
    monkeypatch.setattr(report, "add_cases", lambda page, *_: page)  # pictures take longest
    image, click = scan
    adapted = [*FLOW, *quick, f"output_dir={tmp_path / 'liver'}", f"pretrained={run[0]}", "optimizer.lr=0.01"]
    finished = train(compose_training([*adapted, "adapter={name: liver, rank: 2}"]))
    with (tmp_path / "liver" / "logs" / "metrics.csv").open() as file:
        losses = [bool(row["train/flow"]) for row in csv.DictReader(file) if row["train/coded"]]
    assert losses == [True] * len(losses) != []  # latents stay the base's, so the flow learns from the first batch on
    base = load(run[1].bundle).reconstruct(image, click=click)
    model = load(run[1].bundle, adapter=tmp_path / "liver")
    merged = load(finished.bundle)
    state, before = merged.task.state_dict(), load(run[1].bundle).task.state_dict()
    for name in ("network.error", "network.batches", "network.autoencoder.narrow.1.weight"):
        np.testing.assert_array_equal(state[name], before[name])
    for task in (model.task, merged.task):
        assert (float(task.calibration.factor), int(task.calibration.cases)) == (1.5, 2)
    found, again = (one.reconstruct(image, click=click, samples=2) for one in (model, merged))
    assert len(found.hypotheses) == len(again.hypotheses) == 2
    for one, other in zip((found.sdf, *found.hypotheses), (again.sdf, *again.hypotheses), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert not np.allclose(found.sdf, base.sdf, atol=1e-3)
    with model.adapters.using(None):
        np.testing.assert_array_equal(model.reconstruct(image, click=click).sdf, base.sdf)
    summary = evaluate_folder(model, phantoms, tmp_path / "measured").summary
    assert "Hypotheses" in (tmp_path / "measured" / "report.html").read_text()
    assert "hypothesis_dice" in summary or np.isnan(summary["dice"])
    flags = ["predict", "--model", str(run[0]), "--adapter", str(tmp_path / "liver"), str(image), "--samples", "2"]
    flags += ["--click", ",".join(f"{value:.2f}" for value in click), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, flags)
    assert outcome.exit_code == 0 or "no shape was found at the click" in outcome.output


def test_an_untrained_flow_can_t_be_adapted():
    network = ShapeFlow(
        in_channels=1, classes=1, grid=16, prior_grid=16, image_size=16, width=8, multipliers=(1, 2), volume_width=8,
        volume_multipliers=(1, 2), latent_grid=4, autoencoder_width=8, flow_width=16,
    )  # fmt: skip
    with pytest.raises(SettingError, match="expected a trained flow"):
        ReconstructFlowTask(network).adapt("liver", {})

"""A few-shot study from an original's JSON files, read back from what its runs wrote."""

import csv
import json
import math
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from voxelry.bundle.checkpoint import read_checkpoint
from voxelry.core.errors import CheckpointError, DataError
from voxelry.engine.launch import launch_file

CASES, SIZE, EPOCHS, BATCH, ACCUMULATION = 40, 16, 2, 2, 8
UNET = {"channel_mults": [1, 2], "attn_res": 4, "num_head_channels": 2, "res_blocks": 4, "self_condition": True}
QUICK = ("trainer.progress=false", "trainer.accelerator=cpu", "data.num_workers=0")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with `datasets/chest`: pictures of two dark lungs, with a point in each and one between them."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(3)
    root = folder / "datasets" / "chest"
    (root / "pngs").mkdir(parents=True)
    (root / "labels").mkdir()
    y, x = np.mgrid[:32, :32] / 32
    for number in range(CASES):
        points = np.array([[0.3, 0.5], [0.7, 0.5], [0.5, 0.25]]) + rng.normal(0, 0.04, (3, 2))
        lungs = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 0.02) for px, py in points[:2])
        image = 200 - 150 * lungs + rng.normal(0, 4, x.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "pngs" / f"CHNCXR_{number + 400:04d}_0.png")
        lines = [str(len(points)), *(f"{px:.4f} {py:.4f}" for px, py in points)]
        (root / "labels" / f"CHNCXR_{number + 400:04d}_0.txt").write_text("\n".join(lines) + "\n")
    return folder


def write(folder, name, content):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def dataset(folder, **further):
    common = {"name": "chest", "path": str(folder / "datasets"), "image_channels": 1, "pin_memory": False}
    return {**common, "batch_size": BATCH, "grad_accumulation": ACCUMULATION, **further}


def downstream(folder, samples, weights=None, **protocol):
    return {
        "gpu": 0,
        "experiment_path": str(folder / "landmarks"),
        "model": {
            "name": "ddpm",
            "encoder": "",
            "lr": 1e-3,
            "optimizer": "AdamW",
            "scheduler": "ReduceLROnPlateau",
            "loss_function": "CrossEntropyLoss",
            "epochs": EPOCHS,
            "unet": UNET,
        },
        "training_protocol": {
            "apply": True,
            "scratch": {"apply": weights is None, "resume": False},
            "finetuning": {"apply": weights is not None, "resume": False, "path": weights or ""},
            **protocol,
        },
        "inference_protocol": {"apply": True, "use_validation_set_for_inference": False},
        "dataset": dataset(folder, image_size=[SIZE, SIZE], sigma=2, training_samples=samples),
    }


@pytest.fixture(scope="module")
def no_reports():
    """Seven reports would take longer than the trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxelry.engine.train.write_report", lambda *args, **options: None)
        patch.setattr("voxelry.tasks.pretrain.samples.PeriodicSamples.on_validation_epoch_end", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def pretrained(work, no_reports):
    content = {
        "gpu": 0,
        "experiment_path": str(work / "pretraining"),
        "model": {
            "unet": UNET,
            "beta_schedule": {
                "train": {"schedule": "linear", "n_timestep": 20, "linear_start": 1e-4, "linear_end": 0.02}
            },
            "lr": 1e-4,
            "optimizer": "adamw",
            "loss_type": "l2",
            "use_ema": True,
            "iterations": 4,
            "freq_metrics": 2,
            "freq_checkpoint": 2,
            "continue_training": False,
        },
        "dataset": dataset(work, image_size=SIZE),
    }
    launch_file(write(work, "pretraining.json", content), [*QUICK, "task.sample_steps=2", "task.reconstruct_steps=2"])
    return work / "pretraining" / "chest" / "linear_20" / f"size{SIZE}_ch1"


@pytest.fixture(scope="module")
def series(work, pretrained):
    """The folder of each run, by samples and whether it was pretrained; of the larger ones one of both."""
    runs = {}
    for samples, tuned in ((5, False), (5, True), (10, True), (25, False)):
        weights = str(pretrained) if tuned else None
        launch_file(write(work, f"{samples}.json", downstream(work, samples, weights)), [*QUICK])
        kind = f"pretrained/*-pretraining-chest-linear_20-size{SIZE}_ch1" if tuned else "random"
        below = work / "landmarks" / "chest" / f"size{SIZE}x{SIZE}_ch1_samples{samples}" / "ddpm"
        (runs[samples, tuned],) = below.glob(kind)
    return runs


@cache
def record(run):
    return yaml.safe_load((run / "bundle" / "config.yaml").read_text())


def test_every_run_has_a_folder_of_its_own(series, work):
    assert len({run.resolve() for run in series.values()}) == 4
    assert all((run / "bundle" / "weights.safetensors").is_file() for run in series.values())
    assert len(list((work / "landmarks").glob("**/bundle"))) == 4


def test_epochs_are_those_of_the_original(series):
    for (samples, _), run in series.items():
        steps = math.ceil(math.ceil(samples / BATCH) / ACCUMULATION)
        checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
        assert checkpoint["global_step"] == EPOCHS * steps
        assert checkpoint["voxelry"]["batches_taken"] == EPOCHS * math.ceil(samples / BATCH)
        assert [entry["step"] for entry in checkpoint["voxelry"]["history"]] == [steps, 2 * steps]
        with (run / "logs" / "metrics.csv").open() as file:
            assert sum(row["val/mre_mm"] != "" for row in csv.DictReader(file)) == EPOCHS


def test_the_protocol_is_the_original_s(series):
    for (samples, tuned), run in series.items():
        training = record(run)["training"]
        assert training["optimizer"]["lr"] == pytest.approx(1e-3 if tuned else 1e-2)
        assert training["trainer"]["ema"] is None
        assert training["learning_rate"]["patience"] == ACCUMULATION + 5
        assert record(run)["network"]["self_condition"] is False
        assert json.loads((run / "summary.json").read_text())["training_samples"] == samples


def test_nothing_leaks(series, pretrained):
    seen = set(record(pretrained)["data"]["train"])
    for run in series.values():
        data = record(run)["data"]
        held_out = {*data["validation"], *data["test"]}
        assert held_out
        assert not held_out & seen
        assert not held_out & set(data["train"])
    everything = sorted(seen)
    for (samples, _), run in series.items():
        assert record(run)["data"]["train"] == everything[:samples]


def test_the_originals_scores_stand_beside_ours(series):
    summary = json.loads((series[5, True] / "summary.json").read_text())
    for name in ("mse", "map_keypoints", "map_heatmaps", "iou", "mre", "sdr_2", "sdr_10"):
        assert summary[f"original_{name}"] is not None
    # the images are half as large to the network as in their files, whose pixels count as mm
    assert summary["original_mre"] == pytest.approx(summary["mre_mm"] / 2, abs=1)


def test_inference_alone_measures_what_is_there_and_trains_nothing(series, work):
    run = series[5, False]
    before = (run / "bundle" / "weights.safetensors").stat().st_mtime_ns
    launch_file(write(work, "inference.json", downstream(work, 5, apply=False)), [*QUICK])
    assert (run / "bundle" / "weights.safetensors").stat().st_mtime_ns == before
    measured = json.loads((run / "inference_test" / "summary.json").read_text())
    assert measured["mre_mm"] == pytest.approx(json.loads((run / "summary.json").read_text())["mre_mm"], rel=1e-4)
    path = write(work, "untrained.json", downstream(work, 7, apply=False))
    with pytest.raises(CheckpointError, match="no trained model there; train it first"):
        launch_file(path, [*QUICK])
    launch_file(path, [*QUICK, "--load_path", str(run)])
    assert len(list((work / "landmarks" / "chest").glob("*samples7/**/inference_test/report.html"))) == 1


def test_other_channels_than_the_file_says_are_refused(series, work):
    content = downstream(work, 5, apply=False)
    content["dataset"]["image_channels"] = 3
    path = write(work, "colour.json", content)
    with pytest.raises(DataError, match=r"1 channels, but data\.image_channels=3 \(data\.preprocess\.channels=3"):
        launch_file(path, [*QUICK, f"--load_path={series[5, False]}"])


def test_an_original_checkpoint_is_measured_and_one_of_its_pretraining_is_not(work, golden, tmp_path):
    with safe_open(golden / "ddpm_unet_2d.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("weight.")]  # noqa: SIM118 (no mapping)
        weights = {name.removeprefix("weight."): file.get_tensor(name) for name in names}
    torch.save({"model_state_dict": weights, "epoch": 3}, tmp_path / "last_ema_model.pt")
    heads = {
        "final_conv.weight": torch.rand(3, *weights["final_conv.weight"].shape[1:]),
        "final_conv.bias": torch.rand(3),
    }
    torch.save({"model_state_dict": weights | heads, "epoch": 3}, tmp_path / "best_checkpoint.pt")
    content = downstream(work, 8)
    content["experiment_path"] = str(tmp_path)
    path = write(tmp_path, "measured.json", content)
    launch_file(path, [*QUICK, "-p", str(tmp_path / "best_checkpoint.pt")])
    (written,) = tmp_path.glob("**/summary.json")
    assert written.parent.name == "inference_test"
    assert json.loads(written.read_text())["cases"] == 8
    with pytest.raises(CheckpointError, match=r"no trained model for landmarks; its weights lack head"):
        launch_file(path, [*QUICK, "-p", str(tmp_path / "last_ema_model.pt")])

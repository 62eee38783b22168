"""Fast-DDPM's commands as its readme has them, on small files: train, go on, sample and measure."""

import csv
import json
import math

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from voxelry.bundle.model import load
from voxelry.cli import app
from voxelry.core.errors import CheckpointError, ConfigError
from voxelry.core.space import Space
from voxelry.engine.launch import launch_file
from voxelry.io import read_image, write_image
from voxelry.metrics.original_images import fast_ddpm_scores

FILE = {
    "data": {
        "dataset": "PMUB",
        "train_dataroot": "data/LD_FD_CT_train",
        "val_dataroot": "data/PMUB-val",
        "sample_dataroot": "data/LD_FD_CT_test",
        "image_size": 16,
        "channels": 1,
        "random_flip": True,
        "num_workers": 0,
    },
    "model": {
        "type": "sg", "in_channels": 2, "out_ch": 1, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1,
        "attn_resolutions": [16], "dropout": 0.0, "var_type": "fixedsmall", "ema_rate": 0.999, "ema": True,
        "resamp_with_conv": True,
    },
    "diffusion": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_diffusion_timesteps": 1000},
    "training": {"batch_size": 2, "n_epochs": 1, "n_iters": 5000000, "snapshot_freq": 100000,
                 "validation_freq": 5000000000},
    "sampling_fid": {"batch_size": 128, "last_only": True},
    "optim": {"weight_decay": 0.0, "optimizer": "Adam", "lr": 0.00002, "beta1": 0.9, "amsgrad": False, "eps": 1e-8},
}  # fmt: skip
QUICK = ["trainer.progress=false", "trainer.accelerator=cpu"]
GIVEN = ["--dataset", "LDFDCT", "--exp", "project", "--doc", "first", "--scheduler_type", "uniform", "--timesteps", "5"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The original's folders: `configs/` and `data/`."""
    root = tmp_path_factory.mktemp("fast_ddpm")
    noise = np.random.default_rng(0)
    for folder, count in (("LD_FD_CT_train", 4), ("LD_FD_CT_test", 2)):
        for number in range(count):
            clean = noise.integers(0, 256, (1, 20, 20))
            for kind, array in (("fd", clean), ("ld", np.clip(clean + noise.normal(0, 9, clean.shape), 0, 255))):
                path = root / "data" / folder / f"L{number}" / f"L{number}_{kind}.png"
                write_image(path, array.astype(np.uint8), Space.from_spacing((20, 20)))
    (root / "configs").mkdir()
    (root / "configs" / "ldfd_linear.yml").write_text(yaml.safe_dump(FILE))
    return root


@pytest.fixture(scope="module")
def trained(project):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        outcome = CliRunner().invoke(app, ["train", "--config", "ldfd_linear.yml", *GIVEN, *QUICK])
    assert outcome.exit_code == 0, outcome.output
    return project


def test_a_run_learns_all_of_the_training_folder_at_the_originals_steps(trained):
    config = yaml.safe_load((trained / "project" / "logs" / "first" / "bundle" / "config.yaml").read_text())
    assert len(config["data"]["train"]) == 4
    assert config["data"]["validation"] == []
    assert [name.removeprefix("test_") for name in config["data"]["test"]] == ["L0_L0", "L1_L1"]
    plan = load(trained / "project" / "logs" / "first" / "bundle").task.path.plan
    assert plan.trained == plan.steps == (0, 199, 399, 599, 799, 999)


def test_sampling_writes_images_on_their_own_grid_and_both_measures(trained, monkeypatch):
    monkeypatch.chdir(trained)
    outcome = CliRunner().invoke(app, ["train", "--config", "ldfd_linear.yml", *GIVEN, "--sample", "--fid", "--ni"])
    assert outcome.exit_code == 0, outcome.output
    out = trained / "project" / "image_samples" / "first" / "images_fid"
    images = sorted(out.glob("*.png"))
    assert [path.name for path in images] == ["L0_L0.png", "L1_L1.png"]
    assert read_image(images[0]).array.shape == (1, 20, 20)
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"psnr", "ssim", "fast_ddpm_psnr", "fast_ddpm_ssim"} <= set(rows[0])
    # images times 255 against 255 is the definition of PSNR by levels, on the network's own grid
    assert float(rows[0]["fast_ddpm_psnr"]) == pytest.approx(float(rows[0]["psnr"]), abs=1e-3)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["fast_ddpm_psnr"] == pytest.approx(np.mean([float(row["fast_ddpm_psnr"]) for row in rows]))


def test_sampling_other_steps_than_the_trained_ones_or_without_a_run_is_refused(trained, monkeypatch):
    monkeypatch.chdir(trained)
    sample = ["ldfd_linear.yml", "--dataset", "LDFDCT", "--exp", "project", "--sample", "--fid"]
    with pytest.raises(ConfigError, match="the model was trained at 0, 199"):
        launch(*sample, "--doc", "first", "--timesteps", "7")
    with pytest.raises(CheckpointError, match=r"project/logs/none: no trained run there; give the command without"):
        launch(*sample, "--doc", "none")
    with pytest.raises(ConfigError, match=r"trainer.max_steps=3: with --sample nothing is trained"):
        launch(*sample, "--doc", "first", "trainer.max_steps=3")


def launch(name, *arguments):
    from pathlib import Path

    launch_file(Path(name), list(arguments))


def test_the_originals_scores_are_means_over_slices():
    truth = np.random.default_rng(1).random((1, 3, 9, 8))
    worse = truth.copy()
    worse[0, 1] += 0.1
    worse[0, 2] += 0.01
    worse[0, 0] += 0.01
    scores = fast_ddpm_scores(worse, truth)
    assert scores["fast_ddpm_psnr"] == pytest.approx((20 + 40 + 40) / 3)
    assert 0 < scores["fast_ddpm_ssim"] < 1
    assert fast_ddpm_scores(truth, truth)["fast_ddpm_psnr"] == math.inf
    assert math.isnan(fast_ddpm_scores(truth[..., :4], truth[..., :4])["fast_ddpm_ssim"])

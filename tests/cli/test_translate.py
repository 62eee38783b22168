"""`voxelry predict` and `evaluate` of a translation, as a user types them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelry import cli
from voxelry.bundle.bundle import write_bundle
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import read_image, write_image
from voxelry.models.unet.haar import HaarUNet
from voxelry.tasks.translate import TranslateTask
from voxelry.tasks.translate.targets import input_channels

SPACE = Space.from_spacing((10, 12, 8), (2.0, 1.0, 1.0), (3.0, -4.0, 5.0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    channels = input_channels(2, 1, 3, tells_place=False)
    network = HaarUNet(ndim=3, in_channels=channels, width=8, multipliers=[1, 2], groups=4, block="pre_norm",
                       attention="none", middle_attention="none", zero_head=True)  # fmt: skip
    task = TranslateTask(network, conditions=2, condition_names=["t1", "t2"], steps=4)
    folder = tmp_path_factory.mktemp("b") / "bundle"
    return write_bundle(folder, task, Preprocess(normalise="minmax"), record={}, card="")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, Path]:
    folder, rng = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    return {
        name: write_image(folder / f"{name}.nii.gz", rng.random((1, *SPACE.shape)).astype(np.float32), SPACE)
        for name in ("t1", "t2")
    }


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["voxelry", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = capsys.readouterr()
        return status, out, err

    return command


def test_contrasts_become_an_image_and_its_spread(run, bundle, scans, tmp_path):
    given = [word for name, path in scans.items() for word in ("--contrast", f"{name}={path}")]
    status, out, err = run(
        "predict", "--model", bundle, *given, "--out", tmp_path, "--steps", 2, "--sampler", "heun", "--samples", 2,
        "--format", "mha",
    )  # fmt: skip
    assert status == 0, err
    assert "1 of 1 predicted" in out
    for name in ("t1.mha", "t1_spread.mha"):
        assert read_image(tmp_path / name).space.is_close(SPACE)
    status, _, err = run("predict", "--model", bundle, "--contrast", f"t2={scans['t2']}", "--out", tmp_path)
    assert status == 0, err
    torch.testing.assert_close(
        torch.from_numpy(read_image(tmp_path / "t2.nii.gz").array),
        torch.from_numpy(read_image(scans["t2"]).array),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contrast", "t1"], "--contrast: expected NAME=FILE"),
        (["--contrast", "pd={t1}"], "contrast: expected one of t1, t2, got 'pd'"),
        (["{t1}", "--contrast", "t1={t1}"], "--contrast: expected no input beside it"),
        (["{t1}"], "1 channels, but the model takes 2"),
        (["--contrast", "t1={t1}", "--steps", "3"], "it can do 1, 2, 4 of them"),
        (["--contrast", "t1={t1}", "--sampler", "ddim"], "sampler: a flow or bridge has one of euler, heun"),
        (["--contrast", "t1={t1}", "--samples", "0"], "samples: expected at least 1"),
        (["--contrast", "t1={t1}", "--format", "stl"], "format: translate is written as one of nii.gz"),
    ],
)
def test_faults_are_one_line(run, bundle, scans, tmp_path, arguments, message):
    words = [word.format(**scans) for word in arguments]
    status, _, err = run("predict", "--model", bundle, *words, "--out", tmp_path / "out")
    lines = [line for line in err.splitlines() if line.startswith("voxelry: error: ")]
    assert status == 1
    assert len(lines) == 1, err
    assert message in lines[0]
    assert "Traceback" not in err


def test_what_is_a_translations_is_refused_elsewhere(run, scans, tmp_path):
    from voxelry.models.unet import UNet
    from voxelry.tasks.landmarks import LandmarkTask

    network = UNet(ndim=3, out_channels=1, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    other = write_bundle(tmp_path / "b", LandmarkTask(network, landmark_names=["a"]), Preprocess(), record={}, card="")
    status, _, err = run("predict", "--model", other, scans["t1"], "--out", tmp_path / "out", "--steps", 2)
    assert status == 1
    assert "--steps: expected with a model for translate or reconstruct_flow or reconstruct_sam3d, not landmarks" in err

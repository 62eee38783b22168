"""A prediction that is killed in the middle of a file, and started again."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from voxelry import cli
from voxelry.backbones.build import build_backbone
from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.data.preprocess import Preprocess
from voxelry.engine.predict import predict_files
from voxelry.io import read_image, write_image
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.phantoms.nuclei import make_nuclei
from voxelry.tasks.segment import SegmentTask

OUTPUTS = ("big.nii.gz", "big.instances.csv", "big.instances.json")


@pytest.fixture
def bundle(tmp_path) -> Path:
    """An untrained detector, which finds something everywhere."""
    backbone = {"name": "resnet", "ndim": 3, "width": 8, "layers": [1, 1], "levels": ["p2"], "stem_kernel": 3}
    network = MaskRCNN(
        build_backbone({**backbone, "norm": "group", "pool_stride": None, "stage_strides": [1, 2]}),
        num_classes=2,
        anchors={"sizes": [[10.0]], "ratios": [1.0], "z_ratios": [1.0]},
        rpn={"post_nms_top_n_test": 30},
        box={"channels": 16, "score_thresh": 0.0, "detections_per_img": 20},
        mask={"convs": [8]},
    )
    task = SegmentTask(network, score_threshold=0.0, tile_size=20, tile_overlap=0.4)
    return write_bundle(tmp_path / "bundle", task, Preprocess(normalise="minmax"), record={}, card="")


def predict(bundle: Path, image: Path, out: Path) -> list[str]:
    return ["predict", str(image), "--model", str(bundle), "--out", str(out), "--device", "cpu"]


def killed_after(count: int, out: Path, arguments: list[str]) -> dict[Path, int]:
    """Run the command in a process of its own until so many tiles are done; gives their files and times."""
    process = subprocess.Popen([sys.executable, "-m", "voxelry", *arguments])
    while len(list(out.glob(".big.tiles/*/tile_*.npz"))) < count:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return {path: path.stat().st_mtime_ns for path in out.glob(".big.tiles/*/tile_*.npz")}


def test_a_killed_prediction_goes_on_and_ends_the_same_to_the_bit(bundle, tmp_path, monkeypatch, capsys):
    sample = make_nuclei(0, shape=(40, 44, 44), spacing=1e-3)
    image = write_image(tmp_path / "big.nii.gz", sample.image.numpy(), sample.space)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = killed_after(4, broken, predict(bundle, image, broken))
    assert not any((broken / name).exists() for name in OUTPUTS)
    second = killed_after(len(first) + 4, broken, predict(bundle, image, broken))
    assert {path: second[path] for path in first} == first  # what was done stays as it is
    for out in (whole, broken):
        monkeypatch.setattr(sys, "argv", ["voxelry", *predict(bundle, image, out)])
        with contextlib.suppress(SystemExit):
            cli.main()
        assert "1 of 1 predicted" in capsys.readouterr().out
        assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    for name in OUTPUTS[1:]:
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    volumes = [read_image(out / OUTPUTS[0]).array for out in (whole, broken)]
    np.testing.assert_array_equal(*volumes)
    assert len((whole / OUTPUTS[1]).read_text().splitlines()) > 10
    assert volumes[0].any()


def test_tiles_of_a_file_are_counted(bundle, tmp_path):
    sample = make_nuclei(0, shape=(24, 30, 30), spacing=1e-3)
    image = write_image(tmp_path / "big.nii.gz", sample.image.numpy(), sample.space)
    small = write_image(
        tmp_path / "small.nii.gz", sample.image[:, :20, :20, :20].numpy(), sample.space.crop((0, 0, 0), (20, 20, 20))
    )
    seen = []
    outcome = predict_files(
        load(bundle, "cpu"),
        [small, image],
        tmp_path / "out",
        tiles=lambda path, *count: seen.append((path.name, *count)),
    )
    assert len(outcome.written) == 2
    total = seen[0][2]
    assert total >= 8
    assert seen == [("big.nii.gz", count, total) for count in range(1, total + 1)]

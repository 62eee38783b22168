"""A prediction that is killed in the middle of a file, and started again."""

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelry import cli
from voxelry.backbones.build import build_backbone
from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.core.space import Space
from voxelry.data.layouts.files import visible
from voxelry.data.preprocess import Preprocess
from voxelry.engine import ray_pool
from voxelry.engine.predict import predict_files
from voxelry.io import read_image, write_image
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.phantoms.nuclei import make_nuclei
from voxelry.tasks.segment import SegmentTask, recipe
from voxelry.tasks.segment.detect import Detector

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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A forked process has no others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(arguments: list[str]) -> None:
    """The command in a process that was forked from this one: what is imported needs no second time."""
    sys.argv = ["voxelry", *arguments]
    cli.main()


def killed_after(count: int, out: Path, arguments: list[str]) -> dict[Path, int]:
    """Run the command in a process of its own until so many tiles are done; gives their files and times."""
    process = multiprocessing.get_context("fork").Process(target=command, args=(arguments,))
    process.start()
    while len(list(out.glob(".voxelry/parts/big/*/tile_*.npz"))) < count:
        process.join(0.02)
        assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return {path: path.stat().st_mtime_ns for path in out.glob(".voxelry/parts/big/*/tile_*.npz")}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_prediction_goes_on_and_ends_the_same_to_the_bit(bundle, tmp_path, monkeypatch, capsys):
    sample = make_nuclei(0, shape=(32, 44, 44), spacing=1e-3)
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
        assert sorted(path.name for path in visible(out)) == sorted(OUTPUTS)
        assert not list(out.glob(".voxelry/parts/*"))
    for name in OUTPUTS[1:]:
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    volumes = [read_image(out / OUTPUTS[0]).array for out in (whole, broken)]
    np.testing.assert_array_equal(*volumes)
    assert len((whole / OUTPUTS[1]).read_text().splitlines()) > 10
    assert volumes[0].any()


def told(errors: str) -> list[str]:
    """What the command says on stderr, without how far it is, which it says every half minute."""
    return [line for line in errors.splitlines() if line.startswith("voxelry: ")]


def test_the_command_tells_what_was_kept_and_what_failed(bundle, tmp_path, run):
    sample = make_nuclei(0, shape=(16, 20, 20), spacing=1e-3)
    good = [write_image(tmp_path / f"{name}.nii.gz", sample.image.numpy(), sample.space) for name in ("one", "two")]
    (tmp_path / "bad.nii.gz").write_bytes(good[0].read_bytes()[:100])
    out, table = tmp_path / "out", tmp_path / "jobs.csv"
    command = ["--model", bundle, "--out", out, "--device", "cpu", "--job-report", table]
    status, said, errors = run("predict", good[0], tmp_path / "bad.nii.gz", *command)
    assert (status, said) == (1, f"1 of 2 predicted; written to {out}\n")
    (line,) = told(errors)
    assert line.startswith(f"voxelry: error: {tmp_path / 'bad.nii.gz'}: ")
    assert [line.split(",")[1] for line in table.read_text().splitlines()] == ["state", "done", "failed"]
    status, said, errors = run("predict", *good, *command)
    assert (status, said) == (0, f"2 of 2 predicted, 1 of them before; written to {out}\n")
    assert told(errors) == []
    (out / "one.nii.gz").unlink()
    _, _, errors = run("predict", *good, *command, "--set", "task.score_threshold=0.5")
    assert told(errors) == ["voxelry: 1 done anew: its outputs were gone", "voxelry: 1 done anew: another model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--job-report", "jobs.txt"], "--job-report: expected one of .csv, .json, .html, got '.txt'"),
        (["--launcher", "slurm"], "--launcher: expected one of local, ray, got 'slurm'"),
        (["--workers", 2], "--workers: expected with --launcher ray"),
        (["--launcher-option", "cpus_per_worker=2"], "--launcher-option: expected with --launcher ray"),
        (["--launcher", "ray", "--launcher-option", "cpus=2"], "cpus: no such setting; expected one of num_workers,"),
    ],
)
def test_what_can_not_be_is_refused_beforehand(bundle, tmp_path, run, arguments, message):
    image = write_image(tmp_path / "a.nii.gz", np.zeros((1, 8, 8, 8), np.float32), Space.from_spacing((8, 8, 8)))
    status, _, errors = run("predict", image, "--model", bundle, "--out", tmp_path / "out", *arguments)
    assert status == 1
    (line,) = told(errors)
    assert line.startswith(f"voxelry: error: {message}")
    assert not (tmp_path / "out").exists()


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


def test_tiles_of_a_large_image_are_shared_out_and_end_the_same(bundle, tmp_path, monkeypatch):
    """The pool of actors with one of them, in this process."""
    sample = make_nuclei(0, shape=(24, 30, 30), spacing=1e-3)
    images = [
        write_image(tmp_path / name, sample.image.numpy(), sample.space) for name in ("big.ome.zarr", "other.nii.gz")
    ]
    model = load(bundle, "cpu")
    expected = predict_files(model, images, tmp_path / "whole").written
    detected, detect = [], Detector.__call__
    monkeypatch.setattr(Detector, "__call__", lambda *given: detected.append(1) or detect(*given))
    monkeypatch.setattr(recipe, "_WHOLE_VOXELS", 0)
    monkeypatch.setattr(ray_pool, "require", lambda *_: None)
    monkeypatch.setattr(ray_pool, "cluster", lambda *_, **more: contextlib.nullcontext())
    asked = []

    def done(pool, jobs, rows):
        actor = ray_pool._Predictor(pool.source, jobs, str(Path.cwd()), torch.get_num_threads())
        for row in rows:
            asked.append((jobs[row["number"]].name, row["start"], row["stop"]))
            answer = actor({name: np.array([value]) for name, value in row.items()})
            yield {name: value[0] for name, value in answer.items()}

    monkeypatch.setattr(ray_pool.RayPool, "_done", done)
    seen = []
    pool = ray_pool.RayPool({"path": bundle, "device": "cpu"}, num_workers=3)
    out = tmp_path / "out"
    outcome = predict_files(model, images, out, tiles=lambda path, *count: seen.append(count), pool=pool)
    tiles = seen[-1][1]
    size = -(-tiles // 3)
    assert asked == [
        ("big", 0, size), ("big", size, 2 * size), ("big", 2 * size, tiles), ("big", 0, 0), ("other", 0, 0)
    ]  # fmt: skip
    assert seen == [(size, tiles), (2 * size, tiles), (tiles, tiles)]
    assert len(detected) == 2 * tiles  # each once, of both
    for one, other in zip(outcome.written, expected, strict=True):
        assert read_image(one).array.any()
        np.testing.assert_array_equal(read_image(one).array, read_image(other).array)
        table = f"{one.name.partition('.')[0]}.instances.csv"
        assert (out / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()
    assert not list(out.glob(".voxelry/parts/*"))

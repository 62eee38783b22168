"""Predictions of many files: what is done, kept, done anew and refused."""

import csv
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.core.errors import SettingError, VoxelryError
from voxelry.core.space import Space
from voxelry.data.layouts.files import visible
from voxelry.data.preprocess import Preprocess
from voxelry.engine.cluster import cluster
from voxelry.engine.outcome import check_job_report, write_job_report
from voxelry.engine.predict import predict_files
from voxelry.io import write_image
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask

predict = partial(predict_files, format="csv")


def write_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = UNet(ndim=2, out_channels=2, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=["left", "right"], sigma=2.0)
    return write_bundle(folder, task, Preprocess(), record={}, card="")


@pytest.fixture
def bundle(tmp_path):
    return write_model(tmp_path / "bundle")


def write_scan(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).random((1, 16, 20), dtype=np.float32)
    return write_image(path, pixels, Space.from_spacing((16, 20)))


@pytest.fixture
def scans(tmp_path):
    return [write_scan(tmp_path / "scans" / f"{name}.tif", number) for number, name in enumerate("abc")]


def contents(folder):
    return {path.name: path.read_bytes() for path in visible(folder)}


def test_the_same_command_does_only_what_is_missing(bundle, scans, tmp_path, monkeypatch):
    model, out = load(bundle, "cpu"), tmp_path / "out"
    first = predict(model, scans[:2], out)
    assert [row.state for row in first.rows] == ["done", "done"]
    asked = []
    original = type(model.recipe).predict_file
    monkeypatch.setattr(
        type(model.recipe), "predict_file", lambda *given, **more: asked.append(given[2]) or original(*given, **more)
    )
    seen = []
    again = predict(load(bundle, "cpu"), scans, out, progress=seen.append)
    assert asked == scans[2:]
    assert seen == scans
    assert [row.state for row in again.rows] == ["kept", "kept", "done"]
    assert again.written == [out / f"{name}.csv" for name in "abc"]
    assert again.kept == first.written
    assert again.notes == []


def test_what_changed_is_done_anew_and_told(bundle, scans, tmp_path):
    model, out = load(bundle, "cpu"), tmp_path / "out"
    predict(model, scans, out)
    write_scan(scans[0], 9)
    (out / "b.csv").unlink()
    outcome = predict(model, scans, out)
    assert [row.note for row in outcome.rows] == ["another input", "its outputs were gone", ""]
    assert predict(model, scans, out, format="fcsv").notes == ["3 done anew: other settings"]
    assert predict(load(write_model(tmp_path / "two", 1), "cpu"), scans, out, format="fcsv").notes == [
        "3 done anew: another model"
    ]
    changed = load(tmp_path / "two", "cpu", changes={"task.decoder": "argmax"})
    assert predict(changed, scans, out, format="fcsv").notes == ["3 done anew: another model"]


def test_a_broken_file_is_one_line_and_is_tried_again(bundle, scans, tmp_path):
    model, out = load(bundle, "cpu"), tmp_path / "out"
    whole = scans[1].read_bytes()
    scans[1].write_bytes(whole[:60])
    missing = tmp_path / "scans" / "missing.tif"
    outcome = predict(model, [*scans, missing], out)
    assert [row.state for row in outcome.rows] == ["done", "failed", "done", "failed"]
    assert [path for path, _ in outcome.failed] == [scans[1], missing]
    assert all(str(path) in reason and "\n" not in reason for path, reason in outcome.failed)
    scans[1].write_bytes(whole)
    assert [row.state for row in predict(model, scans, out).rows] == ["kept", "done", "kept"]
    assert sorted(contents(out)) == ["a.csv", "b.csv", "c.csv"]


def test_an_error_names_the_place_where_the_output_would_lie(bundle, scans, tmp_path, monkeypatch):
    from voxelry.core.errors import FileError

    def full(recipe, prediction, sample, folder, format):
        raise FileError(folder / "a.csv", "no space left on device")

    model = load(bundle, "cpu")
    monkeypatch.setattr(type(model.recipe), "write", full)
    ((_, reason),) = predict(model, scans[:1], tmp_path / "out").failed
    assert reason == f"{tmp_path / 'out' / 'a.csv'}: no space left on device"


def test_a_file_that_needs_too_much_memory_is_one_line(bundle, scans, tmp_path, monkeypatch):
    model = load(bundle, "cpu")
    original = type(model).sample

    def short(self, image, *given, **more):
        if image == scans[0]:
            raise MemoryError
        return original(self, image, *given, **more)

    monkeypatch.setattr(type(model), "sample", short)
    outcome = predict(model, scans, tmp_path / "out")
    assert outcome.failed == [(scans[0], f"{scans[0]}: needs more memory than there is")]
    assert len(outcome.written) == 2


def test_two_files_of_one_name_never_share_an_output(bundle, scans, tmp_path):
    model, out = load(bundle, "cpu"), tmp_path / "out"
    other = write_scan(tmp_path / "others" / "a.tif", 5)
    outcome = predict(model, [scans[0], other], out)
    assert outcome.failed == [(other, f"{other}: its output would overwrite that of {scans[0]}")]
    before = contents(out)
    ((_, reason),) = predict(model, [other], out).failed
    assert f"its output would overwrite that of {scans[0]}" in reason
    assert contents(out) == before


def test_outputs_never_overwrite_the_images(bundle, scans, monkeypatch):
    model = load(bundle, "cpu")
    monkeypatch.setattr(
        type(model.recipe), "write", lambda recipe, answer, sample, folder, format: write_scan(folder / "b.tif", 8)
    )
    before = scans[1].read_bytes()
    (_, reason), _ = predict(model, scans[:2], scans[0].parent).failed
    assert "b.tif: an image that is predicted; choose another folder" in reason
    assert scans[1].read_bytes() == before


def test_files_that_another_command_leaves_behind_are_done_here(bundle, scans, tmp_path, monkeypatch):
    """The other one has claimed a file and ends while this one waits."""
    from voxelry.engine.jobs import Places
    from voxelry.engine.ledger import Ledger
    from voxelry.engine.predict import _job

    model, out = load(bundle, "cpu"), tmp_path / "out"
    other = Ledger(out).__enter__()
    job = _job(scans[0], (), format="csv", options={}, places=Places.of(other))
    (claim,) = other.claim([("a", job.dependencies(model.digest()))])
    assert claim.state == "ours"
    waited = []

    def ending(self, owner):
        waited.append(owner)
        other.__exit__()

    monkeypatch.setattr(Ledger, "wait", ending)
    seen = []
    outcome = predict(model, scans, out, progress=seen.append)
    assert waited == [other.run]
    assert seen == [scans[1], scans[2], scans[0]]
    assert [row.state for row in outcome.rows] == ["done"] * 3
    assert [row.input for row in outcome.rows] == scans


def test_the_files_that_options_name_count_as_inputs(scans):
    from voxelry.engine.jobs import Places, PredictionJob

    def facts(**options):
        home = scans[0].parent
        return PredictionJob(scans[0], (), "a", Places(home, home, home), options, "csv").dependencies("m")

    masked = facts(mask=scans[1])
    assert masked.files != facts().files
    write_scan(scans[1], 7)
    assert facts(mask=scans[1]).files != masked.files
    assert facts(contrast={"t1": scans[1]}).files != facts(contrast={"t1": scans[2]}).files
    assert facts(mask=np.zeros(3)).settings == facts(mask=np.zeros(3)).settings
    assert facts(mask=np.zeros(3)).settings != facts(mask=np.ones(3)).settings
    assert facts(mask=torch.zeros(2)).settings != facts(mask=torch.zeros(3)).settings


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    def init(**settings):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with (
        pytest.raises(VoxelryError, match="Ray could not be started: The current node timed out"),
        cluster(None, cpus=1),
    ):
        pass


def test_a_job_report_has_a_row_a_file(bundle, scans, tmp_path):
    scans[1].write_bytes(b"II")
    outcome = predict(load(bundle, "cpu"), scans, tmp_path / "out")
    with write_job_report(tmp_path / "jobs.csv", outcome.rows).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["input"], row["state"]) for row in rows] == [
        (str(path), state) for path, state in zip(scans, ("done", "failed", "done"), strict=True)
    ]
    assert rows[0]["output"] == str(tmp_path / "out" / "a.csv")
    assert rows[1]["note"] == outcome.failed[0][1]
    assert float(rows[0]["seconds"]) > 0
    plain = json.loads(write_job_report(tmp_path / "jobs.json", outcome.rows).read_text())
    assert [{name: str(value) for name, value in row.items()} for row in plain] == rows
    page = write_job_report(tmp_path / "jobs.html", outcome.rows).read_text()
    assert all(str(path) in page for path in scans)
    with pytest.raises(SettingError, match=r"--job-report: expected one of \.csv, \.json, \.html, got '\.txt'"):
        check_job_report(tmp_path / "jobs.txt")

"""Predictions, evaluations and looks at data that lie elsewhere: the same answers as on this machine."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

import voxelry
from voxelry.bundle.bundle import write_bundle
from voxelry.core.errors import FileError
from voxelry.core.remote import as_path
from voxelry.core.space import Space
from voxelry.data.layouts.files import visible
from voxelry.data.preprocess import Preprocess
from voxelry.engine.doctor import diagnose
from voxelry.engine.outcome import write_job_report
from voxelry.io import write_image, write_landmarks
from voxelry.io.points.landmarks import LandmarkSet
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask

SCANS, OUT = "memory://bucket/scans", "memory://bucket/out"


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXELRY_STATE", str(tmp_path / "state"))
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def bundle():
    network = UNet(ndim=2, out_channels=2, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=["left", "right"], sigma=2.0)
    return write_bundle(as_path("memory://bucket/run/bundle"), task, Preprocess(), record={}, card="").parent


def write_scans(folder: str) -> list[Path]:
    shape, rng = (16, 20), np.random.default_rng(0)
    return [
        write_image(f"{folder}/{name}", rng.random((1, *shape), np.float32), Space.from_spacing(shape, 0.5))
        for name in ("a.tif", "b.mha", "c.nii.gz")
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in visible(as_path(folder))}


def predict(bundle, **options):
    return voxelry.predict(voxelry.load(bundle, "cpu"), SCANS, OUT, format="csv", **options)


def test_from_elsewhere_to_elsewhere_as_on_this_machine(bundle, tmp_path, memory):
    write_scans(SCANS)
    here = write_scans(str(tmp_path / "scans"))
    voxelry.predict(voxelry.load(bundle, "cpu"), here, tmp_path / "out", format="csv")
    memory.pipe("/bucket/scans/broken.tif", b"no image")
    outcome = predict(bundle)
    assert contents(OUT) == contents(tmp_path / "out")
    assert sorted(row.state for row in outcome.rows) == ["done", "done", "done", "failed"]
    ((path, reason),) = outcome.failed
    assert str(path) == f"{SCANS}/broken.tif"
    assert reason.startswith(f"{SCANS}/broken.tif: ")
    assert "/tmp" not in reason
    assert [str(path) for path in outcome.written] == [f"{OUT}/{name}.csv" for name in "abc"]
    report = json.loads(write_job_report(as_path(f"{OUT}/jobs.json"), outcome.rows).read_text())
    assert report[0]["output"] == f"{OUT}/a.csv"


@pytest.mark.parametrize("state", ["kept", "lost"])  # of the ledger on this machine: another one knows as much
def test_the_same_command_does_only_what_is_missing(bundle, tmp_path, monkeypatch, memory, state):
    scans = write_scans(SCANS)
    predict(bundle)
    if state == "lost":
        monkeypatch.setenv("VOXELRY_STATE", str(tmp_path / "another"))
    assert [row.state for row in predict(bundle).rows] == ["kept"] * 3
    write_image(scans[0], np.zeros((1, 16, 20), np.float32), Space.from_spacing((16, 20), 0.5))
    memory.rm("/bucket/out/b.csv")
    outcome = predict(bundle)
    assert [row.note for row in outcome.rows] == ["another input", "its outputs were gone", ""]
    assert [row.state for row in predict(bundle).rows] == ["kept"] * 3
    memory.pipe("/bucket/out/c.csv", b"by hand")
    assert [row.note for row in predict(bundle).rows] == ["", "", "changed since it was written"]


def test_a_row_that_is_none_is_refused(bundle, memory):
    write_scans(SCANS)
    for row in ("{", "[]", '{"format": 2}', '{"format": 1, "name": "a", "main": "../a", "outputs": {}}'):
        memory.pipe("/bucket/out/.voxelry/a.json", row.encode())
        with pytest.raises(FileError, match=r"^memory://bucket/out/.voxelry/a.json: no row of .*\(delete it\)"):
            predict(bundle)


def test_an_image_of_many_files_is_one_output(bundle, memory):
    write_image(f"{SCANS}/a.zarr", np.ones((1, 16, 20), np.float32), Space.from_spacing((16, 20)))
    (row,) = predict(bundle).rows
    assert (row.state, str(row.output)) == ("done", f"{OUT}/a.csv")


def test_a_list_names_addresses(bundle, memory, tmp_path):
    write_scans(SCANS)
    (tmp_path / "list.txt").write_text(f"{SCANS}/a.tif\n")
    memory.pipe("/bucket/scans/list.txt", b"b.mha\n")
    outcome = voxelry.predict(bundle, [tmp_path / "list.txt", f"{SCANS}/list.txt"], OUT, format="csv")
    assert [str(row.input) for row in outcome.rows] == [f"{SCANS}/a.tif", f"{SCANS}/b.mha"]


def test_a_dataset_elsewhere_is_measured_and_looked_at(bundle, tmp_path):
    found = {}
    for folder in (str(tmp_path / "data"), "memory://bucket/data"):
        for path in write_scans(f"{folder}/volumes"):
            points = LandmarkSet(("left", "right"), np.array([[2.0, 2.0, 0.0], [6.0, 4.0, 0.0]]))
            write_landmarks(f"{folder}/landmarks/{path.name.partition('.')[0]}.csv", points)
        assert not diagnose(folder).wrong
        found[folder] = voxelry.evaluate(bundle, folder, f"{folder}/scores")
        names = {path.name for path in visible(as_path(f"{folder}/scores"))}
        assert names == {"cases.csv", "summary.json", "report.html", "measured"}
        again = voxelry.evaluate(bundle, folder, f"{folder}/scores")
        assert {row.state for row in again.outcome.rows} == {"kept"}
        assert again.rows == found[folder].rows
        assert [prediction.name for prediction in again.predictions] == [row["name"] for row in again.rows]
    one, other = found.values()
    assert one.rows == other.rows
    assert one.summary == other.summary

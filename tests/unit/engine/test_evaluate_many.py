"""Evaluations of many cases: what is kept, measured anew, removed and told."""

import contextlib
import csv
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.layouts.files import visible
from voxelry.data.preprocess import Preprocess
from voxelry.engine import cases, ray_pool
from voxelry.engine.cases import MEASURED, NothingMeasuredError
from voxelry.engine.ledger import Ledger
from voxelry.engine.report import evaluate_folder
from voxelry.io import LandmarkSet, write_image, write_landmarks
from voxelry.models.mae import MaskedAutoencoder
from voxelry.models.unet import UNet
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.landmarks import LandmarkTask
from voxelry.tasks.pretrain import PretrainTask
from voxelry.tasks.pretrain.masked import MaskedPretrainTask


def write_case(root: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = Space.from_spacing((32, 32))
    write_image(root / "volumes" / f"{name}.tif", rng.random((1, 32, 32), dtype=np.float32), space)
    points = LandmarkSet(("left", "right"), space.to_world(rng.uniform(0, 31, (2, 2))))
    write_landmarks(root / "landmarks" / f"{name}.csv", points)


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate("abc"):
        write_case(tmp_path / "data", name, number)
    return tmp_path / "data"


def landmarks(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = UNet(ndim=2, out_channels=2, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=["left", "right"], sigma=2.0)
    return write_bundle(folder, task, Preprocess(), record={}, card="")


def diffusion(folder: Path) -> Path:
    torch.manual_seed(0)
    network = UNet(ndim=2, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=4)
    task = PretrainTask(network, n_timestep=20, sample_steps=2, reconstruct_steps=2)
    return write_bundle(folder, task, Preprocess(), record={}, card="")


def masked(folder: Path) -> Path:
    torch.manual_seed(0)
    encoder = {"input_size": 32, "embed_dim": 16, "stages": [1, 1, 1], "q_pool": 1, "mask_unit_size": 2}
    more = {"mask_unit_attention": [True, True, False], "patch_kernel": 5, "patch_stride": 4, "patch_padding": 2}
    network = MaskedAutoencoder(ndim=2, encoder=encoder | more, decoder_dim=32, decoder_depth=1, decoder_heads=4)
    return write_bundle(folder, MaskedPretrainTask(network), Preprocess(), record={}, card="")


@pytest.fixture
def one_thread():
    """A forked process has no others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path):
    return load(landmarks(tmp_path / "bundle"), "cpu")


def states(found):
    return [row.state for row in found.outcome.rows]


def contents(folder):
    return {path.name: path.read_bytes() for path in (*visible(folder / MEASURED), *folder.glob("*.*"))}


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("write", [landmarks, diffusion, masked])
def test_what_is_kept_of_a_case_is_what_was_measured(root, tmp_path, evaluated, write):
    model, out = load(write(tmp_path / "bundle"), "cpu"), tmp_path / "out"
    assert states(evaluated(model, root, out)) == ["done"] * 3
    before = contents(out)
    assert sorted(before) == ["a.safetensors", "b.safetensors", "c.safetensors", "cases.csv", "report.html",
                              "summary.json"]  # fmt: skip
    assert states(evaluate_folder(model, root, out)) == ["kept"] * 3
    assert contents(out) == before


def test_the_same_call_does_only_what_is_missing(model, root, tmp_path, monkeypatch):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    evaluate_folder(model, root, undisturbed)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_folder(model, root, out, progress=interrupt)
    assert not (out / "summary.json").exists()
    asked, measured = [], cases.measured
    monkeypatch.setattr(cases, "measured", lambda *given: asked.append(given[2]) or measured(*given))
    told = []
    found = evaluate_folder(load(tmp_path / "bundle", "cpu"), root, out, progress=told.append)
    assert states(found) == ["kept", "done", "done"]
    assert asked == [(1,), (2,)]
    assert told == [3, 3, 3]
    assert contents(out) == contents(undisturbed)


def dies_at(patched, name, count):
    """Have this process die when a function is called for the count-th time."""
    original, called = getattr(patched, name), []

    def mortal(*given, **more):
        called.append(1)
        if len(called) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **more)

    setattr(patched, name, mortal)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_anywhere_it_ends_with_the_same_bytes(model, root, tmp_path, one_thread):
    """While it measures, while it writes what it keeps, while that takes its place, while figures are written."""
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    evaluate_folder(model, root, undisturbed)
    places = ((cases, "measured", 1), (cases, "write_records", 2), (Ledger, "_place", 1), (Evaluation, "write", 1))

    def mortal(place):
        dies_at(*place)
        evaluate_folder(model, root, out)

    for place in places:
        process = multiprocessing.get_context("fork").Process(target=mortal, args=(place,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, place
        assert not (out / "summary.json").exists()
    assert states(evaluate_folder(model, root, out)) == ["kept"] * 3
    assert contents(out) == contents(undisturbed)


def test_nothing_of_an_earlier_evaluation_is_taken_for_the_new_one(model, root, tmp_path):
    out = tmp_path / "out"
    evaluate_folder(model, root, out)
    write_case(root, "b", 9)
    found = evaluate_folder(model, root, out)
    assert found.outcome.notes == ["1 done anew: another input"]
    other = load(landmarks(tmp_path / "other", 1), "cpu")
    again = evaluate_folder(other, root, out)
    assert again.outcome.notes == ["3 done anew: another model"]
    assert again.rows != found.rows
    names = tmp_path / "names.txt"
    names.write_text("c\n")
    fewer = evaluate_folder(other, root, out, cases=names)
    assert states(fewer) == ["kept"]
    assert [row["name"] for row in fewer.rows] == ["c"]
    assert [path.name for path in visible(out / MEASURED)] == ["c.safetensors"]
    copy = shutil.copytree(root, tmp_path / "copy")  # with the same times of change
    assert states(evaluate_folder(other, copy, out, cases=names)) == ["done"]


def test_what_was_damaged_is_measured_anew(model, root, tmp_path):
    out = tmp_path / "out"
    evaluate_folder(model, root, out)
    before = contents(out)
    (out / MEASURED / "a.safetensors").write_bytes(b"nothing")
    (out / MEASURED / "b.safetensors").unlink()
    found = evaluate_folder(model, root, out)
    assert states(found) == ["done", "done", "kept"]
    assert [row.note for row in found.outcome.rows] == [
        "what was kept of it was changed", "its outputs were gone", ""
    ]  # fmt: skip
    assert contents(out) == before


def test_a_broken_case_is_one_line_and_the_figures_say_that_it_is_not_among_them(model, root, tmp_path):
    out, broken = tmp_path / "out", root / "volumes" / "b.tif"
    whole = broken.read_bytes()
    evaluate_folder(model, root, out)
    broken.write_bytes(whole[:-2000])
    found = evaluate_folder(model, root, out)
    ((path, reason),) = found.outcome.failed
    assert path == broken
    assert str(broken) in reason
    assert "\n" not in reason
    assert [row["name"] for row in found.rows] == ["a", "c"]
    assert [prediction.name for prediction in found.predictions] == ["a", "c"]
    assert [sample.name for sample in found.cases] == ["a", "c"]
    assert json.loads((out / "summary.json").read_text())["cases_failed"] == 1
    page = (out / "report.html").read_text()
    assert "Cases that failed" in page
    assert "2 cases of" in page
    with (out / "cases.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["a", "c"]
    broken.write_bytes(whole)
    mended = evaluate_folder(model, root, out)
    assert states(mended) == ["kept", "done", "kept"]
    assert "cases_failed" not in mended.summary


def test_without_any_case_there_are_no_figures(model, root, tmp_path):
    out = tmp_path / "out"
    evaluate_folder(model, root, out)
    for path in (root / "volumes").iterdir():
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(NothingMeasuredError, match=r"^all 3 cases failed: [^\n]*a\.tif") as caught:
        evaluate_folder(model, root, out)
    assert [row.state for row in caught.value.outcome.rows] == ["failed"] * 3
    assert not list(out.glob("*.*"))  # earlier figures are none of these


def test_what_another_call_wrote_meanwhile_is_not_taken_for_this_ones(model, root, tmp_path, monkeypatch):
    out, other = tmp_path / "out", load(landmarks(tmp_path / "other", 1), "cpu")
    gathered = cases._gathered

    def meanwhile(*given):
        monkeypatch.setattr(cases, "_gathered", gathered)
        evaluate_folder(other, root, out)
        return gathered(*given)

    monkeypatch.setattr(cases, "_gathered", meanwhile)
    with pytest.raises(FileError, match=r"a\.safetensors: not of these files, this model and these options"):
        evaluate_folder(model, root, out)


def test_actors_measure_what_one_process_measures(model, root, tmp_path, monkeypatch):
    """The pool of actors with one of them, in this process."""
    monkeypatch.setattr(ray_pool, "require", lambda *_: None)
    monkeypatch.setattr(ray_pool, "cluster", lambda *_, **more: contextlib.nullcontext())

    def done(pool, jobs, rows):
        travelled = pickle.loads(pickle.dumps(jobs))
        assert len({id(job.dataset) for job in travelled}) == 1
        actor = ray_pool._Predictor(pool.source, travelled, str(Path.cwd()), torch.get_num_threads())
        for row in reversed(rows):
            answer = actor({name: np.array([value]) for name, value in row.items()})
            yield {name: value[0] for name, value in answer.items()}

    monkeypatch.setattr(ray_pool.RayPool, "_done", done)
    pool = ray_pool.RayPool({"path": tmp_path / "bundle", "device": "cpu"}, num_workers=2)
    here, there = tmp_path / "here", tmp_path / "there"
    one, other = evaluate_folder(model, root, here), evaluate_folder(model, root, there, pool=pool)
    assert states(one) == states(other) == ["done"] * 3
    assert contents(here) == contents(there)

"""Adapters of the model that is shown: which are offered, who answered, and what can be learned from."""

import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from voxelry.bundle.model import load
from voxelry.cli import app
from voxelry.core.errors import CheckpointError, SettingError
from voxelry.core.space import Space
from voxelry.io import write_image
from voxelry.serve import session as sessions
from voxelry.serve.adapters import load_adapters
from voxelry.serve.run import in_background
from voxelry.serve.session import Session


@pytest.fixture(scope="module")
def runs(organs, tmp_path_factory):
    """A base of two organs, an adapter in a run beside it, two in its own folder, and one of another base."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("base", "other"):
        shutil.copytree(organs, root / name / "bundle")
    for number, (place, name, organ) in enumerate(
        [("liver/adapter", "liver", 0), ("base/adapters/spleen", "spleen", 1), ("base/adapters/x", "liver", 1)]
    ):
        torch.manual_seed(number)
        adapt(root / "base" / "bundle", root / place, name, organ)
    adapt(root / "base" / "bundle", root / "kidney" / "adapter", "kidney", 0, base="of another one")
    (root / "broken" / "adapter").mkdir(parents=True)
    (root / "broken" / "adapter" / "adapter.yaml").write_text("format: 1\n")
    return root


def adapt(bundle, folder, name, organ, **record):
    """Write an adapter that answers for one organ of its base's, without a training."""
    model = load(bundle, "cpu")
    task = model.task
    task.adapt(name, {"rank": 2, "targets": "convolutions"})
    for path, value in task.network.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(value, std=0.1)
    settings = task.settings()
    own = {key: settings[key][organ : organ + 1] for key in ("organs", "organ_names", "edges")}
    told = {"task": {"name": "reconstruct", **settings, **own}, "preprocess": model.bundle.preprocess.settings()}
    changed = {"base_sha256": record["base"]} if record else {}
    task.adapters.save(folder, record={**told, **changed, "data": {"train": [name]}})


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """Noise that can be clicked into."""
    space = Space.from_spacing((24, 28, 32), (6.0, 4.4, 4.0))
    array = np.random.default_rng(0).integers(200, 500, (1, *space.shape)).astype(np.int16)
    return write_image(tmp_path_factory.mktemp("ct") / "ct.nii.gz", array, space)


CLICK = "60,60,70"


@pytest.fixture
def session(ct, runs, tmp_path):
    session = Session([ct], load(runs / "base", "cpu"), tmp_path / "out")
    yield session
    session.close()


def done(session, number):
    job = session.jobs[number]
    while job.state in ("waiting", "running"):
        job.stop.wait(0.01)
    return job


def commanded(ct, runs, out, label, *more):
    command = ["predict", str(ct), "--model", str(runs / "base"), "--out", str(out), "--device=cpu", *more]
    ended = CliRunner().invoke(app, [*command, f"--click={CLICK}", f"--label={label}", "--format=ply"])
    assert ended.exit_code == 0, ended.output
    return (out / "ct.ply").read_bytes()


def test_those_beside_the_base_are_offered_and_their_answers_are_the_commands(session, ct, runs, tmp_path):
    told = session.answering()
    folders = {one["name"]: one["folder"] for one in told["adapters"]}
    assert folders == {
        "spleen": str(runs / "base" / "adapters" / "spleen"),
        "liver": str(runs / "base" / "adapters" / "x"),
        "liver_2": str(runs / "liver" / "adapter"),
    }
    assert told["adapter"] is None
    expected = {
        "liver_2": commanded(ct, runs, tmp_path / "1", 6, "--adapter", str(runs / "liver")),
        "spleen": commanded(ct, runs, tmp_path / "2", 2, "--adapter", folders["spleen"]),
        None: commanded(ct, runs, tmp_path / "3", 6),
    }
    assert len(set(expected.values())) == 3
    for name, label in (("liver_2", 6), ("spleen", 2), (None, 6), ("liver_2", 6)):
        switched = done(session, session.switch(name))
        assert switched.answer["adapter"] == session.answering()["adapter"] == name
        job = done(session, session.predict(0, {"click": [CLICK], "label": label}))
        assert job.state == "done", job.message
        assert (job.answer["adapter"], job.answer["model"]) == (name, str(runs / "base" / "bundle"))
        session.save(0)
        assert (session.out / "ct.ply").read_bytes() == expected[name]
    assert session.keep(0)["model"] == f"{runs / 'base' / 'bundle'} with adapter liver_2"


def test_a_name_that_is_not_offered_changes_nothing(session):
    for name in ("kidney", "/etc", 3, ["liver"]):
        job = done(session, session.switch(name))
        assert (job.state, job.message.partition(":")[0]) == ("failed", "adapter")
    assert session.answering()["adapter"] is None


def test_those_that_are_named_are_loaded_the_first_answers_and_a_wrong_one_is_a_line(ct, runs, tmp_path, capsys):
    given = [runs / "liver", runs / "base" / "adapters" / "x"]
    session = Session([ct], in_background(lambda: load_adapters(load(runs / "base", "cpu"), given)), tmp_path / "out")
    told = session.answering()
    assert [one["name"] for one in told["adapters"]] == ["liver", "liver_2", "spleen"]
    assert told["adapter"] == "liver"
    session.close()
    with pytest.raises(CheckpointError, match="trained on another base"):
        in_background(lambda: load_adapters(load(runs / "base", "cpu"), [runs / "kidney"])).result()
    assert capsys.readouterr().err.count("\n") == 1


def test_an_adapter_is_not_learned_on_from_but_its_base_is(session, monkeypatch):
    done(session, session.switch("spleen"))
    with pytest.raises(SettingError, match="train: the adapter spleen answers, and only the base can learn here"):
        session.train(1)
    monkeypatch.setattr(sessions.Corrections, "images", {"a": "a", "b": "b", "c": "c"})
    monkeypatch.setattr(sessions, "run_training", lambda settings, minutes, progress: session.model.bundle.path)
    values = iter([0.5, 0.6])
    monkeypatch.setattr("voxelry.serve.learning.measured", lambda model, held_out: next(values))
    done(session, session.switch(None))
    job = session.trainings[session.train(1)]
    while job.state in ("waiting", "running"):
        job.stop.wait(0.01)
    assert job.state == "done", job.message
    assert job.answer["better"]
    assert len(session.answering()["adapters"]) == 3  # of the new model, whose weights are the same here
    settings = (session.out / "training" / "1" / "settings.yaml").read_text()
    assert f"pretrained: {session.model.bundle.path}" in settings


@pytest.mark.usefixtures("built")
def test_the_page_chooses_an_adapter_and_says_who_answered(opened, session):
    with opened(session) as page:
        assert page.locator("#adapter option").all_inner_texts() == ["none", "spleen", "liver", "liver_2"]
        assert page.locator("#options select[name=label] option").count() == 2
        page.focus("#adapter")
        page.keyboard.press("ArrowDown")  # the next one is chosen
        page.locator("#options select[name=label]").wait_for(state="detached")  # it knows one organ
        assert page.input_value("#adapter") == "spleen"
        page.click("#predict")
        page.wait_for_selector("#summary dd")
        assert page.locator("#summary dt:text-is('adapter') + dd").inner_text() == "spleen"
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert page.input_value("#adapter") == "spleen"

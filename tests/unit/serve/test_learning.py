"""Corrected cases become a data set, a training begins with the shown model, and the better one of two is shown."""

import csv
import json
import runpy
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from omegaconf import OmegaConf
from starlette.testclient import TestClient

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.io import open_image, read_image, read_landmarks, write_image
from voxelry.models.unet import UNet
from voxelry.ops.instances import from_labels
from voxelry.phantoms import write_phantoms
from voxelry.serve import session as sessions
from voxelry.serve import train_process, training
from voxelry.serve.answers import Answer
from voxelry.serve.app import make_app
from voxelry.serve.learning import labelled, parts_of, training_settings, verdict
from voxelry.serve.session import Session
from voxelry.serve.train_process import main
from voxelry.tasks.landmarks import LandmarkTask
from voxelry.tasks.segment.outputs import write_instances
from voxelry.tasks.segment.predict import InstancePrediction

TOKEN, HOST = "a secret", "http://127.0.0.1:8000"  # as in conftest.py


def predicted(session, case):
    """Predicts a case and waits for the answer."""
    job = session.jobs[session.predict(case, {})]
    while job.state in ("waiting", "running"):
        job.stop.wait(0.01)
    assert job.state == "done", job.message


class TestKeep:
    def test_moved_points_are_a_case_that_is_read_as_they_were_moved(self, client, session, finished, image, model):
        finished(client.post("/api/cases/0/predict", json={}).json()["job"])
        put = [{"index": 0, "position": [1.0, 2.0, 3.0]}, {"index": 1, "position": None}]
        client.put("/api/cases/0/points", json=put)
        kept = client.post("/api/cases/0/keep").json()
        assert kept["kept"] == client.get("/api/state").json()["kept"] == [0]
        folder = session.out / "corrections"
        (case,) = find_cases(folder, "auto", need_landmarks=True)
        found = read_landmarks(case.landmarks[0])
        np.testing.assert_allclose(found.world[0], [1, 2, 3], atol=1e-5)
        assert np.isnan(found.world[1]).all()
        np.testing.assert_array_equal(read_image(case.image).array, read_image(image).array)
        with (folder / "corrections.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert (row["file"], row["what"], row["image"]) == ("landmarks/scan.mrk.json", "landmarks", str(image))
        assert row["model"] == str(model.bundle.path)
        assert row["who"]
        assert row["when"].endswith("+00:00")

    def test_kept_again_the_case_is_replaced_and_the_record_grows(self, client, session, finished):
        finished(client.post("/api/cases/0/predict", json={}).json()["job"])
        for x in (1.0, 2.0):
            client.put("/api/cases/0/points", json=[{"index": 0, "position": [x, 0, 0]}])
            assert client.post("/api/cases/0/keep").status_code == 200
        (case,) = find_cases(session.out / "corrections", "auto")
        assert read_landmarks(case.landmarks[0]).world[0, 0] == pytest.approx(2, abs=1e-5)
        assert len(session.corrections.rows) == 2

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_instances_are_kept_as_they_are_seen_with_their_classes(self, tmp_path, ndim):
        array = np.random.default_rng(0).random((1, *(6, 9, 11)[-ndim:])).astype(np.float32)
        path = write_image(tmp_path / "scan.ome.tif", array, Space.from_spacing(array.shape[1:], 0.5))
        space = open_image(path).space
        labels = np.zeros(space.shape, dtype=np.int32)
        labels[..., 1:3, 1:4], labels[..., 4:6, 5:9], labels[..., 7:9, 2:5] = 1, 2, 3
        found = InstancePrediction.from_instances("scan", space, from_labels(labels, classes=[1, 2, 1]))
        write_instances(found, tmp_path / "answer")
        session = Session([path], None, tmp_path / "out")
        session.answers[0] = Answer(tmp_path / "answer", "scan", space)
        session.answers[0].edit({"do": "delete", "ids": [1]})
        session.keep(0)
        session.close()
        (case,) = find_cases(tmp_path / "out" / "corrections", "auto")
        assert case.instances is not None
        assert case.labels is not None
        ids, kinds = read_image(case.instances).array[0], read_image(case.labels).array[0]
        np.testing.assert_array_equal(ids.reshape(space.shape), np.where(labels == 1, 0, labels))
        np.testing.assert_array_equal(kinds.reshape(space.shape), np.array([0, 0, 2, 1])[labels])

    def test_organs_of_one_case_lie_beside_each_other(self, image, tmp_path):
        space = open_image(image).space
        session = Session([image], None, tmp_path / "out")
        for value, rows in ((1, slice(0, 4)), (2, slice(3, 6)), (2, slice(4, 7))):
            mask = np.zeros((1, *space.shape), dtype=np.uint8)
            mask[:, :, rows] = value
            write_image(tmp_path / "answer" / "scan.nii.gz", mask, space)
            session.answers[0] = Answer(tmp_path / "answer", "scan", space)
            session.keep(0)
        session.close()
        kept = read_image(tmp_path / "out" / "corrections" / "labels" / "scan.nii.gz").array[0, 0, :, 0]
        assert kept.tolist() == [1, 1, 1, 0, 2, 2, 2, 0, 0, 0, 0, 0]

    def test_an_image_that_needs_to_be_told_is_written_as_it_was_read(self, model, tmp_path):
        np.save(tmp_path / "scan.npy", np.arange(8 * 8 * 8, dtype=np.int16).reshape(8, 8, 8))
        session = Session([tmp_path / "scan.npy"], model, tmp_path / "out", {"spacing": [3.0, 1.0, 2.0]})
        predicted(session, 0)
        session.keep(0)
        session.close()
        (case,) = find_cases(tmp_path / "out" / "corrections", "auto")
        kept = read_image(case.image)
        assert kept.space.spacing == pytest.approx((3, 1, 2))
        np.testing.assert_array_equal(kept.array[0], np.load(tmp_path / "scan.npy"))

    def test_two_images_of_one_name_are_not_mixed_up(self, model, image, tmp_path):
        other = tmp_path / "other" / image.name
        other.parent.mkdir()
        other.write_bytes(image.read_bytes())
        session = Session([image, other], model, tmp_path / "out")
        for case in (0, 1):
            predicted(session, case)
        session.keep(0)
        assert session.kept() == [0]
        with pytest.raises(SettingError, match="was kept under this name"):
            session.keep(1)
        session.close()

    def test_nothing_is_kept_of_what_is_no_label(self, client, session, image, tmp_path):
        assert client.post("/api/cases/0/keep").text.startswith("answer: expected a prediction")
        assert client.post("/api/cases/7/keep").status_code == 400
        (tmp_path / "answer").mkdir()
        (tmp_path / "answer" / "scan.json").write_text("{}")
        session.answers[0] = Answer(tmp_path / "answer", "scan", open_image(image).space)
        assert client.post("/api/cases/0/keep").text.startswith("keep: expected an answer with")
        assert not (session.out / "corrections").exists()


@pytest.mark.parametrize(
    ("count", "hold_out", "sizes"),
    [(2, False, (2, 0, 0)), (3, True, (2, 0, 1)), (5, True, (3, 1, 1)), (10, True, (6, 2, 2)), (10, False, (8, 2, 0))],
)
def test_corrected_cases_are_parted_so_that_something_is_left_to_compare_on(count, hold_out, sizes):
    names = [f"case_{number:02}" for number in range(count)]
    parts = parts_of(names, hold_out=hold_out)
    assert tuple(len(parts[part]) for part in ("train", "validation", "test")) == sizes
    assert sorted(name for part in parts.values() for name in part) == names


@pytest.mark.parametrize(("count", "hold_out"), [(1, False), (2, True)])
def test_too_few_are_refused(count, hold_out):
    with pytest.raises(SettingError, match="train: expected at least"):
        parts_of(["a", "b"][:count], hold_out=hold_out)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Three phantoms with points."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 3, seed=0, ndim=2, shape=(24, 24), format=".nii.gz", landmark_format="csv", kind="torso")
    return folder


@pytest.fixture(scope="module")
def small(phantoms, tmp_path_factory):
    """A small model of the phantoms' points that has learned nothing."""
    names = list(read_landmarks(next((phantoms / "landmarks").iterdir())).names)
    network = UNet(ndim=2, in_channels=1, out_channels=len(names), width=4, multipliers=[1, 2], groups=2,
                   attention="none", middle_attention="none")  # fmt: skip
    task = LandmarkTask(network, landmark_names=names, num_landmarks=len(names))
    return write_bundle(tmp_path_factory.mktemp("small") / "bundle", task, Preprocess(), record={}, card="a card")


@pytest.fixture
def corrected(phantoms, small, tmp_path):
    """A session of the phantoms with two of them corrected to the truth, and its client."""
    images = sorted((phantoms / "volumes").iterdir())
    session = Session(images, load(small), tmp_path / "out", folders=[phantoms])
    client = TestClient(make_app(session, TOKEN, tmp_path), base_url=HOST, cookies={"voxelry": TOKEN})
    for case in (0, 1):
        predicted(session, case)
        truth = read_landmarks(phantoms / "landmarks" / f"{images[case].name.removesuffix('.nii.gz')}.csv")
        moved = [{"index": k, "position": place.tolist() if np.isfinite(place).all() else None}
                 for k, place in enumerate(truth.world)]  # fmt: skip
        assert client.put(f"/api/cases/{case}/points", json=moved).status_code == 200
        assert client.post(f"/api/cases/{case}/keep").status_code == 200
    yield session, client
    session.close()


def over(client, number):
    while True:
        job = client.get(f"/api/trainings/{number}").json()
        if job["state"] not in ("waiting", "running"):
            return job
        time.sleep(0.01)


def test_the_settings_go_on_from_the_shown_model_with_the_corrected_cases(corrected, small, tmp_path):
    session, _ = corrected
    parts = parts_of(list(session.corrections.images), hold_out=False)
    config = OmegaConf.load(training_settings(load(small), session.corrections.folder, parts, tmp_path / "run", 2.0))
    assert (config.pretrained, config.data.root) == (str(small), str(session.corrections.folder))
    assert (config.trainer.max_minutes, config.trainer.max_steps, config.ndim) == (2.0, None, 2)
    assert (tmp_path / "run" / "split.csv").read_text().count(",train") == 2


def test_the_model_is_compared_on_cases_with_labels_that_were_not_corrected(phantoms, small):
    names = sorted(path.name.removesuffix(".nii.gz") for path in (phantoms / "volumes").iterdir())
    assert labelled(load(small), [phantoms], names[:2]) == {phantoms: [names[2]]}
    assert labelled(load(small), [phantoms], names) == {}
    assert labelled(load(small), [phantoms.parent / "nothing"], []) == {}


@pytest.mark.parametrize("better", [True, False])
def test_a_new_model_is_shown_only_if_it_is_better(corrected, small, monkeypatch, better):
    """The process aside, everything is done: settings, parts, comparison on the third phantom."""
    session, client = corrected
    trained = []

    def train(settings, minutes, progress):
        trained.append(OmegaConf.load(settings))
        progress(30, 60, "training")
        return small

    values = iter([8.0, 5.5 if better else 8.5])
    monkeypatch.setattr(sessions, "run_training", train)
    monkeypatch.setattr("voxelry.serve.learning.measured", lambda model, held_out: next(values))
    before = session.model
    job = over(client, client.post("/api/train", json={"minutes": 1}).json()["job"])
    assert job["state"] == "done", job["message"]
    assert job["answer"]["better"] is better
    assert (job["answer"]["metric"], job["answer"]["before"], job["answer"]["cases"]) == ("mre_mm", 8.0, 1)
    assert (session.model is not before) is better
    assert client.get("/api/state").json()["training"]["answer"] == job["answer"]
    assert trained[0].output_dir.endswith("out/training/1")


def test_an_answer_keeps_the_name_of_the_model_that_gave_it(corrected, small, monkeypatch, tmp_path):
    """A better model is taken while one answer is there and a question waits."""
    session, client = corrected
    after = shutil.copytree(small, tmp_path / "after")
    held = threading.Event()
    session.jobs.start(lambda progress: held.wait())
    waiting = session.jobs[session.predict(2, {})]
    monkeypatch.setattr(sessions, "run_training", lambda settings, minutes, progress: after)
    values = iter([8.0, 5.5])
    monkeypatch.setattr("voxelry.serve.learning.measured", lambda model, held_out: next(values))
    job = over(client, client.post("/api/train", json={"minutes": 1}).json()["job"])
    assert job["answer"]["bundle"] == str(after)
    held.set()
    while waiting.state in ("waiting", "running"):
        time.sleep(0.01)
    predicted(session, 1)
    state = client.get("/api/state").json()
    assert state["model"] == str(after)
    assert {case: answer["model"] for case, answer in state["answers"].items()} == {
        "0": str(small), "1": str(after), "2": str(small)
    }  # fmt: skip
    models = [client.post(f"/api/cases/{case}/keep").json()["model"] for case in (0, 1, 2)]
    assert models == [row["model"] for row in session.corrections.rows[2:]] == [str(small), str(after), str(small)]


@pytest.mark.usefixtures("undrawn")
def test_a_training_goes_on_from_the_model_and_what_it_made_is_measured(corrected, small, phantoms, tmp_path):
    session, _ = corrected
    before, kept = load(small), list(session.corrections.images)
    held_out = labelled(before, [phantoms], kept)
    settings = training_settings(
        before, session.corrections.folder, parts_of(kept, hold_out=False), tmp_path / "run", 0.02
    )
    assert main(str(settings)) == 0
    after = load(tmp_path / "run" / "bundle")
    assert sorted(after.bundle.config["data"]["train"]) == sorted(kept)
    assert after.bundle.config["training"]["pretrained"] == str(small)
    found = verdict(before, after, held_out)
    assert found["cases"] == 1
    assert found["before"] != found["after"]
    assert found["better"] is (found["after"] < found["before"])


def test_settings_that_nothing_can_be_trained_by_are_said_in_a_line(corrected, small, tmp_path, monkeypatch, capsys):
    """What the process would run is run in this one, and a process says the same."""
    session, _ = corrected
    parts = parts_of(list(session.corrections.images), hold_out=False)
    path = training_settings(load(small), tmp_path / "nowhere", parts, tmp_path / "run", 2.0)
    assert training.COMMAND[1:] == ("-m", train_process.__name__)
    monkeypatch.setattr(sys, "argv", ["train_process", str(path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(train_process.__file__, run_name="__main__")
    said = f"import sys; print({capsys.readouterr().out!r}); sys.exit({end.value.code!r})"
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", said))
    with pytest.raises(DataError, match=r"^train: .*nowhere.*train\.log") as error:
        training.run_training(path, 2.0, lambda done, total, doing="": None)
    assert "\n" not in str(error.value)


def test_a_training_that_fails_is_a_line_and_the_model_stays(corrected, monkeypatch):
    session, client = corrected
    failing = "print('reading'); print('voxelry: error: no space left'); raise SystemExit(1)"
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", failing))
    before = session.model
    job = over(client, client.post("/api/train", json={"minutes": 1}).json()["job"])
    assert job["state"] == "failed"
    assert job["message"].startswith("train: no space left (all of it is in ")
    assert session.model is before


def test_a_cancelled_training_ends_its_process(corrected, monkeypatch):
    session, client = corrected
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", "import signal; signal.pause()"))
    number = client.post("/api/train", json={"minutes": 30}).json()["job"]
    assert "going on" in client.post("/api/train", json={"minutes": 1}).text
    while session.trainings[number].doing != "training":
        assert session.trainings[number].state in ("waiting", "running")
        time.sleep(0.01)
    assert client.delete(f"/api/trainings/{number}").status_code == 200
    assert over(client, number)["state"] == "cancelled"
    assert client.get("/api/state").json()["training"]["state"] == "cancelled"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"minutes": 0}, "minutes: expected more than 0"),
        ({"minutes": 1e9}, "minutes: expected more than 0"),
        ({"minutes": "5"}, "minutes: expected a number"),
        ({"minutes": True}, "minutes: expected a number"),
        ([], "body: expected a JSON object"),
        ({"minutes": 1}, "train: expected at least 2 kept cases, got 0"),
    ],
)
def test_a_training_that_cannot_be_is_refused(client, asked, message):
    refused = client.post("/api/train", content=json.dumps(asked))
    assert refused.status_code == 400
    assert refused.text.startswith(message)
    assert client.get("/api/state").json()["training"] is None


@pytest.mark.parametrize("path", ["/api/train", "/api/cases/0/keep", "/api/cases/0/instances"])
def test_what_writes_needs_the_token_and_this_servers_own_page(client, session, page, path):
    stranger = TestClient(make_app(session, TOKEN, page), base_url=HOST)
    assert stranger.post(path, json={}).status_code == 401
    assert client.post(path, json={}, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post(path, content=b"0" * (2 << 20)).status_code == 413


def test_the_model_says_how_unsure_it_was(client, finished, session, image, tmp_path):
    job = finished(client.post("/api/cases/0/predict", json={}).json()["job"])
    radii = [point["radius"] for point in job["answer"]["points"]]
    assert job["answer"]["uncertainty"] == pytest.approx(np.mean(radii))
    space = open_image(image).space
    labels = np.zeros(space.shape, dtype=np.int32)
    labels[:2], labels[4:] = 1, 2
    found = InstancePrediction.from_instances("scan", space, from_labels(labels, scores=[0.9, 0.5]))
    write_instances(found, tmp_path / "answer")
    assert Answer(tmp_path / "answer", "scan", space).uncertainty() == pytest.approx(0.3)

"""The page is there before its model is: what needs no model doesn't wait, what does waits, and a failure is said."""

import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from voxelry.cli import app
from voxelry.core.errors import CheckpointError
from voxelry.serve.app import make_app
from voxelry.serve.run import in_background
from voxelry.serve.session import Session

TOKEN, HOST = "a secret", "http://127.0.0.1:8000"  # as in conftest.py


@pytest.fixture
def opened(image, page, tmp_path):
    """A session whose model will be there some time, and its client."""
    sessions = []

    def open(model, path=image):
        sessions.append(Session([path], model, tmp_path / "answers"))
        return TestClient(make_app(sessions[-1], TOKEN, page), base_url=HOST, cookies={"voxelry": TOKEN})

    yield open
    for session in sessions:
        session.close()


def test_images_are_shown_while_the_model_is_loading_and_a_prediction_waits(opened, model):
    future = Future()
    client = opened(future)
    state = client.get("/api/state").json()
    assert (state["loading"], state["task"], state["options"], state["learns"]) == (True, None, [], False)
    assert client.get("/api/cases/0/image.nii").status_code == 200
    with ThreadPoolExecutor(2) as pool:
        told = pool.submit(client.get, "/api/model")
        asked = pool.submit(client.post, "/api/cases/0/predict", json={})
        assert client.get("/api/cases/0").status_code == 200
        assert not told.done()
        assert not asked.done()
        future.set_result(model)
    found = told.result().json()
    assert (found["task"], found["learns"], found["model"]) == ("landmarks", True, str(model.bundle.path))
    assert asked.result().status_code == 202
    state = client.get("/api/state").json()
    assert state["loading"] is False
    assert {name: state[name] for name in found} == found


def test_a_file_of_several_images_waits_for_the_model_that_knows_which(opened, model, tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["other"], file["raw"] = np.zeros((2, 3, 4)), np.zeros((5, 6, 7))
        for stored in file.values():
            stored.attrs["element_size_um"] = [1.0, 1.0, 1.0]
    future = Future()
    client = opened(future, tmp_path / "scan.h5")
    with ThreadPoolExecutor(1) as pool:
        header = pool.submit(client.get, "/api/cases/0")
        assert client.get("/api/state").json()["loading"]
        assert not header.done()
        future.set_result(model)
    assert header.result().json()["shape"] == [1, 5, 6, 7]


def broken():
    raise CheckpointError("weights: net.0.weight is missing")


@pytest.mark.parametrize(
    ("load", "line", "told"),
    [
        (broken, "weights: net.0.weight is missing", "voxelry: error: weights: net.0.weight is missing\n"),
        (lambda: 1 / 0, "model: it can't be loaded; the terminal of voxelry view has more", ""),
    ],
)
def test_a_model_that_cannot_be_loaded_is_said_on_the_page_and_the_terminal(opened, capsys, caplog, load, line, told):
    client = opened(in_background(load))
    for answer in (client.get("/api/model"), client.post("/api/cases/0/predict", json={})):
        assert (answer.status_code, answer.text) == (400, line)
    assert capsys.readouterr().err == told
    assert ("ZeroDivisionError" in caplog.text) is (told == "")
    assert client.get("/api/state").json()["loading"]
    assert client.get("/api/cases/0/image.nii").status_code == 200


def test_an_image_is_shown_without_torch(image, tmp_path):
    code = f"""
import sys
from voxelry.engine.inputs import gather_inputs
from voxelry.serve.run import Session, make_app
from pathlib import Path
session = Session(gather_inputs([Path({str(image)!r})]), None, Path({str(tmp_path)!r}))
make_app(session, "", Path({str(tmp_path)!r}))
print(session.header(0)["shape"], session.volume(0).stat().st_size > 0, session.thumbnail(0).stat().st_size > 0)
session.close()
print(sorted({{"torch", "lightning", "numba", "hydra", "skimage"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[1, 8, 12, 16] True True", "[]"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors is missing"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"nothing"), "not a readable safetensors file"),
        (lambda folder: (folder / "config.yaml").write_text("format: 1\n"), "changed since the bundle was written"),
    ],
)
def test_what_is_no_bundle_is_refused_before_there_is_a_page(image, model, tmp_path, damage, message):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in model.bundle.path.iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    damage(bundle)
    with socket.create_server(("127.0.0.1", 0)) as taken:  # a page could not be served
        port = str(taken.getsockname()[1])
        ended = CliRunner().invoke(app, ["view", str(image), "--model", str(bundle), "--no-open", "--port", port])
    assert isinstance(ended.exception, CheckpointError)
    assert message in str(ended.exception)


def test_adapters_go_with_their_base(image, model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("voxelry.serve.run.serve", lambda images, loader, out, **more: asked.append(more["adapters"]))
    base, adapters = model.bundle.path, [tmp_path / "liver", tmp_path / "spleen"]
    arguments = ["view", str(image), "--no-open", *(part for one in adapters for part in ("--adapter", str(one)))]
    ended = CliRunner().invoke(app, [*arguments, "--model", str(base)])
    assert ended.exit_code == 0, ended.output
    assert asked == [adapters]
    assert "adapter: expected with --model" in str(CliRunner().invoke(app, arguments).exception)

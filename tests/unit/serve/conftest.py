"""A page of one oblique scan, and a model of two landmarks that has learned nothing."""

import time

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed (pip install 'voxelry[view]')")
from starlette.testclient import TestClient

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import write_image
from voxelry.models.unet import UNet
from voxelry.serve.app import make_app
from voxelry.serve.session import Session
from voxelry.tasks.landmarks import LandmarkTask

TOKEN, HOST = "a secret", "http://127.0.0.1:8000"
OBLIQUE = np.array([[0.0, 0.2, -0.9, 5.0], [0.1, 1.1, 0.2, -7.0], [3.0, 0.0, 0.1, 40.0], [0, 0, 0, 1]])
"""Thick slices, tilted."""


@pytest.fixture(scope="session")
def oblique():
    return OBLIQUE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = UNet(ndim=3, in_channels=1, out_channels=2, width=4, multipliers=[1, 2], groups=2, attention="none",
                   middle_attention="none")  # fmt: skip
    task = LandmarkTask(network, landmark_names=["left", "right"], num_landmarks=2)
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    return load(write_bundle(folder, task, Preprocess(), record={}, card="a card"))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    array = np.random.default_rng(0).integers(0, 500, (1, 8, 12, 16)).astype(np.int16)
    return write_image(tmp_path_factory.mktemp("scan") / "scan.nii.gz", array, Space(array.shape[1:], OBLIQUE))


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<title>voxelry</title>")
    return folder


@pytest.fixture
def session(image, model, tmp_path):
    session = Session([image], model, tmp_path / "answers")
    yield session
    session.close()


@pytest.fixture
def client(session, page):
    return TestClient(make_app(session, TOKEN, page), base_url=HOST, cookies={"voxelry": TOKEN})


@pytest.fixture
def finished(client):
    """Waits for a job and answers its record."""

    def wait(number):
        while True:
            job = client.get(f"/api/jobs/{number}").json()
            if job["state"] not in ("waiting", "running"):
                return job
            time.sleep(0.01)

    return wait

"""The page in a real browser: clicks on an oblique volume, a point that is moved, what is saved."""

import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from voxelry.bundle.bundle import write_bundle
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import open_image, read_image, read_landmarks, write_image
from voxelry.models.unet import UNet
from voxelry.ops.instances import from_labels
from voxelry.serve.answers import Answer
from voxelry.serve.app import make_app
from voxelry.serve.session import Session
from voxelry.tasks.landmarks import LandmarkTask
from voxelry.tasks.segment.outputs import write_instances
from voxelry.tasks.segment.predict import InstancePrediction

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PAGE = Path(__file__).parents[2] / "src" / "voxelry" / "serve" / "page" / "index.html"
SOFTWARE = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WAIT = 60_000  # ms, at most

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install 'voxelry[view]')")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(not PAGE.is_file(), reason="the page isn't built (make page)"),
]


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A tilted volume with thick slices, two bright balls in it."""
    affine = np.array([[0.0, 0.3, -1.9, 40.0], [0.2, 2.0, 0.3, -30.0], [4.0, 0.0, 0.1, 10.0], [0, 0, 0, 1]])
    grid = np.indices((10, 28, 30)).astype(float)
    array = 40 * np.random.default_rng(0).random((10, 28, 30))
    for centre in ((4, 9, 10), (6, 18, 20)):
        distance = sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True))
        array += 900 * np.exp(-distance / 6)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    return write_image(path, array[None].astype(np.int16), Space(array.shape, affine))


@pytest.fixture(scope="module")
def server(scan, tmp_path_factory):
    """The address of a page with a model that has learned nothing, and the folder that it saves in."""
    network = UNet(ndim=3, in_channels=1, out_channels=2, width=4, multipliers=[1, 2], groups=2, attention="none",
                   middle_attention="none")  # fmt: skip
    folder = tmp_path_factory.mktemp("view")
    task = LandmarkTask(network, landmark_names=["left", "right"], num_landmarks=2)
    bundle = write_bundle(folder / "bundle", task, Preprocess(), record={}, card="a card")
    command = [sys.executable, "-m", "voxelry", "view", str(scan), "--model", str(bundle), "--no-open"]
    with subprocess.Popen([*command, "--out", str(folder / "out")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http\S+", process.stdout.readline())
        assert found is not None
        yield found.group(0), folder / "out"
        process.terminate()


@contextmanager
def browser(address):
    """The page at an address, which asks nobody else for anything."""
    with playwright.sync_playwright() as browsers:
        chromium = browsers.chromium.launch(executable_path=BROWSER, args=list(SOFTWARE))
        page = chromium.new_page(viewport={"width": 1280, "height": 720})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=WAIT)
        yield page
        assert all(url.startswith((address.partition("?")[0], "blob:", "data:")) for url in asked)
        chromium.close()


@pytest.fixture
def page(server):
    with browser(server[0]) as page:
        yield page


@contextmanager
def served(session):
    """The address of a session's page, served by a thread."""
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(session, "secret"), log_level="warning")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}/?token=secret"
    finally:
        running.should_exit = True
        thread.join()


def place(page):
    """The crosshair in mm."""
    return np.array([float(value) for value in page.inner_text("#place").partition(" mm")[0].split(",")])


def test_a_point_is_moved_to_the_crosshair_and_saved_there(page, server):
    assert "token" not in page.url
    page.click("#predict")
    page.wait_for_selector("#points tr", timeout=WAIT)
    page.click("#points tr:nth-child(1)")
    before = place(page)
    box = page.locator("#view").bounding_box()
    page.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    clicked = place(page)
    assert np.linalg.norm(clicked - before) > 1
    page.click("#points tr:nth-child(1) button:has-text('move')")
    page.wait_for_selector("#points tr.chosen", timeout=WAIT)
    page.click("#save")
    page.wait_for_selector("#saved:not(:empty)", timeout=WAIT)
    found = read_landmarks(server[1] / "scan.mrk.json")
    np.testing.assert_allclose(found.world[0], clicked, atol=0.06)  # what is read on the page has one decimal
    page.reload()
    page.wait_for_selector("#points tr", timeout=WAIT)
    assert page.locator("#points tr").count() == 2


@pytest.fixture
def segmented(scan, tmp_path):
    """A session with an answer of three instances, and their label volume."""
    space = open_image(scan).space
    labels = np.zeros(space.shape, dtype=np.int32)
    labels[3:7, 2:12, 2:26] = 1
    labels[1:3, 16:24, 4:10] = 2
    labels[5:9, 16:26, 18:28] = 3
    found = InstancePrediction.from_instances("scan", space, from_labels(labels, scores=[0.9, 0.7, 0.3]))
    write_instances(found, tmp_path / "answer")
    session = Session([scan], None, tmp_path / "out")
    session.answers[0] = Answer(tmp_path / "answer", "scan", space)
    yield session, labels
    session.close()


def test_instances_are_chosen_split_deleted_and_saved_as_they_are_seen(segmented):
    session, labels = segmented
    space = open_image(session.images[0]).space
    with served(session) as address, browser(address) as page:
        rows = page.locator("#instances tr[data-id]")
        rows.first.wait_for(timeout=WAIT)
        assert rows.count() == 3
        page.click("#instances tr[data-id='2']")
        assert labels[tuple(np.rint(space.to_index(place(page))).astype(int))] == 2  # the crosshair went there
        page.keyboard.press("Delete")
        page.locator("#instances tr[data-id='2']").wait_for(state="detached", timeout=WAIT)
        page.click("#instances tr[data-id='1']")
        before = place(page)
        page.click("#split")
        box = page.locator("#view").bounding_box()
        middle = [box["x"] + 0.5 * box["width"], box["y"] + 0.25 * box["height"]]
        page.mouse.click(middle[0] - 60, middle[1])
        assert "second" in page.inner_text("#hint")
        assert not np.allclose(place(page), before)
        page.mouse.click(middle[0] + 60, middle[1])
        page.wait_for_selector("#instances tr[data-id='4']", timeout=WAIT)
        page.locator("#least").fill("0.5")
        page.locator("#counted", has_text="2 of 3 seen").wait_for(timeout=WAIT)
        page.click("#save")
        page.wait_for_selector("#saved:not(:empty)", timeout=WAIT)
    saved = read_image(session.out / "scan.nii.gz").array[0]
    np.testing.assert_array_equal(np.isin(saved, [1, 4]), labels == 1)
    assert set(np.unique(saved).tolist()) == {0, 1, 4}

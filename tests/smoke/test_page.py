"""The page in a real browser: clicks on an oblique volume, a point that is moved, what is saved."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from voxelry.bundle.bundle import write_bundle
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import read_landmarks, write_image
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PAGE = Path(__file__).parents[2] / "src" / "voxelry" / "serve" / "page" / "index.html"
SOFTWARE = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WAIT = 60_000  # ms, at most

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
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


@pytest.fixture
def page(server):
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=BROWSER, args=list(SOFTWARE))
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server[0])
        page.wait_for_selector("body[data-ready]", timeout=WAIT)
        yield page
        assert all(url.startswith((server[0].partition("?")[0], "blob:", "data:")) for url in asked)
        browser.close()


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

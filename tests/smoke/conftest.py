"""Whole studies, briefly; and the page in a real browser."""

import shutil
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelry.bundle.bundle import write_bundle
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import write_image
from voxelry.models.shape import ShapeNet
from voxelry.tasks.reconstruct import ReconstructTask

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PAGE = Path(__file__).parents[2] / "src" / "voxelry" / "serve" / "page" / "index.html"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT = 60_000  # ms, at most


@pytest.fixture(scope="module", autouse=True)
def _undrawn(undrawn: object) -> None:
    """Reports without figures, where `drawn` isn't asked for."""


@pytest.fixture(scope="session")
def built():
    """The page and a browser to see it in."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install 'voxelry[view]')")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    if not PAGE.is_file():
        pytest.skip("the page isn't built (make page)")


@pytest.fixture(scope="module")
def chromium(built):
    """One browser for all, closed to the world."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as browsers:
        chromium = browsers.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def opened(chromium):
    """Opens the page of a session, or at an address; it asks nobody else for anything and says no error."""

    @contextmanager
    def open(session, ws="auto", **settings):
        with served(session, ws=ws) if hasattr(session, "images") else session as address:
            page = chromium.new_page(**{"viewport": {"width": 1000, "height": 600}, **settings})
            page.set_default_timeout(WAIT)
            asked, errors = [], []
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(address)
            page.wait_for_selector("body[data-ready]")
            yield page
            page.context.close()
            here = address.partition("?")[0]
            assert all(url.startswith((here, here.replace("http", "ws"), "blob:", "data:")) for url in asked)
            assert not errors

    return open


@contextmanager
def served(session, **settings):
    """The address of a session's page, served by a thread with these settings of uvicorn."""
    import uvicorn

    from voxelry.serve.app import make_app

    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(make_app(session, "secret"), log_level="error", **settings))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}/?token=secret"
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def place():
    """The crosshair of a page in mm."""
    return lambda page: np.array([float(value) for value in page.inner_text("#place").partition(" mm")[0].split(",")])


@pytest.fixture(scope="session")
def spot():
    """Pixels of a place in a page's picture that is given in parts of its width and height."""

    def found(page, across, down):
        box = page.locator("#view").bounding_box()
        return box["x"] + across * box["width"], box["y"] + down * box["height"]

    return found


@pytest.fixture(scope="session")
def save():
    """Saves a page's answer."""

    def press(page):
        page.click("#save")
        page.wait_for_selector("#saved:not(:empty)")

    return press


@pytest.fixture(scope="session")
def organs(tmp_path_factory):
    """A bundle that answers with some shape for one of two organs, without a training."""
    torch.manual_seed(0)
    network = ShapeNet(image_size=32, grid=24, prior_grid=24, width=8, multipliers=(1, 2), volume_width=8,
                       volume_multipliers=(1, 2), context=16, classes=2)  # fmt: skip
    for name, value in network.named_parameters():
        if name.endswith(("head.weight", "head.bias")):
            torch.nn.init.normal_(value, std=0.02)
    task = ReconstructTask(
        network.eval(), organs=[(6,), (2,)], edges=[90.0, 60.0], organ_names=["heart", "spleen"], baseline_shapes=1
    )
    folder = tmp_path_factory.mktemp("organs") / "bundle"
    return write_bundle(folder, task, Preprocess(normalise="percentile"), record={}, card="a card")

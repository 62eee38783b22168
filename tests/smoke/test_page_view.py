"""How an image is looked at in the page: windows, light and dark, the picture as a file."""

import io

import numpy as np
import pytest
from PIL import Image

from voxelry.io import read_image
from voxelry.serve.session import Session

pytestmark = pytest.mark.usefixtures("built")


@pytest.fixture
def looking(scan, tmp_path):
    session = Session([scan], None, tmp_path / "out")
    yield session
    session.close()


def window(page):
    return [float(page.input_value(f"#{name}")) for name in ("low", "high")]


def test_windows_are_shares_of_the_voxels_or_those_of_ct(opened, looking, scan):
    values = read_image(scan).array.ravel().astype(float)
    with opened(looking) as page:
        for name, shares in {"0.1 to 99.9 %": (0.1, 99.9), "2 to 98 %": (2, 98), "min to max": (0, 100)}.items():
            page.select_option("#window", name)
            assert window(page) == pytest.approx(np.percentile(values, shares), abs=0.06)
        page.select_option("#window", "CT lung")
        assert window(page) == [-1350, 150]
        page.fill("#high", "2000")
        page.keyboard.press("Tab")
        assert page.input_value("#window") == "by hand"
        picture = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("L")
        assert np.asarray(picture).max() < 255 * 0.95  # nothing is as bright as 2000


def test_an_image_is_seen_in_its_files_own_window(opened, looking):
    header = looking.header(0) | {
        "modality": "MR",
        "windows": [{"name": "", "low": 100.0, "high": 400.0}, {"name": "fat", "low": 0.0, "high": 50.0}],
    }
    looking.header = lambda case: header
    with opened(looking) as page:
        assert window(page) == [100, 400]
        page.select_option("#window", "MR: fat")
        assert window(page) == [0, 50]
        assert page.locator("#window option:has-text('CT')").count() == 0


def test_the_page_is_as_dark_as_the_system_until_it_is_told(opened, looking):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with opened(looking, color_scheme="dark") as page:
        dark = background(page)
        page.emulate_media(color_scheme="light")
        light = background(page)
        assert dark != light
        page.click("#dark")
        assert background(page) == dark
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert background(page) == dark
        assert page.get_attribute("#dark", "aria-checked") == "true"


def test_the_picture_is_saved_as_it_is_seen_under_the_images_name(opened, looking):
    with opened(looking) as page:
        seen = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("L")
        with page.expect_download() as awaited:
            page.click("#picture")
        saved = Image.open(awaited.value.path()).convert("L")
        assert awaited.value.suggested_filename == "scan.png"
    assert saved.size == seen.size
    assert np.abs(np.asarray(saved).astype(float) - np.asarray(seen)).mean() < 1
    assert np.asarray(seen).std() > 20

"""How an image is looked at in the page: windows, light and dark, the picture as a file."""

import io

import numpy as np
import pytest
from PIL import Image

from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image
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
        page.wait_for_function("dark => getComputedStyle(document.body).backgroundColor !== dark", arg=dark)
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


@pytest.fixture
def measuring(scan, tmp_path):
    """The tilted volume, and a microscope's image of 2 x 0.5 x 0.5 µm."""
    small = np.arange(6 * 20 * 24, dtype=np.int16).reshape(1, 6, 20, 24)
    path = write_image(tmp_path / "small.nii.gz", small, Space.from_spacing(small.shape[1:], (2e-3, 5e-4, 5e-4)))
    session = Session([scan, path], None, tmp_path / "out")
    yield session
    session.close()


def pressed(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def told(page, row):
    """The length in a row of the distances, and its unit."""
    number, unit = page.inner_text(f"#measures li:nth-child({row}) button:first-child").split()
    return float(number), unit


def test_distances_are_those_of_the_world_in_tilted_slices_and_of_voxels_apart(opened, measuring, place, spot):
    affine = open_image(measuring.images[0]).space.affine
    with opened(measuring) as page:
        page.click("#slices button:has-text('Axial')")
        page.focus("#view")
        pressed(page, "ArrowRight", "d", "Enter", *["ArrowRight"] * 10, *["ArrowUp"] * 6, "Enter")
        apart = np.linalg.norm(6 * affine[:3, 1] - 10 * affine[:3, 2])  # the volume's columns run to the left
        assert told(page, 1) == (pytest.approx(apart, abs=0.051), "mm")
        ends = [spot(page, 0.45, 0.4), spot(page, 0.6, 0.65)]
        places = []
        for end in ends:
            page.mouse.click(*end)
            places.append(place(page))
        assert told(page, 2) == (pytest.approx(np.linalg.norm(places[0] - places[1]), abs=0.2), "mm")
        box = page.locator("#view").bounding_box()
        drawn = page.locator("#marks polyline").last.get_attribute("points").split()
        for point, end in zip(drawn, ends, strict=True):
            seen = [float(value) + box[side] for value, side in zip(point.split(","), "xy", strict=True)]
            np.testing.assert_allclose(seen, end, atol=1)
        page.focus("#view")
        page.keyboard.press("PageUp")
        assert page.locator("#marks polyline").count() == 0  # in that slice there are none
        page.click("#measures li:nth-child(1) button:has-text('✕')")
        assert page.locator("#measures li").count() == 1
        page.focus("#view")
        page.keyboard.press("j")
        page.locator("#header", has_text="µm").wait_for()
        assert page.locator("#measures li").count() == 0
        pressed(page, "ArrowRight", "d", "Enter", *["ArrowRight"] * 8, "PageUp", "PageUp", "Enter")
        assert told(page, 1) == (pytest.approx(np.hypot(8 * 0.5, 2 * 2), abs=0.051), "µm")


def test_a_large_pyramid_is_there_at_once_and_finer_when_it_is_asked_for(opened, pyramid, tmp_path):
    session = Session([pyramid[0]], None, tmp_path / "out", first=4 * 2 * 2)
    with opened(session) as page:  # which draws without a graphics card, so that nothing is refined by itself
        assert "shown at 4 x 2 x 2" in page.text_content("#header")
        page.fill("#low", "20")
        page.keyboard.press("Tab")
        page.focus("#view")
        page.keyboard.press("ArrowLeft")
        place = page.text_content("#place").split("[")[0]
        page.click("#finer")
        page.wait_for_selector("#finer", state="hidden")
        assert "shown at" not in page.text_content("#header")
        assert page.text_content("#place").split("[")[0] == place
        assert window(page)[0] == 20
        page.focus("#view")
        page.keyboard.press("ArrowRight")
        there = [float(one) for one in page.text_content("#place").split("mm")[0].split(",")]
        moved = [float(one) for one in place.split("mm")[0].split(",")]
        assert there[0] - moved[0] == pytest.approx(0.5, abs=0.06)  # a voxel, four times smaller than before
        looked = page.screenshot()
    assert np.asarray(Image.open(io.BytesIO(looked)).convert("L")).std() > 5
    session.close()


def test_of_images_that_are_opened_one_after_the_other_the_last_is_seen(opened, tmp_path):
    space = Space.from_spacing((6, 7, 8))
    values = {"first": 111, "second": 222}
    paths = [
        write_image(tmp_path / f"{name}.nii.gz", np.full((1, *space.shape), value, np.int16), space)
        for name, value in values.items()
    ]
    session = Session(paths, None, tmp_path / "out")
    held = []
    with opened(session) as page:
        page.route("**/cases/1/image.nii*", lambda route: held.append(route))
        with page.expect_request("**/cases/1/image.nii*"):
            page.click("#cases button:has-text('second')")
        page.click("#cases button:has-text('first')")
        page.wait_for_selector("#cases [aria-current=true]:has-text('first')")
        with page.expect_response("**/cases/0/image.nii*"):
            held[0].continue_()
        page.wait_for_function("document.querySelector('#place').textContent.trim().endsWith('111')")
        page.focus("#view")
        page.keyboard.press("ArrowLeft")
        assert page.text_content("#place").split()[-1] == "111"
    session.close()

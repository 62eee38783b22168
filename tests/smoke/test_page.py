"""The page in a real browser: clicks, drags and strokes on tilted volumes, and what is saved of them."""

import io
import re
import subprocess
import sys
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.cli import app
from voxelry.core.errors import CheckpointError
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import open_image, read_image, read_landmarks, write_image
from voxelry.io.meshes import read_mesh
from voxelry.models.unet import UNet
from voxelry.ops.instances import from_labels
from voxelry.phantoms import make_phantom
from voxelry.serve.answers import Answer
from voxelry.serve.session import Session
from voxelry.tasks.landmarks import LandmarkTask
from voxelry.tasks.segment.outputs import write_instances
from voxelry.tasks.segment.predict import InstancePrediction

pytestmark = pytest.mark.usefixtures("built")


@contextmanager
def commanded(*arguments):
    """The address that the command tells."""
    command = [sys.executable, "-m", "voxelry", "view", *map(str, arguments), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http\S+", process.stdout.readline())
        try:
            assert found is not None
            yield found.group(0)
        finally:
            process.terminate()


def test_a_click_in_a_phantom_gives_the_mesh_that_the_command_gives(opened, organs, tmp_path, spot, save):
    phantom = make_phantom(3, shape=(24, 28, 32), spacing=(6.0, 4.4, 4.0))
    hounsfield = (1000 * phantom.image.numpy() - 500).astype(np.int16)
    path = write_image(tmp_path / "ct.nii.gz", hounsfield, phantom.space)
    session = Session([path], load(organs, "cpu"), tmp_path / "out")
    asked = []
    with opened(session) as page:
        page.on("request", lambda request: request.method == "POST" and asked.append(request.post_data_json))
        page.mouse.click(*spot(page, 0.2, 0.3))
        page.click("#predict")
        page.wait_for_selector("#summary dd")
        told = page.locator("#summary dt:text-is('volume ml') + dd").inner_text()
        save(page)
    session.close()
    mesh = read_mesh(tmp_path / "out" / "ct.ply")
    assert float(told) == pytest.approx(mesh.volume_ml, rel=1e-3)
    (click,) = asked[0]["click"]
    command = ["predict", str(path), "--model", str(organs), "--out", str(tmp_path / "again"), "--format", "ply"]
    ended = CliRunner().invoke(app, [*command, f"--click={click}", "--label=6", "--device=cpu"])
    assert ended.exit_code == 0, ended.output
    for name in ("ct.ply", "ct.nii.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.fixture(scope="module")
def pointing(tmp_path_factory):
    """A model of two landmarks that has learned nothing."""
    network = UNet(ndim=3, in_channels=1, out_channels=2, width=4, multipliers=[1, 2], groups=2, attention="none",
                   middle_attention="none")  # fmt: skip
    task = LandmarkTask(network, landmark_names=["left", "right"], num_landmarks=2)
    return write_bundle(tmp_path_factory.mktemp("pointing") / "bundle", task, Preprocess(), record={}, card="a card")


def test_the_command_tells_an_address_whose_page_predicts_and_saves(opened, scan, pointing, tmp_path, save):
    with opened(commanded(scan, "--model", pointing, "--out", tmp_path / "out", "--device", "cpu")) as page:
        page.click("#predict")
        page.wait_for_selector("#points tr")
        save(page)
    assert len(read_landmarks(tmp_path / "out" / "scan.mrk.json").names) == 2


def test_points_are_put_to_the_crosshair_or_dragged_in_the_picture_and_saved_there(
    opened, scan, pointing, tmp_path, place, spot, save
):
    session = Session([scan], load(pointing, "cpu"), tmp_path)
    with opened(session) as page:
        assert "token" not in page.url
        page.click("#predict")
        page.wait_for_selector("#points tr")
        x, y = spot(page, 0.15, 0.25)
        page.mouse.click(x + 100, y)
        beside = place(page)
        page.mouse.click(x, y)
        clicked = place(page)
        page.click("#points tr:nth-child(1) button:has-text('move')")
        page.wait_for_selector("#points tr:nth-child(1).chosen")
        save(page)
        put = read_landmarks(tmp_path / "scan.mrk.json").world[0]
        five = round(100 * 5 / np.linalg.norm(beside - clicked))  # pixels
        page.mouse.move(x + 2, y - 1)  # the hand is not quite steady
        page.mouse.down()
        page.mouse.move(x + 2 + five // 2, y)
        page.mouse.move(x + 2 + five, y - 1)
        page.mouse.up()
        page.locator("#points tr", has_text=told(put)).wait_for(state="detached")
        save(page)
        page.reload()
        page.wait_for_selector("#points tr")
        assert page.locator("#points tr").count() == 2
    session.close()
    np.testing.assert_allclose(put, clicked, atol=0.06)  # what is read on the page has one decimal
    dragged = read_landmarks(tmp_path / "scan.mrk.json").world[0] - put
    pixel = np.linalg.norm(beside - clicked) / 100
    assert np.linalg.norm(dragged) == pytest.approx(5.0, abs=pixel)
    np.testing.assert_allclose(dragged, 5 * (beside - clicked) / np.linalg.norm(beside - clicked), atol=pixel + 0.01)


def test_the_page_says_that_its_model_is_loading_and_then_predicts(opened, scan, pointing, tmp_path):
    loading = Future()
    session = Session([scan], loading, tmp_path / "out")
    with opened(session) as page:
        assert page.inner_text("#loading") == "model is loading"
        assert page.locator("#predict").is_disabled()
        assert page.locator("#learn").is_hidden()
        loading.set_result(load(pointing, "cpu"))
        page.click("#predict")
        page.wait_for_selector("#points tr")
        assert page.locator("#loading").is_hidden()
        assert page.locator("#learn").is_visible()
    session.close()


def test_the_page_says_that_its_model_cannot_be_loaded(opened, scan, tmp_path):
    loading = Future()
    session = Session([scan], loading, tmp_path / "out")
    with opened(session) as page:
        loading.set_exception(CheckpointError("weights: net.weight is missing"))
        page.locator("#loading.fault", has_text="weights: net.weight is missing").wait_for()
        assert page.locator("#predict").is_disabled()
    session.close()


@pytest.mark.parametrize("sockets", [True, False])
def test_how_a_prediction_goes_on_comes_by_a_web_socket_or_by_asking_where_there_is_none(
    opened, scan, pointing, tmp_path, sockets
):
    session = Session([scan], load(pointing, "cpu"), tmp_path / "out")
    told, asked = [], []
    with opened(session, ws="auto" if sockets else "none") as page:
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: told.append(frame)))
        page.on("request", lambda request: asked.append(request.url.rpartition("/api/")[2]))
        page.click("#predict")
        page.wait_for_selector("#points tr")
    session.close()
    assert bool(told) is sockets
    assert ("jobs/1" in asked) is not sockets


def test_a_picture_fills_the_stage_with_its_first_row_on_top(opened, tmp_path):
    array = np.full((1, 60, 80), 100, dtype=np.uint8)
    array[0, 10:20, 5:25] = 250
    session = Session([write_image(tmp_path / "x.png", array, Space.from_spacing((60, 80)))], None, tmp_path)
    with opened(session) as page:
        stage = page.locator("#view").bounding_box()
        pixel = min(stage["width"] / 80, stage["height"] / 60)
        centre = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
        page.mouse.click(centre[0] + pixel * (15 - 40), centre[1] + pixel * (15 - 30))
        told = page.inner_text("#place")
    session.close()
    column, row = (float(value) for value in told.split(",")[:2])
    assert (column, row) == (pytest.approx(14.5, abs=1.5), pytest.approx(14.5, abs=1.5))
    assert told.split()[-1] == "250"


def test_times_of_a_volume_are_gone_through(opened, tmp_path):
    array = np.zeros((3, 6, 8, 10), dtype=np.int16) + 10 * np.arange(1, 4)[:, None, None, None]
    path = write_image(tmp_path / "scan.nii.gz", array.astype(np.int16), Space.from_spacing(array.shape[1:]))
    session = Session([path], None, tmp_path / "out")
    with opened(session) as page:
        assert page.inner_text("#frameValue") == "1 of 3"
        assert page.inner_text("#place").split()[-1] == "10"
        page.locator("#frame").fill("2")
        page.locator("#place", has_text=re.compile("30$")).wait_for()
        assert page.inner_text("#frameValue") == "3 of 3"
    session.close()


def test_an_answer_of_the_former_model_is_marked_until_it_is_predicted_again(opened, scan, pointing, tmp_path):
    session = Session([scan], load(pointing, "cpu"), tmp_path / "out")
    job = session.jobs[session.predict(0, {})]
    while job.state in ("waiting", "running"):
        job.stop.wait(0.01)
    session.answers[0] = replace(session.answers[0], model="runs/before")
    with opened(session) as page:
        page.wait_for_selector("#points tr")
        assert "former model" in page.inner_text("#former")
        assert "former model" in (page.locator("#cases button").get_attribute("title") or "")
        page.click("#predict")
        page.locator("#former").wait_for(state="hidden")
        assert page.locator("#cases button").get_attribute("title") == "scan, predicted"
    session.close()


def test_points_are_renamed_added_at_the_crosshair_and_saved_as_a_table(
    opened, scan, pointing, tmp_path, place, spot, save
):
    session = Session([scan], load(pointing, "cpu"), tmp_path / "out")
    with opened(session) as page:
        page.click("#predict")
        page.fill("#points tr:nth-child(1) input", "base")
        page.keyboard.press("Tab")
        page.mouse.click(*spot(page, 0.15, 0.25))
        clicked = place(page)
        page.click("#addPoint")
        page.wait_for_selector("#points tr:nth-child(3).chosen")
        page.keyboard.type("apex")  # the name of the new point is where one types
        page.keyboard.press("Tab")
        page.select_option("#format", "csv")
        save(page)
        page.reload()
        page.wait_for_selector("#points tr")
        names = [page.input_value(f"#points tr:nth-child({row}) input") for row in (1, 2, 3)]
    session.close()
    found = read_landmarks(tmp_path / "out" / "scan.csv")
    assert (list(found.names), names) == (["base", "right", "apex"],) * 2
    np.testing.assert_allclose(found.world[2], clicked, atol=0.06)


def told(point):
    """How the page writes a place."""
    return ", ".join(f"{value:.1f}" for value in point)


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


def test_instances_are_chosen_split_deleted_and_saved_as_they_are_seen(opened, segmented, place, spot, save):
    session, labels = segmented
    space = open_image(session.images[0]).space
    with opened(session) as page:
        rows = page.locator("#instances tr[data-id]")
        rows.first.wait_for()
        assert rows.count() == 3
        page.click("#instances tr[data-id='2']")
        assert labels[tuple(np.rint(space.to_index(place(page))).astype(int))] == 2  # the crosshair went there
        page.keyboard.press("Delete")
        page.locator("#instances tr[data-id='2']").wait_for(state="detached")
        page.click("#instances tr[data-id='1']")
        before = place(page)
        page.click("#split")
        page.mouse.click(*spot(page, 0.1, 0.25))
        assert "second" in page.inner_text("#hint")
        assert not np.allclose(place(page), before)
        page.mouse.click(*spot(page, 0.4, 0.25))
        page.wait_for_selector("#instances tr[data-id='4']")
        page.locator("#least").fill("0.5")
        page.locator("#counted", has_text="2 of 3 seen").wait_for()
        save(page)
    saved = read_image(session.out / "scan.nii.gz").array[0]
    np.testing.assert_array_equal(np.isin(saved, [1, 4]), labels == 1)
    assert set(np.unique(saved).tolist()) == {0, 1, 4}


def test_left_of_the_slider_lies_the_image_and_right_of_it_what_was_made(opened, tmp_path):
    space = Space.from_spacing((8, 24, 24), (2.0, 2.0, 2.0))
    given = np.full((1, *space.shape), 100, dtype=np.int16)
    given[0, 0, 0, 0], given[0, 0, 0, 1] = 0, 1000
    path = write_image(tmp_path / "scan.nii.gz", given, space)
    write_image(tmp_path / "answer" / "scan.nii.gz", np.where(given == 100, 900, given).astype(np.float32), space)
    session = Session([path], None, tmp_path / "out")
    session.answers[0] = Answer(tmp_path / "answer", "scan", space)
    with opened(session) as page:
        page.fill("#low", "0")
        page.fill("#high", "1000")
        page.keyboard.press("Tab")
        page.click("#ways button:has-text('Swipe')")
        page.locator("#cut").fill("0.5")
        page.wait_for_selector("#over[style*='50%'][aria-busy='false']")
        picture = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("L")).astype(float)
        rows, columns = (size // 2 for size in picture.shape)
        beside = slice(rows // 2, rows - rows // 4)
        left, right = (np.median(picture[beside, columns + sign * columns // 6]) for sign in (-1, 1))
    session.close()
    assert left == pytest.approx(0.1 * 255, abs=12)
    assert right == pytest.approx(0.9 * 255, abs=12)

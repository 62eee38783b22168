"""What is drawn in the page: the mask of a reconstruction, and instances."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from voxelry.bundle.model import load
from voxelry.cli import app
from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image
from voxelry.ops.instances import from_labels
from voxelry.ops.rle import encode_rle
from voxelry.phantoms import make_phantom
from voxelry.serve.answers import Answer
from voxelry.serve.session import Session
from voxelry.tasks.segment.outputs import write_instances
from voxelry.tasks.segment.predict import InstancePrediction


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """A phantom, tilted and mirrored, of voxels of three lengths."""
    phantom = make_phantom(3, shape=(24, 28, 32), spacing=(6.0, 4.4, 4.0))
    tilt = np.array([[-0.94, 0.34, 0.0, 9], [0.34, 0.94, 0.1, 5], [0.0, -0.1, 1.0, -7], [0, 0, 0, 1.0]])
    hounsfield = (1000 * phantom.image.numpy() - 500).astype(np.int16)
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    return write_image(path, hounsfield, Space(phantom.space.shape, tilt @ phantom.space.affine))


def commanded(scan, organs, out, click, mask, *more):
    """What the command writes for the same click and mask: a mesh and a label volume, as bytes."""
    command = ["predict", str(scan), "--model", str(organs), "--out", str(out), "--format", "ply", "--device=cpu"]
    ended = CliRunner().invoke(app, [*command, f"--click={click}", "--label=6", "--mask", str(mask), *more])
    assert ended.exit_code == 0, ended.output
    return [(out / name).read_bytes() for name in ("ct.ply", "ct.nii.gz")]


def test_a_drawn_mask_is_asked_with_as_the_commands_is(ct, organs, tmp_path):
    space = open_image(ct).space
    mask = np.zeros(space.shape, dtype=bool)
    window = slice(10, 13), slice(10, 17), slice(12, 21)
    mask[window] = True
    place = ",".join(map(str, space.to_world(np.array([11.0, 13.0, 16.0])).tolist()))
    drawn = json.loads(json.dumps(encode_rle(mask[window], window, mask.shape)))
    session = Session([ct], load(organs, "cpu"), tmp_path / "out")
    answers = []
    for asked in ({"mask": drawn}, {}):
        job = session.jobs[session.predict(0, {"click": [place], "label": 6, "plane": ["coronal"], **asked})]
        while job.state in ("waiting", "running"):
            job.stop.wait(0.01)
        assert job.state == "done", job.message
        assert [path.name for path in session.save(0)].count("ct_mask.nii.gz") == len(asked)
        answers.append([(session.out / name).read_bytes() for name in ("ct.ply", "ct.nii.gz")])
    session.close()
    saved = read_image(session.out / "ct_mask.nii.gz")
    np.testing.assert_array_equal(saved.array[0], mask)
    mine = write_image(tmp_path / "mine.mha", mask[None].astype(np.uint8), space)
    for number, given in enumerate((mine, session.out / "ct_mask.nii.gz")):
        assert answers[0] == commanded(ct, organs, tmp_path / str(number), place, given, "--plane=coronal")
    assert answers[0] != answers[1]


@pytest.fixture
def pen():
    """Draws a closed line through points of the window."""

    def draw(page, points):
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=4)
        page.mouse.up()

    return draw


def reddish(page):
    """How many pixels of the picture are of a warm colour."""
    picture = Image.open(io.BytesIO(page.locator("#view").screenshot())).convert("RGB")
    red, green, _ = np.asarray(picture).astype(int).transpose(2, 0, 1)
    return int((red - green > 40).sum())


def test_an_outline_is_filled_erased_and_undone_and_goes_with_its_click(
    opened, ct, scan, organs, tmp_path, place, spot, pen, save
):
    space = open_image(ct).space
    session = Session([ct, scan], load(organs, "cpu"), tmp_path / "out")
    asked, counts = [], []

    def index(page, at):
        page.mouse.click(*at)
        return tuple(np.rint(space.to_index(place(page))).astype(int))

    with opened(session) as page:
        page.on("request", lambda request: request.method == "POST" and asked.append(request.post_data_json))
        page.click("#slices button:has-text('Coronal')")
        x, y = spot(page, 0.5, 0.5)
        inside, outside, hole = [index(page, (x + right, y)) for right in (-45, 130, 45)]
        index(page, (x, y))
        page.click("#draw")
        pen(page, [(x - 80, y - 60), (x + 80, y - 60), (x + 80, y + 60), (x - 80, y + 60), (x - 80, y - 60)])
        row = page.locator("#clickList li")
        row.wait_for()
        assert row.locator("select").input_value() == "coronal"

        def drawn():
            counts.append(int(page.inner_text("#drawnCount").split()[0]))

        drawn()
        page.click("#eraser")
        pen(page, [(x + 30, y - 15), (x + 60, y - 15), (x + 60, y + 15), (x + 30, y + 15)])
        drawn()
        page.keyboard.press("u")
        drawn()
        page.keyboard.press("e")  # draws again
        page.click("#clear")
        assert row.count() == 0
        page.click("#undoStroke")
        page.focus("#view")
        page.keyboard.press("e")
        pen(page, [(x + 30, y - 15), (x + 60, y - 15), (x + 60, y + 15), (x + 30, y + 15)])
        drawn()
        page.keyboard.press("Enter")
        page.wait_for_selector("#summary dd")
        assert page.locator("#summary dt:text-is('on slice of') + dd").inner_text() == "given mask"
        save(page)
        page.focus("#view")
        page.keyboard.press("j")
        page.locator("#header", has_text="10 x 28 x 30").wait_for()
        page.click("#slices button:has-text('3-D')")
        page.wait_for_load_state("networkidle")
        before = reddish(page)
        page.keyboard.press("p")
        page.wait_for_selector("#penTools")
        assert reddish(page) < 1.5 * before  # nothing of the answer for the image before is seen again
    session.close()
    assert counts[0] > counts[1]
    assert counts == [counts[0], counts[1]] * 2
    mask = read_image(session.out / "ct_mask.nii.gz").array[0]
    assert np.count_nonzero(mask) == counts[1]
    assert [mask[at] for at in (inside, outside, hole)] == [1, 0, 0]
    (click,) = next(one["click"] for one in asked if "click" in one)
    assert mask[tuple(np.rint(space.to_index(np.array([float(one) for one in click.split(",")]))).astype(int))]
    got = [(session.out / name).read_bytes() for name in ("ct.ply", "ct.nii.gz")]
    assert got == commanded(ct, organs, tmp_path / "again", click, session.out / "ct_mask.nii.gz", "--plane=coronal")


def test_keys_draw_from_voxel_to_voxel(opened, ct, organs, tmp_path):
    session = Session([ct], load(organs, "cpu"), tmp_path / "out")
    asked = []
    with opened(session) as page:
        page.on("request", lambda request: request.method == "POST" and asked.append(request.post_data_json))
        page.focus("#view")
        page.keyboard.press("p")
        page.select_option("#penPlane", "sagittal")
        page.focus("#view")
        for key in ("Space", *["ArrowRight"] * 4, *["ArrowUp"] * 3, *["ArrowLeft"] * 4, "Space"):
            page.keyboard.press(key)
        assert page.inner_text("#drawnCount") == "20 voxels drawn"  # 5 x 4, the inside with its border
        for key in ("PageUp", "e", "PageDown", "Space", "ArrowDown", "Space", "Escape"):
            page.keyboard.press(key)
        assert page.inner_text("#drawnCount") == "18 voxels drawn"
        assert page.locator("#clickList select").input_value() == "sagittal"
        page.click("#clear")
        assert page.locator("#penTools").is_hidden()
    session.close()
    assert asked == []


@pytest.fixture(scope="module")
def organ(ct):
    """Labels of the phantom along other axes, beside it: a box of 3 and one of 6."""
    space = open_image(ct).space
    labels = np.zeros(space.shape, dtype=np.uint8)
    labels[9:15, 8:18, 10:22], labels[9:15, 18:22, 10:22] = 6, 3
    turned = np.flip(labels.transpose(1, 2, 0), 1)
    write_image(ct.with_name("ct_organs.mha"), turned[None], space.reorder((1, 2, 0), (False, True, False)))
    return labels


def test_a_mask_is_loaded_from_a_file_and_one_of_its_values_is_asked_with(opened, ct, organs, organ, tmp_path, save):
    labels, space = organ, open_image(ct).space
    session = Session([ct], load(organs, "cpu"), tmp_path / "out", folders=[ct.parent])
    asked = []
    with opened(session) as page:
        page.on("request", lambda request: request.method == "POST" and asked.append(request.post_data_json))
        page.click("#loadMask")
        page.locator("#masks button").first.wait_for()
        assert page.locator("#masks button").all_inner_texts() == ["ct_organs.mha", "Upload a file"]
        page.keyboard.press("Enter")  # the first one is where one types
        page.locator("#drawnCount", has_text=f"{np.count_nonzero(labels)} voxels").wait_for()
        page.select_option("#maskValue", "6")
        page.locator("#drawnCount", has_text=f"{np.count_nonzero(labels == 6)} voxels").wait_for()
        page.click("#predict")
        page.wait_for_selector("#summary dd")
        save(page)
        page.click("#loadMask")
        with page.expect_file_chooser() as chooser:
            page.click("#masks button:has-text('Upload')")
        far = Space(space.shape, space.affine + np.array([[0, 0, 0, 900.0]] + [[0, 0, 0, 0]] * 3))
        chooser.value.set_files(write_image(tmp_path / "far.nii.gz", labels[None], far))
        page.locator("#message.fault", has_text="far.nii.gz: lies beside its image").wait_for()
        assert page.inner_text("#drawnCount") == f"{np.count_nonzero(labels == 6)} voxels drawn"
    session.close()
    np.testing.assert_array_equal(read_image(session.out / "ct_mask.nii.gz").array[0], labels == 6)
    given = next(one for one in asked if "click" in one)
    assert given["mask"] == {"file": 0, "value": 6}
    alone = write_image(tmp_path / "alone.nii.gz", (labels == 6)[None].astype(np.uint8), space)
    got = [(session.out / name).read_bytes() for name in ("ct.ply", "ct.nii.gz")]
    assert got == commanded(ct, organs, tmp_path / "again", given["click"][0], alone)


def test_an_instance_is_drawn_beside_others_undone_and_saved(opened, scan, tmp_path, place, spot, pen, save):
    space = open_image(scan).space
    labels = np.zeros(space.shape, dtype=np.int32)
    labels[:, :, 15:] = 1
    found = InstancePrediction.from_instances("scan", space, from_labels(labels, scores=[0.9]))
    write_instances(found, tmp_path / "answer")
    session = Session([scan], None, tmp_path / "out")
    session.answers[0] = Answer(tmp_path / "answer", "scan", space)
    with opened(session) as page:
        page.click("#slices button:has-text('Axial')")
        page.focus("#view")
        page.keyboard.press("PageUp")
        x, y = spot(page, 0.5, 0.5)
        pressed = []
        for right in (-60, 60):
            page.mouse.click(x + right, y)
            pressed.append(tuple(np.rint(space.to_index(place(page))).astype(int)))
        page.keyboard.press("p")
        box = [(x - 120, y - 80), (x + 120, y - 80), (x + 120, y + 80), (x - 120, y + 80)]
        pen(page, box)
        page.keyboard.press("Enter")
        page.locator("#instances tr[data-id='2'].chosen").wait_for()
        told = page.inner_text("#message")
        assert page.locator("#addInstance").is_disabled()
        page.keyboard.press("Escape")
        page.keyboard.press("u")
        page.locator("#instances tr[data-id='2']").wait_for(state="detached")
        page.keyboard.press("p")
        pen(page, box)
        page.click("#addInstance")
        page.wait_for_selector("#instances tr[data-id='3'].chosen")
        save(page)
    saved = read_image(session.out / "scan.nii.gz").array[0]
    session.close()
    np.testing.assert_array_equal(saved == 1, labels == 1)
    assert sorted(int(saved[at]) for at in pressed) == [1, 3]
    assert np.unique(np.argwhere(saved == 3)[:, 0]).tolist() == [pressed[0][0]]  # one slice
    assert told.startswith("instance 2 added; ")
    left = int(told.partition("; ")[2].split()[0])
    assert 0 < left <= np.count_nonzero(labels[pressed[0][0]])

"""Masks in files: which are offered, where they lie on the image, and what is refused."""

import numpy as np
import pytest
from starlette.testclient import TestClient

from voxelry.core.space import Space
from voxelry.io import open_image, write_image
from voxelry.ops.rle import decode_rle
from voxelry.serve.app import make_app
from voxelry.serve.session import Session

TOKEN, HOST = "a secret", "http://127.0.0.1:8000"  # as in conftest.py


@pytest.fixture
def labels():
    """Two boxes on the grid of the scan."""
    array = np.zeros((8, 12, 16), dtype=np.uint8)
    array[2:5, 3:9, 1:6], array[1:7, 8:11, 10:15] = 1, 4
    return array


@pytest.fixture
def folder(image, labels, tmp_path):
    """A data set of the scan with labels, and masks of it in other orders of axes and elsewhere."""
    root, space = tmp_path / "data", open_image(image).space
    (root / "volumes").mkdir(parents=True)
    (root / "volumes" / "scan.nii.gz").write_bytes(image.read_bytes())
    write_image(root / "labels" / "scan.nii.gz", labels[None], space)
    turned = np.flip(labels.transpose(2, 0, 1), 0)
    write_image(root / "more" / "scan_turned.mha", turned[None], space.reorder((2, 0, 1), (True, False, False)))
    far = Space(space.shape, space.affine + np.array([[0, 0, 0, 500.0]] + [[0, 0, 0, 0]] * 3))
    write_image(root / "more" / "scan_far.nii.gz", labels[None], far)
    write_image(root / "more" / "other.nii.gz", labels[None], space)
    return root


@pytest.fixture
def asking(folder, page, tmp_path):
    session = Session([folder / "volumes" / "scan.nii.gz"], None, tmp_path / "out", folders=[folder])
    yield TestClient(make_app(session, TOKEN, page), base_url=HOST, cookies={"voxelry": TOKEN})
    session.close()


def drawn(answer, shape):
    """What was loaded, as an array."""
    window, crop = decode_rle({**answer["drawn"], "order": "C"})
    found = np.zeros(shape, dtype=bool)
    found[window] = crop
    return found


def test_labels_of_the_image_and_files_called_like_it_are_offered_and_few_beside_it(asking, folder):
    known = ["labels/scan.nii.gz", "more/scan_far.nii.gz", "more/scan_turned.mha"]
    assert asking.get("/api/cases/0/masks").json() == known
    for number in range(50):
        (folder / "volumes" / f"organ_{number:02}.nii.gz").write_bytes(b"")
        offered = asking.get("/api/cases/0/masks").json()
        assert offered == known + [f"volumes/organ_{one:02}.nii.gz" for one in range(number + 1) if number < 49]


@pytest.mark.parametrize("name", ["labels/scan.nii.gz", "more/scan_turned.mha"])
@pytest.mark.parametrize("value", [None, 4])
def test_a_mask_lies_where_its_file_says_in_any_order_of_axes(asking, labels, image, name, value):
    number = asking.get("/api/cases/0/masks").json().index(name)
    answer = asking.post("/api/cases/0/masks", json={"file": number, "value": value}).json()
    expected = labels > 0 if value is None else labels == value
    np.testing.assert_array_equal(drawn(answer, labels.shape), expected)
    assert answer["values"] == [1, 4]
    place = open_image(image).space.to_index(np.array(answer["position"]))
    assert expected[tuple(np.rint(place).astype(int))]


def test_an_uploaded_file_is_a_mask_of_its_image_alone(asking, labels, folder):
    content = (folder / "more" / "scan_turned.mha").read_bytes()
    number = asking.put("/api/cases/0/masks", params={"name": "my mask.mha"}, content=content).json()["file"]
    answer = asking.post("/api/cases/0/masks", json={"file": number, "value": 1}).json()
    np.testing.assert_array_equal(drawn(answer, labels.shape), labels == 1)
    assert asking.get("/api/cases/0/masks").json()[-1] == "my mask.mha"


@pytest.mark.parametrize("name", ["", "..", ".hidden.nii.gz", "a/b.nii.gz", "/etc/passwd", "a\0.nii.gz"])
def test_an_upload_has_the_name_of_a_file(asking, name):
    refused = asking.put("/api/cases/0/masks", params={"name": name}, content=b"1")
    assert (refused.status_code, refused.text.partition(":")[0]) == (400, "name")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"nothing", "scan_x.nii.gz", "scan_x.nii.gz: "),
        (b"nothing", "scan.exe", "scan.exe: "),
        (0.25, "scan.nii.gz", "value 0.25, expected whole numbers"),
        (0, "scan.nii.gz", "scan.nii.gz: no foreground"),
    ],
)
def test_what_is_no_mask_is_refused_in_a_line(asking, folder, content, name, message, image):
    if not isinstance(content, bytes):
        space = open_image(image).space
        filled = write_image(folder / "filled.nii.gz", np.full((1, *space.shape), content, np.float32), space)
        content = filled.read_bytes()
    number = asking.put("/api/cases/0/masks", params={"name": name}, content=content).json()["file"]
    refused = asking.post("/api/cases/0/masks", json={"file": number})
    assert refused.status_code == 400
    assert message in refused.text
    assert "\n" not in refused.text


def test_a_mask_of_another_place_is_refused_in_a_line(asking):
    number = asking.get("/api/cases/0/masks").json().index("more/scan_far.nii.gz")
    refused = asking.post("/api/cases/0/masks", json={"file": number})
    assert refused.status_code == 400
    assert "scan_far.nii.gz: lies beside its image" in refused.text
    assert "\n" not in refused.text


def test_a_mask_of_another_grid_is_placed_by_the_nearest_voxel_and_one_that_is_nowhere_is_refused(
    asking, folder, image, labels
):
    space = open_image(image).space
    part = space.crop((1, 2, 0), (6, 10, 14))
    fine = Space((12, 20, 28), part.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25],
                                                      [0, 0, 0, 1]]))  # fmt: skip
    inner = labels[1:7, 2:12, 0:14]
    array = inner.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    write_image(folder / "more" / "scan_fine.nii.gz", array[None], fine)
    np.save(folder / "more" / "scan_nowhere.npy", array)
    known = asking.get("/api/cases/0/masks").json()
    answer = asking.post("/api/cases/0/masks", json={"file": known.index("more/scan_fine.nii.gz")}).json()
    expected = np.zeros(labels.shape, dtype=bool)
    expected[1:7, 2:12, 0:14] = inner > 0
    np.testing.assert_array_equal(drawn(answer, labels.shape), expected)
    assert answer["told"].startswith("it has another grid, of 1.5 x ")
    refused = asking.post("/api/cases/0/masks", json={"file": known.index("more/scan_nowhere.npy")})
    assert (refused.status_code, "scan_nowhere.npy: shape (12, 20, 28)" in refused.text) == (400, True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"file": 9}, "mask: expected the number of a file that was listed, got 9"),
        ({"file": -1}, "mask: expected the number"),
        ({"file": "/etc/passwd"}, "mask: expected the number"),
        ({}, "mask: expected the number"),
        ({"file": 0, "value": "1"}, "mask: value: expected a whole number"),
        ({"file": 0, "value": 3}, "nothing has the value 3"),
    ],
)
def test_no_other_file_can_be_asked_for(asking, asked, message):
    asking.get("/api/cases/0/masks")
    refused = asking.post("/api/cases/0/masks", json=asked)
    assert refused.status_code == 400
    assert message in refused.text


def test_only_a_mask_may_be_large_and_it_needs_the_token_too(asking):
    large = b"0" * (2 << 20)
    assert asking.put("/api/cases/0/masks", params={"name": "x.mha"}, content=large).status_code == 200
    assert asking.post("/api/cases/0/masks", content=large).status_code == 413
    assert asking.put("/api/cases/0/points", content=large).status_code == 413
    stranger = TestClient(asking.app, base_url=HOST)
    assert stranger.put("/api/cases/0/masks", params={"name": "x.mha"}, content=b"1").status_code == 401

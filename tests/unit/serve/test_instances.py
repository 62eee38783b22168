"""Instances corrected in the page: what is seen is what is saved, on the tilted grid of the image."""

import csv
import json

import numpy as np
import pytest

from voxelry.io import open_image, read_image
from voxelry.ops.instances import from_labels
from voxelry.ops.rle import encode_rle
from voxelry.serve.answers import Answer
from voxelry.serve.instances import Item, divided
from voxelry.tasks.segment.outputs import read_masks, write_instances
from voxelry.tasks.segment.predict import InstancePrediction


@pytest.fixture
def truth():
    """Two balls of one id that touch, a box and a single voxel, on the grid of the scan."""
    labels = np.zeros((8, 12, 16), dtype=np.int32)
    grid = np.indices(labels.shape)
    for centre in ((4, 6, 4), (4, 6, 8)):
        labels[((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0) <= 5] = 1
    labels[1:3, 1:4, 12:15] = 2
    labels[7, 11, 15] = 3
    return labels


@pytest.fixture
def answered(session, image, truth, tmp_path):
    """The session with an answer of three instances."""
    space = open_image(image).space
    found = InstancePrediction.from_instances("scan", space, from_labels(truth, scores=[0.9, 0.6, 0.4]))
    write_instances(found, tmp_path / "answer")
    session.answers[0] = Answer(tmp_path / "answer", "scan", space)
    return session


@pytest.fixture
def edit(client, answered):
    def ask(do, **more):
        answer = client.post("/api/cases/0/instances", json={"do": do, **more})
        assert answer.status_code == 200, answer.text
        return {row["id"]: row for row in answer.json()["rows"]}

    return ask


def runs(mask):
    """A drawing as the page sends it."""
    return encode_rle(mask, tuple(slice(0, size) for size in mask.shape), mask.shape)


@pytest.fixture
def saved(client, answered, tmp_path):
    """Saves, and answers the label volume, the rows of the table and the masks."""

    def save():
        assert client.post("/api/cases/0/save").status_code == 200
        folder = tmp_path / "answers"
        with (folder / "scan.instances.csv").open() as file:
            rows = {int(row["id"]): row for row in csv.DictReader(file)}
        return read_image(folder / "scan.nii.gz").array[0], rows, read_masks(folder / "scan.instances.json")

    return save


def test_the_page_is_told_of_each_instance_and_a_place_in_it(client, answered, truth, image):
    rows = client.get("/api/state").json()["answers"]["0"]["instances"]["rows"]
    space = open_image(image).space
    voxel = abs(np.linalg.det(space.affine[:3, :3]))
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert [row["score"] for row in rows] == pytest.approx([0.9, 0.6, 0.4])
    for row in rows:
        assert row["size"] == pytest.approx(np.count_nonzero(truth == row["id"]) * voxel)
        place = np.rint(space.to_index(np.array(row["position"]))).astype(int)
        assert truth[tuple(place)] == row["id"]


def test_what_was_deleted_is_in_no_file_and_the_others_keep_their_ids(edit, saved, truth):
    assert list(edit("delete", ids=[2])) == [1, 3]
    labels, rows, masks = saved()
    np.testing.assert_array_equal(labels, np.where(truth == 2, 0, truth))
    assert list(rows) == [1, 3]
    assert len(masks) == 2


def test_what_is_hidden_or_below_the_score_is_not_saved_and_comes_back(edit, saved, truth):
    rows = edit("hide", ids=[1])
    assert [(row["hidden"], row["seen"]) for row in rows.values()] == [(True, False), (False, True), (False, True)]
    rows = edit("score", least=0.5)
    assert [row["seen"] for row in rows.values()] == [False, True, False]
    labels, table, _ = saved()
    np.testing.assert_array_equal(labels, np.where(truth == 2, 2, 0))
    assert list(table) == [2]
    edit("score", least=0)
    edit("show", ids=[1])
    np.testing.assert_array_equal(saved()[0], truth)


def test_merged_instances_are_one_with_the_voxels_of_both(edit, saved, truth):
    rows = edit("merge", ids=[2, 3])
    assert list(rows) == [1, 2]
    assert rows[2]["score"] == pytest.approx(0.6)
    labels, table, masks = saved()
    np.testing.assert_array_equal(labels, np.where(truth == 3, 2, truth))
    assert int(table[2]["voxels"]) == np.count_nonzero(truth >= 2)
    np.testing.assert_array_equal(masks.boxes[1], [0.5, 0.5, 11.5, 7.5, 11.5, 15.5])


def test_one_is_split_between_two_clicks_at_its_waist(edit, saved, truth, image):
    space = open_image(image).space
    clicks = space.to_world(np.array([[4.0, 6.2, 3.7], [4.4, 6.0, 8.0]]))
    rows = edit("split", ids=[1], points=clicks.tolist())
    assert list(rows) == [1, 4, 2, 3]
    labels, _, _ = saved()
    np.testing.assert_array_equal(np.isin(labels, [1, 4]), truth == 1)
    columns = np.arange(16)
    assert set(labels[..., columns < 6].ravel().tolist()) == {0, 1}
    assert not (labels[:, 5:, columns > 6] == 1).any()
    assert labels[4, 6, 8] == 4


def test_a_split_leaves_no_voxel_behind(image, edit, truth):
    """A part that hangs on by a corner alone belongs to the nearer click."""
    space = open_image(image).space
    drawn = truth == 2
    drawn[3, 4, 11] = True  # touches the box at a corner
    edit("delete", ids=[2])
    rows = edit("add", drawn=runs(drawn))
    number = max(rows)
    clicks = space.to_world(np.array([[1.0, 1.0, 12.0], [2.0, 3.0, 14.0]]))
    rows = edit("split", ids=[number], points=clicks.tolist())
    voxel = abs(np.linalg.det(space.affine[:3, :3]))
    parts = [rows[number]["size"] / voxel, rows[number + 1]["size"] / voxel]
    assert sum(parts) == pytest.approx(19)
    assert min(parts) > 3


def test_a_click_beside_an_instance_means_its_nearest_voxel_in_mm():
    mask = np.array([[True] * 5, [True] + [False] * 4])
    item = Item(1, 1.0, 1, np.array([-0.5, -0.5, 1.5, 4.5]), ((slice(0, 2), slice(0, 5)), mask))
    clicks = np.array([[1.0, 3.0], [0.0, 4.0]])
    assert [part.voxels for part in divided(item, clicks, (0.1, 1.0), number=2)] == [5, 1]
    assert divided(item, clicks, (10.0, 1.0), number=2)[1].voxels > 1  # 3 mm away, not 10


def test_the_last_step_is_undone_and_an_id_is_not_used_twice(edit, client, saved, truth):
    edit("delete", ids=[1])
    edit("merge", ids=[2, 3])
    assert list(edit("undo")) == [2, 3]
    assert list(edit("undo")) == [1, 2, 3]
    refused = client.post("/api/cases/0/instances", json={"do": "undo"})
    assert (refused.status_code, refused.text) == (400, "undo: nothing was changed")
    np.testing.assert_array_equal(saved()[0], truth)


def test_drawn_voxels_are_an_instance_without_those_of_others_that_are_seen(client, edit, saved, truth):
    edit("hide", ids=[2])
    drawn = np.zeros(truth.shape, dtype=bool)
    drawn[2:4, 3:8, 3:16] = True
    others = drawn & (truth == 1)
    rows = edit("add", drawn=runs(drawn), **{"class": 2})
    assert (rows[4]["score"], rows[4]["class"], rows[4]["seen"]) == (1, 2, True)
    record = client.get("/api/state").json()["answers"]["0"]["instances"]
    assert record["left"] == np.count_nonzero(others) > 0
    labels, table, masks = saved()
    np.testing.assert_array_equal(labels == 4, drawn & ~others)
    np.testing.assert_array_equal(labels == 1, truth == 1)
    assert (table[4]["voxels"], table[4]["class"]) == (str(np.count_nonzero(drawn & ~others)), "2")
    assert len(masks) == 3  # 1, 3 and 4
    assert 4 not in edit("undo")
    assert 5 in edit("add", drawn=runs(drawn))  # 4 was used


def test_a_drawn_instance_is_kept_as_a_label(client, edit, answered, truth):
    drawn = np.zeros(truth.shape, dtype=bool)
    drawn[0, 9, 1:3] = True
    edit("add", drawn=runs(drawn))
    assert client.post("/api/cases/0/keep").json()["what"] == "instances"
    kept = read_image(answered.out / "corrections" / "instances" / "scan.nii.gz").array[0]
    np.testing.assert_array_equal(kept, np.where(drawn, 4, truth))
    (row,) = answered.corrections.rows
    assert row["file"] == "instances/scan.nii.gz"


def test_the_overlay_is_what_is_seen(edit, client, truth, tmp_path):
    edit("hide", ids=[1])
    (tmp_path / "got.nii").write_bytes(client.get("/api/cases/0/files/scan.nii.gz").content)
    np.testing.assert_array_equal(read_image(tmp_path / "got.nii").array[0], np.where(truth == 1, 0, truth))


def test_all_can_be_deleted(edit, saved):
    assert edit("delete", ids=[1, 2, 3]) == {}
    labels, rows, masks = saved()
    assert (labels.any(), rows, len(masks)) == (False, {}, 0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"do": "explode"}, "do: expected one of delete, hide"),
        ({"do": ["delete"]}, "do: expected one of"),
        ({"do": "delete"}, "ids: expected a list"),
        ({"do": "delete", "ids": []}, "ids: expected a list"),
        ({"do": "delete", "ids": [9]}, "ids: there is no instance 9"),
        ({"do": "delete", "ids": [[1]]}, "ids: there is no instance [1]"),
        ({"do": "merge", "ids": [1, 1]}, "ids: expected two or more"),
        ({"do": "split", "ids": [1, 2], "points": []}, "ids: expected one instance"),
        ({"do": "split", "ids": [1], "points": [[0, 0, 0]]}, "points: expected two"),
        ({"do": "split", "ids": [1], "points": [[0, 0, 0], [0, 0, 0]]}, "points: expected one in each part"),
        ({"do": "split", "ids": [1], "points": [[0, 0], [1, 1]]}, "points: expected a list of places"),
        ({"do": "split", "ids": [1], "points": [[0, 0, 1e999]]}, "points: expected a list of places"),
        ({"do": "add"}, "drawn: expected the voxels to add"),
        ({"do": "add", "drawn": {"size": [1, 2, 3]}}, "drawn: expected run lengths of size [8, 12, 16]"),
        ({"do": "add", "drawn": {"size": [8, 12, 16], "counts": [1535, 1]}}, "drawn: every voxel of it is another"),
        ({"do": "add", "drawn": {"size": [8, 12, 16], "counts": [0, 1, 1535]}, "class": 0}, "class: expected a number"),
        ({"do": "add", "drawn": {"size": [8, 12, 16], "counts": [0, 1, 1535]}, "class": 2.5}, "class: expected"),
        ({"do": "score", "least": 2}, "least: expected a score"),
        ({"do": "score", "least": True}, "least: expected a score"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line_and_changes_nothing(client, answered, asked, message):
    before = client.get("/api/state").json()["answers"]
    refused = client.post("/api/cases/0/instances", content=json.dumps(asked))
    assert refused.status_code == 400
    assert refused.text.startswith(message)
    assert "\n" not in refused.text
    assert client.get("/api/state").json()["answers"] == before


def test_an_answer_without_instances_has_none_to_change(client, finished):
    finished(client.post("/api/cases/0/predict", json={}).json()["job"])
    refused = client.post("/api/cases/0/instances", json={"do": "delete", "ids": [1]})
    assert (refused.status_code, refused.text) == (400, "instances: expected an answer with instances")

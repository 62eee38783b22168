from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.crops.build import build_crop_index
from voxelry.data.crops.digest import digest
from voxelry.data.crops.index import CropIndex
from voxelry.data.crops.settings import CropSettings
from voxelry.io import write_image

SIZE = (8, 12, 14)
FORK = multiprocessing.get_context("fork")  # what the tests have imported needs no second time
FORKED = "ignore:This process .* is multi-threaded:DeprecationWarning"


def contents(path: Path) -> list[tuple]:
    """Everything an index says of crops and objects, whatever its inner numbers are."""
    index = CropIndex(path)
    rows = []
    for number in range(len(index)):
        crop = index.crop(number)
        rows.append((crop.file.name, crop.start, crop.channel, crop.instance.tolist(), crop.boxes.tolist()))
    index.close()
    return rows


def test_every_crop_that_shows_an_object_is_there(write_volumes, objects, tmp_path):
    report = build_crop_index(write_volumes(("a",)), tmp_path / "i.sqlite", CropSettings(SIZE))
    index = CropIndex(tmp_path / "i.sqlite")
    ids = np.zeros((20, 24, 28), int)
    for number, voxels in objects.items():
        ids[voxels] = number
    expected = {}
    for z in (0, 8, 12):
        for y in (0, 12):
            for x in (0, 14):
                seen = np.unique(ids[z : z + 8, y : y + 12, x : x + 14])
                if seen.any():
                    expected[z, y, x] = seen[seen > 0].tolist()
    found = [index.crop(number) for number in range(len(index))]
    assert {crop.start: crop.instance.tolist() for crop in found} == expected
    assert [crop.start for crop in found] == sorted(expected)
    for crop in found:
        for number, box in zip(crop.instance.tolist(), crop.boxes, strict=True):
            inside = np.argwhere(ids[tuple(slice(a, a + b) for a, b in zip(crop.start, SIZE, strict=True))] == number)
            assert box.tolist() == [*(inside.min(0) - 0.5), *(inside.max(0) + 0.5)]
    assert report.done == 1
    index.close()


def test_all_crops_are_there_where_no_object_is_asked_for(write_volumes, tmp_path):
    build_crop_index(write_volumes(("a",)), tmp_path / "i.sqlite", CropSettings(SIZE, min_objects=0))
    assert len(CropIndex(tmp_path / "i.sqlite")) == 3 * 2 * 2


def test_objects_are_chosen_by_volume_and_visibility(write_volumes, tmp_path):
    root = write_volumes(("a",))
    build_crop_index(root, tmp_path / "v.sqlite", CropSettings(SIZE, min_volume=2))
    seen = {number for row in contents(tmp_path / "v.sqlite") for number in row[3]}
    assert seen == {2, 5, 9}
    build_crop_index(root, tmp_path / "s.sqlite", CropSettings(SIZE), selection={"volume": 100})
    assert {number for row in contents(tmp_path / "s.sqlite") for number in row[3]} == {2, 5}
    build_crop_index(root, tmp_path / "w.sqlite", CropSettings(SIZE, min_visible=0.9))
    assert {number for row in contents(tmp_path / "w.sqlite") for number in row[3]} == {2, 9, 11}


def test_channels_are_stepped_through(write_volumes, tmp_path):
    root = write_volumes(("a",), channels=3)
    build_crop_index(root, tmp_path / "i.sqlite", CropSettings(SIZE, channels=2))
    index = CropIndex(tmp_path / "i.sqlite")
    channels = [index.crop(number).channel for number in range(len(index))]
    assert channels == [0, 1] * (len(index) // 2)
    assert index.crop(0).instance.tolist() == index.crop(1).instance.tolist() != []


def test_images_of_rank_two_lie_in_plane_zero(tmp_path, rng):
    space = Space.from_spacing((30, 40))
    ids = np.zeros((1, 30, 40), np.uint8)
    ids[0, 4:9, 30:37] = 3
    write_image(tmp_path / "d" / "images" / "a.tif", rng.integers(0, 99, (1, 30, 40)).astype(np.uint8), space)
    write_image(tmp_path / "d" / "masks" / "a.tif", ids, space)
    build_crop_index(tmp_path / "d", tmp_path / "i.sqlite", CropSettings(16))
    index = CropIndex(tmp_path / "i.sqlite")
    crop = index.crop(0)
    assert (crop.start, crop.boxes.tolist()) == ((0, 16), [[3.5, 13.5, 8.5, 15.5]])
    assert index.extents().tolist() == [[1.0, 5.0, 7.0]]


def test_views_say_the_same_to_any_sqlite_client(write_volumes, tmp_path):
    build_crop_index(write_volumes(("a", "b")), tmp_path / "i.sqlite", CropSettings(SIZE))
    with sqlite3.connect(tmp_path / "i.sqlite") as connection:
        crops = connection.execute("SELECT file_path, z, y, x, c FROM store_index_map").fetchall()
        boxes = connection.execute("SELECT count(*) FROM bboxes WHERE x1 < x2").fetchone()
        ids = connection.execute("SELECT DISTINCT mask_id FROM masks ORDER BY mask_id").fetchall()
    connection.close()
    rows = contents(tmp_path / "i.sqlite")
    assert [(Path(path).name.removesuffix(".nii.gz"), (z, y, x), c) for path, z, y, x, c in crops] == [
        row[:3] for row in rows
    ]
    assert boxes[0] == sum(len(row[3]) for row in rows)
    assert [number for (number,) in ids] == [2, 5, 9, 11]


def test_a_finished_image_is_not_done_again_whatever_it_is_called(write_volumes, tmp_path):
    root, out = write_volumes(), tmp_path / "i.sqlite"
    build_crop_index(root, out, CropSettings(SIZE))
    before = contents(out)
    for folder in ("volumes", "instances"):
        (root / folder / "b.nii.gz").rename(root / folder / "z.nii.gz")
    report = build_crop_index(root, out, CropSettings(SIZE))
    assert (report.done, report.kept, report.removed) == (0, 3, 0)
    assert sorted(("b" if row[0] == "z" else row[0], *row[1:]) for row in contents(out)) == sorted(before)
    assert CropIndex(out).changes() == []


def test_a_changed_image_is_done_anew_and_one_that_is_gone_removed(write_volumes, objects, oblique, tmp_path):
    root, out = write_volumes(), tmp_path / "i.sqlite"
    build_crop_index(root, out, CropSettings(SIZE))
    ids = np.zeros((1, *oblique.shape), np.uint16)
    ids[0][objects[2]] = 70
    write_image(root / "instances" / "a.nii.gz", ids, oblique)
    (root / "volumes" / "c.nii.gz").unlink()
    assert len(CropIndex(out).changes()) == 2
    with pytest.raises(DataError, match=r"i\.sqlite is stale: .*a\.nii\.gz: has other contents .*and 1 more"):
        CropIndex(out).check()
    report = build_crop_index(root, out, CropSettings(SIZE))
    assert (report.done, report.kept, report.removed) == (1, 1, 2)
    fresh = tmp_path / "fresh.sqlite"
    build_crop_index(root, fresh, CropSettings(SIZE))
    assert contents(out) == contents(fresh)


def test_other_settings_start_over(write_volumes, tmp_path):
    root, out = write_volumes(("a",)), tmp_path / "i.sqlite"
    build_crop_index(root, out, CropSettings(SIZE))
    assert build_crop_index(root, out, CropSettings(10)).done == 1
    assert CropIndex(out).shape(CropIndex(out).files[0]) == (10, 10, 10)


def test_two_images_of_the_same_bytes_are_two(write_volumes, tmp_path):
    root, out = write_volumes(("a",)), tmp_path / "i.sqlite"
    for folder in ("volumes", "instances"):
        shutil.copy(root / folder / "a.nii.gz", root / folder / "b.nii.gz")
    assert build_crop_index(root, out, CropSettings(SIZE)).done == 2
    assert build_crop_index(root, out, CropSettings(SIZE)).kept == 2
    assert [file.name for file in CropIndex(out).files] == ["a", "b"]


def _killed_build(root: Path, out: Path) -> None:
    def progress(done, total, name):
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    build_crop_index(root, out, CropSettings(SIZE), progress=progress)


@pytest.mark.filterwarnings(FORKED)
def test_a_killed_build_goes_on_where_it_stopped(write_volumes, tmp_path):
    root, out = write_volumes(("a", "b", "c", "d")), tmp_path / "i.sqlite"
    child = FORK.Process(target=_killed_build, args=(root, out))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(FileError, match="is not finished"):
        CropIndex(out)
    report = build_crop_index(root, out, CropSettings(SIZE))
    assert (report.done, report.kept) == (2, 2)
    fresh = tmp_path / "fresh.sqlite"
    build_crop_index(root, fresh, CropSettings(SIZE))
    assert contents(out) == contents(fresh)


def _build(root: Path, out: Path, results: multiprocessing.SimpleQueue) -> None:
    report = build_crop_index(root, out, CropSettings(SIZE))
    results.put((report.done, report.kept))


@pytest.mark.filterwarnings(FORKED)
def test_two_processes_build_one_index(write_volumes, tmp_path):
    root, out = write_volumes(), tmp_path / "i.sqlite"
    results = FORK.SimpleQueue()
    both = [FORK.Process(target=_build, args=(root, out, results)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(results.get() for _ in both) == [(0, 3), (3, 0)]


def test_the_second_builder_waits_or_says_so(write_volumes, tmp_path):
    root, out = write_volumes(("a",)), tmp_path / "i.sqlite"
    lock = FileLock(f"{out}.lock")
    lock.acquire()
    with pytest.raises(DataError, match=r"i\.sqlite: another process is building this index"):
        build_crop_index(root, out, CropSettings(SIZE), wait=False)
    lines = []

    def say(line: str) -> None:
        lines.append(line)
        lock.release()

    report = build_crop_index(root, out, CropSettings(SIZE), say=say)
    assert report.waited
    assert len(lines) == 1
    assert "waiting" in lines[0]


def _look_up(index: CropIndex, results: multiprocessing.SimpleQueue) -> None:
    results.put([index.crop(number).start for number in range(len(index))])


@pytest.mark.filterwarnings(FORKED)
def test_readers_share_an_index_across_forks_and_pickles(write_volumes, tmp_path):
    build_crop_index(write_volumes(), tmp_path / "i.sqlite", CropSettings(SIZE))
    (tmp_path / "i.sqlite").chmod(0o444)
    index = CropIndex(tmp_path / "i.sqlite")
    expected = [index.crop(number).start for number in range(len(index))]
    results = FORK.SimpleQueue()
    children = [FORK.Process(target=_look_up, args=(index, results)) for _ in range(3)]
    for child in children:
        child.start()
    assert [results.get() for _ in children] == [expected] * 3
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert [index.crop(number).start for number in range(len(index))] == expected
    other = pickle.loads(pickle.dumps(index))
    assert other.crop(0).start == expected[0]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        index._query("DELETE FROM crops")


def test_an_index_moves_with_its_data(write_volumes, tmp_path):
    root = write_volumes(("a",))
    build_crop_index(root, root / "i.sqlite", CropSettings(SIZE))
    moved = root.rename(tmp_path / "moved")
    index = CropIndex(moved / "i.sqlite")
    assert index.files[0].image.path == moved / "volumes" / "a.nii.gz"
    assert index.changes() == []


def test_an_index_of_a_relative_folder_is_read_from_anywhere(write_volumes, tmp_path, monkeypatch):
    root = write_volumes(("a",))
    monkeypatch.chdir(root.parent)
    build_crop_index(root.name, "i.sqlite", CropSettings(SIZE))
    monkeypatch.chdir("/")
    index = CropIndex(root.parent / "i.sqlite")
    assert index.files[0].image.path == root / "volumes" / "a.nii.gz"
    assert index.changes() == []


def test_what_is_no_index_is_refused(write_volumes, tmp_path):
    with pytest.raises(FileError, match="no such file"):
        CropIndex(tmp_path / "absent.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database, but long enough to look at" * 30)
    with pytest.raises(FileError, match="is not a crop index"):
        CropIndex(tmp_path / "text.sqlite")
    root = write_volumes(("a",))
    with pytest.raises(FileError, match="can't be written"):
        build_crop_index(root, tmp_path / "text.sqlite", CropSettings(SIZE))
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
    connection.close()
    with pytest.raises(FileError, match="is a database of something else"):
        build_crop_index(root, tmp_path / "other.sqlite", CropSettings(SIZE))


def test_a_crop_larger_than_its_volume_says_what_to_set(write_volumes, tmp_path):
    root = write_volumes(("a",))
    with pytest.raises(DataError, match=r"a crop of \(32, 32, 32\) voxels is larger than the volume of \(20, 24, 28\)"):
        build_crop_index(root, tmp_path / "i.sqlite", CropSettings(32))
    assert not (tmp_path / "i.sqlite").exists()
    build_crop_index(root, tmp_path / "i.sqlite", CropSettings(32, pad="edge"))
    assert [row[1] for row in contents(tmp_path / "i.sqlite")] == [(0, 0, 0)]


def test_labels_of_another_shape_are_refused(write_volumes, tmp_path):
    root = write_volumes(("a",))
    write_image(root / "instances" / "a.nii.gz", np.ones((1, 20, 24, 27), np.uint8), Space.from_spacing((20, 24, 27)))
    with pytest.raises(DataError, match=r"instances/a\.nii\.gz: shape \(20, 24, 27\), but its image .* has"):
        build_crop_index(root, tmp_path / "i.sqlite", CropSettings(SIZE))


def test_an_unreadable_image_stops_or_is_left_out(write_volumes, tmp_path):
    root = write_volumes()
    (root / "volumes" / "b.nii.gz").write_bytes(b"nothing")
    with pytest.raises(FileError, match=r"b\.nii\.gz"):
        build_crop_index(root, tmp_path / "i.sqlite", CropSettings(SIZE))
    report = build_crop_index(root, tmp_path / "i.sqlite", CropSettings(SIZE), on_error="skip")
    assert (report.done, report.kept, len(report.skipped)) == (1, 1, 1)
    assert [file.name for file in CropIndex(tmp_path / "i.sqlite").files] == ["a", "c"]


def test_a_selection_that_leaves_nothing_says_so(write_volumes, tmp_path):
    with pytest.raises(DataError, match="1 images, and no crop is left by the selection"):
        build_crop_index(write_volumes(("a",)), tmp_path / "i.sqlite", CropSettings(SIZE, min_volume=1e6))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"crop_size": 0}, "crop_size: expected whole numbers"),
        ({"crop_size": (8, 8.5, 8)}, "crop_size: expected whole numbers"),
        ({"crop_size": 8, "overlap": -1}, "overlap: expected whole numbers"),
        ({"crop_size": 8, "pad": "mirror"}, "pad: expected one of error, zero, edge"),
        ({"crop_size": 8, "channels": 0}, "channels: expected a positive number"),
        ({"crop_size": 8, "min_visible": 2}, "min_visible: expected a share"),
    ],
)
def test_settings_out_of_range_are_refused(settings, fault):
    with pytest.raises(SettingError, match=fault):
        CropSettings(**settings)


def test_an_overlap_as_large_as_the_crop_is_refused(write_volumes, tmp_path):
    with pytest.raises(SettingError, match="overlap: expected less than the crop"):
        build_crop_index(write_volumes(("a",)), tmp_path / "i.sqlite", CropSettings(SIZE, overlap=12))


def test_a_digest_is_of_bytes_not_of_names(tmp_path, rng):
    one, other = tmp_path / "a.tif", tmp_path / "b.tif"
    one.write_bytes(rng.bytes(3_000_000))
    shutil.copy(one, other)
    assert digest(one) == digest(other)
    data = bytearray(other.read_bytes())
    data[1_500_000] ^= 1
    status = other.stat()
    other.write_bytes(data)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert other.stat().st_size == status.st_size
    assert digest(one) != digest(other)


def test_a_large_file_is_sampled_from_end_to_end(tmp_path):
    path = tmp_path / "large.raw"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    before, whole = digest(path), digest(path, whole=True)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert digest(path) != before
    assert digest(path, whole=True) != whole

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from voxelry.core.errors import DataError, FileError, MissingDependencyError, SettingError
from voxelry.data.crops.build import build_crop_index
from voxelry.data.crops.index import CropIndex
from voxelry.data.crops.selection import parse_selection
from voxelry.data.crops.settings import CropSettings
from voxelry.data.crops.source import Objects, checked_boxes, is_database, open_table

IMAGES = "CREATE TABLE annotations (file_path TEXT, label_path TEXT, train_val_test TEXT, quality INT)"
BOXES = (
    "CREATE TABLE boxes (file_path TEXT, mask_id INT, z1 FLOAT, y1 FLOAT, x1 FLOAT, z2 FLOAT, y2 FLOAT, x2 FLOAT,"
    " class INT, volume FLOAT)"
)
ROWS = [("volumes/b.nii.gz", "train", 3), ("volumes/a.nii.gz", "val", 1), ("volumes/c.nii.gz", "train", 5)]


def fill(execute, objects, *, boxes: bool = True, labels: bool = True) -> None:
    """The tables of a source, by a function that runs one statement."""
    execute(IMAGES)
    for path, split, quality in ROWS:
        label = f"'{path.replace('volumes', 'instances')}'" if labels else "NULL"
        execute(f"INSERT INTO annotations VALUES ('{path}', {label}, '{split}', {quality})")
    if not boxes:
        return
    execute(BOXES)
    for path, _, _ in reversed(ROWS):
        for number, voxels in objects.items():
            low = ", ".join(str(part.start - 0.5) for part in voxels)
            high = ", ".join(str(part.stop - 0.5) for part in voxels)
            volume = np.prod([part.stop - part.start for part in voxels])
            execute(f"INSERT INTO boxes VALUES ('{path}', {number}, {low}, {high}, 1, {volume})")


@pytest.fixture
def source(write_volumes, objects) -> Path:
    path = write_volumes() / "source.db"
    with sqlite3.connect(path) as connection:
        fill(connection.execute, objects)
    connection.close()
    return path


def test_sqlite_is_known_by_its_content_and_a_url_by_its_form(source, tmp_path):
    assert is_database(source)
    assert is_database("postgresql://host/name")
    assert not is_database(source.parent)
    assert not is_database(tmp_path / "absent.db")


def test_rows_are_chosen_by_criteria_and_come_with_their_boxes(source, objects):
    with open_table(source, parse_selection(["train_val_test=train", "quality>=4"])) as listed:
        rows = list(listed.rows)
    assert listed.total == 1
    assert [(row.name, row.split) for row in rows] == [("c", "train")]
    assert rows[0].image == source.parent / "volumes" / "c.nii.gz"
    assert rows[0].objects is not None
    assert sorted(rows[0].objects.instance.tolist()) == sorted(objects)


def test_two_rows_of_an_image_with_boxes_are_refused(source):
    with sqlite3.connect(source) as connection:
        connection.execute("INSERT INTO annotations VALUES ('volumes/a.nii.gz', NULL, 'train', 2)")
    connection.close()
    with open_table(source) as listed, pytest.raises(DataError, match=r"two rows of volumes/a\.nii\.gz"):
        list(listed.rows)


def test_known_boxes_give_the_index_that_the_labels_give(source, tmp_path):
    settings = CropSettings((8, 12, 14))
    build_crop_index(source, tmp_path / "known.sqlite", settings)
    build_crop_index(source, tmp_path / "seen.sqlite", settings, boxes_table="none")
    known, seen = CropIndex(tmp_path / "known.sqlite"), CropIndex(tmp_path / "seen.sqlite")
    assert len(known) == len(seen) > 10
    for number in range(len(known)):
        one, other = known.crop(number), seen.crop(number)
        assert (one.file.name, one.start) == (other.file.name, other.start)
        assert one.instance.tolist() == other.instance.tolist()
        np.testing.assert_array_equal(one.boxes, other.boxes)
    assert [file.split for file in known.files] == ["validation", "train", "train"]
    assert known.files[1].columns["quality"] == 3


def test_no_pixel_is_read_where_boxes_are_known(source, tmp_path):
    for file in (source.parent / "volumes").iterdir():  # whole headers, but pixels that can't be decompressed
        data = file.read_bytes()
        file.write_bytes(data[:2000] + bytes(len(data) - 2000))
    report = build_crop_index(source, tmp_path / "index.sqlite", CropSettings(8, statistics=False))
    assert report.done == 3


def test_half_open_boxes_are_shifted_to_voxel_edges(source):
    with open_table(source) as plain, open_table(source, box_edges="half_open") as shifted:
        for one, other in zip(plain.rows, shifted.rows, strict=True):
            np.testing.assert_allclose(one.objects.boxes - 0.5, other.objects.boxes)


def test_what_is_missing_is_named_in_one_line(source, tmp_path):
    with pytest.raises(DataError, match="no table 'other'"), open_table(source, table="other"):
        pass
    with pytest.raises(SettingError, match=r"no column 'colour' \(columns: file_path"):
        open_table(source, parse_selection(["colour=1"])).__enter__()
    with pytest.raises(FileError, match="no such file"), open_table(tmp_path / "absent.db"):
        pass
    with sqlite3.connect(source) as connection:
        connection.execute("ALTER TABLE boxes RENAME COLUMN x2 TO right")
    connection.close()
    with pytest.raises(DataError, match="table boxes lacks a column"), open_table(source):
        pass


def test_a_value_is_never_taken_for_sql(source):
    with open_table(source, parse_selection({"train_val_test": "train' OR 1=1 --"})) as listed:
        assert listed.total == 0


def test_an_unknown_server_is_one_line_without_the_password():
    pytest.importorskip("psycopg")
    with pytest.raises(DataError) as caught, open_table("postgresql://me:secret@127.0.0.1:1/none"):
        pass
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_url_of_nothing_known_is_refused():
    with pytest.raises((SettingError, MissingDependencyError)), open_table("nosuchdb://host/name"):
        pass


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([1, 1, np.nan, 4, 4, 4], "is not finite"),
        ([3, 3, 3, 3, 9, 9], "is empty"),
        ([5, 5, 5, 2, 9, 9], "is empty"),
        ([25, 5, 5, 30, 9, 9], "lies outside"),
        ([-9, 5, 5, -0.5, 9, 9], "lies outside"),
    ],
)
def test_a_bad_box_is_an_error_or_left_out(source, tmp_path, box, fault):
    with sqlite3.connect(source) as connection:
        values = (*ROWS[0][:1], 40, *box, 1, 60.0)
        connection.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        connection.execute("INSERT INTO boxes VALUES (?, 41, 2, 2, 20, 6, 6, 40, 1, 60)", ROWS[0][:1])
    connection.close()
    with pytest.raises(DataError, match=rf"b\.nii\.gz: .*instance 40 {fault}.*bad_boxes=drop") as caught:
        build_crop_index(source, tmp_path / "index.sqlite", CropSettings(8))
    assert "\n" not in str(caught.value)
    report = build_crop_index(source, tmp_path / "index.sqlite", CropSettings(8, bad_boxes="drop"))
    assert (report.dropped_boxes, report.cut_boxes) == (1, 1)


def test_ids_and_classes_are_counted_from_one():
    objects = Objects(np.array([0]), np.array([[0.0, 0, 2, 2]]), np.ones(1), np.ones(1, np.int64))
    with pytest.raises(DataError, match="ids and classes from 1"):
        checked_boxes(objects, (5, 5), Path("a.tif"))
    with pytest.raises(DataError, match="boxes of 4 numbers, but the image has rank 3"):
        checked_boxes(objects, (5, 5, 5), Path("a.tif"))


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of its own, on a socket in a temporary folder and no network; its URL."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = [shutil.which("pg_ctl"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)]
    program = next((str(Path(one).resolve()) for one in programs if one), None)
    if program is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tmp_path_factory.mktemp("pg"))
    prefix = []
    if os.getuid() == 0:  # the server refuses to run as root
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pg-XXXXXX"], text=True).strip())
        os.chown(folder, 65534, 65534)
    home = Path(program).parent

    def run(*command: str) -> None:
        subprocess.run([*prefix, *command], check=True, capture_output=True, cwd=folder, timeout=60)

    try:
        run(str(home / "initdb"), "-D", f"{folder}/data", "-U", "voxelry", "-A", "trust", "-N", "-E", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run(program, "-D", f"{folder}/data", "-l", f"{folder}/log", "-o", options, "-w", "start")
        yield f"postgresql://voxelry@/postgres?host={folder}"
        run(program, "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_postgresql_server_gives_the_index_that_sqlite_gives(server, source, objects, tmp_path):
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        fill(connection.execute, objects)
    settings = CropSettings((8, 12, 14), overlap=2)
    selection = ["quality<=3", "volume>=2"]
    build_crop_index(source, tmp_path / "file.sqlite", settings, selection=selection)
    report = build_crop_index(server, tmp_path / "server.sqlite", settings, selection=selection, root=source.parent)
    assert report.done == 2
    one, other = CropIndex(tmp_path / "file.sqlite"), CropIndex(tmp_path / "server.sqlite")
    assert len(one) == len(other)
    for number in range(len(one)):
        first, second = one.crop(number), other.crop(number)
        assert (first.file.name, first.start) == (second.file.name, second.start)
        assert first.instance.tolist() == second.instance.tolist()
        np.testing.assert_array_equal(first.boxes, second.boxes)
    assert [file.split for file in other.files] == ["validation", "train"]

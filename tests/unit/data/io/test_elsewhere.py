"""Files that lie elsewhere: addresses are paths, copies are whole and go away, Zarr reads what it needs."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import voxelry
from voxelry.core import fetch as copies
from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError, MissingDependencyError
from voxelry.core.fetch import fetch, put
from voxelry.core.remote import Remote, as_path, beside
from voxelry.core.space import Space
from voxelry.data.cache import content_hash, stamps
from voxelry.io import is_image, open_image, read_image, read_landmarks, write_image, write_landmarks
from voxelry.io.points.landmarks import LandmarkSet


@pytest.fixture(autouse=True)
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def oblique(rng):
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [3.0, 0.7, 0.5]
    affine[:3, 3] = [-20.0, 5.0, 7.0]
    return rng.integers(0, 999, (1, 4, 5, 6)).astype(np.int16), Space((4, 5, 6), affine)


def test_an_address_is_a_path_that_keeps_its_slashes():
    scan = as_path("s3://bucket/scans/a.nii.gz")
    assert str(scan) == os.fspath(scan) == f"{scan}" == "s3://bucket/scans/a.nii.gz"
    assert (scan.name, scan.suffix, str(scan.parent)) == ("a.nii.gz", ".gz", "s3://bucket/scans")
    assert str(scan.parent / "b" / "c.tif") == "s3://bucket/scans/b/c.tif"
    assert str(scan.with_name("d.nii")) == "s3://bucket/scans/d.nii"
    assert str(scan.relative_to(scan.parent)) == "a.nii.gz"
    assert scan.absolute() == scan.resolve() == as_path(str(scan)) == pickle.loads(pickle.dumps(scan))
    assert isinstance(pickle.loads(pickle.dumps(scan)), Remote)
    assert type(as_path("scans/a.nii.gz")) is type(as_path("file:///scans/a.nii.gz")) is type(Path())
    assert str(as_path("file:///scans/a.nii.gz")) == "/scans/a.nii.gz"


def test_what_a_list_names():
    there = as_path("s3://bucket/lists/all.txt")
    assert str(beside(there, "a.tif")) == "s3://bucket/lists/a.tif"
    assert str(beside(there, "gs://other/a.tif")) == str(beside(Path("/x/all.txt"), "gs://other/a.tif"))
    assert beside(Path("/x/all.txt"), "/y/a.tif") == Path("/y/a.tif")


def test_folders_are_looked_into(memory):
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.csv"):
        memory.pipe(f"/bucket/f/{name}", name.encode())
    folder = as_path("memory://bucket/f")
    assert [str(path) for path in folder.iterdir()] == ["memory://bucket/f/a.txt", "memory://bucket/f/sub"]
    assert (folder.is_dir(), folder.is_file(), (folder / "a.txt").is_file()) == (True, False, True)
    assert not (folder / "none").exists()
    assert [path.name for path in folder.rglob("*")] == ["a.txt", "b.txt", "c.csv"]
    assert [path.name for path in folder.glob("*.txt")] == ["a.txt"]
    assert [path.name for path in folder.glob("**/*.csv")] == ["c.csv"]
    assert (folder / "a.txt").read_text() == "a.txt"
    with (folder / "a.txt").open() as stream:
        assert list(stream) == ["a.txt"]
    with pytest.raises(FileError, match=r"memory://bucket/f/x: .* written whole"):
        (folder / "x").open("w")


def test_a_change_is_seen(memory):
    file = as_path("memory://bucket/a.bin")
    memory.pipe("/bucket/a.bin", b"one")
    before, digest = stamps(file), content_hash(file)
    memory.pipe("/bucket/a.bin", b"two")
    assert stamps(file) != before
    assert content_hash(file) != digest


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.mhd", "a.npy", "a.ome.tif", "a.zarr"])
def test_an_image_is_the_same_elsewhere(oblique, tmp_path, name):
    array, space = oblique
    here = write_image(tmp_path / name, array, space)
    there = write_image(f"memory://bucket/scans/{name}", array, space)
    assert isinstance(there, Remote)
    assert is_image(there)
    read, expected = read_image(str(there)), read_image(here)
    assert str(read.path) == str(there)
    np.testing.assert_array_equal(read.array, expected.array)
    np.testing.assert_allclose(read.space.affine, expected.space.affine)
    window = (slice(1, 3), slice(0, 5), slice(2, 4))
    image = pickle.loads(pickle.dumps(open_image(there)))
    np.testing.assert_array_equal(image.read(window), expected.array[(slice(None), *window)])


def test_points_are_the_same_elsewhere():
    points = LandmarkSet(("a", "b"), np.array([[1.0, 2.0, 3.0], [np.nan] * 3]))
    there = write_landmarks("memory://bucket/points/a.mrk.json", points)
    np.testing.assert_array_equal(read_landmarks(there).world, points.world)


def test_zarr_reads_only_the_chunks_it_needs(memory, monkeypatch, rng):
    array = rng.integers(0, 255, (1, 128, 128, 128)).astype(np.uint8)
    write_image("memory://bucket/large.zarr", array, Space.from_spacing((128, 128, 128)))
    asked = []
    original = MemoryFileSystem.cat_file

    def counted(own, path, *more, **rest):
        asked.append(path)
        return original(own, path, *more, **rest)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    image = open_image("memory://bucket/large.zarr")
    assert not [path for path in asked if "/c/" in path]
    window = (slice(0, 60), slice(70, 100), slice(3, 64))
    np.testing.assert_array_equal(image.read(window), array[(slice(None), *window)])
    assert [path for path in asked if "/c/" in path] == ["/bucket/large.zarr/0/c/0/0/1/0"]


@pytest.mark.parametrize("codecs", [[{"name": "numcodecs.pickle"}], [{"name": "bytes"}, {"name": "pickle"}], ["x"]])
def test_codecs_that_could_run_code_are_refused_elsewhere(memory, codecs):
    write_image("memory://bucket/a.zarr", np.zeros((1, 4, 4), np.uint8), Space.from_spacing((4, 4)))
    path = as_path("memory://bucket/a.zarr/0/zarr.json")
    document = json.loads(path.read_text())
    memory.pipe("/bucket/a.zarr/0/zarr.json", json.dumps({**document, "codecs": codecs}).encode())
    with pytest.raises(FileError, match="codecs"):
        read_image("memory://bucket/a.zarr")


def test_what_is_wrong_names_the_address(memory):
    memory.pipe("/bucket/broken.nii.gz", b"no image")
    with pytest.raises(FileError, match=r"^memory://bucket/broken.nii.gz: ") as caught:
        read_image("memory://bucket/broken.nii.gz")
    assert "voxelry-copies" not in str(caught.value)
    with pytest.raises(FileError, match=r"^memory://bucket/none.nii.gz: no such file"):
        read_image("memory://bucket/none.nii.gz")
    with pytest.raises(FileError, match=r"^foo://bucket/a.nii.gz: can't be reached: Protocol not known: foo"):
        read_image("foo://bucket/a.nii.gz")


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(MissingDependencyError, match=r"voxelry\[cloud\]"):
        voxelry.read_image("s3://bucket/a.nii.gz")


def test_copies_are_bounded_and_read_again(memory, monkeypatch, oblique):
    array, space = oblique
    monkeypatch.setenv("VOXELRY_TEMPORARY_GB", "5e-7")  # 500 bytes
    first, second = (write_image(f"memory://bucket/{name}.npy", array, space) for name in "ab")
    image = open_image(first)
    copy = fetch(first)
    fetch(second)
    assert not copy.exists()
    np.testing.assert_array_equal(image.read(), array)
    monkeypatch.setattr(copies, "_RESERVE", 1 << 62)
    with pytest.raises(FileError, match="free in"):
        fetch(write_image("memory://bucket/c.npy", array, space))


def test_a_name_that_would_leave_the_folder_is_left_out(memory, tmp_path):
    memory.store["/bucket/series/../../../evil"] = memory.open("/bucket/x", "wb")
    memory.pipe("/bucket/series/a.txt", b"a")
    copy = fetch(as_path("memory://bucket/series"))
    assert [path.name for path in sorted(copy.rglob("*"))] == ["a.txt"]


def test_nothing_half_written_is_seen(memory):
    with pytest.raises(FileError), replacing("memory://bucket/a.txt") as place:
        (place / "on a full disk").write_text("half")
    assert memory.find("/bucket") == []
    with replacing("memory://bucket/a.txt") as place:
        place.write_text("whole")
    assert as_path("memory://bucket/a.txt").read_text() == "whole"


def test_a_folder_takes_the_place_of_an_older_one(memory, tmp_path):
    target = as_path("memory://bucket/a.zarr")
    for names in (("zarr.json", "0/c/0", "0/c/1"), ("zarr.json", "0/c/0")):
        folder = tmp_path / str(len(names))
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        put(folder, target)
    assert sorted(memory.find("/bucket/a.zarr")) == ["/bucket/a.zarr/0/c/0", "/bucket/a.zarr/zarr.json"]


def test_copies_end_with_the_process(tmp_path):
    script = (
        "import fsspec, os, signal, sys\n"
        "from voxelry.core.remote import as_path; from voxelry.core.fetch import fetch\n"
        "fsspec.filesystem('memory').pipe('/b/a.bin', b'a'); print(fetch(as_path('memory://b/a.bin')).exists())\n"
        "if sys.argv[1:]: sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )

    def run(*arguments: str) -> str:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True).stdout

    assert run("kill") == b"True\n"
    assert len(list(tmp_path.iterdir())) == 2
    assert run() == b"True\n"
    assert list(tmp_path.iterdir()) == []

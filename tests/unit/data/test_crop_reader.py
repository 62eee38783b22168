from __future__ import annotations

import copy
import json
import multiprocessing
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorstore
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.crops.reader import CropReader, Stored, UnopenedError
from voxelry.io import open_image, write_image

SHAPE = (2, 20, 24, 28)
WINDOW = np.s_[3:11, 9:24, 0:17]


def write(folder: Path, kind: str, array: np.ndarray) -> tuple[Path, dict]:
    """The array in one of many ways to store it, and how to open that."""
    space = Space.from_spacing(array.shape[1:])
    first = np.moveaxis(array, 0, 1)  # z, c, y, x
    if kind in ("image.nii.gz", "image.ome.tif", "image.zarr", "image.npy"):
        return write_image(folder / kind, array, space), {}
    if kind == "tiles.tif":
        tifffile.imwrite(folder / kind, first, tile=(16, 16), compression="zlib", metadata={"axes": "ZCYX"})
        return folder / kind, {}
    if kind == "strips.tif":
        tifffile.imwrite(folder / kind, first, rowsperstrip=5, compression="lzw", metadata={"axes": "ZCYX"})
        return folder / kind, {}
    if kind == "raw.tif":
        tifffile.imwrite(folder / kind, first, imagej=True, metadata={"axes": "ZCYX"}, byteorder=">")
        return folder / kind, {}
    if kind == "coloured.tif":
        tifffile.imwrite(
            folder / kind, np.moveaxis(array, 0, -1), tile=(16, 16), compression="zlib", metadata={"axes": "ZYXS"}
        )
        return folder / kind, {}
    if kind == "image.h5":
        with h5py.File(folder / kind, "w") as file:
            file.create_dataset("raw", data=array, chunks=(1, 8, 8, 8), compression="gzip")
            file.create_dataset("other", data=np.zeros((3, 3)))
        return folder / kind, {"dataset": "raw", "channel_axis": 0}
    if kind == "second.zarr":
        stored = zarr.create_array(folder / kind, shape=array.shape, chunks=(1, 8, 8, 8), dtype="uint16", zarr_format=2)
    else:
        assert kind == "sharded.zarr"
        stored = zarr.create_array(
            folder / kind, shape=array.shape, chunks=(1, 4, 4, 4), shards=(2, 8, 8, 8), dtype="uint16", zarr_format=3
        )
    stored[:] = array
    return folder / kind, {"channel_axis": 0}


KINDS = [
    "image.nii.gz",
    "image.ome.tif",
    "image.zarr",
    "image.npy",
    "tiles.tif",
    "strips.tif",
    "raw.tif",
    "coloured.tif",
    "image.h5",
    "second.zarr",
    "sharded.zarr",
]


@pytest.fixture
def array(rng) -> np.ndarray:
    return rng.integers(0, 60000, SHAPE).astype(np.uint16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_that_part_of_the_image(tmp_path, array, kind):
    path, options = write(tmp_path, kind, array)
    stored = Stored.of(open_image(path, **options), options)
    reader = CropReader()
    for _ in range(2):  # opened, and then open
        np.testing.assert_array_equal(reader.read(stored, WINDOW), array[:, *WINDOW])
    np.testing.assert_array_equal(reader.read(stored, WINDOW, slice(1, 2)), array[1:, *WINDOW])
    reader.close()


@pytest.fixture(scope="module")
def stored_once(tmp_path_factory) -> tuple[np.ndarray, dict[str, Stored]]:
    array = np.random.default_rng(0).integers(0, 60000, SHAPE).astype(np.uint16)
    found = {}
    for kind in ("tiles.tif", "strips.tif", "coloured.tif", "image.h5", "sharded.zarr"):
        path, options = write(tmp_path_factory.mktemp("any"), kind, array)
        found[kind] = Stored.of(open_image(path, **options), options)
    return array, found


@given(kind=st.sampled_from(["tiles.tif", "strips.tif", "coloured.tif", "image.h5", "sharded.zarr"]), data=st.data())
def test_any_window_of_any_place(stored_once, kind, data):
    array, found = stored_once
    low = [data.draw(st.integers(0, size - 1)) for size in SHAPE[1:]]
    window = tuple(slice(a, data.draw(st.integers(a + 1, size))) for a, size in zip(low, SHAPE[1:], strict=True))
    reader = CropReader()
    np.testing.assert_array_equal(reader.read(found[kind], window), array[:, *window])
    reader.close()


@pytest.mark.parametrize("kind", ["flat.tif", "flat.zarr", "flat.png"])
def test_images_of_rank_two_go_the_same_way(tmp_path, rng, kind):
    plane = rng.integers(0, 255, (1, 40, 50)).astype(np.uint8)
    path = write_image(tmp_path / kind, plane, Space.from_spacing((40, 50)))
    reader, stored = CropReader(), Stored.of(open_image(path), {})
    np.testing.assert_array_equal(reader.read(stored, np.s_[5:20, 30:50]), plane[:, 5:20, 30:50])
    reader.close()


@pytest.mark.parametrize("kind", ["image.zarr", "image.h5", "tiles.tif", "image.nii.gz"])
def test_what_is_known_of_an_image_goes_to_text_and_back(tmp_path, array, kind):
    path, options = write(tmp_path, kind, array)
    stored = Stored.of(open_image(path, **options), options)
    assert Stored.from_json(stored.to_json(tmp_path), tmp_path) == stored
    assert json.loads(stored.to_json(tmp_path))["path"] == path.name


def test_only_the_chunks_of_a_window_are_needed(tmp_path, array):
    path, options = write(tmp_path, "second.zarr", array)
    for chunk in path.iterdir():
        if not chunk.name.startswith(".") and not chunk.name.endswith("0.0.0"):
            chunk.write_bytes(b"broken")
    stored, reader = Stored.of(open_image(path, **options), options), CropReader()
    np.testing.assert_array_equal(reader.read(stored, np.s_[0:8, 0:8, 0:8]), array[:, :8, :8, :8])
    with pytest.raises(FileError):
        reader.read(stored, np.s_[0:8, 0:8, 0:9])


@pytest.mark.parametrize("kind", ["second.zarr", "sharded.zarr"])
def test_a_chunk_that_is_not_there_is_the_fill_value_a_cut_one_is_a_fault(tmp_path, array, kind):
    path, options = write(tmp_path, kind, array)
    places = {"second.zarr": ("0.0.0.0", "1.1.1.1"), "sharded.zarr": ("c/0/0/0/0", "c/0/1/1/1")}[kind]
    (path / places[0]).unlink()
    chunk = path / places[1]
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    stored, reader = Stored.of(open_image(path, **options), options), CropReader()
    assert not reader.read(stored, np.s_[0:4, 0:4, 0:4], slice(0, 1)).any()
    with pytest.raises(FileError, match=rf"{kind}: chunk [01]/[123]/[123]/[123] can't be read") as caught:
        reader.read(stored, np.s_[0:20, 0:24, 0:28])
    assert "\n" not in str(caught.value)


def test_a_broken_tile_is_named_by_its_page(tmp_path, array):
    path, options = write(tmp_path, "tiles.tif", array)
    with tifffile.TiffFile(path) as file:
        page = file.pages[7]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    stored, reader = Stored.of(open_image(path, **options), options), CropReader()
    np.testing.assert_array_equal(reader.read(stored, np.s_[3:4, 16:24, 0:28]), array[:, 3:4, 16:24])  # another tile
    np.testing.assert_array_equal(reader.read(stored, np.s_[4:9, 0:9, 0:9]), array[:, 4:9, :9, :9])  # other pages
    with pytest.raises(FileError, match=r"tiles.tif: page 7 can't be decoded") as caught:
        reader.read(stored, np.s_[0:8, 0:8, 0:8])
    assert not isinstance(caught.value, UnopenedError)
    reader.close()


def test_a_file_that_is_gone_or_another_one_is_told_apart_from_a_broken_part(tmp_path, array):
    path, options = write(tmp_path, "image.h5", array)
    stored, reader = Stored.of(open_image(path, **options), options), CropReader()
    with h5py.File(path, "a") as file:
        del file["raw"]
        file["raw"] = np.zeros((2, 3, 3, 3), np.uint16)
    with pytest.raises(UnopenedError, match=r"has shape \(2, 3, 3, 3\) now, and had \(2, 20, 24, 28\)"):
        reader.read(stored, WINDOW)
    path.unlink()
    with pytest.raises(UnopenedError, match="no such file"):
        reader.read(stored, WINDOW)


def test_no_more_files_stay_open_than_are_allowed(tmp_path, array):
    reader, all_stored = CropReader(handles=2), []
    for number in range(4):
        path, options = write(tmp_path, "image.h5", array)
        path = path.rename(tmp_path / f"{number}.h5")
        all_stored.append(Stored.of(open_image(path, **options), options))
    for stored in all_stored * 2:
        np.testing.assert_array_equal(reader.read(stored, WINDOW), array[:, *WINDOW])
        assert len(reader._open) <= 2
    other = copy.deepcopy(reader)
    assert not other._open
    reader.close()


def _read_there(reader: CropReader, stored: Stored, results: multiprocessing.SimpleQueue) -> None:
    results.put(reader.read(stored, WINDOW))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["image.zarr", "second.zarr", "sharded.zarr", "image.h5", "tiles.tif"])
def test_a_fork_reads_on_its_own(tmp_path, array, kind):
    path, options = write(tmp_path, kind, array)
    stored, reader = Stored.of(open_image(path, **options), options), CropReader()
    reader.read(stored, WINDOW)  # this process has files open and TensorStore's threads running
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_read_there, args=(reader, stored, results))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    np.testing.assert_array_equal(results.get(), array[:, *WINDOW])
    np.testing.assert_array_equal(reader.read(stored, WINDOW), array[:, *WINDOW])
    reader.close()


def _refused_there(stored: Stored, results: multiprocessing.SimpleQueue) -> None:
    try:
        CropReader().read(stored, WINDOW)
    except FileError as error:
        results.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_codec_that_could_run_code_is_refused_in_a_fork(tmp_path, array):
    path, options = write(tmp_path, "second.zarr", array)
    stored = Stored.of(open_image(path, **options), options)
    document = json.loads((path / ".zarray").read_text())
    document["filters"] = [{"id": "pickle"}]
    (path / ".zarray").write_text(json.dumps(document))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_refused_there, args=(stored, results))
    child.start()
    child.join(60)
    assert "compressed with pickle" in results.get()


def test_it_reads_what_tensorstore_reads(tmp_path, array):
    path, options = write(tmp_path, "image.zarr", array)
    store = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/0/"}}).result()
    stored = Stored.of(open_image(path, **options), options)
    np.testing.assert_array_equal(CropReader().read(stored, WINDOW), store[(slice(None), *WINDOW)].read().result())
    shutil.rmtree(path)

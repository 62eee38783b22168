"""A short slice of the hostile files of `make fuzz`, and what it found once."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from voxelry.bundle.checkpoint import read_checkpoint
from voxelry.core.errors import CheckpointError, FileError
from voxelry.core.space import Space
from voxelry.engine.plan_file import read_plan
from voxelry.io import open_image, read_image, write_image

ROOT = Path(__file__).parents[3]


def test_hostile_files_are_one_line_each(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--inputs", "120", "--minutes", "10"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path / "fuzz.json")], env=environment, capture_output=True, text=True
    )
    report = json.loads((tmp_path / "fuzz.json").read_text())
    assert report["found"] == [], ran.stdout
    inputs = {family: counts["inputs"] for family, counts in report["counts"].items()}
    assert inputs.pop("bombs") >= 1  # the slow ones come seldom
    assert min(inputs.values()) >= 5
    assert sum(counts.get("read", 0) for counts in report["counts"].values()) > 5


@pytest.mark.parametrize("name", ["DIMENSION_LABELS", "DIMENSION_LIST"])
@pytest.mark.parametrize("said", [1, "x", [1.0, 2.0, 3.0], ["a", "b"]])
def test_names_of_axes_that_are_none_are_refused(tmp_path, name, said):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=np.zeros((3, 4, 5))).attrs[name] = said
    with pytest.raises(FileError, match=f"its attribute {name} isn't a "):
        open_image(path)


def test_pixels_in_files_elsewhere_are_refused(tmp_path):
    (tmp_path / "inputs").mkdir()
    shape, secret = (3, 4, 5), tmp_path / "secret.h5"
    for file in (secret, tmp_path / "inputs" / "beside.h5"):
        with h5py.File(file, "w") as stream:
            stream["raw"] = np.full(shape, 7, np.int16)
    path = tmp_path / "inputs" / "a.h5"

    def virtual(target, source, name="raw"):
        layout = h5py.VirtualLayout(shape, np.int16)
        layout[:] = h5py.VirtualSource(str(source), name, shape)
        with h5py.File(target, "w") as stream:
            stream.create_virtual_dataset("raw", layout)

    virtual(path, "beside.h5")
    assert (read_image(path).array == 7).all()
    virtual(tmp_path / "inputs" / "beside.h5", secret)
    for source in ("beside.h5", secret, "../secret.h5"):
        virtual(path, source)
        with pytest.raises(FileError, match="names a file outside of its folder"):
            open_image(path)
    with h5py.File(path, "w") as stream:
        stream.create_dataset("raw", shape, np.int16, external=[("../secret.h5", 0, 120)])
    with pytest.raises(FileError, match="names a file outside of its folder"):
        open_image(path)


@pytest.mark.parametrize("named", ["../secret.raw", "{}/secret.raw", "LIST 2\n../secret.raw"])
def test_a_header_s_pixels_lie_beside_it(tmp_path, named):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(20))
    header = tmp_path / "inputs" / "a.mhd"
    fields = "ObjectType = Image\nNDims = 2\nDimSize = 5 4\nElementType = MET_UCHAR\nElementDataFile = "
    header.write_text(fields + named.format(tmp_path) + "\n")
    with pytest.raises(FileError, match="names a file outside of its folder"):
        open_image(header)
    nrrd = tmp_path / "inputs" / "a.nhdr"
    nrrd.write_text("NRRD0005\ntype: uchar\ndimension: 2\nsizes: 5 4\nencoding: raw\ndata file: ../secret.raw\n")
    with pytest.raises(FileError, match="names a file outside of its folder"):
        open_image(nrrd)


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\x07", "\u202ea", "\x9b2J", "a\nb", "a\udc80"])
def test_a_name_can_t_steer_the_terminal(tmp_path, name):
    path = tmp_path / f"{name}.npy"
    path.write_bytes(b"no image")
    with pytest.raises(FileError) as caught:
        open_image(path)
    assert str(caught.value).isprintable()
    assert caught.value.path == str(path)


@pytest.mark.parametrize("big", [False, True])
def test_pages_that_begin_again_are_refused(tmp_path, big):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint8), bigtiff=big, photometric="minisblack", metadata=None)
    assert open_image(path).shape == (1, 3, 8, 8)
    with tifffile.TiffFile(path) as file:
        pages, form = [page.offset for page in file.pages], file.tiff
        count = len(file.pages[2].tags)
    content = bytearray(path.read_bytes())
    struct.pack_into(form.offsetformat, content, pages[2] + form.tagnosize + count * form.tagsize, pages[1])
    path.write_bytes(content)
    with pytest.raises(FileError, match="its pages begin again after 3 of them"):
        open_image(path)


def test_pixels_in_the_header_of_a_tiff_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint16), imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags["StripOffsets"].valueoffset
    content = bytearray(path.read_bytes())
    struct.pack_into(">I" if content[:2] == b"MM" else "<I", content, place, 0)
    path.write_bytes(content)
    with pytest.raises(FileError, match="inside of the file's own header"):
        open_image(path)


def test_lines_that_aren_t_there_can_t_be_skipped(tmp_path):
    path = tmp_path / "a.nrrd"
    header = f"NRRD0005\ntype: uchar\ndimension: 2\nsizes: 5 4\nencoding: raw\nline skip: {'9' * 50}\n\n"
    path.write_bytes(header.encode() + bytes(20))
    with pytest.raises(FileError, match="has fewer lines than the 9"):
        read_image(path)


def test_chunks_that_were_never_written_are_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", (300, 300, 300), np.int16, chunks=(1, 1, 1), fillvalue=7)
    window = (slice(0, 200), slice(5, 9), slice(0, 300))
    found = open_image(tmp_path / "a.h5").read(window)
    assert (found.shape, found.min(), found.max()) == ((1, 200, 4, 300), 7, 7)


@pytest.mark.parametrize(
    "text", ["- " * 3000, "a: " + "9" * 5000, "a: 2001-99-99", "!!python/object/apply:os.mkdir [x]"]
)
def test_yaml_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(FileError, match=r"plan.yaml: the plan can't be read: "):
        read_plan(tmp_path / "plan.yaml")


def test_a_checkpoint_that_is_none_is_one_line(tmp_path):
    for content in (b"", b"0", b"\x80\x02.", b"PK", b"format: 1"):
        (tmp_path / "last.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"last.ckpt: not a checkpoint"):
            read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("chunks", [[2147483647, 3, 4, 5], [1, 3, 4, 1 << 40], [1, 3, 1 << 20, 50]])
def test_chunks_that_no_memory_holds_are_refused(tmp_path, chunks):
    path = write_image(tmp_path / "a.ome.zarr", np.zeros((1, 3, 4, 5), np.int16), Space.from_spacing((3, 4, 5)))
    (document,) = path.glob("*/zarr.json")
    content = json.loads(document.read_text())
    content["chunk_grid"]["configuration"]["chunk_shape"] = chunks
    content["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    document.write_text(json.dumps(content))
    with pytest.raises(FileError, match=r"its chunks take .* GB of memory"):
        read_image(path)

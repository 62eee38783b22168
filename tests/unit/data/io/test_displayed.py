"""Pictures that their file says are to be shown turned are read as they are shown, and only they."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow
from PIL import ImageOps

from voxelry.core.errors import FileError
from voxelry.data.label_grid import Reference, open_labels
from voxelry.io import open_image, read_landmarks

PIXELS = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
SHOWN = {  # of [[1, 2, 3], [4, 5, 6]], from the definition of each number: where the first row and column are
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}
SMALL = np.array(SHOWN[1], np.uint8)


def exif(orientation):
    block = Pillow.Exif()
    block[274] = orientation
    return block


def late_exif(path, orientation):
    """A PNG whose Exif block stands behind the pixels."""
    Pillow.fromarray(SMALL).save(path)
    body, block = path.read_bytes(), exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + block
    end = body.index(b"IEND") - 4
    path.write_bytes(
        body[:end] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + body[end:]
    )


def write_tiff(path, pixels, orientation, **settings):
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, pixels, photometric="minisblack", extratags=tags, **settings)


@pytest.mark.parametrize("orientation", SHOWN)
def test_every_orientation_is_read_as_it_is_shown(orientation, tmp_path):
    Pillow.fromarray(SMALL).save(tmp_path / "a.png", exif=exif(orientation))
    late_exif(tmp_path / "late.png", orientation)
    write_tiff(tmp_path / "a.tif", SMALL, orientation)
    for name in ("a.png", "late.png", "a.tif"):
        np.testing.assert_array_equal(open_image(tmp_path / name).read()[0], SHOWN[orientation])


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_as_other_programs_show_it_and_in_windows(orientation, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    colours = np.stack([PIXELS * 7, PIXELS, 255 - PIXELS], -1)
    Pillow.fromarray(colours).save(path, exif=exif(orientation))
    with Pillow.open(path) as picture:
        shown = np.moveaxis(np.asarray(ImageOps.exif_transpose(picture)), -1, 0)
    image = open_image(path)
    assert image.shape == shown.shape
    np.testing.assert_array_equal(image.read(), shown)
    window = (slice(1, 4), slice(2, 5))
    np.testing.assert_array_equal(image.read(window), shown[:, 1:4, 2:5])


@pytest.mark.parametrize("orientation", [0, 9])
def test_numbers_without_meaning_say_nothing(orientation, tmp_path):
    Pillow.fromarray(SMALL).save(tmp_path / "a.png", exif=exif(orientation))
    np.testing.assert_array_equal(open_image(tmp_path / "a.png").read()[0], SMALL)


def test_a_broken_exif_block_says_nothing(tmp_path):
    Pillow.fromarray(SMALL).save(tmp_path / "a.jpg", exif=b"Exif\0\0no such thing")
    assert open_image(tmp_path / "a.jpg").shape == (1, 2, 3)


def test_spacing_goes_with_the_axes(tmp_path):
    write_tiff(tmp_path / "a.tif", SMALL, 6, resolution=(5, 2), resolutionunit="CENTIMETER")
    image = open_image(tmp_path / "a.tif")  # 5 columns per cm, 2 rows per cm as stored
    assert image.space.spacing == pytest.approx((2.0, 5.0))
    assert image.space.orientation == open_image_without_tag(tmp_path).space.orientation


def open_image_without_tag(folder):
    write_tiff(folder / "plain.tif", SMALL, 1)
    return open_image(folder / "plain.tif")


def test_labels_and_points_lie_in_the_shown_picture(tmp_path):
    Pillow.fromarray(SMALL).save(tmp_path / "image.png", exif=exif(6))
    palette = Pillow.fromarray(SMALL).convert("P")
    palette.putdata(SMALL.ravel().tolist())
    palette.save(tmp_path / "stored.png", exif=exif(6))
    Pillow.fromarray(np.array(SHOWN[6], np.uint8)).save(tmp_path / "drawn.png")
    reference = Reference.of_file(tmp_path / "image.png", {})
    for name in ("stored.png", "drawn.png"):
        np.testing.assert_array_equal(open_labels(tmp_path / name, reference).read(), SHOWN[6])
    (tmp_path / "image.csv").write_text("name,i,j\nsix,0,2\n")
    found = read_landmarks(tmp_path / "image.csv", space=reference.space).index(reference.space)
    row, column = (int(value) for value in found[0])
    assert SHOWN[6][row][column] == 6


def test_volumes_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tif", np.stack([PIXELS] * 3), 6)
    with pytest.raises(
        FileError, match=r"a.tif: its planes are to be shown turned .*Orientation is 6.*without the tag"
    ):
        open_image(tmp_path / "a.tif")
    assert open_image(tmp_path / "a.tif", ndim=2).shape == (3, 7, 5)

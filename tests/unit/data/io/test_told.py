"""What files say of their spacing and values in words that aren't ours: taken, or refused; never passed over."""

import gzip
import struct
import zlib

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK
import tensorstore
import tifffile
from PIL import Image as Pillow

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image

VOLUME = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)


def save_hdf5(path, notes):
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=VOLUME).attrs.update(notes)


def save_zarr(path, notes):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    metadata = {"shape": list(VOLUME.shape), "data_type": "uint16", "attributes": notes}
    tensorstore.open({**spec, "metadata": metadata}, create=True).result().write(VOLUME).result()


def save_npz(path, notes):
    np.savez(path, image=VOLUME, **{name: np.array(value) for name, value in notes.items()})


KEEPERS = [("a.h5", save_hdf5), ("a.zarr", save_zarr), ("a.npz", save_npz)]


@pytest.mark.parametrize(("name", "save"), KEEPERS)
@pytest.mark.parametrize("word", ["resolution", "voxel_size", "spacing", "PixelSize"])
def test_a_spacing_without_unit_has_to_be_told(name, save, word, tmp_path):
    save(tmp_path / name, {word: [40.0, 4.0, 4.0]})
    with pytest.raises(FileError, match=rf"says {word} = \[40.* neither unit nor order .*spacing"):
        open_image(tmp_path / name)
    image = read_image(tmp_path / name, spacing=[40e-6, 4e-6, 4e-6])
    assert image.space.spacing == pytest.approx((40e-6, 4e-6, 4e-6))
    np.testing.assert_array_equal(image.array[0], VOLUME)


@pytest.mark.parametrize(("name", "save"), KEEPERS)
def test_notes_that_say_nothing_of_spacing_change_nothing(name, save, tmp_path):
    save(tmp_path / name, {"resolution": [1.0, 1.0, 1.0], "offset": [3.0, 4.0, 5.0]})
    assert open_image(tmp_path / name).space.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("line", ["spacings: 0.5 0.5 nan", "axis mins: 0 0 0\naxis maxs: 2 2.5 40"])
def test_nrrd_axes_without_a_distance(line, tmp_path):
    head = f"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n{line}\n\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + VOLUME.tobytes())
    with pytest.raises(FileError, match="how far apart voxels are"):
        open_image(tmp_path / "a.nrrd")
    assert read_image(tmp_path / "a.nrrd", spacing=[10, 0.5, 0.5]).space.spacing == (10, 0.5, 0.5)


def test_the_fourth_axis_of_a_nrrd_space_is_channels(tmp_path):
    head = (
        "NRRD0004\ntype: uint16\ndimension: 4\nspace dimension: 4\nsizes: 6 5 2 2\nendian: little\nencoding: raw\n"
        "space directions: (2,0,0,0) (0,3,0,0) (0,0,4,0) (0,0,0,1.5)\nspace origin: (10,20,30,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(head.encode() + VOLUME.tobytes())
    image = read_image(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(image.array, VOLUME.reshape(2, 2, 5, 6))
    np.testing.assert_allclose(image.space.to_world(np.array([1, 1, 1])), [-12, -23, 34])


@pytest.mark.parametrize(("unit", "step"), [("CENTIMETER", 0.01), ("INCH", 0.0254)])
def test_imagej_without_a_unit_takes_that_of_the_tags(unit, step, tmp_path):
    def save(**notes):
        tags = {"resolution": (1000, 1000), "resolutionunit": unit, "metadata": {"axes": "ZYX", **notes}}
        tifffile.imwrite(tmp_path / "a.tif", VOLUME, imagej=True, **tags)
        return tmp_path / "a.tif"

    assert open_image(save(spacing=0.005)).space.spacing == pytest.approx((step * 5, step, step))
    with pytest.raises(FileError, match="along x, y, not along z"):
        open_image(save())
    assert open_image(save(spacing=2.0, unit="um")).space.spacing == pytest.approx((2e-3, 1e-6, 1e-6))


@pytest.mark.parametrize("suffix", [".ome.tif", ".tif"])
@pytest.mark.parametrize("large", [2**53 + 1, 2**64 - 1])
def test_whole_numbers_that_tiff_would_round_are_refused(suffix, large, tmp_path):
    space = Space.from_spacing((1, 2), (1.0, 1.0))
    with pytest.raises(FileError, match="can't hold whole numbers beyond"):
        write_image(tmp_path / f"a{suffix}", np.array([[[0, large]]], dtype=np.uint64), space)
    assert not list(tmp_path.iterdir())
    path = write_image(tmp_path / f"a{suffix}", np.array([[[7, 2**53]]], dtype=np.uint64), space)
    assert read_image(path).array.ravel().tolist() == [7, 2**53]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_greys_keep_their_values(depth, tmp_path):
    values = np.arange(3 * 8, dtype=np.uint8).reshape(3, 8) % 2**depth
    bits = (values[..., None] >> np.arange(depth)[::-1] & 1).reshape(3, -1)
    lines = np.pad(np.packbits(bits, axis=1), ((0, 0), (1, 0))).tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 3, depth, 0, 0, 0, 0)), (b"IDAT", zlib.compress(lines))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array[0], values)


def test_an_animation_is_no_image(tmp_path):
    frames = [Pillow.fromarray(np.full((4, 4), 50 * number, np.uint8)) for number in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(FileError, match="an animation of 3 frames"):
        open_image(tmp_path / "a.png")


def nrrd(path, lines):
    head = f"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n{lines}\n\n"
    path.write_bytes(head.encode() + VOLUME.tobytes())
    return path


@pytest.mark.parametrize("lines", ["", "centerings: cell cell cell\n", "centers: node node node\n"])
def test_a_nrrd_without_directions_lies_where_itk_puts_it(lines, tmp_path):
    path = nrrd(tmp_path / "a.nrrd", f"{lines}spacings: 2 -3 4\naxis mins: 10 20 30")
    image = SimpleITK.ReadImage(str(path))
    expected = np.array(image.TransformIndexToPhysicalPoint((5, 4, 3))) * [-1, -1, 1]
    if "node" in lines:
        expected = np.array([-20.0, -8.0, 42.0])
    np.testing.assert_allclose(open_image(path).space.to_world(np.array([3, 4, 5])), expected)


def test_nifti_with_a_distance_along_some_axes_only(tmp_path):
    def save(name, steps, code):
        image = nibabel.Nifti1Image(VOLUME, None)
        image.header["qform_code"] = code
        nibabel.save(image, tmp_path / name)
        content = bytearray((tmp_path / name).read_bytes())
        struct.pack_into("<3f", content, 80, *steps)
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    for code in (0, 1):
        path = save("a.nii", (2.0, 3.0, 0.0), code)
        with pytest.raises(FileError, match=r"some axes only: pixdim 2.0, 3.0, 0.0"):
            open_image(path)
        assert open_image(path, spacing=[5, 3, 2]).space.spacing == (5, 3, 2)
    assert open_image(save("b.nii", (0.0, 0.0, 0.0), 0)).space.spacing == (1, 1, 1)


def test_nifti_whose_name_and_compression_differ(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), tmp_path / "a.nii")
    plain = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(plain)[:-20])
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "empty.nii").touch()
    for name, reason in {
        "plain.nii.gz": r"isn't compressed.*rename it to plain\.nii\)",
        "packed.nii": r"is compressed.*rename it to packed\.nii\.gz",
        "cut.nii.gz": "compression is damaged",
        "empty.nii.gz": "is empty",
        "empty.nii": "is empty",
    }.items():
        with pytest.raises(FileError, match=reason):
            open_image(tmp_path / name)


def test_a_fax_compressed_mask_has_its_objects_as_ones(tmp_path):
    mask = np.zeros((16, 16), bool)
    mask[3:7, 4:9] = True
    Pillow.fromarray(mask).save(tmp_path / "a.tif", compression="group4")
    tifffile.imwrite(tmp_path / "b.tif", ~mask, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "c.tif", mask, photometric="minisblack")
    for name in ("a.tif", "b.tif", "c.tif"):
        image = read_image(tmp_path / name)
        assert image.array.dtype == np.uint8
        np.testing.assert_array_equal(image.array[0], mask)


@pytest.mark.parametrize("number", [9999, 262])
def test_a_mask_that_does_not_say_what_is_white_has_black_as_zero(number, tmp_path):
    mask = np.zeros((6, 16), dtype=bool)
    mask[2:4, 5:9] = True
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, mask, photometric="miniswhite")
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages.first.tags[262]
        file.filehandle.seek(tag.offset)
        file.filehandle.write(number.to_bytes(2, "little"))
    expected = mask if number == 9999 else ~mask
    np.testing.assert_array_equal(read_image(path).array[0], expected)

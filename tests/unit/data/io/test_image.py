"""Dispatch, keywords, refusals and writing, format by format."""

import io
import pickle
import sys

import nibabel
import numpy as np
import pytest

from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError, SettingError, VoxelryError
from voxelry.core.guard import guarded
from voxelry.core.space import Space
from voxelry.io import READERS, WRITERS, is_image, open_image, read_image, write_image
from voxelry.io.images.axes import order_axes

WRITABLE = [suffix for suffix in WRITERS if suffix != ".png"]  # which holds single bytes
OBLIQUE = Space(
    (4, 5, 6),
    [[0.2, -0.9, 2.0, -12.0], [0.4, 1.2, 0.5, 33.0], [3.0, 0.1, -0.4, 7.0], [0.0, 0.0, 0.0, 1.0]],
)


def counting(space, channels=1, dtype=np.int16):
    return np.arange(channels * np.prod(space.shape), dtype=dtype).reshape(channels, *space.shape)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_an_open_file_goes_to_another_process(suffix, tmp_path):
    array = counting(OBLIQUE)
    image = pickle.loads(pickle.dumps(open_image(write_image(tmp_path / f"a{suffix}", array, OBLIQUE))))
    np.testing.assert_array_equal(image.read(), array)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_pixels_are_ones_own(suffix, tmp_path):
    path = write_image(tmp_path / f"a{suffix}", counting(OBLIQUE), OBLIQUE)
    first = read_image(path).array
    first += 1
    np.testing.assert_array_equal(read_image(path).array, counting(OBLIQUE))


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITABLE if suffix != ".npy"])
def test_a_sheared_affine_is_kept(suffix, tmp_path):
    image = open_image(write_image(tmp_path / f"a{suffix}", counting(OBLIQUE), OBLIQUE))
    assert image.space.is_close(OBLIQUE)
    assert image.has_orientation


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITABLE if suffix != ".npy"])
def test_a_slice_keeps_its_plane(suffix, tmp_path):
    plane = Space((5, 6), np.delete(OBLIQUE.affine, 0, axis=1))
    image = open_image(write_image(tmp_path / f"a{suffix}", counting(plane, 3), plane))
    assert image.space.is_close(plane)
    assert image.shape == (3, 5, 6)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_a_write_that_fails_leaves_the_old_file(suffix, tmp_path, monkeypatch):
    path = write_image(tmp_path / f"a{suffix}", counting(OBLIQUE), OBLIQUE)
    before = sorted(item.name for item in tmp_path.iterdir())

    def interrupted(place, *_):
        place.with_name("half").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[WRITERS[suffix].__module__], "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, counting(OBLIQUE) + 1, OBLIQUE)
    monkeypatch.undo()
    assert sorted(item.name for item in tmp_path.iterdir()) == before
    np.testing.assert_array_equal(read_image(path).array, counting(OBLIQUE))


@pytest.mark.parametrize("suffix", WRITABLE)
def test_writing_again_replaces(suffix, tmp_path):
    path = tmp_path / "new" / f"a{suffix}"
    for shift in (0, 1):
        assert write_image(path, counting(OBLIQUE) + np.int16(shift), OBLIQUE) == path
    np.testing.assert_array_equal(read_image(path).array, counting(OBLIQUE) + 1)
    assert len(list(path.parent.iterdir())) == (2 if suffix == ".mhd" else 1)


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix not in (".mhd", ".zarr")])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_a_file_that_was_cut_short_is_refused(suffix, keep, tmp_path, rng):
    space = Space.from_spacing((40, 50) if suffix == ".png" else (10, 20, 30))
    path = write_image(tmp_path / f"cut{suffix}", rng.integers(0, 255, (1, *space.shape)).astype(np.uint8), space)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FileError, match=f"cut{suffix}") as caught:
        open_image(path).read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nii.gz", ".npy", ".zarr"])
def test_what_is_wider_than_double_precision_is_written_as_that(suffix, tmp_path):
    array = np.linspace(0, 1, 120, dtype=np.longdouble).reshape(1, *OBLIQUE.shape)
    image = open_image(write_image(tmp_path / f"a{suffix}", array, OBLIQUE))
    assert image.dtype == np.float64
    np.testing.assert_array_equal(image.read(), array.astype(np.float64))


def test_a_reader_that_names_fewer_axes_than_there_are_is_refused():
    with pytest.raises(FileError, match=r"^a: expected 3 axes \(zyx\), got shape \(2, 3, 4, 1\)"):
        order_axes("a", (2, 3, 4, 1), "zyx")


def test_a_field_that_a_reader_misses_is_named():
    with pytest.raises(FileError, match=r"^a: can't be read: lacks 'affine'$"), guarded("a"):
        {}["affine"]


@pytest.mark.parametrize("suffix", [suffix for suffix in READERS if suffix != ".zarr"])
def test_rubbish_is_refused_in_one_line(suffix, tmp_path, rng, capfd):
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(rng.bytes(3000))
    with pytest.raises(VoxelryError, match="rubbish") as caught:
        open_image(path).read()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", READERS)
def test_a_missing_file_is_named(suffix, tmp_path):
    with pytest.raises(FileError, match="no such file"):
        open_image(tmp_path / f"absent{suffix}")
    assert is_image(tmp_path / f"absent{suffix}")


def test_unknown_formats_are_listed(tmp_path):
    path = tmp_path / "notes.doc"
    path.write_text("not an image")
    with pytest.raises(FileError, match=r"unknown image format \(known: .*\.nii\.gz .*zarr folders"):
        open_image(path)
    with pytest.raises(FileError, match=r"can't write this format"):
        write_image(path, counting(OBLIQUE), OBLIQUE)
    assert not is_image(path)


def test_spacing_from_the_user_keeps_directions(tmp_path):
    path = write_image(tmp_path / "a.nii", counting(OBLIQUE), OBLIQUE)
    image = open_image(path, spacing=(1, 2, 3))
    assert image.space.spacing == pytest.approx((1, 2, 3))
    np.testing.assert_allclose(image.space.directions, OBLIQUE.directions, atol=1e-6)
    np.testing.assert_allclose(image.space.origin, OBLIQUE.origin)
    for wrong in ((1, 2), 0, -1, (1, 2, float("nan"))):
        with pytest.raises(VoxelryError, match="spacing"):
            open_image(path, spacing=wrong)


def test_windows_follow_pythons_rules(tmp_path):
    array = counting(OBLIQUE)
    image = open_image(write_image(tmp_path / "a.nii", array, OBLIQUE))
    np.testing.assert_array_equal(
        image.read((slice(-2, None), slice(1, 99), slice(None, -1))), array[:, -2:, 1:99, :-1]
    )
    assert image.read((slice(3, 2), slice(None), slice(None))).shape == (1, 0, 5, 6)
    with pytest.raises(SettingError, match="3 slices"):
        image.read((slice(None), slice(None)))
    with pytest.raises(SettingError, match="step"):
        image.read((slice(None, None, 2), slice(None), slice(None)))


def test_rank_can_be_asked_for(tmp_path):
    thin = Space((1, 5, 6), OBLIQUE.affine)
    path = write_image(tmp_path / "thin.nii", counting(thin), thin)
    assert open_image(path).space.shape == (5, 6)
    assert open_image(path, ndim=3).space.shape == (1, 5, 6)
    whole = write_image(tmp_path / "whole.nii", counting(OBLIQUE), OBLIQUE)
    with pytest.raises(FileError, match=r"whole.nii: expected 2 spatial axes, got 3"):
        open_image(whole, ndim=2)


def test_wrong_arrays_are_refused(tmp_path):
    for array in (np.zeros((4, 5, 6)), np.zeros((1, 4, 5, 7)), np.zeros((1, 4, 5, 6), complex), np.zeros((0, 4, 5, 6))):
        with pytest.raises(SettingError, match="array"):
            write_image(tmp_path / "a.nii", array, OBLIQUE)
    with pytest.raises(SettingError, match="channel_names"):
        write_image(tmp_path / "a.nii", counting(OBLIQUE), OBLIQUE, channel_names=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_a_full_or_forbidden_disk_is_a_file_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can't be written"):
        write_image(tmp_path / "file" / "a.nii", counting(OBLIQUE), OBLIQUE)

    def write_half():
        with replacing(tmp_path / "a.nii") as place:
            place.write_bytes(b"half")
            raise OSError(28, "no space left on device")

    with pytest.raises(FileError, match=r"a\.nii: can't be written: .*no space"):
        write_half()
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_header_first_pixels_later(tmp_path):
    """A file may be larger than the memory: opening and a window are free, reading all of it is refused."""
    path = tmp_path / "large.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 10, 1 << 14, 1 << 14)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + (1 << 40))  # one TiB of holes
    image = open_image(path)
    assert image.read((slice(5, 6), slice(7, 9), slice(0, 3))).shape == (1, 1, 2, 3)
    with pytest.raises(FileError, match=r"needs 1099.5 GB"):
        image.read()


class TestNifti:
    AFFINE = np.array([[0, 2.0, 0, 5], [-1.5, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])

    def save(self, path, array, *, unit="mm", kind=nibabel.Nifti1Image, **fields):
        image = kind(array, self.AFFINE)
        image.header.set_xyzt_units(unit)
        for name, value in fields.items():
            image.header[name] = value
        nibabel.save(image, path)
        return path

    @pytest.mark.parametrize("unit", [("mm", 1.0), ("meter", 1000.0), ("micron", 1e-3), ("unknown", 1.0)])
    def test_units_become_millimetres(self, unit, tmp_path):
        image = open_image(self.save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16), unit=unit[0]))
        np.testing.assert_allclose(image.space.affine[:3], (self.AFFINE * unit[1])[:3, [2, 1, 0, 3]], rtol=1e-6)

    def test_scale_and_offset_make_float32(self, tmp_path):
        stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        path = self.save(tmp_path / "a.nii.gz", stored)
        content = nibabel.load(path)
        content.header.set_slope_inter(0.5, 10)
        nibabel.save(nibabel.Nifti1Image(stored * 0.5 + 10, self.AFFINE, content.header), path)
        image = open_image(path)
        assert image.dtype == np.float32
        np.testing.assert_allclose(image.read()[0], (stored * 0.5 + 10).T, atol=1e-3)

    @pytest.mark.parametrize("colours", ["RGB", "RGBA"])
    def test_colours_are_channels(self, colours, tmp_path, rng):
        array = rng.integers(0, 255, (2, 3, 4, len(colours))).astype(np.uint8)
        packed = array.view([(name, "u1") for name in colours])[..., 0]
        image = open_image(self.save(tmp_path / "a.nii", packed))
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image.read(), array.T)

    def test_big_endian_and_version_2(self, tmp_path):
        array = np.arange(24, dtype=">f4").reshape(2, 3, 4)
        header = nibabel.Nifti2Header(endianness=">")
        header.set_data_dtype(">f4")
        nibabel.save(nibabel.Nifti2Image(array, self.AFFINE, header), tmp_path / "a.nii")
        image = open_image(tmp_path / "a.nii")
        assert image.dtype.isnative
        np.testing.assert_array_equal(image.read()[0], array.T)

    def test_time_points_are_channels_and_a_stored_plane_is_2d(self, tmp_path):
        array = np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2)
        image = open_image(self.save(tmp_path / "a.nii", array))
        np.testing.assert_array_equal(image.read(), array.transpose(3, 2, 1, 0))
        plane = open_image(self.save(tmp_path / "b.nii", array[:, :, 0, 0]))
        assert plane.space.is_close(Space((3, 2), self.AFFINE[:, [1, 0, 3]]))
        np.testing.assert_array_equal(plane.read()[0], array[:, :, 0, 0].T)

    def test_without_codes_there_is_no_orientation(self, tmp_path):
        nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), None), tmp_path / "a.nii")
        assert not open_image(tmp_path / "a.nii").has_orientation

    def test_an_absurd_size_is_refused_before_it_is_allocated(self, tmp_path):
        for suffix in (".nii", ".nii.gz"):
            path = self.save(tmp_path / f"a{suffix}", np.zeros((2, 3, 4), np.int16))
            image = nibabel.load(path)
            image.header["dim"][1:4] = 32000
            stream = io.BytesIO()
            image.header.write_to(stream)
            content = stream.getvalue() + bytes(4)
            if suffix == ".nii.gz":
                import gzip

                content = gzip.compress(content)
            path.write_bytes(content)
            with pytest.raises(FileError, match="declare"):
                open_image(path)

    def test_complex_numbers_are_refused(self, tmp_path):
        with pytest.raises(FileError, match="complex"):
            open_image(self.save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.complex64)))

    def test_wide_integers_keep_their_values(self, tmp_path):
        for values in (np.int64([[[-5, 2**31 - 1]]]), np.int64([[[-5, 2**40]]])):
            space = Space.from_spacing(values.shape)
            path = write_image(tmp_path / "a.nii", values[None], space)
            np.testing.assert_array_equal(read_image(path, ndim=3).array[0], values)

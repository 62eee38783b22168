"""What is particular to npy, rasters, NRRD, TIFF, HDF5 and zarr."""

import gzip
import json

import h5py
import imagecodecs
import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import tensorstore
import tifffile
import zarr
from PIL import Image as Pillow
from yaozarrs import validate_ome_json

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image

VOLUME = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
COLOURED = np.arange(3 * 4 * 5 * 2, dtype=np.uint16).reshape(3, 4, 5, 2)


class TestNpy:
    @pytest.mark.parametrize(
        ("shape", "settings", "channels", "spatial"),
        [
            ((4, 5), {}, 1, (4, 5)),
            ((3, 4, 5), {}, 1, (3, 4, 5)),
            ((5, 4, 3), {"ndim": 2}, 3, (5, 4)),
            ((3, 4, 5), {"channel_axis": 0}, 3, (4, 5)),
            ((3, 4, 5), {"channel_axis": -2}, 4, (3, 5)),
            ((3, 4, 5, 2), {}, 2, (3, 4, 5)),
            ((2, 3, 4, 5), {"channel_axis": 0}, 2, (3, 4, 5)),
        ],
    )
    def test_which_axis_is_which(self, shape, settings, channels, spatial, tmp_path):
        np.save(tmp_path / "a.npy", np.arange(np.prod(shape)).reshape(shape))
        image = open_image(tmp_path / "a.npy", **settings)
        assert (image.channels, image.space.shape) == (channels, spatial)
        assert not image.has_orientation
        expected = np.load(tmp_path / "a.npy")
        axis = settings.get("channel_axis", -1)
        expected = np.moveaxis(expected, axis, 0) if channels > 1 else expected[None]
        np.testing.assert_array_equal(image.read(), expected)

    @pytest.mark.parametrize(("shape", "settings"), [((3,), {}), ((2, 3, 4, 5, 6), {}), ((3, 4), {"channel_axis": 0})])
    def test_too_few_or_too_many_axes(self, shape, settings, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        with pytest.raises(FileError, match="spatial; expected 2 or 3, and one of channels"):
            open_image(tmp_path / "a.npy", **settings)

    def test_fortran_order_bool_and_big_endian(self, tmp_path):
        for array in (np.asfortranarray(VOLUME), VOLUME.astype(">u2"), VOLUME % 2 == 0):
            np.save(tmp_path / "a.npy", array)
            found = read_image(tmp_path / "a.npy").array
            np.testing.assert_array_equal(found[0], array)
            assert found.dtype == (np.uint8 if array.dtype == bool else np.uint16)

    def test_pickles_are_never_loaded(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([[{}, []]], dtype=object), allow_pickle=True)
        with pytest.raises(FileError, match="pickled Python objects"):
            open_image(tmp_path / "a.npy")


class TestRaster:
    @pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("LA", 2), ("P", 3), ("1", 1)])
    def test_modes(self, mode, channels, tmp_path, rng):
        Pillow.fromarray(rng.integers(0, 255, (6, 7, 3)).astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
        image = open_image(tmp_path / "a.png")
        assert image.shape == (channels, 6, 7)
        expected = np.asarray(Pillow.open(tmp_path / "a.png").convert("RGB" if mode == "P" else mode)).astype(np.uint8)
        np.testing.assert_array_equal(image.read(), np.moveaxis(expected.reshape(6, 7, channels), -1, 0))

    def test_sixteen_bits_stay(self, tmp_path, rng):
        array = rng.integers(0, 65535, (6, 7, 3)).astype(np.uint16)
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
        np.testing.assert_array_equal(read_image(tmp_path / "a.png").array, np.moveaxis(array, -1, 0))

    @pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
    def test_other_suffixes(self, suffix, tmp_path, rng):
        Pillow.fromarray(rng.integers(0, 255, (6, 7)).astype(np.uint8)).save(tmp_path / f"a{suffix}")
        expected = np.asarray(Pillow.open(tmp_path / f"a{suffix}"))
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}", spacing=0.2).array[0], expected)

    def test_what_png_cannot_hold(self, tmp_path):
        plane = Space.from_spacing((4, 5))
        for array, space in ((VOLUME[None], Space.from_spacing((3, 4, 5))), (np.zeros((1, 4, 5), np.float32), plane)):
            with pytest.raises(FileError, match="PNG holds"):
                write_image(tmp_path / "a.png", array, space)


class TestNrrd:
    @pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
    def test_encodings_against_pynrrd(self, encoding, tmp_path):
        nrrd.write(str(tmp_path / "a.nrrd"), VOLUME, {"encoding": encoding}, index_order="C")
        image = open_image(tmp_path / "a.nrrd")
        np.testing.assert_array_equal(image.read()[0], VOLUME)
        np.testing.assert_array_equal(image.read((slice(1, 3), slice(0, 2), slice(4, 5)))[0], VOLUME[1:3, 0:2, 4:5])

    def test_a_fourth_axis_is_channels(self, tmp_path, rng):
        array = rng.integers(0, 99, (3, 4, 5, 2)).astype(np.int16)
        directions = np.array([[0.0, 0.5, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0], [np.nan] * 3])
        header = {"space": "right-anterior-superior", "space directions": directions, "space origin": [1.0, 2.0, 3.0]}
        nrrd.write(str(tmp_path / "a.nrrd"), array, header | {"kinds": [*["domain"] * 3, "list"]})
        image = open_image(tmp_path / "a.nrrd")
        np.testing.assert_array_equal(image.read(), array.T)
        assert image.space.spacing == pytest.approx([3.0, 2.0, 0.5])

    def test_bzip2_and_a_fourth_axis_of_the_corpus(self, shared_data):
        for name in ("BallBinary30x30x30_bz2.nrrd", "test_simple4d_raw.nrrd"):
            array, header = nrrd.read(str(shared_data / "readers" / "pynrrd" / name), index_order="C")
            image = open_image(shared_data / "readers" / "pynrrd" / name)
            np.testing.assert_array_equal(image.read().ravel(), array.ravel())
            assert image.space.spacing == pytest.approx(np.linalg.norm(header["space directions"][:3], axis=1)[::-1])

    @pytest.mark.parametrize(
        ("space", "signs"),
        [("left-posterior-superior", (-1, -1, 1)), ("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))],
    )
    def test_spaces(self, space, signs, tmp_path):
        directions = np.array([[0.5, 0.1, 0], [0, 0, 2.0], [0.3, 1.5, 0]])
        nrrd.write(
            str(tmp_path / "a.nrrd"),
            VOLUME.T,
            {"space": space, "space directions": directions, "space origin": [1.0, 2, 3]},
        )
        image = open_image(tmp_path / "a.nrrd")
        np.testing.assert_allclose(image.space.affine[:3, :3], (directions * signs)[::-1].T)
        np.testing.assert_allclose(image.space.origin, np.array([1, 2, 3]) * signs)
        peer = sitk.ReadImage(str(tmp_path / "a.nrrd"))
        point = np.array(peer.TransformIndexToPhysicalPoint((4, 3, 2))) * [-1, -1, 1]
        np.testing.assert_allclose(image.space.to_world(np.array([2, 3, 4])), point, atol=1e-9)

    @pytest.mark.parametrize("axis", [0, 3])
    def test_vectors_wherever_they_stand(self, axis, tmp_path):
        stored = np.moveaxis(COLOURED, -1, axis)  # C order: slowest first
        kinds, directions = ["domain"] * 3, [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]
        kinds.insert(3 - axis, "vector")
        directions.insert(3 - axis, [np.nan] * 3)
        header = {"space": "RAS", "kinds": kinds, "space directions": directions, "space origin": [0, 0, 0]}
        nrrd.write(str(tmp_path / "a.nrrd"), stored.T, header)
        np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd").array, np.moveaxis(COLOURED, -1, 0))

    def test_units_become_millimetres(self, tmp_path):
        text = (
            'NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nspace: RAS\nspace units: "um" "um" "um"\n'
            "space directions: (200,0,0) (0,300,0) (0,0,400)\nspace origin: (1000,0,0)\nencoding: raw\n\n"
        )
        (tmp_path / "a.nrrd").write_bytes(text.encode() + bytes(8))
        image = open_image(tmp_path / "a.nrrd")
        assert image.space.spacing == pytest.approx((0.4, 0.3, 0.2))
        np.testing.assert_allclose(image.space.origin, (1, 0, 0))

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("type: block", "unknown type 'block'"),
            ("sizes: 2 2", "two or more sizes"),
            ("sizes: 2 2 2000000000", "cut short"),
            ("encoding: hex", "unknown encoding 'hex'"),
            ("data file: absent.raw", "absent.raw is missing"),
            ("data file: LIST", "several files"),
            ("space directions: (1,0,0) (2,0,0) (0,0,1)", "flatten an axis"),
            ("space directions: (1,0,0) (2,0,0)", "expected 3 space directions"),
        ],
    )
    def test_faults_are_named(self, line, fault, tmp_path):
        text = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n{line}\n\n"
        (tmp_path / "a.nrrd").write_bytes(text.encode() + bytes(8))
        with pytest.raises(FileError, match=fault):
            open_image(tmp_path / "a.nrrd")

    def test_a_gzip_bomb_is_bounded(self, tmp_path):
        text = "NRRD0004\ntype: double\ndimension: 3\nsizes: 4000 4000 4000\nencoding: gzip\n\n"
        (tmp_path / "a.nrrd").write_bytes(text.encode() + gzip.compress(bytes(1000)))
        with pytest.raises(FileError, match="impossible in"):
            open_image(tmp_path / "a.nrrd")

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("endian: little\nspace: left-anterior-superoir", "space: 'left-anterior-superoir' isn't known"),
            ("endian: middle", "expected little or big, got 'middle'"),
            ("kinds: domain domain domain", "lacks the field 'endian'"),
        ],
    )
    def test_words_that_are_missing_or_not_understood(self, line, fault, tmp_path):
        text = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n{line}\n\n"
        (tmp_path / "a.nrrd").write_bytes(text.encode() + bytes(16))
        with pytest.raises(FileError, match=fault):
            open_image(tmp_path / "a.nrrd")

    @pytest.mark.parametrize("name", ["50% iso", "a%d", "LIST x", "Schädel #1"])
    def test_every_name_is_a_name(self, name, tmp_path):
        volume = np.arange(60, dtype=np.uint8).reshape(1, 3, 4, 5)
        (tmp_path / f"{name}.raw").write_bytes(volume.tobytes())
        header = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 4 3\nencoding: raw\ndata file: {name}.raw\n"
        (tmp_path / f"{name}.nhdr").write_text(header, encoding="utf-8")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.nhdr").array, volume)


class TestNiftiAtEveryScale:
    @staticmethod
    def space(scale, shear):
        affine = np.array([[0.3, shear, 1.0, 5], [0, 1.0, 0, 7], [1.0, 0, -0.3, 9], [0, 0, 0, 1.0]])
        affine[:3] *= scale
        return Space((3, 4, 5), affine)

    @pytest.mark.parametrize("scale", [1e-6, 1e-4, 1.0, 1e3])
    @pytest.mark.parametrize("shear", [0.0, 0.2])
    def test_a_qform_is_told_only_where_it_holds_the_grid(self, scale, shear, tmp_path):
        space = self.space(scale, shear)
        path = write_image(tmp_path / "50% ä #1.nii.gz", np.zeros((1, 3, 4, 5), np.int16), space)
        header = nibabel.load(path).header
        assert int(header["qform_code"]) == (0 if shear else 1)
        assert open_image(path).space.is_close(space)

    def test_voxels_that_single_precision_cannot_place_are_refused(self, tmp_path):
        space = Space.from_spacing((3, 4, 5), 1e-4, origin=(500.000015, 0.0, 0.0))
        with pytest.raises(FileError, match=r"can't hold voxels so small .*write \.mha"):
            write_image(tmp_path / "a.nii.gz", np.zeros((1, 3, 4, 5), np.int16), space)
        assert not list(tmp_path.iterdir())
        assert open_image(write_image(tmp_path / "a.mha", np.zeros((1, 3, 4, 5), np.int16), space)).space.is_close(
            space
        )

    @pytest.mark.parametrize(("code", "factor"), [(0, 1.0), (1, 1e3), (2, 1.0), (3, 1e-3), (3 + 16, 1e-3)])
    def test_units_that_are_told_or_not(self, code, factor, tmp_path):
        image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([0.5, 0.6, 2.0, 1.0]))
        image.header["xyzt_units"] = code
        nibabel.save(image, tmp_path / "a.nii")
        assert open_image(tmp_path / "a.nii").space.spacing == pytest.approx((2 * factor, 0.6 * factor, 0.5 * factor))

    def test_a_unit_that_is_not_understood_is_refused(self, tmp_path):
        image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.eye(4))
        image.header["xyzt_units"] = 5
        nibabel.save(image, tmp_path / "a.nii")
        with pytest.raises(FileError, match="xyzt_units: 5 is no unit of length"):
            open_image(tmp_path / "a.nii")
        assert open_image(tmp_path / "a.nii", spacing=2).space.spacing == (2, 2, 2)

    @pytest.mark.parametrize("slope", [0.0, float("nan")])
    def test_a_slope_of_zero_or_nan_scales_nothing(self, slope, tmp_path):
        volume = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
        image = nibabel.Nifti1Image(volume, np.eye(4))
        nibabel.save(image, tmp_path / "a.nii")
        data = bytearray((tmp_path / "a.nii").read_bytes())
        data[112:120] = np.array([slope, 7.0], "<f4").tobytes()
        (tmp_path / "a.nii").write_bytes(bytes(data))
        np.testing.assert_array_equal(read_image(tmp_path / "a.nii").array[0], volume.T)


class TestMetaImage:
    def test_itk_reads_what_we_write_and_we_what_itk_writes(self, tmp_path, rng):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        image = sitk.GetImageFromArray(COLOURED, isVector=True)
        image.SetDirection(rotation.ravel().tolist())
        image.SetSpacing((0.5, 2.0, 3.0))
        image.SetOrigin((10.0, -20.0, 30.0))
        sitk.WriteImage(image, str(tmp_path / "a.mha"))
        ours = read_image(tmp_path / "a.mha")
        np.testing.assert_array_equal(ours.array, np.moveaxis(COLOURED, -1, 0))
        point = np.array(image.TransformIndexToPhysicalPoint((4, 1, 2))) * [-1, -1, 1]
        np.testing.assert_allclose(ours.space.to_world(np.array([2, 1, 4])), point, atol=1e-4)
        back = sitk.ReadImage(str(write_image(tmp_path / "b.mhd", ours.array, ours.space)))
        np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), COLOURED)

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("DimSize = 2 2", "expected NDims = 3 sizes"),
            ("DimSize = 2 2 2000000000", "cut short"),
            ("ElementType =", "lacks the field ElementType"),
            ("ElementDataFile = absent.raw", "absent.raw is missing"),
        ],
    )
    def test_faults_are_named_and_nothing_is_printed(self, line, fault, tmp_path, capfd):
        header = ["ObjectType = Image", "NDims = 3", "DimSize = 2 2 2", "ElementType = MET_UCHAR", line]
        (tmp_path / "a.mha").write_bytes("\n".join([*header, "ElementDataFile = LOCAL\n"]).encode() + bytes(8))
        with pytest.raises(FileError, match=fault):
            open_image(tmp_path / "a.mha")
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("name", ["50% iso", "dose(%Max=5)", "a%d", "%s%n", "Schädel", "a #1;b", "List", "ünï 骨"])
    @pytest.mark.parametrize("suffix", [".mhd", ".mha"])
    def test_every_name_is_a_name(self, name, suffix, tmp_path):
        volume = np.arange(60, dtype=np.int16).reshape(1, 3, 4, 5)
        path = write_image(tmp_path / f"{name}{suffix}", volume, Space.from_spacing((3, 4, 5), (2, 0.6, 0.5)))
        np.testing.assert_array_equal(read_image(path).array, volume)
        (tmp_path / f"{name}.raw").write_bytes(volume.astype("<i2").tobytes())
        header = "NDims = 3\nDimSize = 5 4 3\nElementType = MET_SHORT\nElementSpacing = 0.5 0.6 2\n"
        (tmp_path / "other.mhd").write_text(f"{header}ElementDataFile = {name}.raw\n", encoding="utf-8")
        image = read_image(tmp_path / "other.mhd")
        np.testing.assert_array_equal(image.array, volume)
        assert image.space.spacing == (2, 0.6, 0.5)

    @pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    @pytest.mark.parametrize("suffix", [".mhd", ".mha"])
    def test_types_go_to_itk_and_back(self, dtype, suffix, tmp_path):
        volume = np.arange(60).reshape(1, 3, 4, 5).astype(dtype)
        path = write_image(tmp_path / f"a{suffix}", volume, Space.from_spacing((3, 4, 5), (2, 0.6, 0.5)))
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume[0])
        sitk.WriteImage(image, str(tmp_path / f"b{suffix}"), useCompression=suffix == ".mhd")
        again = read_image(tmp_path / f"b{suffix}")
        assert again.array.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(again.array, volume)

    @staticmethod
    def save(path, *lines, data=b"", shape=(5, 4, 3), kind="MET_UCHAR"):
        header = [f"NDims = {len(shape)}", f"DimSize = {' '.join(map(str, shape))}", f"ElementType = {kind}", *lines]
        if not any(line.startswith("ElementDataFile") for line in lines):
            header.append("ElementDataFile = LOCAL")
        path.write_bytes("\n".join([*header, ""]).encode() + data)
        return path

    def test_big_endian_text_and_skipped_bytes(self, tmp_path):
        volume = np.arange(60, dtype=np.int16).reshape(1, 3, 4, 5) - 7
        big = self.save(
            tmp_path / "big.mha", "ElementByteOrderMSB = True", data=volume.astype(">i2").tobytes(), kind="MET_SHORT"
        )
        text = self.save(
            tmp_path / "text.mha",
            "BinaryData = False",
            data=" ".join(map(str, volume.ravel())).encode(),
            kind="MET_SHORT",
        )
        (tmp_path / "all.raw").write_bytes(b"12345" + volume.astype("<i2").tobytes())
        tail = self.save(tmp_path / "a.mhd", "HeaderSize = -1", "ElementDataFile = all.raw", kind="MET_SHORT")
        skip = self.save(tmp_path / "b.mhd", "HeaderSize = 5", "ElementDataFile = all.raw", kind="MET_SHORT")
        window = (slice(1, 3), slice(0, 2), slice(2, 5))
        for path in (big, text, tail, skip):
            np.testing.assert_array_equal(read_image(path).array, volume)
            np.testing.assert_array_equal(open_image(path).read(window), volume[(slice(None), *window)])

    @pytest.mark.parametrize("names", ["LIST", "LIST 2D", "s%02d.raw 7 9 1", "100% s%02d.raw 7 9"])
    def test_one_file_a_slice(self, names, tmp_path):
        volume = np.arange(60, dtype=np.uint8).reshape(1, 3, 4, 5)
        start = "100% " if names.startswith("100") else ""
        for number, plane in enumerate(volume[0]):
            (tmp_path / f"{start}s{number + 7:02}.raw").write_bytes(plane.tobytes())
        listed = b"s07.raw\ns08.raw\ns09.raw\n" if names.startswith("LIST") else b""
        path = self.save(tmp_path / "a.mhd", f"ElementDataFile = {names}", data=listed)
        np.testing.assert_array_equal(read_image(path).array, volume)
        (tmp_path / f"{start}s08.raw").unlink()
        with pytest.raises(FileError, match=r"data file .*s08\.raw is missing"):
            open_image(path)

    def test_directions_units_and_sizes_as_the_header_means_them(self, tmp_path):
        path = self.save(
            tmp_path / "a.mha",
            "TransformMatrix = 0 1 0 0 0 -1 1 0 0",
            "Offset = 1 2 3",
            "DistanceUnits = um",
            "ElementSize = 2 3 4",  # the spacing where no other is told
            data=bytes(60),
        )
        space = open_image(path).space
        assert space.spacing == pytest.approx((4e-3, 3e-3, 2e-3))
        np.testing.assert_allclose(space.to_world(np.array([0, 0, 1])), [-1e-3, -2e-3 - 2e-3, 3e-3])
        np.testing.assert_allclose(space.to_world(np.array([0, 1, 0])), [-1e-3, -2e-3, 3e-3 - 3e-3])
        itk = sitk.ReadImage(str(path))
        np.testing.assert_allclose(
            np.array(itk.TransformIndexToPhysicalPoint((4, 1, 2))) * [-1e-3, -1e-3, 1e-3],
            space.to_world(np.array([2, 1, 4])),
        )

    def test_slope_and_offset_of_the_intensity(self, tmp_path):
        lines = ("ElementToIntensityFunctionSlope = 0.5", "ElementToIntensityFunctionOffset = -3")
        path = self.save(tmp_path / "a.mha", *lines, data=bytes(range(60)))
        np.testing.assert_array_equal(read_image(path).array.ravel(), np.arange(60) * 0.5 - 3)

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("DistanceUnits = furlong", "DistanceUnits: 'furlong' is no unit"),
            ("AnatomicalOrientation = ASL", "ASL without a TransformMatrix"),
            ("ElementSpacing = 1 -1 1", "positive numbers in ElementSpacing"),
            ("ElementSpacing = 1 1", "expected 3 numbers in ElementSpacing"),
            ("TransformMatrix = 1 0 0 1 0 0 0 0 1", "flatten an axis"),
            ("ElementType = MET_STRING", "holds MET_STRING"),
            ("ElementDataFile = x%d.raw", r"x%d\.raw is missing"),
        ],
    )
    def test_what_cannot_be_placed_is_refused(self, line, fault, tmp_path):
        path = self.save(tmp_path / "a.mha", line, data=bytes(60))
        with pytest.raises(FileError, match=fault):
            open_image(path)


class TestTiff:
    def test_ome_units_and_axes(self, tmp_path):
        metadata = {
            "axes": "TZCYX",
            "PhysicalSizeX": 250,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeZ": 2.0,
            "Channel": {"Name": ["nuclei", "cells"]},
        }
        array = np.arange(2 * 3 * 2 * 4 * 5, dtype=np.uint16).reshape(2, 3, 2, 4, 5)
        tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata, photometric="minisblack")
        image = open_image(tmp_path / "a.ome.tif")
        assert image.space.spacing == pytest.approx((2e-3, 0.5e-3, 0.25e-3))
        assert image.metadata["channel_names"] == ["nuclei", "cells"]
        np.testing.assert_array_equal(image.read(), array.transpose(0, 2, 1, 3, 4).reshape(4, 3, 4, 5))

    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_imagej_units(self, compression, tmp_path):
        tifffile.imwrite(
            tmp_path / "a.tif",
            VOLUME,
            imagej=True,
            resolution=(4.0, 2.0),
            compression=compression,
            metadata={"axes": "ZYX", "unit": "micron", "spacing": 3.0},
        )
        image = open_image(tmp_path / "a.tif")
        assert image.space.spacing == pytest.approx((3e-3, 0.5e-3, 0.25e-3))
        np.testing.assert_array_equal(image.read()[0], VOLUME)
        np.testing.assert_array_equal(image.read((slice(1, 2), slice(1, 3), slice(2, 5)))[0], VOLUME[1:2, 1:3, 2:5])

    @pytest.mark.parametrize(
        ("unit", "density", "spacing"), [(3, 20.0, 0.5), (2, 254.0, 0.1), (2, 72.0, 1.0), (1, 5.0, 1.0)]
    )
    def test_resolution_tags(self, unit, density, spacing, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", VOLUME[0], resolution=(density, density), resolutionunit=unit)
        assert open_image(tmp_path / "a.tif").space.spacing == pytest.approx((spacing, spacing))

    def test_colours_time_and_stacks(self, tmp_path):
        tifffile.imwrite(tmp_path / "rgb.tif", VOLUME[..., :3].astype(np.uint8), photometric="rgb")
        np.testing.assert_array_equal(read_image(tmp_path / "rgb.tif").array, np.moveaxis(VOLUME[..., :3], -1, 0))
        tifffile.imwrite(tmp_path / "t.tif", VOLUME, imagej=True, metadata={"axes": "TYX"})
        assert open_image(tmp_path / "t.tif").shape == (3, 4, 5)
        assert open_image(tmp_path / "t.tif", ndim=3).shape == (1, 3, 4, 5)
        tifffile.imwrite(tmp_path / "pages.tif", VOLUME, photometric="minisblack")
        assert open_image(tmp_path / "pages.tif").shape == (1, 3, 4, 5)
        assert open_image(tmp_path / "pages.tif", ndim=2).shape == (3, 4, 5)

    def test_pyramids_give_the_full_size(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
            file.write(np.ones((64, 64), np.uint8), subifds=1, tile=(16, 16))
            file.write(np.ones((32, 32), np.uint8), subfiletype=1, tile=(16, 16))
        assert open_image(tmp_path / "a.ome.tif").shape == (1, 64, 64)

    def test_written_files_are_good_ome(self, tmp_path):
        space = Space.from_spacing((3, 4, 5), (2.0, 0.5, 0.25))
        write_image(tmp_path / "a.ome.tif", np.moveaxis(COLOURED, -1, 0), space, channel_names=["a", "b"])
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            assert file.is_ome
            assert file.series[0].axes == "CZYX"
            assert 'PhysicalSizeZ="2.0" PhysicalSizeZUnit="mm"' in file.ome_metadata
        assert open_image(tmp_path / "a.ome.tif").metadata["channel_names"] == ["a", "b"]


class TestHdf5:
    def test_choosing_a_dataset(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["volumes/raw"] = VOLUME
            file["volumes/raw"].attrs["element_size_um"] = [300.0, 200.0, 100.0]
            file["threshold"] = 3.0
        for path, settings in (
            (tmp_path / "a.h5", {}),
            (f"{tmp_path}/a.h5::volumes/raw", {}),
            (tmp_path / "a.h5", {"dataset": "/volumes/raw"}),
        ):
            image = open_image(path, **settings)
            assert image.space.spacing == pytest.approx((0.3, 0.2, 0.1))
            np.testing.assert_array_equal(image.read((slice(1, 2), slice(0, 2), slice(3, 5)))[0], VOLUME[1:2, :2, 3:])
        with h5py.File(tmp_path / "a.h5", "a") as file:
            file["labels"] = COLOURED
        with pytest.raises(
            FileError, match=r"holds 2 datasets .*--option dataset=labels elsewhere; there are labels, volumes/raw"
        ):
            open_image(tmp_path / "a.h5")
        with pytest.raises(FileError, match=r"no dataset 'absent' \(there are labels"):
            open_image(tmp_path / "a.h5", dataset="absent")
        np.testing.assert_array_equal(
            read_image(tmp_path / "a.h5", dataset="labels").array, np.moveaxis(COLOURED, -1, 0)
        )

    @pytest.mark.parametrize(
        ("axes", "size", "spacing", "channels"),
        [
            ("zyx", [2.0, 0.5, 0.4], (2e-3, 5e-4, 4e-4), 1),
            ("zyxc", [2.0, 0.5, 0.4, 1.0], (2e-3, 5e-4, 4e-4), 2),
            ("czyx", [1.0, 2.0, 0.5, 0.4], (2e-3, 5e-4, 4e-4), 2),
            ("czyx", [2.0, 0.5, 0.4], (2e-3, 5e-4, 4e-4), 2),
            ("xyz", [0.4, 0.5, 2.0], (2e-3, 5e-4, 4e-4), 1),
            ("tzyxc", None, (1.0, 1.0, 1.0), 2),
            ("tyx", [1.0, 0.5, 0.4], (5e-4, 4e-4), 2),
            ("cyx", None, (1.0, 1.0), 2),
            ("xy", [0.4, 0.5], (5e-4, 4e-4), 1),
        ],
    )
    @pytest.mark.parametrize("how", ["axistags", "labels"])
    def test_named_axes(self, axes, size, spacing, channels, how, tmp_path):
        volume = np.arange(2 * 3 * 4 * 5, dtype="u2").reshape(2, 3, 4, 5)  # c, z, y, x
        expected = volume[:channels] if "z" in axes else volume[:channels, 0]
        extra = [letter for letter in axes if letter not in "zyx"]
        stored = expected if "c" in extra or "t" in extra else expected[0]
        current = ("c" if stored.ndim == expected.ndim else "") + "zyx"[-expected.ndim + 1 :]
        if "t" in extra and "c" in extra:
            stored, current = stored[None], "t" + current
        elif "t" in extra:
            current = current.replace("c", "t")
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("raw", data=stored.transpose([current.index(letter) for letter in axes]))
            if how == "axistags":
                data.attrs["axistags"] = json.dumps({"axes": [{"key": letter, "typeFlags": 2} for letter in axes]})
            else:
                for dimension, letter in zip(data.dims, axes, strict=True):
                    dimension.label = letter
            if size is not None:
                data.attrs["element_size_um"] = size
        image = open_image(tmp_path / "a.h5")
        assert image.space.spacing == pytest.approx(spacing)
        np.testing.assert_array_equal(image.read(), expected)

    @pytest.mark.parametrize("suffix", ["npy", "h5", "zarr"])
    @pytest.mark.parametrize("shape", [(3, 20, 24), (2, 9, 20, 24)])
    def test_channels_that_seem_to_come_first_are_asked_about(self, suffix, shape, tmp_path):
        array, path = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape), tmp_path / f"a.{suffix}"
        if suffix == "npy":
            np.save(path, array)
        elif suffix == "h5":
            with h5py.File(path, "w") as file:
                file["raw"] = array
        else:
            zarr.save_array(path, array)
        rank = len(shape) - 1
        np.testing.assert_array_equal(read_image(path, ndim=rank, channel_axis=0).array, array)
        last = read_image(path, ndim=rank, channel_axis=-1).array
        np.testing.assert_array_equal(last, np.moveaxis(array, -1, 0))
        with pytest.raises(FileError, match=r"looks like channels first.*channel_axis=0"):
            open_image(path, ndim=rank)

    def test_axes_that_cannot_be_placed(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["raw"] = COLOURED
            file["raw"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "uvwc"]})
        with pytest.raises(
            FileError, match=r"its axes are called u, v, w, c, .*\(of z, y, x .*{ndim: 3}.*{channel_axis: 0}"
        ):
            open_image(tmp_path / "a.h5")
        for settings in ({"ndim": 3}, {"channel_axis": 3}):  # what the refusal advises
            image = open_image(tmp_path / "a.h5", **settings)
            np.testing.assert_array_equal(image.read(), np.moveaxis(COLOURED, -1, 0))

    @pytest.mark.parametrize("size", [[1.0, 2.0], [1.0, -2.0, 3.0], [1.0, float("nan"), 3.0]])
    def test_an_element_size_that_does_not_fit(self, size, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["raw"] = VOLUME
            file["raw"].attrs["element_size_um"] = size
        with pytest.raises(FileError, match=r"element_size_um: expected 3 positive numbers .*spacing="):
            open_image(tmp_path / "a.h5")
        assert open_image(tmp_path / "a.h5", spacing=2).space.spacing == (2, 2, 2)

    def test_a_huge_hollow_dataset_opens_and_gives_windows(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("raw", (1 << 14,) * 3, "f4", chunks=(8, 8, 8))
        image = open_image(tmp_path / "a.h5")
        assert image.read((slice(0, 2),) * 3).shape == (1, 2, 2, 2)
        with pytest.raises(FileError, match=r"needs 17592\.2 GB"):
            image.read()


def save_zarr(folder, array, *, version, attributes=None, **metadata):
    driver = {2: "zarr", 3: "zarr3"}[version]
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}, "metadata": metadata}
    tensorstore.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result().write(array).result()
    if attributes is not None and version == 2:
        (folder / ".zattrs").write_text(json.dumps(attributes))


def chunks_of(*shape):
    return {"name": "regular", "configuration": {"chunk_shape": shape}}


def sharded(*chunk):
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}]
    return {"name": "sharding_indexed", "configuration": {"chunk_shape": chunk, "codecs": inner, "index_codecs": inner}}


class TestZarr:
    @pytest.mark.parametrize("version", [2, 3])
    def test_plain_arrays(self, version, tmp_path):
        save_zarr(tmp_path / "a.zarr", VOLUME, version=version)
        image = open_image(tmp_path / "a.zarr")
        np.testing.assert_array_equal(image.read((slice(1, 3), slice(0, 2), slice(4, 5)))[0], VOLUME[1:3, 0:2, 4:5])
        assert open_image(tmp_path / "a.zarr", ndim=2, channel_axis=-1).shape == (5, 3, 4)

    @pytest.mark.parametrize(
        ("version", "metadata"),
        [
            (2, {"chunks": [1, 1, 1], "fill_value": 7, "dtype": "|u1"}),
            (2, {"chunks": [1, 1, 1], "dimension_separator": "/"}),
            (3, {"chunk_grid": chunks_of(1, 1, 1), "fill_value": 7, "data_type": "uint8"}),
            (3, {"chunk_grid": chunks_of(1, 2, 1), "chunk_key_encoding": {"name": "v2"}}),
            (3, {"chunk_grid": chunks_of(2, 2, 2), "codecs": [sharded(1, 1, 1)]}),
        ],
    )
    def test_of_millions_of_chunks_those_that_are_there_are_read(self, version, metadata, tmp_path):
        size = 256
        driver = {2: "zarr", 3: "zarr3"}[version]
        spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{tmp_path / 'a.zarr'}/"}}
        store = tensorstore.open(
            {**spec, "metadata": metadata}, create=True, dtype="uint8", shape=(size, size, size)
        ).result()
        store[3:6, 250:256, 17:19].write(np.arange(36, dtype="uint8").reshape(3, 6, 2)).result()
        expected = np.full((size, size, size), metadata.get("fill_value", 0), dtype="uint8")
        expected[3:6, 250:256, 17:19] = np.arange(36).reshape(3, 6, 2)
        image = open_image(tmp_path / "a.zarr")
        np.testing.assert_array_equal(image.read()[0], expected)
        window = slice(4, 200), slice(2, 255), slice(18, 190)
        np.testing.assert_array_equal(image.read(window)[0], expected[window])

    def test_dimension_names(self, tmp_path):
        save_zarr(tmp_path / "a.zarr", COLOURED, version=3, dimension_names=["z", "y", "x", "c"])
        np.testing.assert_array_equal(read_image(tmp_path / "a.zarr").array, np.moveaxis(COLOURED, -1, 0))

    def test_ome_0_4_scale_translation_units_and_levels(self, tmp_path):
        root = tmp_path / "a.zarr"
        for level, step in (("0", 1), ("1", 2)):
            save_zarr(root / level, VOLUME[None, :, ::step, ::step], version=2)
        axes = [{"name": "c", "type": "channel"}]
        axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        datasets = [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 5, 2, 3]}]},
            {
                "path": "1",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1, 5, 4, 6]},
                    {"type": "translation", "translation": [0, 0, 1, 1.5]},
                ],
            },
        ]
        whole = [
            {"type": "scale", "scale": [1, 100, 100, 100]},
            {"type": "translation", "translation": [0, 1000, 2000, 3000]},
        ]
        (root / ".zgroup").write_text('{"zarr_format": 2}')
        document = {
            "multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets, "coordinateTransformations": whole}]
        }
        (root / ".zattrs").write_text(json.dumps(document))
        image = open_image(root)
        assert image.space.is_close(Space.from_spacing((3, 4, 5), (0.5, 0.2, 0.3), origin=(3, 2, 1)), tolerance=1e-9)
        level = open_image(root, dataset="1")
        assert level.space.is_close(
            Space.from_spacing((3, 2, 3), (0.5, 0.4, 0.6), origin=(3.15, 2.1, 1)), tolerance=1e-9
        )
        np.testing.assert_array_equal(level.read()[0], VOLUME[:, ::2, ::2])
        document["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [{"type": "affine", "affine": []}]
        (root / ".zattrs").write_text(json.dumps(document))
        with pytest.raises(FileError, match="transform of type 'affine'"):
            open_image(root)

    def test_written_groups_are_valid_ome_zarr(self, tmp_path):
        space = Space.from_spacing((3, 4, 5), (2.0, 0.5, 0.25), origin=(7, 8, 9))
        path = write_image(tmp_path / "a.zarr", np.moveaxis(COLOURED, -1, 0), space, channel_names=["a", "b"])
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        assert validate_ome_json(json.dumps(attributes["ome"])).version == "0.5"
        assert open_image(path).metadata["channel_names"] == ["a", "b"]
        del attributes["voxelry"]  # as another program sees it
        (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
        foreign = open_image(path)
        assert foreign.space.is_close(space)
        assert not foreign.has_orientation

    @pytest.mark.parametrize("text", ["{", "[]", '{"zarr_format": 3}', '{"zarr_format": 3, "node_type": "array"}'])
    def test_broken_metadata_is_refused(self, text, tmp_path):
        (tmp_path / "a.zarr").mkdir()
        (tmp_path / "a.zarr" / "zarr.json").write_text(text)
        with pytest.raises(FileError, match=r"a\.zarr"):
            open_image(tmp_path / "a.zarr")

    def test_pickled_chunks_are_never_loaded(self, tmp_path):
        save_zarr(tmp_path / "a.zarr", VOLUME, version=2)
        document = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
        document["filters"] = [{"id": "pickle"}]
        (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(document))
        with pytest.raises(FileError, match="filters"):
            open_image(tmp_path / "a.zarr")
        with pytest.raises(FileError, match="leaves the folder"):
            open_image(tmp_path / "a.zarr", dataset="../b")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (4, 5)])
def test_a_png_of_any_channels_and_size_keeps_its_values(tmp_path, rng, dtype, channels, shape):
    array = rng.integers(0, np.iinfo(dtype).max, (channels, *shape)).astype(dtype)
    path = write_image(tmp_path / "a.png", array, Space.from_spacing(shape))
    found = read_image(path).array
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)

"""How far apart voxels of TIFF files are, dialect by dialect, and what the numbers in them mean."""

import json
import re

import numpy as np
import pytest
import tifffile

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image

VOLUME = (np.arange(3 * 4 * 5) % 251).astype(np.uint16).reshape(3, 4, 5)


def imagej(path, array=VOLUME, resolution=(5.0, 2.0), **notes):
    tifffile.imwrite(path, array, imagej=True, resolution=resolution, metadata={"axes": "ZYX", **notes})
    return path


class TestImageJ:
    def test_units_of_their_own_for_y_and_z(self, tmp_path):
        path = imagej(tmp_path / "a.tif", unit="um", yunit="nm", zunit="mm", spacing=0.001)
        assert open_image(path).space.spacing == pytest.approx((1e-3, 0.5e-6, 0.2e-3))

    @pytest.mark.parametrize(("unit", "length"), [("\\u00B5m", 1e-3), ("inch", 25.4), ("micrometers", 1e-3)])
    def test_units_as_it_writes_them(self, unit, length, tmp_path):
        path = imagej(tmp_path / "a.tif", unit=unit, spacing=-3.0)
        assert open_image(path).space.spacing == pytest.approx((3 * length, 0.5 * length, 0.2 * length))

    def test_planes_are_one_unit_apart_where_it_writes_no_spacing(self, tmp_path):
        assert open_image(imagej(tmp_path / "a.tif", unit="um")).space.spacing == pytest.approx((1e-3, 0.5e-3, 0.2e-3))

    @pytest.mark.parametrize(
        ("resolution", "notes"),
        [
            ((1.0, 1.0), {}),
            ((1.0, 1.0), {"spacing": 1.0}),
            ((1.0, 1.0), {"unit": "pixel"}),
            ((5.0, 5.0), {"unit": "pixels"}),
            ((5.0, 5.0), {"unit": "pixel", "spacing": 0.2}),
        ],
    )
    def test_pixels_are_no_length(self, resolution, notes, tmp_path):
        path = imagej(tmp_path / "a.tif", resolution=resolution, **notes)
        assert open_image(path).space.spacing == (1, 1, 1)

    @pytest.mark.parametrize(
        ("resolution", "notes", "told"),
        [
            ((1.0, 1.0), {"spacing": 4.0}, "1 along x, 1 along y, 4 along z"),
            ((5.0, 5.0), {"spacing": 4.0}, "0.2 along x, 0.2 along y, 4 along z"),
            ((5.0, 5.0), {}, "0.2 along x, 0.2 along y"),
            ((5.0, 5.0), {"spacing": 0.2}, "0.2 along x, 0.2 along y, 0.2 along z"),
            ((1.0, 1.0), {"unit": "pixel", "spacing": 4.0}, "1 along x, 1 along y, 4 along z"),
            ((5.0, 2.0), {"unit": "pixel"}, "0.2 along x, 0.5 along y"),
        ],
    )
    def test_sizes_in_no_unit_are_refused_unless_the_spacing_is_told(self, resolution, notes, told, tmp_path):
        path = imagej(tmp_path / "a.tif", resolution=resolution, **notes)
        with pytest.raises(FileError, match=rf"\({told}\), but in no unit of length .*spacing"):
            open_image(path)
        assert open_image(path, spacing=[4, 0.2, 0.2]).space.spacing == pytest.approx((4, 0.2, 0.2))

    def test_planes_alone_in_a_unit_are_refused(self, tmp_path):
        path = tmp_path / "a.tif"
        description = "ImageJ=1.54f\nimages=3\nslices=3\nunit=um\nspacing=2.0\n"
        with tifffile.TiffWriter(path) as writer:
            for plane in VOLUME:
                writer.write(plane, description=description, metadata=None, resolution=(0, 0), contiguous=True)
        with pytest.raises(FileError, match="along z, not along x, y"):
            open_image(path)

    def test_signed_pixels(self, tmp_path):
        values = VOLUME.astype(np.int32) - 100
        calibration = {"cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "gray value"}
        path = imagej(tmp_path / "a.tif", (values + 32768).astype(np.uint16), unit="mm", **calibration)
        image = open_image(path)
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image.read()[0], values)
        window = (slice(1, 2), slice(1, 3), slice(2, 5))
        np.testing.assert_array_equal(image.read(window)[0], values[window])

    @pytest.mark.parametrize(
        ("function", "coefficients"), [(0, (3.0, -0.5)), (1, (1.0, 0.5, 0.25)), (2, (0.0, 1.0, 0.0, 1e-3))]
    )
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_calibration_functions(self, function, coefficients, kind, tmp_path):
        notes = {f"c{power}": value for power, value in enumerate(coefficients)}
        path = imagej(tmp_path / "a.tif", VOLUME.astype(kind), unit="mm", cf=function, vunit="OD", **notes)
        pixels = VOLUME.astype(np.float64)
        expected = sum(value * pixels**power for power, value in enumerate(coefficients))
        np.testing.assert_allclose(read_image(path).array[0], expected, rtol=1e-6)

    def test_a_function_without_a_unit_of_value_is_none(self, tmp_path):
        path = imagej(tmp_path / "a.tif", unit="mm", cf=0, c0=5.0, c1=2.0)
        np.testing.assert_array_equal(read_image(path).array[0], VOLUME)

    def test_other_functions_are_refused(self, tmp_path):
        with pytest.raises(FileError, match=r"its calibration function .number 7 of ImageJ.*function None"):
            open_image(imagej(tmp_path / "a.tif", cf=7, c0=5.0, c1=2.0, vunit="OD"))


class TestOme:
    def test_a_missing_size_is_refused(self, tmp_path):
        tifffile.imwrite(
            tmp_path / "a.ome.tif", VOLUME, metadata={"axes": "ZYX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
        )
        with pytest.raises(FileError, match=r"says how far apart voxels are along x, y, not along z .*spacing="):
            open_image(tmp_path / "a.ome.tif")
        assert open_image(tmp_path / "a.ome.tif", spacing=[2, 1, 1]).space.spacing == (2, 1, 1)

    def test_positions_of_planes_say_how_far_apart_they_are(self, tmp_path):
        planes = {"PositionZ": [7.0, 6.5, 6.0], "PositionZUnit": ["µm"] * 3}
        sizes = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
        tifffile.imwrite(tmp_path / "a.ome.tif", VOLUME, metadata={"axes": "ZYX", "Plane": planes, **sizes})
        assert open_image(tmp_path / "a.ome.tif").space.spacing == pytest.approx((0.5e-3, 0.2e-3, 0.2e-3))

    def test_nothing_told_is_one_millimetre(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.ome.tif", VOLUME, metadata={"axes": "ZYX"})
        assert open_image(tmp_path / "a.ome.tif").space.spacing == (1, 1, 1)

    def test_several_images(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
            file.write(
                VOLUME, photometric="minisblack", metadata={"axes": "ZYX", "Name": "first", "PhysicalSizeX": 9.0}
            )
            sizes = {f"PhysicalSize{axis}": 0.5 for axis in "XY"}
            file.write(VOLUME[1], photometric="minisblack", metadata={"axes": "YX", "Name": "second", **sizes})
        with pytest.raises(
            FileError, match=r"holds 2 images.*--option .dataset=.0.. elsewhere; there are 0 \(first\), 1 \(second\)"
        ):
            open_image(tmp_path / "a.ome.tif")
        for name in ("second", "1"):
            image = open_image(tmp_path / "a.ome.tif", dataset=name)
            assert image.space.spacing == pytest.approx((0.5e-3, 0.5e-3))
            np.testing.assert_array_equal(image.read()[0], VOLUME[1])
        with pytest.raises(FileError, match=r"no image 'third' .choose one: .*dataset="):
            open_image(tmp_path / "a.ome.tif", dataset="third")

    @pytest.mark.parametrize("byteorder", ["<", ">"])
    def test_interleaved_colours(self, byteorder, tmp_path):
        colours = np.moveaxis(VOLUME, 0, -1)
        metadata = {"axes": "YXS", "PhysicalSizeX": 2.0, "PhysicalSizeY": 3.0}
        tifffile.imwrite(tmp_path / "a.ome.tif", colours, photometric="rgb", byteorder=byteorder, metadata=metadata)
        image = open_image(tmp_path / "a.ome.tif")
        assert image.space.spacing == pytest.approx((3e-3, 2e-3))
        np.testing.assert_array_equal(image.read(), VOLUME)

    def test_missing_files_of_a_set_are_refused(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.ome.tif", VOLUME, metadata={"axes": "ZYX"}, photometric="minisblack")
        parts = '<TiffData IFD="0" PlaneCount="1"/>' + "".join(
            f'<TiffData IFD="0" FirstZ="{plane}" PlaneCount="1"><UUID FileName="part{plane}.ome.tif">'
            f"urn:uuid:00000000-0000-0000-0000-00000000000{plane}</UUID></TiffData>"
            for plane in (1, 2)
        )
        with tifffile.TiffFile(tmp_path / "a.ome.tif", mode="r+b") as file:
            description = file.pages[0].tags[270]
            description.overwrite(re.sub("<TiffData[^>]*/>", parts, description.value))
        with pytest.raises(FileError, match=r"page 1 is missing .*needs all its files beside it"):
            read_image(tmp_path / "a.ome.tif")


class TestJson:
    def test_tifffile(self, tmp_path):
        metadata = {"axes": "ZYX", "unit": "um", "spacing": 0.5}
        path = tmp_path / "a.tif"
        for settings in ({}, {"resolutionunit": 1}):  # tifffile's own default is inches, which it doesn't mean
            tifffile.imwrite(path, VOLUME, photometric="minisblack", resolution=(5, 5), metadata=metadata, **settings)
            assert open_image(path).space.spacing == pytest.approx((0.5e-3, 0.2e-3, 0.2e-3))
        for unit, density in ((3, 5e4), (2, 25400 * 5)):
            tifffile.imwrite(
                path,
                VOLUME,
                photometric="minisblack",
                resolution=(density,) * 2,
                resolutionunit=unit,
                metadata=metadata,
            )
            assert open_image(path).space.spacing == pytest.approx((0.5e-3, 0.2e-3, 0.2e-3))

    def test_two_units_that_could_both_be_meant(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, VOLUME[0], resolution=(5, 5), metadata={"axes": "YX", "unit": "um"})
        with pytest.raises(FileError, match=r"per inch by its tags, but its JSON metadata name another .*spacing="):
            open_image(path)

    def test_omes_names_in_tifffiles_json(self, tmp_path):
        sizes = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 0.5, "PhysicalSizeZUnit": "furlong"}
        tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack", metadata={"axes": "ZYX", **sizes})
        with pytest.raises(FileError, match="PhysicalSizeZUnit: 'furlong'"):
            open_image(tmp_path / "a.tif")

    def test_micro_manager(self, tmp_path):
        notes = json.dumps({"PixelSizeUm": 0.2, "z-step_um": -0.5}).encode()
        tags = [(51123, "s", 0, notes, True)]
        tifffile.imwrite(tmp_path / "a.tif", VOLUME, photometric="minisblack", metadata=None, extratags=tags)
        assert open_image(tmp_path / "a.tif").space.spacing == pytest.approx((0.5e-3, 0.2e-3, 0.2e-3))

    def test_fei(self, tmp_path):
        tags = [(34682, "s", 0, b"[Scan]\r\nPixelWidth=2e-9\r\nPixelHeight=3e-9\r\n", True)]
        tifffile.imwrite(tmp_path / "a.tif", VOLUME[0], metadata=None, extratags=tags)
        assert open_image(tmp_path / "a.tif").space.spacing == pytest.approx((3e-6, 2e-6))


@pytest.mark.parametrize(
    ("resolution", "notes", "told"),
    [
        ((1.0, 1.0), {"spacing": 4.0}, "1 along x, 1 along y, 4 along z"),
        ((5.0, 5.0), {"spacing": 0.2}, "0.2 along x, 0.2 along y, 0.2 along z"),
        ((5.0, 5.0), {"spacing": 1.0, "unit": "pixel"}, "0.2 along x, 0.2 along y, 1 along z"),
        ((5.0, 2.0), {}, "0.2 along x, 0.5 along y"),
    ],
)
def test_sizes_of_pages_in_no_unit_are_refused_unless_the_spacing_is_told(resolution, notes, told, tmp_path):
    path = tmp_path / "a.tif"
    tags = {"resolution": resolution, "resolutionunit": "NONE", "photometric": "minisblack"}
    tifffile.imwrite(path, VOLUME, metadata={"axes": "ZYX", **notes}, **tags)
    with pytest.raises(FileError, match=rf"\({told}\), but in no unit of length"):
        open_image(path)
    assert open_image(path, spacing=2.0).space.spacing == (2, 2, 2)


@pytest.mark.parametrize("notes", [{}, {"unit": "pixel", "spacing": 0.2}])
def test_pages_that_are_alike_in_no_unit_are_in_voxels(notes, tmp_path):
    path = tmp_path / "a.tif"
    tags = {"resolution": (5.0, 5.0), "resolutionunit": "NONE", "photometric": "minisblack"}
    tifffile.imwrite(path, VOLUME, metadata={"axes": "ZYX", **notes}, **tags)
    assert open_image(path).space.spacing == (1, 1, 1)


def test_resolution_tags_of_a_stack_do_not_say_its_planes(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", VOLUME, photometric="minisblack", metadata=None, resolution=(2e4, 2e4), resolutionunit=3
    )
    with pytest.raises(FileError, match="along x, y, not along z"):
        open_image(tmp_path / "a.tif")
    assert open_image(tmp_path / "a.tif", ndim=2).space.spacing == pytest.approx((0.5e-3, 0.5e-3))


def test_a_file_of_unlike_pages_is_refused_unless_told_which(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(VOLUME[0], metadata=None)
        file.write(VOLUME[1, :2], metadata=None)
    with pytest.raises(FileError, match="holds 2 images"):
        open_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", dataset="1").array[0], VOLUME[1, :2])
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(VOLUME[0], metadata=None)
        file.write(VOLUME[1, :2], metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif").array[0], VOLUME[0])


@pytest.mark.parametrize(
    "name", ["50% Schädel #1.ome.tif", "a b.tif", "Ω.zarr", "x%05d.npy", "ü%20.png", "100%s.zarr", "a &#?~.zarr"]
)
def test_any_legal_name_is_written_and_read(name, tmp_path):
    space = Space.from_spacing((4, 5), (0.5, 0.25))
    pixels = VOLUME[:1]
    np.testing.assert_array_equal(read_image(write_image(tmp_path / name, pixels, space)).array, pixels)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_windows_of_a_calibrated_file_are_windows(tmp_path):
    path = imagej(tmp_path / "a.tif", cf=0, c0=1.0, c1=2.0, vunit="HU", unit="um", spacing=1.0)
    window = open_image(path).read((slice(2, 3), slice(0, 1), slice(0, 2)))
    np.testing.assert_array_equal(window[0], 1 + 2 * VOLUME[2:3, :1, :2].astype(np.float32))

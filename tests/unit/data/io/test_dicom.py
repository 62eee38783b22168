"""DICOM series made here, with every way in which they come broken."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from voxelry.core.errors import FileError
from voxelry.io import open_image, read_image

ROTATION = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
ROTATION[:, 2] = np.cross(ROTATION[:, 0], ROTATION[:, 1])  # columns: along a row, along a column, normal
ORIGIN = np.array([-40.0, 25.0, 300.0])
ROWS, COLUMNS, GAP = 1.5, 0.75, 4.0  # mm between rows, columns, slices
VOLUME = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3) - 7


def save(folder, name, plane, position, *, series="1.2.3", **fields):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(folder / name), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.Modality = series, "MR"
    data.Rows, data.Columns = plane.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.PixelSpacing = [ROWS, COLUMNS]
    data.ImageOrientationPatient = [f"{value:.10f}" for value in ROTATION[:, :2].T.ravel()]
    data.ImagePositionPatient = [f"{value:.8f}" for value in position]
    data.InstanceNumber = 1
    data.PixelData = plane.astype("<i2").tobytes()
    for key, value in fields.items():
        if value is None:
            delattr(data, key)
        else:
            setattr(data, key, value)
    data.save_as(folder / name, enforce_file_format=True)


def place(plane):
    return ORIGIN + plane * GAP * ROTATION[:, 2]


def save_series(folder, *, planes=range(5), **fields):
    folder.mkdir(exist_ok=True)
    for name, plane in zip((7, 2, 9, 1, 5), planes, strict=False):  # names in no order
        save(folder, f"{name}.dcm", VOLUME[plane], place(plane), **fields)
    return folder


def test_an_oblique_series_is_sorted_and_placed(tmp_path):
    image = open_image(save_series(tmp_path))
    np.testing.assert_array_equal(image.read()[0], VOLUME)
    for index in ((0, 0, 0), (4, 3, 2), (1, 2, 0)):
        z, y, x = index
        lps = place(z) + y * ROWS * ROTATION[:, 1] + x * COLUMNS * ROTATION[:, 0]
        np.testing.assert_allclose(image.space.to_world(np.array(index)), lps * [-1, -1, 1], atol=1e-5)
    assert image.has_orientation
    window = (slice(1, 4), slice(0, 2), slice(1, 3))
    np.testing.assert_array_equal(image.read(window)[0], VOLUME[window])


def test_slope_and_intercept(tmp_path):
    whole = read_image(save_series(tmp_path / "whole", RescaleSlope=2, RescaleIntercept=-1000)).array
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole[0], VOLUME * 2 - 1000)
    broken = read_image(save_series(tmp_path / "broken", RescaleSlope=0.5, RescaleIntercept=0.25)).array
    assert broken.dtype == np.float32
    np.testing.assert_array_equal(broken[0], VOLUME * 0.5 + 0.25)


def test_a_missing_slice_is_named(tmp_path):
    with pytest.raises(FileError, match=r"slices 1 and 2 \(sorted\) are 8 mm apart, the others 4 \(a slice is missing"):
        open_image(save_series(tmp_path, planes=(0, 1, 3, 4)))


def test_a_doubled_slice_is_refused(tmp_path):
    with pytest.raises(FileError, match="missing or doubled"):
        open_image(save_series(tmp_path, planes=(0, 1, 2, 2)))


def test_every_position_twice_is_two_channels(tmp_path):
    for plane in range(5):
        save(tmp_path, f"a{plane}", VOLUME[plane], place(plane), InstanceNumber=2)
        save(tmp_path, f"b{plane}", VOLUME[plane] + 100, place(plane), InstanceNumber=1)
    np.testing.assert_array_equal(read_image(tmp_path).array, [VOLUME + 100, VOLUME])


def test_several_series_have_to_be_chosen(tmp_path):
    save_series(tmp_path)
    save(tmp_path, "other.dcm", VOLUME[0], ORIGIN, series="9.8.7")
    with pytest.raises(
        FileError,
        match=r"2 series .*by its UID: .*--option .dataset=.1.2.3.. elsewhere; there are .*9\.8\.7 \(1 images, MR\)",
    ):
        open_image(tmp_path)
    assert open_image(tmp_path, dataset="1.2.3").space.shape == (5, 4, 3)
    assert open_image(tmp_path, dataset="9.8.7").space.shape == (4, 3)
    with pytest.raises(FileError, match=r"no series 5\.5"):
        open_image(tmp_path, dataset="5.5")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "differ in ImageOrientationPatient"),
        ({"PixelSpacing": [1, 1]}, "differ in PixelSpacing"),
        ({"Rows": 3}, "differ in Rows"),
        ({"ImagePositionPatient": None}, "differ in ImagePositionPatient"),
    ],
)
def test_slices_that_do_not_belong_together(fields, fault, tmp_path):
    save_series(tmp_path, planes=(0, 1, 2))
    save(tmp_path, "last.dcm", VOLUME[3], place(3), **fields)
    with pytest.raises(FileError, match=fault):
        open_image(tmp_path)


def test_a_tilted_gantry_shears_the_affine(tmp_path):
    tilt = ROTATION[:, 1] * 0.8
    for plane in range(5):
        save(tmp_path, f"{plane}.dcm", VOLUME[plane], place(plane) + plane * tilt)
    image = open_image(tmp_path)
    expected = (GAP * ROTATION[:, 2] + tilt) * [-1, -1, 1]
    np.testing.assert_allclose(image.space.affine[:3, 0], expected, atol=1e-5)


def test_one_slice_keeps_its_plane(tmp_path):
    save(tmp_path, "a.dcm", VOLUME[2], place(2))
    image = open_image(tmp_path / "a.dcm")
    assert image.space.shape == (4, 3)
    np.testing.assert_allclose(image.space.origin, place(2) * [-1, -1, 1], atol=1e-5)
    assert open_image(tmp_path / "a.dcm", ndim=3).space.shape == (1, 4, 3)


def test_an_enhanced_multi_frame_file_is_a_volume(tmp_path):
    frames = []
    for plane in (3, 0, 4, 1, 2):
        item, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [f"{value:.8f}" for value in place(plane)]
        item.PlanePositionSequence = [position]
        frames.append(item)
    save(
        tmp_path,
        "a.dcm",
        VOLUME[[3, 0, 4, 1, 2]],
        ORIGIN,
        NumberOfFrames=5,
        ImagePositionPatient=None,
        PerFrameFunctionalGroupsSequence=frames,
    )
    image = open_image(tmp_path / "a.dcm")
    np.testing.assert_array_equal(image.read()[0], VOLUME)
    np.testing.assert_allclose(image.space.affine[:3, 0], GAP * ROTATION[:, 2] * [-1, -1, 1], atol=1e-5)


def test_more_pixels_than_bytes_are_refused_before_reading(tmp_path):
    save(tmp_path, "a.dcm", VOLUME[0], ORIGIN, Rows=60000, Columns=60000)
    with pytest.raises(FileError, match="cut short"):
        open_image(tmp_path / "a.dcm")


def test_a_series_beside_other_files(tmp_path):
    save_series(tmp_path)
    (tmp_path / "notes.txt").write_text("scanned on Monday")
    assert open_image(tmp_path).space.shape == (5, 4, 3)
    (tmp_path / "fake.dcm").write_text("scanned on Monday")
    with pytest.raises(FileError, match=r"fake\.dcm: isn't a DICOM file"):
        open_image(tmp_path)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"WindowCenter": 40, "WindowWidth": 400}, [(-160, 240, "")]),
        (
            {"WindowCenter": [40, -600], "WindowWidth": [400, 1500], "WindowCenterWidthExplanation": ["SOFT", "LUNG"]},
            [(-160, 240, "SOFT"), (-1350, 150, "LUNG")],
        ),
        ({"WindowCenter": [40, 50], "WindowWidth": [0, 10]}, [(45, 55, "")]),  # no width is no window
        ({"WindowCenter": 40}, None),
        ({}, None),
    ],
)
def test_the_windows_that_a_series_is_to_be_seen_in_are_told(tmp_path, fields, windows):
    image = open_image(save_series(tmp_path / "series", **fields))
    assert image.metadata.get("windows") == windows

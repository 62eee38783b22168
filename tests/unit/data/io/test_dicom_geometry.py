"""Geometry and values where each kind of DICOM object keeps them; PS3.3 is the source of what is right."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from voxelry.core.errors import FileError
from voxelry.io import open_image, read_image

CT, MR, ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "4.1"))
NM, CAPTURE, DOSE = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("20", "7.3", "481.2"))
ULTRASOUND, X_RAY, ANGIO, MAP = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("6.1", "1.1", "12.1", "30"))
AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
POINTERS = {"FrameTime": 0x00181063, "SliceLocationVector": 0x00182005, "SliceVector": 0x00540080}


def save(path, kind, pixels, **fields):
    """A file of `pixels`, `(rows, columns)` or `(frames, rows, columns)`."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.Modality, data.InstanceNumber = "1.2.3", "OT", 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    if pixels.dtype.kind == "f":
        del data.BitsStored, data.HighBit, data.PixelRepresentation
        data.BitsAllocated, data.FloatPixelData = 32, pixels.astype("<f4").tobytes()
    else:
        data.PixelData = pixels.astype("<u2").tobytes()
    for key, value in fields.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)
    return path


def item(**fields):
    data = pydicom.Dataset()
    for key, value in fields.items():
        setattr(data, key, value)
    return data


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


@pytest.mark.parametrize("step", [4.5e-3, 9e-3, 20e-3, 4.5e-6, 700.0])
@pytest.mark.parametrize("count", [8, 9])
def test_no_distance_of_slices_is_too_small(step, count, tmp_path):
    for plane in range(count):
        place = [0.0, 0.0, float(f"{plane * step:.6g}")]
        fields = {"PixelSpacing": [step, step], "ImageOrientationPatient": AXIAL, "ImagePositionPatient": place}
        save(tmp_path / f"{plane}.dcm", CT, np.full((3, 2), plane), **fields)
    image = read_image(tmp_path)
    assert image.array[0, :, 0, 0].tolist() == list(range(count))
    assert image.space.spacing == pytest.approx((step, step, step), rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_nuclear_medicine_stacks_in_the_direction_of_the_sign(sign, tmp_path):
    detector = item(ImagePositionPatient=[-20.0, -30.0, 100.0], ImageOrientationPatient=AXIAL)
    path = save(
        tmp_path / "a.dcm",
        NM,
        ramp(12, 3, 4),  # two time slots of six slices
        PixelSpacing=[3.0, 2.0],
        SpacingBetweenSlices=sign * 4.0,
        FrameIncrementPointer=[0x00540070, POINTERS["SliceVector"]],
        SliceVector=[1, 2, 3, 4, 5, 6] * 2,
        DetectorInformationSequence=[detector],
    )
    image = read_image(path)
    assert image.array.shape == (2, 6, 3, 4)
    assert image.space.spacing == (4.0, 3.0, 2.0)
    first = 0 if sign > 0 else 5  # the plane of the file's first frame
    np.testing.assert_array_equal(image.array[:, first], ramp(12, 3, 4)[[0, 6]])
    np.testing.assert_allclose(image.space.to_world(np.array([first, 0, 0])), [20, 30, 100])
    np.testing.assert_allclose(image.space.to_world(np.array([5 - first, 0, 0])), [20, 30, 100 + sign * 20])


def test_two_detectors_are_two_stacks(tmp_path):
    fields = {"FrameIncrementPointer": 0x00540020, "DetectorVector": [1, 2], "PixelSpacing": [2, 2]}
    path = save(tmp_path / "a.dcm", NM, ramp(2, 3, 4), **fields)
    with pytest.raises(FileError, match="lie on 2 grids: they differ in StackID, detector or angle"):
        open_image(path)
    np.testing.assert_array_equal(read_image(path, stack=1).array, ramp(2, 3, 4)[1:])


@pytest.mark.parametrize("placed", [True, False])
def test_frames_with_a_distance_are_planes(placed, tmp_path):
    place = {"ImageOrientationPatient": CORONAL, "ImagePositionPatient": [1.0, 2.0, 3.0]} if placed else {}
    path = save(tmp_path / "a.dcm", CAPTURE, ramp(5, 3, 4), PixelSpacing=[0.3, 0.2], SpacingBetweenSlices=0.7, **place)
    image = read_image(path)
    np.testing.assert_array_equal(image.array[0], ramp(5, 3, 4))
    assert image.space.spacing == pytest.approx((0.7, 0.3, 0.2))
    if placed:  # the normal of these rows and columns points to +y in LPS
        np.testing.assert_allclose(image.space.to_world(np.array([4, 1, 0])), [-1, -2 - 4 * 0.7, 3 - 0.3])


def test_frames_that_do_not_say_what_they_are(tmp_path):
    path = save(tmp_path / "a.dcm", CAPTURE, ramp(5, 3, 4), PixelSpacing=[0.3, 0.2])
    with pytest.raises(FileError, match=r"its 5 frames are planes or moments.*spacing=\[1, 0.3, 0.2\].*ndim=2"):
        open_image(path)
    with pytest.raises(FileError, match="doesn't say how far apart its frames are"):
        open_image(path, ndim=3)
    assert open_image(path, ndim=3, spacing=[0.5, 0.3, 0.2]).space.spacing == pytest.approx((0.5, 0.3, 0.2))
    np.testing.assert_array_equal(read_image(path, ndim=3, spacing=[0.5, 0.3, 0.2]).array[0], ramp(5, 3, 4))
    np.testing.assert_array_equal(read_image(path, ndim=2).array, ramp(5, 3, 4))


def test_slice_locations_are_planes_and_times_are_channels_in_place(tmp_path):
    path = save(
        tmp_path / "a.dcm",
        CAPTURE,
        ramp(3, 3, 4),
        PixelSpacing=[1, 1],
        FrameIncrementPointer=POINTERS["SliceLocationVector"],
        SliceLocationVector=[10.0, 7.5, 5.0],
    )
    image = read_image(path)
    assert image.space.spacing == (2.5, 1, 1)
    np.testing.assert_array_equal(image.array[0], ramp(3, 3, 4)[::-1])
    place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [1.0, 2.0, 3.0], "PixelSpacing": [1, 1]}
    path = save(tmp_path / "b.dcm", MR, ramp(3, 3, 4), FrameIncrementPointer=POINTERS["FrameTime"], **place)
    image = open_image(path)
    assert image.shape == (3, 3, 4)
    assert image.has_orientation
    np.testing.assert_allclose(image.space.origin, [-1, -2, 3])


@pytest.mark.parametrize("offsets", [[0.0, 2.5, 5.0], [40.0, 42.5, 45.0]])
def test_dose_offsets_are_relative_or_the_z_itself(offsets, tmp_path):
    fields = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0.0, 0.0, 40.0], "PixelSpacing": [2, 3]}
    path = save(tmp_path / "a.dcm", DOSE, ramp(3, 3, 4), GridFrameOffsetVector=offsets, DoseGridScaling=0.5, **fields)
    image = read_image(path)
    np.testing.assert_array_equal(image.array[0], ramp(3, 3, 4) * 0.5)
    assert image.space.spacing == (2.5, 2, 3)
    np.testing.assert_allclose(image.space.origin, [0, 0, 40])


def test_dose_offsets_that_are_neither_are_refused(tmp_path):
    fields = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0.0, 0.0, 40.0], "PixelSpacing": [2, 3]}
    path = save(tmp_path / "a.dcm", DOSE, ramp(3, 3, 4), GridFrameOffsetVector=[7.0, 9.5, 12.0], **fields)
    with pytest.raises(FileError, match="GridFrameOffsetVector begins with 7; expected 0 or 40"):
        open_image(path)
    path = save(tmp_path / "b.dcm", DOSE, ramp(3, 3, 4), GridFrameOffsetVector=[0.0, 2.5], **fields)
    with pytest.raises(FileError, match="expected 3 numbers in GridFrameOffsetVector, one per frame, got 2"):
        open_image(path)


def enhanced(path, planes, kind=ENHANCED_MR, shared=(), **fields):
    """A file of one frame per (orientation, position, more functional groups)."""
    groups = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=rotation)],
            PlanePositionSequence=[item(ImagePositionPatient=place)],
            **more,
        )
        for rotation, place, more in planes
    ]
    return save(
        path,
        kind,
        ramp(len(planes), 3, 4),
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[item(**dict(shared))],
        **fields,
    )


MEASURES = {"PixelMeasuresSequence": [item(PixelSpacing=[5, 4], SliceThickness=6)]}


def test_frames_of_several_orientations_are_stacks_to_choose_from(tmp_path):
    axial = [(AXIAL, [0.0, 0.0, z], {}) for z in (20.0, 0.0, 40.0)]
    coronal = [(CORONAL, [0.0, y, 100.0], {}) for y in (-10.0, 0.0)]
    path = enhanced(tmp_path / "a.dcm", axial + coronal, shared=MEASURES)
    with pytest.raises(
        FileError,
        match=r"2 grids.*ImageOrientationPatient \(choose .*--option stack=0 .*; there are 0 \(3 frames .*axial\), 1",
    ):
        open_image(path)
    first, second = (read_image(path, stack=number) for number in (0, 1))
    np.testing.assert_array_equal(first.array[0], ramp(5, 3, 4)[[1, 0, 2]])
    assert first.space.spacing == (20, 5, 4)
    np.testing.assert_array_equal(second.array[0], ramp(5, 3, 4)[[3, 4]])
    np.testing.assert_allclose(second.space.affine[:3, 0], [0, -10, 0])  # from one coronal plane to the next
    with pytest.raises(FileError, match=r"has no stack 2 .*there are 2, counted from 0"):
        open_image(path, stack=2)


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ([{"PixelMeasuresSequence": [item(PixelSpacing=[step, step])]} for step in (5, 4)], "PixelSpacing"),
        ([{"FrameContentSequence": [item(StackID=name)]} for name in "12"], "StackID"),
    ],
)
def test_frames_that_differ_otherwise_are_stacks_too(groups, word, tmp_path):
    planes = [(AXIAL, [0.0, 0.0, 6.0 * k], more) for k, more in enumerate(groups)]
    path = enhanced(tmp_path / "a.dcm", planes)
    with pytest.raises(FileError, match=f"differ in {word}"):
        open_image(path)
    np.testing.assert_array_equal(read_image(path, stack=1).array, ramp(2, 3, 4)[1:])


def test_a_localizer_in_a_series_folder_is_a_stack_of_its_own(tmp_path):
    for plane in range(3):
        place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0.0, 0.0, 2.0 * plane]}
        save(tmp_path / f"{plane}.dcm", CT, np.full((3, 4), plane), PixelSpacing=[1, 1], InstanceNumber=plane, **place)
    place = {"ImageOrientationPatient": CORONAL, "ImagePositionPatient": [0.0, 0.0, 9.0]}
    save(tmp_path / "scout.dcm", CT, np.full((5, 6), 9), PixelSpacing=[1, 1], InstanceNumber=9, **place)
    with pytest.raises(FileError, match=r"differ in Rows, Columns, ImageOrientationPatient.*, 1 \(1 frames of 5 x 6"):
        open_image(tmp_path)
    assert read_image(tmp_path, stack=0).array[0, :, 0, 0].tolist() == [0, 1, 2]


def test_values_of_a_frame_come_before_shared_and_top_level_ones(tmp_path):
    def scaled(slope):
        return {"PixelValueTransformationSequence": [item(RescaleSlope=slope, RescaleIntercept=slope - 1)]}

    planes = [(AXIAL, [0.0, 0.0, 2.0 * k], scaled(k + 1)) for k in range(3)]
    path = enhanced(tmp_path / "a.dcm", planes, shared=MEASURES, PixelSpacing=[9, 9], RescaleSlope=100)
    image = read_image(path)
    assert image.space.spacing == (2, 5, 4)
    np.testing.assert_array_equal(image.array[0], [ramp(3, 3, 4)[k] * (k + 1) + k for k in range(3)])


def test_projections_at_several_angles_are_no_volume(tmp_path):
    fields = {"FrameIncrementPointer": POINTERS["FrameTime"], "ImagerPixelSpacing": [0.3, 0.3]}
    path = save(tmp_path / "a.dcm", ANGIO, ramp(2, 3, 4), PositionerPrimaryAngleIncrement=[0.0, 1.5], **fields)
    with pytest.raises(FileError, match="angle"):
        open_image(path)
    path = save(tmp_path / "b.dcm", ANGIO, ramp(2, 3, 4), **fields)
    assert open_image(path).shape == (2, 3, 4)


def region(delta, units=3, picture=1):
    return item(
        RegionSpatialFormat=picture,
        PhysicalUnitsXDirection=units,
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=delta,
        PhysicalDeltaY=delta / 2,
    )


def test_ultrasound_has_its_spacing_in_regions_in_centimetres(tmp_path):
    regions = [region(0.04), region(1.0, units=4, picture=3)]  # the second is a spectrum over time
    path = save(tmp_path / "a.dcm", ULTRASOUND, ramp(3, 4), SequenceOfUltrasoundRegions=regions)
    assert open_image(path).space.spacing == pytest.approx((0.2, 0.4))


@pytest.mark.parametrize(
    ("regions", "fault"),
    [
        ([region(0.04), region(0.05)], "2 ultrasound regions differ in scale"),
        ([region(0.04, units=4)], "no size in centimetres"),
        ([region(0.04, units=4, picture=2)], "no 2-D picture"),
    ],
)
def test_ultrasound_regions_that_give_no_spacing(regions, fault, tmp_path):
    path = save(tmp_path / "a.dcm", ULTRASOUND, ramp(3, 4), SequenceOfUltrasoundRegions=regions)
    with pytest.raises(FileError, match=rf"{fault}.*spacing="):
        open_image(path)
    assert open_image(path, spacing=[0.2, 0.3]).space.spacing == (0.2, 0.3)


def test_a_detector_is_farther_than_the_patient(tmp_path):
    fields = {"ImagerPixelSpacing": [0.3, 0.15], "EstimatedRadiographicMagnificationFactor": 1.5}
    path = save(tmp_path / "a.dcm", X_RAY, ramp(3, 4), **fields)
    assert open_image(path).space.spacing == pytest.approx((0.2, 0.1))


def test_an_aspect_ratio_alone_is_kept(tmp_path):
    path = save(tmp_path / "a.dcm", CAPTURE, ramp(1, 3, 4), PixelAspectRatio=[3, 2])
    assert open_image(path).space.spacing == (1.5, 1)


@pytest.mark.parametrize("representation", [0, 1])
def test_bits_outside_of_the_stored_ones_are_no_part_of_a_value(representation, tmp_path):
    values = np.array([[0, 1, 2047, 2048], [4095, 100, 3000, 7]], np.uint16)
    expected = np.where(values >= 2048, values.astype(int) - 4096, values) if representation else values
    fields = {"BitsStored": 12, "PixelRepresentation": representation}
    above = save(tmp_path / "above.dcm", CT, values | 0xB000, HighBit=11, **fields)
    np.testing.assert_array_equal(read_image(above).array[0], expected)
    below = save(tmp_path / "below.dcm", CT, values << 4 | 0xB, HighBit=15, **fields)
    np.testing.assert_array_equal(read_image(below).array[0], expected)
    broken = save(tmp_path / "broken.dcm", CT, values, HighBit=10, **fields)
    with pytest.raises(FileError, match="expected BitsStored 12 to end at HighBit 10 of 16 bits"):
        read_image(broken)


def test_a_table_of_the_modality_is_applied(tmp_path):
    table = item(LUTDescriptor=[4, 0, 16], LUTData=[5, 50, 500, 5000], ModalityLUTType="US")
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    path = save(tmp_path / "a.dcm", X_RAY, ramp(2, 2), ModalityLUTSequence=[table])
    image = read_image(path)
    assert image.array.dtype == np.uint16
    np.testing.assert_array_equal(image.array[0], [[5, 50], [500, 5000]])


def test_parametric_maps_hold_floats_or_real_world_values(tmp_path):
    world = [item(RealWorldValueSlope=0.25, RealWorldValueIntercept=-1.0)]
    planes = [(AXIAL, [0.0, 0.0, 2.0 * k], {"RealWorldValueMappingSequence": world}) for k in range(3)]
    image = read_image(enhanced(tmp_path / "a.dcm", planes, kind=MAP, shared=MEASURES))
    np.testing.assert_array_equal(image.array[0], ramp(3, 3, 4) * 0.25 - 1)
    place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0.0, 0.0, 0.0], "PixelSpacing": [1, 1]}
    floats = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.dcm", MAP, floats, **place)).array[0], floats)


def test_a_slope_of_zero_is_refused(tmp_path):
    path = save(tmp_path / "a.dcm", CT, ramp(3, 4), RescaleSlope=0, RescaleIntercept=5)
    with pytest.raises(FileError, match="expected a rescale slope other than 0"):
        open_image(path)


def test_copies_and_notes_of_macos_are_passed_over(tmp_path):
    for plane in range(3):
        place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0.0, 0.0, 2.0 * plane]}
        path = save(tmp_path / f"{plane}.dcm", CT, np.full((3, 4), plane), PixelSpacing=[1, 1], **place)
        (tmp_path / f"{plane} (copy).dcm").write_bytes(path.read_bytes())
        (tmp_path / f"._{plane}.dcm").write_bytes(b"\0\5\26\7")
    assert open_image(tmp_path).shape == (1, 3, 3, 4)


def test_planes_that_drift_are_no_volume(tmp_path):
    for plane in range(5):
        place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0.1 * plane**2, 0.0, 2.0 * plane]}
        save(tmp_path / f"{plane}.dcm", CT, np.full((3, 4), plane), PixelSpacing=[1, 1], **place)
    with pytest.raises(FileError, match=r"don't lie in a row: slice 2 \(sorted\) is 0.4 mm beside it"):
        open_image(tmp_path)


def test_a_mosaic_is_refused_and_the_word_alone_is_not(tmp_path):
    path = save(tmp_path / "a.dcm", MR, ramp(6, 6), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    with pytest.raises(FileError, match="mosaic of several slices tiled in one plane"):
        open_image(path)
    planes = [(AXIAL, [0.0, 0.0, 2.0 * k], {}) for k in range(3)]
    path = enhanced(tmp_path / "b.dcm", planes, shared=MEASURES, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])
    assert open_image(path).shape == (1, 3, 3, 4)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    save(tmp_path / "a.dcm", "1.2.840.10008.5.1.4.1.1.66.4", ramp(1, 3, 4))
    with pytest.raises(FileError, match="a segmentation without segments"):
        open_image(tmp_path)
    save(tmp_path / "b.dcm", "1.2.840.10008.5.1.4.1.1.66.4", ramp(1, 3, 4))
    with pytest.raises(FileError, match="no DICOM images, but 2 x Segmentation Storage"):
        open_image(tmp_path)


def test_a_position_of_two_numbers_is_refused(tmp_path):
    place = {"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [1.0, 2.0]}
    path = save(tmp_path / "a.dcm", CT, ramp(3, 4), PixelSpacing=[1, 1], **place)
    with pytest.raises(FileError, match=r"expected three numbers in ImagePositionPatient, got \[1.0, 2.0\]"):
        open_image(path)

"""Several images in one place: the same channel in every plane, whatever the order of files and instance numbers."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from voxelry.core.errors import FileError
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.io import open_image, read_image

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
BITS = "1.2.840.10008.5.1.4.1.1.7"
MAP = "1.2.840.10008.5.1.4.1.1.30"


def save(path, pixels, kind=MRImageStorage, **fields):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.Modality = "1.2.3", "MR"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PixelData = pixels.tobytes()
    for key, value in fields.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)
    return path


def save_passes(folder, instances, told, name="{pass_}{plane}"):
    """Two passes over three planes; the pixels are 100 * pass + plane."""
    for pass_ in range(2):
        for plane in range(3):
            save(
                folder / name.format(pass_=(pass_ + plane) % 2, plane=plane),
                np.full((2, 4), 100 * pass_ + plane, dtype=np.uint16),
                InstanceNumber=instances(pass_, plane),
                ImagePositionPatient=[0, 0, 2.5 * plane],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[0.5, 0.5],
                **{key: values[pass_] for key, values in told.items()},
            )
    return folder


@pytest.mark.parametrize(
    "instances",
    [
        lambda pass_, plane: plane + 1,  # begins anew
        lambda pass_, plane: plane + 1 if pass_ == 0 else 3 - plane,  # runs back
        lambda pass_, plane: 2 * plane + (pass_ + plane) % 2,  # alternates
        lambda pass_, plane: 0,
    ],
)
@pytest.mark.parametrize(
    "told",
    [
        {"EchoTime": ["4.6", "9.2"]},
        {"ImageType": [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]},
        {"AcquisitionNumber": [1, 2]},
        {"DiffusionBValue": [0.0, 1000.0]},
        {"TemporalPositionIdentifier": [1, 2]},
    ],
)
def test_a_channel_is_one_echo_in_every_plane(instances, told, tmp_path):
    array = read_image(save_passes(tmp_path, instances, told)).array
    assert array.shape == (2, 3, 2, 4)
    assert array[:, :, 0, 0].tolist() == [[0, 1, 2], [100, 101, 102]]


def test_instance_numbers_decide_where_they_agree_with_the_headers(tmp_path):
    folder = save_passes(tmp_path, lambda pass_, plane: 10 - 3 * pass_ + plane, {"EchoTime": [1, 2]})
    assert read_image(folder).array[:, 0, 0, 0].tolist() == [100, 0]


def test_what_nothing_tells_apart_is_refused(tmp_path):
    folder = save_passes(tmp_path, lambda pass_, plane: plane + 1, {})
    with pytest.raises(FileError, match=r"same InstanceNumber \(1\); nothing tells which channel.*folder of their own"):
        open_image(folder)


def test_the_frames_of_an_enhanced_object_go_by_their_dimensions(tmp_path):
    """DimensionIndexValues: stack, place in the stack, echo; frames of the second plane the other way round."""
    groups = []
    for plane, echo in ((0, 0), (0, 1), (1, 1), (1, 0)):
        content, place, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        content.StackID, content.DimensionIndexValues = "1", [1, plane + 1, echo + 1]
        place.ImagePositionPatient = [0, 0, 3 * plane]
        group.FrameContentSequence, group.PlanePositionSequence = [content], [place]
        groups.append(group)
    shared, measures, turn = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, turn.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    pixels = np.repeat(np.array([0, 100, 101, 1], dtype=np.uint16), 4).reshape(4, 2, 2)
    path = save(
        tmp_path / "a.dcm",
        pixels,
        ENHANCED_MR,
        NumberOfFrames=4,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
    )
    assert read_image(path).array[:, :, 0, 0].tolist() == [[0, 1], [100, 101]]


def test_single_bits_are_counted_as_they_are_packed(tmp_path):
    bits = np.random.default_rng(2).integers(0, 2, (160, 120)).astype(np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    path = save(tmp_path / "a.dcm", bits, BITS, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed)
    np.testing.assert_array_equal(read_image(path).array[0], bits)


def test_double_precision_stays(tmp_path):
    values = 1000 + np.arange(8, dtype=np.float64).reshape(2, 4) * 1e-9
    path = save(tmp_path / "a.dcm", np.zeros((2, 4), np.uint16), MAP)
    data = pydicom.dcmread(path)
    del data.PixelData, data.PixelRepresentation, data.BitsStored, data.HighBit
    data.BitsAllocated, data.DoubleFloatPixelData = 64, values.tobytes()
    data.save_as(path)
    found = read_image(path).array
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[0], values)


def test_slices_whose_pixels_have_no_size_are_refused(tmp_path):
    for plane in range(3):
        place = {"ImagePositionPatient": [0, 0, 2.5 * plane], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        save(tmp_path / f"{plane}", np.full((2, 4), plane, dtype=np.uint16), **place)
    with pytest.raises(FileError, match="planes are, not its rows and columns"):
        open_image(tmp_path)
    assert open_image(tmp_path, spacing=[2.5, 0.5, 0.5]).space.spacing == (2.5, 0.5, 0.5)


def enhanced(path, kind, *, positions=(), stacks=(), volume=False, **fields):
    """Four frames of value 0 to 3, placed in the patient, or in the volume of an ultrasound probe."""
    suffix, end = ("Volume", "VolumeSequence") if volume else ("Patient", "Sequence")
    groups = [pydicom.Dataset() for _ in range(4)]
    shared, measures = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [0.5, 0.25]
    shared.PixelMeasuresSequence = [measures]
    if positions:
        turn = pydicom.Dataset()
        setattr(turn, f"ImageOrientation{suffix}", [1, 0, 0, 0, 1, 0])
        setattr(shared, f"PlaneOrientation{end}", [turn])
    for group, height in zip(groups, positions, strict=False):
        place = pydicom.Dataset()
        setattr(place, f"ImagePosition{suffix}", [1, 2, height])
        setattr(group, f"PlanePosition{end}", [place])
    for group, stack in zip(groups, stacks, strict=False):
        content = pydicom.Dataset()
        content.StackID = stack
        group.FrameContentSequence = [content]
    pixels = np.repeat(np.arange(4, dtype=np.uint16), 8 * 8).reshape(4, 8, 8)
    groups_of = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": groups}
    return save(path, pixels, kind, NumberOfFrames=4, **groups_of, **fields)


def test_an_ultrasound_volume_lies_in_the_frame_of_its_probe(tmp_path):
    image = read_image(enhanced(tmp_path / "a.dcm", "1.2.840.10008.5.1.4.1.1.6.2", positions=[9, 7, 5, 3], volume=True))
    assert image.array[0, :, 0, 0].tolist() == [3, 2, 1, 0]
    assert image.space.spacing == (2.0, 0.5, 0.25)
    np.testing.assert_allclose(image.space.to_world(np.array([1, 0, 0])), [-1, -2, 5])


def test_enhanced_angiography_is_moments(tmp_path):
    image = read_image(enhanced(tmp_path / "a.dcm", "1.2.840.10008.5.1.4.1.1.12.1.1"))
    assert image.array[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert image.space.spacing == (0.5, 0.25)


def test_intravascular_frames_have_to_be_told_apart(tmp_path):
    path = enhanced(tmp_path / "a.dcm", "1.2.840.10008.5.1.4.1.1.14.1")
    with pytest.raises(FileError, match=r"{ndim: 3, spacing: \[1, 0\.5, 0\.25\]}.* of channels .*--option ndim=2"):
        open_image(path)
    assert open_image(path, ndim=3, spacing=[0.2, 0.5, 0.25]).space.spacing == (0.2, 0.5, 0.25)
    assert open_image(path, ndim=2).channels == 4


def test_a_training_takes_the_stack_that_is_told(tmp_path):
    (tmp_path / "volumes").mkdir()
    enhanced(tmp_path / "volumes" / "a.dcm", ENHANCED_MR, positions=[0, 2, 10, 13], stacks=["1", "1", "2", "2"])
    with pytest.raises(FileError, match="lie on 2 grids"):
        VolumeDataset(find_cases(tmp_path))[0]
    for stack, step in ((0, 2.0), (1, 3.0)):
        sample = VolumeDataset(find_cases(tmp_path, options={"stack": stack}), preprocess=Preprocess(normalise=None))[0]
        assert sample.image.unique().tolist() == [2 * stack, 2 * stack + 1]
        assert max(sample.space.spacing) == step

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.label_grid import Reference, open_labels
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.io import open_image, write_image

SHAPE = (6, 5, 7)
SPACING = (2.0, 0.6, 0.5)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """5 x 7 pixels in 6 planes, at (1, 2, 3) in LPS."""
    space = Space.from_spacing(SHAPE, SPACING)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ space.affine
    affine[:3, 3] = [-1, -2, 3]
    return write_image(tmp_path / "volumes/a.nii.gz", np.zeros((1, *SHAPE), np.float32), Space(SHAPE, affine))


def write_seg_nrrd(path: Path, layers: np.ndarray, fields: dict[str, object], start=(0, 0, 0)) -> Path:
    """`layers (*spatial, count)`, beginning at a voxel of the image."""
    depth, rows, columns, count = layers.shape
    origin = [1 + 0.5 * start[2], 2 + 0.6 * start[1], 3 + 2.0 * start[0]]
    several = count > 1
    lines = [
        "NRRD0004",
        "type: unsigned char",
        f"dimension: {3 + several}",
        "space: left-posterior-superior",
        f"sizes: {f'{count} ' * several}{columns} {rows} {depth}",
        f"space directions: {'none ' * several}(0.5,0,0) (0,0.6,0) (0,0,2)",
        f"kinds: {'list ' * several}domain domain domain",
        "encoding: raw",
        f"space origin: ({','.join(map(str, origin))})",
        *(f"{key}:={value}" for key, value in fields.items()),
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + np.ascontiguousarray(layers.astype(np.uint8)).tobytes())
    return path


def fields(*names: str, layers=(0, 1), values=(1, 1)) -> dict[str, object]:
    found: dict[str, object] = {}
    for place, name in enumerate(names):
        found |= {f"Segment{place}_Name": name, f"Segment{place}_LabelValue": values[place]}
        found[f"Segment{place}_Layer"] = layers[place]
    return found


def test_a_smaller_extent_is_laid_into_the_image(image, tmp_path):
    part = np.full((3, 2, 4, 1), 3)
    write_seg_nrrd(tmp_path / "labels/a.seg.nrrd", part, fields("liver", values=(3,)), start=(1, 2, 1))
    dataset = VolumeDataset(find_cases(tmp_path), preprocess=Preprocess(orientation=None, normalise=None))
    dataset.check()
    expected = np.zeros(SHAPE)
    expected[1:4, 2:4, 1:5] = 3
    np.testing.assert_array_equal(dataset[0].labels, expected)
    labels = open_labels(tmp_path / "labels/a.seg.nrrd", Reference.of_file(image, {}))
    assert labels.file.metadata["segments"] == {"liver": 3}
    np.testing.assert_array_equal(labels.read(np.s_[0:3, 3:5, 4:7]), expected[0:3, 3:5, 4:7])
    assert labels.read(np.s_[4:6, 0:5, 0:7]).max() == 0


def test_layers_are_chosen_by_name(image, tmp_path):
    layers = np.zeros((*SHAPE, 2))
    layers[1:3, :, :, 0] = 1
    layers[2:4, :3, :, 1] = 1
    path = write_seg_nrrd(tmp_path / "labels/a.seg.nrrd", layers, fields("liver", "tumour"))
    with pytest.raises(FileError, match=r"segments liver, tumour all have the label value 1 .*label_dataset"):
        open_image(path)
    with pytest.raises(FileError, match=r"segments liver and tumour overlap"):
        open_image(path, dataset="liver,tumour").read()
    with pytest.raises(FileError, match=r"has no segment heart \(it has liver, tumour\)"):
        open_image(path, dataset="heart")
    (case,) = find_cases(tmp_path, options={"label_dataset": ["tumour"]})
    sample = VolumeDataset([case], preprocess=Preprocess(orientation=None, normalise=None))[0]
    np.testing.assert_array_equal(sample.labels, layers[..., 1])


def write_dicom_seg(path: Path, frames: list[tuple[int, int, np.ndarray]], kind: str = "BINARY") -> Path:
    """Frames of (plane, segment, pixels), in any order, on the grid of the image."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(entropy_srcs=["seg"])
    ds.Modality, ds.SegmentationType = "SEG", kind
    ds.Rows, ds.Columns, ds.NumberOfFrames = SHAPE[1], SHAPE[2], len(frames)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    if kind == "LABELMAP":
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    bits = 1 if kind == "BINARY" else 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.MaximumFractionalValue = bits, bits, bits - 1, 200
    ds.SegmentSequence = []
    for number, name in ((1, "liver"), (2, "tumour")):
        item = Dataset()
        item.SegmentNumber, item.SegmentLabel = number, name
        ds.SegmentSequence.append(item)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.6, 0.5], 2.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for plane, number, _ in frames:
        group, position, owner = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient, owner.ReferencedSegmentNumber = [1, 2, 3 + 2.0 * plane], number
        group.PlanePositionSequence, group.SegmentIdentificationSequence = [position], [owner]
        ds.PerFrameFunctionalGroupsSequence.append(group)
    pixels = np.stack([values for _, _, values in frames]).astype(np.uint8)
    raw = np.packbits(pixels.ravel(), bitorder="little").tobytes() if kind == "BINARY" else pixels.tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)
    path.parent.mkdir(exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("kind", "inside", "outside"), [("BINARY", 1, 0), ("FRACTIONAL", 100, 99)])
def test_frames_of_dicom_segments_find_their_planes(image, tmp_path, kind, inside, outside):
    one, two = (np.full(SHAPE[1:], outside) for _ in range(2))
    one[1:3, 2:6], two[4, 0] = inside, inside
    path = write_dicom_seg(tmp_path / "labels/a.dcm", [(4, 2, two), (2, 1, one), (4, 1, one)], kind)
    labels = open_labels(path, Reference.of_file(image, {}))
    assert labels.file.metadata["segments"] == {"liver": 1, "tumour": 2}
    expected = np.zeros(SHAPE)
    expected[2, 1:3, 2:6] = expected[4, 1:3, 2:6] = 1
    expected[4, 4, 0] = 2
    np.testing.assert_array_equal(labels.read(), expected)


def test_dicom_label_maps_hold_all_segments_in_a_frame(image, tmp_path):
    one, two = np.zeros((2, *SHAPE[1:]))
    one[1:3, 2:6], one[0, 0], two[4, 0] = 1, 2, 2
    path = write_dicom_seg(tmp_path / "labels/a.dcm", [(4, 0, two), (2, 0, one)], "LABELMAP")
    expected = np.zeros(SHAPE)
    expected[2], expected[4] = one, two
    np.testing.assert_array_equal(open_labels(path, Reference.of_file(image, {})).read(), expected)
    tumour = open_labels(Path(f"{path}::tumour"), Reference.of_file(image, {}))
    np.testing.assert_array_equal(tumour.read(), expected == 2)


def test_overlapping_dicom_segments_are_refused_with_the_way_out(image, tmp_path):
    whole = np.ones(SHAPE[1:])
    path = write_dicom_seg(tmp_path / "labels/a.dcm", [(1, 1, whole), (1, 2, whole)])
    with pytest.raises(FileError, match=r"segments liver and tumour overlap \(choose some by name"):
        open_image(path).read()
    labels = open_labels(Path(f"{path}::tumour"), Reference.of_file(image, {}))
    assert (labels.read() > 0).sum() == whole.size

"""Every layout is told by its folders, and what is missing is named."""

import json

import numpy as np
import pytest
from voxelry.data.prepare.pairs import find_pairs

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.io import write_image

SPACE = Space.from_spacing((3, 4, 5))


@pytest.fixture
def write(tmp_path):
    def write(*names):
        for name in names:
            write_image(tmp_path / name, np.ones((1, 3, 4, 5), np.uint8), SPACE)
        return tmp_path

    return write


def found(root, layout="auto", **settings):
    pairs = find_pairs(root, layout, **settings)
    lines = [
        (pair.name, str(pair.image.relative_to(root)), [(str(path.relative_to(root)), to) for path, to in pair.labels])
        for pair in pairs.pairs
    ]
    return pairs, lines


def test_our_own_layout(write):
    pairs, lines = found(write("volumes/a.nii.gz", "labels/a.mha", "volumes/b.nii", "labels/b.nii"))
    assert lines == [("a", "volumes/a.nii.gz", [("labels/a.mha", 0)]), ("b", "volumes/b.nii", [("labels/b.nii", 0)])]
    assert pairs.layout == "volumes"


def test_pairs_by_the_end_of_their_names_also_one_folder_below(write):
    root = write("p1-image.nii.gz", "p1-label.nii.gz", "more/p2_image.nii", "more/p2_label.nii", "more/readme.nii")
    _, lines = found(root)
    assert lines == [
        ("p1", "p1-image.nii.gz", [("p1-label.nii.gz", 0)]),
        ("p2", "more/p2_image.nii", [("more/p2_label.nii", 0)]),
    ]


def test_the_decathlons_with_its_names_and_modality(write):
    root = write("imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz", "imagesTs/liver_1.nii.gz")
    (root / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "liver", "2": "cancer"}, "modality": {"0": "CT"}})
    )
    pairs, lines = found(root)
    assert lines == [("liver_0", "imagesTr/liver_0.nii.gz", [("labelsTr/liver_0.nii.gz", 0)])]
    assert (pairs.classes, pairs.pairs[0].modality, pairs.layout) == ({1: "liver", 2: "cancer"}, "ct", "decathlon")


def test_nnunets_channels(write):
    root = write("imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz")
    (root / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "tumour": 2, "organ": 1}, "channel_names": {"0": "T1"}})
    )
    pairs, lines = found(root, channel=1)
    assert lines == [("x", "imagesTr/x_0001.nii.gz", [("labelsTr/x.nii.gz", 0)])]
    assert (pairs.classes, pairs.pairs[0].modality) == ({1: "organ", 2: "tumour"}, "mr")
    with pytest.raises(DataError, match="no channel 2"):
        find_pairs(root, channel=2)


def test_totalsegmentators_masks_and_split(write):
    root = write(
        "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz", "s0001/segmentations/aorta.nii.gz",
        "s0002/ct.nii.gz", "s0002/segmentations/liver.nii.gz",
    )  # fmt: skip
    (root / "meta.csv").write_text("image_id;age;split\ns0001;50;train\ns0002;60;val\n")
    pairs, lines = found(root)
    assert lines[0][2] == [("s0001/segmentations/aorta.nii.gz", 1), ("s0001/segmentations/liver.nii.gz", 2)]
    assert lines[1][2] == [("s0002/segmentations/liver.nii.gz", 2)]
    assert [pair.split for pair in pairs.pairs] == ["train", "validation"]
    assert (pairs.classes, pairs.pairs[0].modality) == ({1: "aorta", 2: "liver"}, "ct")
    assert found(root, organs=["liver"])[1][0][2] == [("s0001/segmentations/liver.nii.gz", 1)]
    with pytest.raises(DataError, match="no mask of 'spleen'"):
        find_pairs(root, organs=["spleen"])


def test_dicom_series_with_labels_beside_them(shared_data, tmp_path):
    (tmp_path / "study").symlink_to(shared_data / "hippocrop_dicom" / "Study1")
    with pytest.raises(DataError, match=r"study: no labels for this image; expected .*study-label"):
        find_pairs(tmp_path)
    write_image(tmp_path / "study-label.nii.gz", np.ones((1, 3, 4, 5), np.uint8), SPACE)
    _, lines = found(tmp_path)
    assert lines == [("study", "study", [("study-label.nii.gz", 0)])]


def test_a_list(write):
    root = write("x/scan.nii.gz", "y/truth.nii.gz")
    table = root / "cases.csv"
    table.write_text("name,image,label,split\none,x/scan.nii.gz,y/truth.nii.gz,test\n")
    pair = find_pairs(table).pairs[0]
    assert (pair.name, pair.image, pair.split) == ("one", root / "x/scan.nii.gz", "test")
    table.write_text("image,label\nx/scan.nii.gz,y/gone.nii.gz\n")
    with pytest.raises(FileError, match=r"cases\.csv: line 2: no such label: y/gone"):
        find_pairs(table)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="expected columns image and label"):
        find_pairs(table)


def test_what_is_missing_is_named(write, tmp_path):
    with pytest.raises(FileError, match="no such file or folder"):
        find_pairs(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no layout that is known"):
        find_pairs(tmp_path)
    with pytest.raises(SettingError, match="layout: expected"):
        find_pairs(tmp_path, "nifti")
    root = write("volumes/a.nii")
    with pytest.raises(DataError, match=r"a\.nii: no labels for this image; expected .*labels/a\.\*"):
        find_pairs(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(FileError, match=r"dataset\.json: isn't"):
        find_pairs(root)

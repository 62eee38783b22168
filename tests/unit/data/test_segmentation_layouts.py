"""Layouts of images with labels: told by their folders, their files belong together, and what is missing is named."""

import json

import numpy as np
import pytest

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.doctor.inspect import inspect
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.find import find_cases, find_pairs, layouts_of, recognise
from voxelry.data.layouts.layout import LAYOUTS
from voxelry.data.prepare.case import PrepareSettings
from voxelry.data.prepare.run import prepare_all
from voxelry.data.segment_names import segment_names
from voxelry.io import open_image, write_image

SPACE = Space.from_spacing((3, 4, 5))
OBLIQUE = Space(
    (6, 7, 8), np.array([[0.2, 0.1, 1.1, 5.0], [0.3, 1.2, -0.1, -4.0], [1.9, -0.2, 0.1, 7.0], [0.0, 0.0, 0.0, 1.0]])
)


@pytest.fixture
def write(tmp_path):
    def write(*names, space=SPACE, value=1):
        for name in names:
            write_image(tmp_path / name, np.full((1, *space.shape), value, np.uint8), space)
        return tmp_path

    return write


def found(root, layout="auto", **settings):
    """Name, image, labels and instances of each case, relative to the folder."""
    return [
        (
            case.name,
            *(path and str(path).removeprefix(f"{root}/") for path in (case.image, case.labels, case.instances)),
        )
        for case in find_cases(root, layout, **settings)
    ]


def test_our_own_layout(write):
    root = write("volumes/a.nii.gz", "labels/a.mha", "volumes/b.nii", "instances/b.nii")
    assert found(root) == [
        ("a", "volumes/a.nii.gz", "labels/a.mha", None),
        ("b", "volumes/b.nii", None, "instances/b.nii"),
    ]


def test_labels_by_the_end_of_their_names_also_one_folder_below(write):
    root = write("p1-image.nii.gz", "p1-label.nii.gz", "more/p2_image.nii", "more/p2_label.nii", "more/readme.nii")
    assert found(root) == [
        ("p1", "p1-image.nii.gz", "p1-label.nii.gz", None),
        ("p2", "more/p2_image.nii", "more/p2_label.nii", None),
    ]
    assert recognise(root) == "suffixes"


def test_images_of_such_names_without_labels_are_images(write):
    assert found(write("p1-image.nii.gz", "p2.nii.gz")) == [
        ("p1-image", "p1-image.nii.gz", None, None),
        ("p2", "p2.nii.gz", None, None),
    ]


def test_two_folders_of_images_and_masks(write):
    root = write("images/a.png", "masks/a.png", space=Space.from_spacing((4, 5)))
    assert found(root) == [("a", "images/a.png", None, "masks/a.png")]
    (root / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: no labels for this image; expected .*masks/a\.\*"):
        find_cases(root)


def test_the_decathlons_with_its_names_and_modality(write):
    root = write("imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz", "imagesTs/liver_1.nii.gz")
    (root / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "liver", "2": "cancer"}, "modality": {"0": "CT"}})
    )
    labels = "labelsTr/liver_0.nii.gz"
    assert found(root) == [("liver_0", "imagesTr/liver_0.nii.gz", labels, labels)]
    (case,) = find_cases(root)
    assert (case.classes, case.modality, case.layout) == ({1: "liver", 2: "cancer"}, "ct", "decathlon")
    assert segment_names([case]) == {1: "liver", 2: "cancer"}


def test_nnunets_channels_become_one_image(write):
    root = write("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", space=OBLIQUE)
    write("imagesTr/x_0001.nii.gz", space=OBLIQUE, value=2)
    (root / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "tumour": 2, "organ": 1, "all": [1, 2]}, "channel_names": {"0": "T1"}})
    )
    assert found(root) == [("x", "imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", "labelsTr/x.nii.gz")]
    (case,) = find_cases(root)
    assert (case.classes, case.modality, case.layout) == ({1: "organ", 2: "tumour"}, "mr", "nnunet")
    assert case.files["image"] == (root / "imagesTr/x_0000.nii.gz", root / "imagesTr/x_0001.nii.gz")
    sample = VolumeDataset([case]).read(case)
    assert sample.image.shape == (2, *OBLIQUE.shape)
    assert [channel.unique().tolist() for channel in sample.image] == [[1], [2]]
    assert sample.space.matches(OBLIQUE)
    (second,) = find_cases(root, options={"channel": 1})
    assert open_image(second.image, **second.options).read().max() == 2
    assert found(write("instancesTr/x.nii.gz", space=OBLIQUE))[0][3] == "instancesTr/x.nii.gz"


def test_nnunets_channels_are_those_of_the_first_case(write):
    root = write("imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "imagesTr/y_0001.nii.gz")
    with pytest.raises(DataError, match=r"imagesTr/y: has the channels 1, expected 0, 1 as of x$"):
        find_cases(root)
    write("imagesTr/y_0000.nii.gz", space=OBLIQUE)
    (case,) = [case for case in find_cases(root) if case.name == "y"]
    with pytest.raises(FileError, match=r"y_0001\.nii\.gz: lies on another grid than .*y_0000\.nii\.gz"):
        open_image(case.image, **case.options)


def test_totalsegmentators_masks_are_one_label_map_of_stable_numbers(write, tmp_path):
    root = write(
        "s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz",
        "s0002/ct.nii.gz", "s0002/segmentations/liver.nii.gz", "s0002/segmentations/aorta.nii.gz",
        space=OBLIQUE,
    )  # fmt: skip
    aorta = np.zeros((1, *OBLIQUE.shape), np.uint8)
    aorta[0, :2] = 1
    write_image(root / "s0002/segmentations/aorta.nii.gz", aorta, OBLIQUE)
    (root / "meta.csv").write_text("image_id;age;split\ns0001;50;train\ns0002;60;val\n")
    cases = find_cases(root)
    assert recognise(root) == "totalsegmentator"
    assert [(case.name, case.split, case.modality) for case in cases] == [
        ("s0001", "train", "ct"),
        ("s0002", "validation", "ct"),
    ]
    assert segment_names(cases) == {1: "aorta", 2: "liver"}
    labels = [VolumeDataset([case]).read(case).labels for case in cases]
    assert labels[0].unique().tolist() == [2]
    assert (labels[1][:2] == 1).all()  # where masks overlap, the first class has the voxel
    assert (labels[1][2:] == 2).all()
    (chosen, _) = find_cases(root, options={"label_dataset": ["liver"]})
    assert VolumeDataset([chosen]).read(chosen).labels.unique().tolist() == [1]
    with pytest.raises(DataError, match="no mask of 'spleen'"):
        find_cases(root, options={"label_dataset": "spleen"})
    assert [finding for finding in inspect(root).findings if finding.severity == "error"] == []


def test_many_organs_make_no_name_too_long_for_a_disk(write):
    root = write("s1/ct.nii.gz", *(f"s1/segmentations/organ_{number:03d}.nii" for number in range(60)))
    (case,) = find_cases(root)
    assert VolumeDataset([case], cache=root / "cache")[0].labels.unique().tolist() == [1]


def test_masks_of_a_case_share_a_grid_and_are_whole_numbers(write):
    root = write("s1/ct.nii.gz", "s1/segmentations/a.nii.gz")
    write("s1/segmentations/b.nii.gz", space=OBLIQUE)
    (case,) = find_cases(root)
    with pytest.raises(FileError, match=r"b\.nii\.gz: lies on another grid than .*a\.nii\.gz"):
        VolumeDataset([case]).read(case)
    write_image(root / "s1/segmentations/b.nii.gz", np.full((1, *SPACE.shape), 0.4, np.float32), SPACE)
    with pytest.raises(FileError, match=r"b\.nii\.gz: fractions, expected a mask of whole numbers"):
        VolumeDataset([case]).read(case)
    (root / "s1/ct.nii.gz").unlink()
    with pytest.raises(DataError, match=r"s1: no image; expected ct\.nii\.gz"):
        find_cases(root)


def test_bids_derivatives(write):
    root = write(
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-2/func/sub-01_ses-2_bold.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz",
        "derivatives/seg/sub-01/ses-2/anat/sub-01_ses-2_space-T1w_desc-aseg_dseg.nii.gz",
        "derivatives/seg/sub-02/anat/sub-02_dseg.nii.gz",
    )  # fmt: skip
    (root / "derivatives/seg/desc-aseg_dseg.tsv").write_text("index\tname\n0\tbackground\n4\tventricle\n")
    seg = "derivatives/seg/sub-01/ses-2/anat/sub-01_ses-2_space-T1w_desc-aseg_dseg.nii.gz"
    assert [row[:3] for row in found(root)] == [
        ("sub-01_ses-1_T1w", "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", None),
        ("sub-01_ses-2_T1w", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", seg),
        ("sub-02_T1w", "sub-02/anat/sub-02_T1w.nii.gz", "derivatives/seg/sub-02/anat/sub-02_dseg.nii.gz"),
    ]
    cases = find_cases(root)
    assert [case.group for case in cases] == ["01", "01", "02"]
    assert segment_names(cases) == {4: "ventricle"}
    write("derivatives/other/sub-02/anat/sub-02_desc-x_dseg.nii.gz")
    with pytest.raises(DataError, match=r"sub-02_desc-x_dseg.*: two files of labels for .*sub-02_T1w"):
        find_cases(root)
    (root / "derivatives/seg/desc-aseg_dseg.tsv").write_text("a\tb\n1\t2\n")
    (root / "derivatives/other/sub-02/anat/sub-02_desc-x_dseg.nii.gz").unlink()
    with pytest.raises(FileError, match=r"dseg\.tsv: expected the columns index and name"):
        find_cases(root)


def test_the_cell_tracking_challenge(write):
    flat = Space.from_spacing((4, 5))
    root = write(
        "01/t000.tif", "01/t001.tif", "01_GT/SEG/man_seg001.tif", "01_GT/TRA/man_track000.tif",
        "02/t000.tif", "02_GT/TRA/man_track000.tif", "03/t000.tif",
        "04/t000.tif", "04_ST/SEG/man_seg000.tif", "04_GT/SEG/man_seg_000_002.tif",
        space=flat,
    )  # fmt: skip
    assert found(root) == [
        ("01_t001", "01/t001.tif", None, "01_GT/SEG/man_seg001.tif"),
        ("02_t000", "02/t000.tif", None, "02_GT/TRA/man_track000.tif"),
        ("03_t000", "03/t000.tif", None, None),
        ("04_t000", "04/t000.tif", None, "04_ST/SEG/man_seg000.tif"),
    ]
    assert [case.group for case in find_cases(root)] == ["01", "02", "03", "04"]


def check_labels_beside_a_series(tmp_path):
    with pytest.raises(DataError, match=r"study: no labels for this image; expected .*study-label"):
        prepare_all(find_cases(tmp_path), tmp_path / "out", PrepareSettings())
    write_image(tmp_path / "study-label.nii.gz", np.ones((1, 3, 4, 5), np.uint8), SPACE)
    assert found(tmp_path) == [("study", "study", "study-label.nii.gz", None)]


def test_dicom_series_with_labels_beside_them(write_series, tmp_path):
    write_series(tmp_path / "study", np.arange(60).reshape(SPACE.shape), SPACE)
    check_labels_beside_a_series(tmp_path)


def test_real_dicom_series_with_labels_beside_them(shared_data, tmp_path):
    (tmp_path / "study").symlink_to(shared_data / "hippocrop_dicom" / "Study1")
    check_labels_beside_a_series(tmp_path)


def test_a_list(write):
    root = write("x/scan.nii.gz", "y/truth.nii.gz")
    table = root / "cases.csv"
    table.write_text("name,image,label,split\none,x/scan.nii.gz,y/truth.nii.gz,test\n")
    (case,) = find_cases(table)
    assert (case.name, case.image, case.split) == ("one", root / "x/scan.nii.gz", "test")
    assert case.labels == root / "y/truth.nii.gz"
    table.write_text("image,label\nx/scan.nii.gz,y/gone.nii.gz\n")
    with pytest.raises(FileError, match=r"cases\.csv: line 2: no such label: y/gone"):
        find_cases(table)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="expected columns image and label"):
        find_cases(table, "list")


def test_a_prepared_folder(write, tmp_path):
    root = write("data/volumes/a.nii.gz", "data/volumes/b.nii.gz") / "data"
    labels = np.zeros((1, *SPACE.shape), np.uint8)
    labels[0, 1, 1:3, 1:4] = 1
    ramp = np.arange(60, dtype=np.float32).reshape(1, *SPACE.shape)
    for name in ("a", "b"):
        write_image(root / "volumes" / f"{name}.nii.gz", ramp, SPACE)
        write_image(root / "labels" / f"{name}.nii.gz", labels, SPACE)
    (root / "dataset.json").write_text(json.dumps({"labels": {"organ": 1}, "channel_names": {"0": "MRI"}}))
    prepare_all(find_cases(root), tmp_path / "out", PrepareSettings(slices_per_class=1, meshes=False, min_pixels=1))
    (tmp_path / "out" / "volumes" / "old.nii.gz").write_bytes((root / "volumes" / "a.nii.gz").read_bytes())
    cases = find_cases(tmp_path / "out", "prepared")
    assert [(case.name, case.modality, dict(case.classes)) for case in cases] == [
        ("a", "mr", {1: "organ"}),
        ("b", "mr", {1: "organ"}),
    ]
    assert len(find_cases(tmp_path / "out")) == 3  # by its folders, as any other


def test_what_is_missing_is_named(write, tmp_path):
    root = write("volumes/a.nii")
    with pytest.raises(DataError, match=r"a\.nii: no labels for this image; expected .*labels/a\.\*"):
        prepare_all(find_cases(root), tmp_path / "out", PrepareSettings())
    (root / "dataset.json").write_text("{")
    with pytest.raises(FileError, match=r"dataset\.json: isn't"):
        find_cases(root)
    with pytest.raises(SettingError, match=r"layout: expected auto or one of volumes, .*, got 'ab'"):
        find_cases(root, "ab")
    with pytest.raises(SettingError, match=r"layout: expected auto or one of ab, .*, got 'volumes'"):
        find_pairs(root, "volumes")


def test_every_layout_is_of_cases_or_of_pairs_and_images_are_thought_of_last(write):
    assert {*layouts_of(pairs=True)} | {*layouts_of(pairs=False)} == {*LAYOUTS}
    assert [*LAYOUTS][-1] == "images"
    root = write("A/a.nii", "B/a.nii")
    assert recognise(root) == recognise(root, pairs=True) == "ab"
    assert isinstance(find_pairs(root)[0], PairCase)
    assert recognise(root, pairs=False) == "images"


def test_a_layout_of_another_package_is_found_by_auto(write, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toy_layout.py").write_text(
        "from voxelry.data.layouts.case import Case\n"
        "from voxelry.data.layouts.layout import Layout\n"
        "class Scans(Layout):\n"
        "    def fits(self, root):\n"
        "        return (root / 'scans').is_dir()\n"
        "    def cases(self, root, wanted):\n"
        "        return [Case(path.name[:2], path, layout='scans') for path in (root / 'scans').iterdir()]\n"
    )
    about = tmp_path / "code" / "toy_layout-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-layout\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[voxelry.layouts]\nscans = toy_layout:Scans\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(LAYOUTS.__dict__, "_places", raising=False)
    root = write("data/scans/s1.nii.gz") / "data"
    assert [(case.name, case.layout) for case in find_cases(root)] == [("s1", "scans")]
    monkeypatch.delitem(LAYOUTS.__dict__, "_places", raising=False)

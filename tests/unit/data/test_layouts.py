from __future__ import annotations

import numpy as np
import pytest

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.doctor.pairs import holds_pairs
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.find import find_cases, recognise
from voxelry.data.layouts.points import read_case_landmarks
from voxelry.io import open_image, write_image


def picture(path, shape=(6, 8)):
    write_image(path, np.zeros((1, *shape), np.uint8), Space.from_spacing(shape))


def volume(path, shape=(4, 5, 6)):
    write_image(path, np.zeros((1, *shape), np.float32), Space.from_spacing(shape))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def names(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/case_1.5T.nii.gz", "case_1.5T"),
        ("case.mrk.json", "case"),
        ("Case.NII", "Case"),
        ("x.ome.zarr", "x"),
        ("plain", "plain"),
    ],
)
def test_names_lose_known_suffixes_only(file, name, tmp_path):
    assert case_name(tmp_path / file) == name


def test_volumes_with_every_partner(tmp_path):
    for name, suffix in (("b", ".nii.gz"), ("a", ".mha")):
        volume(tmp_path / "volumes" / f"{name}{suffix}")
        volume(tmp_path / "labels" / f"{name}.nii.gz")
    volume(tmp_path / "instances" / "a.npy")
    text(tmp_path / "landmarks" / "a.txt", "1\n0.5 0.2 0.25\n")
    text(tmp_path / "landmarks" / "b.fcsv", "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n")
    text(tmp_path / "volumes" / "notes.txt", "not an image")
    text(tmp_path / "volumes" / "._a.mha", "left by a file browser")
    cases = find_cases(tmp_path, need_landmarks=True)
    assert names(cases) == ["a", "b"]
    assert cases[0].image == tmp_path / "volumes" / "a.mha"
    assert cases[0].instances == tmp_path / "instances" / "a.npy"
    assert cases[1].instances is None
    assert cases[1].labels == tmp_path / "labels" / "b.nii.gz"
    assert cases[1].landmarks == (tmp_path / "landmarks" / "b.fcsv",)


def test_points_of_a_volume_are_on_its_grid(tmp_path):
    volume(tmp_path / "volumes" / "a.nii")
    text(tmp_path / "landmarks" / "a.txt", "2\n0.5 0.2 0.25\nnan nan nan\n")
    case = find_cases(tmp_path, need_landmarks=True)[0]
    points, labels = read_case_landmarks(case, open_image(case.image).space)
    assert points[0] == pytest.approx([0.25 * 4, 0.2 * 5, 0.5 * 6])
    assert np.isnan(points[1]).all()
    assert len(labels) == 2
    case = find_cases(tmp_path, need_landmarks=True, point_options={"axis_order": "zyx"})[0]
    points, _ = read_case_landmarks(case, open_image(case.image).space)
    assert points[0] == pytest.approx([0.5 * 4, 0.2 * 5, 0.25 * 6])


def test_a_missing_partner_is_named(tmp_path):
    volume(tmp_path / "volumes" / "a.nii")
    volume(tmp_path / "volumes" / "b.nii")
    text(tmp_path / "landmarks" / "a.txt", "1\n0.5 0.2 0.25\n")
    with pytest.raises(DataError, match=r"volumes/b\.nii: no landmarks for this image; expected .*landmarks/b\.txt$"):
        find_cases(tmp_path, need_landmarks=True)
    assert [len(case.landmarks) for case in find_cases(tmp_path)] == [1, 0]


def test_two_files_of_one_name_are_refused(tmp_path):
    volume(tmp_path / "volumes" / "a.nii")
    volume(tmp_path / "volumes" / "a.npy")
    with pytest.raises(DataError, match=r"two images of one name, a$"):
        find_cases(tmp_path)
    (tmp_path / "volumes" / "a.npy").unlink()
    text(tmp_path / "landmarks" / "a.txt", "0\n")
    text(tmp_path / "landmarks" / "a.csv", "name,x,y,z\n")
    with pytest.raises(DataError, match=r"two files for one case, a$"):
        find_cases(tmp_path)


def test_subfolders_are_the_split(tmp_path):
    for folder, name in (("train", "a"), ("train", "b"), ("val", "c"), ("test", "d")):
        volume(tmp_path / folder / "volumes" / f"{name}.nii")
    found = {case.name: case.split for case in find_cases(tmp_path)}
    assert found == {"a": "train", "b": "train", "c": "validation", "d": "test"}


def test_images_alone(tmp_path):
    for name in ("b.nii.gz", "a.npy"):
        volume(tmp_path / name)
    text(tmp_path / "readme.txt", "")
    assert names(find_cases(tmp_path)) == ["a", "b"]
    assert names(find_cases(tmp_path / "b.nii.gz")) == ["b"]
    assert names(find_cases(tmp_path / "*.npy")) == ["a"]
    with pytest.raises(DataError, match="images alone, without landmarks"):
        find_cases(tmp_path, need_landmarks=True)


def test_nothing_there(tmp_path):
    with pytest.raises(FileError, match="no such file or folder"):
        find_cases(tmp_path / "nowhere", need_landmarks=True)
    with pytest.raises(DataError, match="no image in a format"):
        find_cases(tmp_path)
    with pytest.raises(SettingError, match="layout: expected auto or one of volumes"):
        find_cases(tmp_path, "nifti")


def test_reader_options_reach_every_case(tmp_path):
    volume(tmp_path / "a.npy")
    case = find_cases(tmp_path, options={"spacing": 0.5})[0]
    assert open_image(case.image, **case.options).space.spacing == (0.5, 0.5, 0.5)


def test_chest(tmp_path):
    for name in ("CHNCXR_0002", "CHNCXR_0001"):
        picture(tmp_path / "pngs" / f"{name}.png")
        text(tmp_path / "labels" / f"{name}.txt", "2\n0.5 0.25\n0.75 0.5\n")
    cases = find_cases(tmp_path, need_landmarks=True)
    assert names(cases) == ["CHNCXR_0001", "CHNCXR_0002"]
    assert cases[0].layout == "chest"
    assert cases[0].split == ""  # not the original collection
    points, _ = read_case_landmarks(cases[0], open_image(cases[0].image).space)
    assert points == pytest.approx(np.array([[0.25 * 6, 0.5 * 8], [0.5 * 6, 0.75 * 8]]))
    (tmp_path / "labels" / "CHNCXR_0002.txt").unlink()
    with pytest.raises(DataError, match=r"CHNCXR_0002\.png: no landmarks"):
        find_cases(tmp_path, need_landmarks=True)


def jpeg(path):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6)).save(path)


@pytest.mark.parametrize("header", ["", "id,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\n"])
def test_hand(tmp_path, header):
    jpeg(tmp_path / "jpg" / "0042.jpg")
    jpeg(tmp_path / "jpg" / "3142.jpg")
    rows = "42,1,2, 3,4,5,5,6,5,1,4.5\n3142,0,0,1,1,2,2,3,3,3,4\n"
    text(tmp_path / "labels" / "all.csv", header + rows)
    cases = find_cases(tmp_path, need_landmarks=True)
    assert names(cases) == ["0042", "3142"]
    assert cases[0].layout == "hand"
    space = open_image(cases[0].image, **cases[0].options).space
    points, labels = read_case_landmarks(cases[0], space)
    assert points.tolist() == [[2, 1], [4, 3], [5, 5], [5, 6], [4.5, 1]]
    assert len(labels) == 5
    world = space.to_world(points)
    assert np.linalg.norm(world[0] - world[4]) == pytest.approx(50.0)  # the wrist
    assert open_image(cases[1].image, **cases[1].options).space.spacing == pytest.approx((10.0, 10.0))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("id,x0,y0\n", r"0042\.jpg: no row 0042 in .*all\.csv"),
        ("7,1,2\n", r"0042\.jpg: no row 0042"),
        ("42,1,2\n42,1,2\n", "line 2: a second row for 42"),
        ("42,1,2\n43,1\n", "line 2: 2 columns, expected 3 as in the first row"),
        ("42,1,2\n43,1,b\n", "line 2: expected an id and pairs x,y"),
    ],
)
def test_bad_hand_tables(tmp_path, rows, message):
    jpeg(tmp_path / "jpg" / "0042.jpg")
    text(tmp_path / "labels" / "all.csv", rows)
    with pytest.raises((DataError, FileError), match=message) as caught:
        find_cases(tmp_path, "hand", need_landmarks=True)
    assert "\n" not in str(caught.value)


def test_a_hand_table_that_is_missing(tmp_path):
    jpeg(tmp_path / "jpg" / "0042.jpg")
    with pytest.raises(FileError, match=r"all\.csv: no such file"):
        find_cases(tmp_path, need_landmarks=True)
    assert find_cases(tmp_path)[0].landmarks == ()


def test_cephalometric_points_are_the_mean_of_the_observers(tmp_path):
    jpeg(tmp_path / "jpg" / "001.jpg")
    junior = [(float(i), 2.0 * i) for i in range(19)]
    senior = [(x + 1, y + 2) for x, y in junior]
    for folder, points in (("400_junior", junior), ("400_senior", senior)):
        lines = [f"{x:g},{y:g}" for x, y in points] + ["1", "2", "1"]  # the classes follow
        text(tmp_path / folder / "001.txt", "\n".join(lines))
    case = find_cases(tmp_path, need_landmarks=True)[0]
    space = open_image(case.image, **case.options).space
    points, labels = read_case_landmarks(case, space)
    assert space.spacing == pytest.approx((0.1, 0.1))
    assert points == pytest.approx(np.array([[y + 1, x + 0.5] for x, y in junior]))
    assert labels[0] == "sella"
    assert len(set(labels)) == 19


@pytest.mark.parametrize(
    ("senior", "message"),
    [
        ("1,2\n", r"400_senior/001\.txt: 1 landmarks, but .*400_junior/001\.txt has 2"),
        ("1,2\n1,x\n", r"400_senior/001\.txt: line 2: expected x,y in pixels, got '1,x'"),
        ("1\n", r"400_senior/001\.txt: line 1: expected x,y"),
        (None, r"001\.jpg: no landmarks for this image; expected .*400_senior/001\.txt"),
    ],
)
def test_bad_cephalometric_files(tmp_path, senior, message):
    jpeg(tmp_path / "jpg" / "001.jpg")
    text(tmp_path / "400_junior" / "001.txt", "1,2\n3,4\n")
    if senior is not None:
        text(tmp_path / "400_senior" / "001.txt", senior)
    with pytest.raises((DataError, FileError), match=message):
        find_cases(tmp_path, need_landmarks=True)


def test_the_original_subsets(tmp_path):
    (tmp_path / "jpg").mkdir()
    for number in range(1, 156):
        (tmp_path / "jpg" / f"{number:03d}.jpg").touch()
    cases = find_cases(tmp_path, "cephalometric")
    splits = [case.split for case in cases]
    assert [splits.count(split) for split in ("train", "validation", "test")] == [130, 20, 5]
    assert (cases[129].split, cases[130].split, cases[150].split) == ("train", "validation", "test")


def test_real_hippocampi(shared_data):
    cases = find_cases(shared_data / "hippocampus", need_landmarks=True)
    assert len(cases) == 208
    assert all(case.labels is not None and len(case.landmarks) == 1 for case in cases)
    points, labels = read_case_landmarks(cases[0], open_image(cases[0].image).space)
    # the file says x y z = 0.62709 0.84483 0.20443 of 35 x 51 x 35 voxels
    assert points[0] == pytest.approx([0.20443 * 35, 0.84483 * 51, 0.62709 * 35])
    assert len(labels) == 6


def test_volumes_labels_and_points_of_one_name_are_a_case(tmp_path):
    for number in range(3):
        volume(tmp_path / "volumes" / f"case_{number}.nii.gz", (35, 51, 35))
        volume(tmp_path / "labels" / f"case_{number}.nii.gz", (35, 51, 35))
        text(tmp_path / "landmarks" / f"case_{number}.txt", "2\n0.62709 0.84483 0.20443\n0 0 0\n")
    cases = find_cases(tmp_path, need_landmarks=True)
    assert len(cases) == 3
    assert all(case.labels is not None and len(case.landmarks) == 1 for case in cases)
    points, labels = read_case_landmarks(cases[0], open_image(cases[0].image).space)
    assert points[0] == pytest.approx([0.20443 * 35, 0.84483 * 51, 0.62709 * 35])
    assert len(labels) == 2


def test_an_image_inside_of_a_container(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw/one"] = np.zeros((4, 5, 6), np.float32)
        file["raw/two"] = np.ones((4, 5, 7), np.float32)
    case = find_cases(f"{tmp_path / 'a.h5'}::raw/two")[0]
    assert (case.name, case.image) == ("a", tmp_path / "a.h5")
    assert open_image(case.image, **case.options).space.shape == (4, 5, 7)


def test_masks_beside_images_are_their_instances(tmp_path):
    for name in ("a", "a_masks", "b", "b_cp_masks", "c", "two_masks"):
        write_image(tmp_path / f"{name}.png", np.ones((1, 4, 5), np.uint8), Space.from_spacing((4, 5)))
    cases = {case.name: case.instances for case in find_cases(tmp_path)}
    assert cases == {"a": tmp_path / "a_masks.png", "b": tmp_path / "b_cp_masks.png", "c": None, "two_masks": None}
    write_image(tmp_path / "a_cp_masks.tif", np.ones((1, 4, 5), np.uint8), Space.from_spacing((4, 5)))
    with pytest.raises(DataError, match="two files of masks for one image, a"):
        find_cases(tmp_path)


@pytest.mark.parametrize("kind", ["zarr", "series"])
def test_images_that_are_folders_are_no_contrasts(tmp_path, write_series, kind):
    for name in ("a", "b"):
        if kind == "zarr":
            write_image(tmp_path / f"{name}.ome.zarr", np.ones((1, 4, 5, 6), np.uint8), Space.from_spacing((4, 5, 6)))
        else:
            write_series(tmp_path / name, np.ones((4, 5, 6), np.uint16), Space.from_spacing((4, 5, 6)))
    assert recognise(tmp_path) == "images"
    assert not holds_pairs(tmp_path)
    assert [case.name for case in find_cases(tmp_path)] == ["a", "b"]


def test_images_in_deeper_folders_are_named(tmp_path):
    for name in ("one", "two"):
        volume(tmp_path / name / "scan.nii.gz", (4, 5, 6))
    with pytest.raises(
        DataError, match=r"folders one, two: expected them in one folder, .*instances \(an id per voxel"
    ):
        find_cases(tmp_path)


def test_pairs_are_told_where_images_alone_are_looked_for(tmp_path):
    for name in ("A", "B"):
        volume(tmp_path / name / "scan.nii.gz", (4, 5, 6))
    with pytest.raises(DataError, match="A and B are pairs of images, for task=translate with data=pairs"):
        find_cases(tmp_path)

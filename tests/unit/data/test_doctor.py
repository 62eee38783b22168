"""Every fault planted, every fault found, and nothing found where nothing is."""

import dataclasses
import shutil

import numpy as np
import pytest

from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.doctor.inspect import inspect
from voxelry.io.images.image import read_image, write_image
from voxelry.io.points.landmarks import LandmarkSet, read_landmarks, write_landmarks

NAMES = ("tip", "base", "left", "right", "top")
# where the points are in the patient, mm from the image's centre
ANATOMY = np.array([[1.0, 9.0, 2.0], [0.0, -8.0, -3.0], [-6.0, 1.0, 1.0], [5.5, 2.0, 0.0], [0.5, -1.0, 5.0]])
SHAPE, SPACING = (16, 20, 28), (1.2, 1.5, 0.8)  # plane, row, column


def oblique(shape=SHAPE, spacing=SPACING, centre=(80.0, -60.0, 30.0)):
    """A grid tilted by 10 degrees about x, its middle at `centre`."""
    tilt = np.deg2rad(10)
    rotation = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.zeros((4, 4))
    affine[:3, :3] = rotation[:, ::-1] * spacing
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    affine[3, 3] = 1
    return Space(shape, affine)


def add_case(root, number, *, space=None, fmt="txt", points=None, dtype=np.float32):
    """One volume and its points, jittered by about half a millimetre."""
    rng = np.random.default_rng(number)
    space = space or oblique()
    image = rng.normal(100, 10, (1, *space.shape)).astype(dtype)
    write_image(root / "volumes" / f"case_{number}.nii.gz", image, space)
    world = space.to_world((np.asarray(space.shape) - 1) / 2) + ANATOMY + rng.normal(0, 0.5, ANATOMY.shape)
    landmarks = LandmarkSet(NAMES, world if points is None else points)
    write_landmarks(root / "landmarks" / f"case_{number}.{fmt}", landmarks, space=space)
    return space, landmarks


@pytest.fixture
def clean(tmp_path):
    """Eight cases: oblique, LAS and PSR copies of one anatomy, the original's text beside Slicer's files."""
    for number in range(8):
        space = oblique()
        if number % 3:
            space = space.reorder(*[((0, 1, 2), (0, 0, 1)), ((1, 2, 0), (1, 0, 0))][number % 3 - 1])
        add_case(tmp_path, number, space=space, fmt="txt")
    return tmp_path


def told(diagnosis, severity=None):
    """File name and message of every finding that is no info, or of one severity."""
    return [
        (finding.file.rsplit("/", 1)[-1], finding.message)
        for finding in diagnosis.findings
        if (finding.severity == severity if severity else finding.severity != "info")
    ]


def only(diagnosis, severity="error"):
    """The one finding that there is, but for infos."""
    assert len(told(diagnosis)) == 1, told(diagnosis)
    (found,) = told(diagnosis, severity)
    assert "\n" not in found[1]
    assert not diagnosis.ok
    return found


class TestNothingIsWrong:
    def test_a_clean_dataset(self, clean):
        diagnosis = inspect(clean)
        assert told(diagnosis) == []
        assert diagnosis.ok
        assert [row.name for row in diagnosis.rows] == [f"case_{number}" for number in range(8)]

    def test_other_axes_are_no_fault_but_worth_a_word(self, clean):
        (finding,) = inspect(clean).findings
        assert finding.severity == "info"
        assert finding.message.startswith("mixed axes: 3 x SAR")

    def test_a_row_says_what_is_there(self, tmp_path):
        add_case(tmp_path, 0, points=np.array([80, -60, 30]) + np.where(np.arange(5)[:, None] < 4, ANATOMY, np.nan))
        (row,) = inspect(tmp_path).rows
        assert (row.channels, row.shape, row.axes, row.dtype) == (1, SHAPE, "SAR", "float32")
        assert row.spacing == pytest.approx(SPACING, rel=1e-5)
        assert 50 < row.low < 80 < 120 < row.high < 150
        assert (row.points, row.absent) == (4, 1)

    def test_one_file_a_folder_of_images_and_2d(self, tmp_path):
        space = Space.from_spacing((12, 9), (0.5, 0.25))
        for name in ("a", "b"):
            pixels = np.random.default_rng(0).integers(0, 255, (1, *space.shape)).astype(np.uint8)
            write_image(tmp_path / f"{name}.png", pixels, space)
        assert inspect(tmp_path).ok
        (row,) = inspect(tmp_path / "a.png").rows
        assert row.shape == (12, 9)
        assert inspect(tmp_path / "a.png").ok

    def test_real_hippocampi(self, shared_data):
        diagnosis = inspect(shared_data / "hippocampus")
        assert len(diagnosis.rows) == 208
        assert all(row.points == 6 for row in diagnosis.rows)
        assert told(diagnosis) == []
        (info,) = diagnosis.findings  # true, and no fault: pixels are normalised
        assert info.message == "mixed types: 165 x float32, 43 x uint8"

    def test_the_same_twice(self, clean):
        assert inspect(clean) == inspect(clean)

    def test_progress(self, clean):
        calls = []
        inspect(clean, progress=lambda *call: calls.append(call))
        assert calls == [(done, 8) for done in range(9)]


class TestFiles:
    def test_no_such_path(self, tmp_path):
        with pytest.raises(FileError, match="none: no such file or folder"):
            inspect(tmp_path / "none")

    def test_an_unknown_layout_is_the_callers_fault(self, clean):
        with pytest.raises(SettingError, match="layout"):
            inspect(clean, layout="cubes")

    def test_an_empty_folder(self, tmp_path):
        assert "no image" in only(inspect(tmp_path))[1]

    def test_volume_without_landmarks(self, clean):
        (clean / "landmarks/case_3.txt").unlink()
        assert only(inspect(clean)) == ("case_3.nii.gz", "has no landmarks")
        assert inspect(clean, need_landmarks=False).ok

    def test_landmarks_that_are_needed(self, clean):
        shutil.rmtree(clean / "landmarks")
        assert inspect(clean).ok
        assert len(told(inspect(clean, need_landmarks=True), "error")) == 8

    def test_landmarks_without_volume(self, clean):
        (clean / "volumes/case_3.nii.gz").unlink()
        file, message = only(inspect(clean), "warning")
        assert (file, message) == ("case_3.txt", "belongs to no image: there is no case_3 in volumes")

    def test_a_file_that_no_reader_takes(self, clean):
        (clean / "volumes/case_9.xyz").write_text("")
        assert only(inspect(clean), "warning") == ("case_9.xyz", "is no image in a known format, left out")

    def test_unreadable_volume(self, clean):
        (clean / "volumes/case_3.nii.gz").write_bytes(b"no image at all")
        diagnosis = inspect(clean)
        assert only(diagnosis)[0] == "case_3.nii.gz"
        assert diagnosis.rows[3].shape is None

    def test_truncated_volume(self, clean):
        path = clean / "volumes/case_3.nii.gz"
        path.write_bytes(path.read_bytes()[:2000])
        assert only(inspect(clean))[0] == "case_3.nii.gz"

    def test_unreadable_landmarks(self, clean):
        (clean / "landmarks/case_3.txt").write_text("5\n0.1 0.2 1.3\n" + "0 0 0\n" * 4)
        file, message = only(inspect(clean))
        assert file == "case_3.txt"
        assert message.startswith("line 2: coordinate 1.3 is outside [0, 1]")

    def test_two_files_for_one_case(self, clean):
        shutil.copy(clean / "landmarks/case_3.txt", clean / "landmarks/case_3.csv")
        assert "two files for one case" in only(inspect(clean))[1]

    def test_the_hand_layout(self, tmp_path):
        """Points of all images in one table of pixels."""
        space = Space.from_spacing((60, 80), 1.0)
        rows = []
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 255, (1, *space.shape)).astype(np.uint8)
            (tmp_path / "jpg").mkdir(exist_ok=True)
            write_image(tmp_path / f"jpg/{number}.png", pixels, space)
            rows.append(f"{number},10,20,30,20,30,40,10,40,{90 if number == 2 else 60},20")
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels/all.csv").write_text("\n".join(rows[1:]))
        findings = told(inspect(tmp_path))
        assert ("0.png", "has no landmarks") in findings
        assert ("all.csv, row 2", "1 of 5 points lie outside the image: point_5") in findings

    def test_label_maps(self, clean):
        for number in range(7):
            image = read_image(clean / f"volumes/case_{number}.nii.gz")
            space = image.space
            if number == 1:
                space = space.crop((0, 0, 0), np.asarray(space.shape) - 1)
            if number == 2:
                space = space.crop((3, 0, 0), space.shape)
            write_image(clean / f"labels/case_{number}.nii.gz", np.zeros((1, *space.shape), np.uint8), space)
        (clean / "labels/case_11.nii.gz").write_bytes((clean / "labels/case_0.nii.gz").read_bytes())
        images = clean / "volumes"
        way_out = "(bring the labels to their image's grid, by the nearest voxel)"
        aside = "(if they do match voxel by voxel, give the labels their image's affine and order of axes)"
        assert dict(told(inspect(clean))) == {
            "case_1.nii.gz": f"shape (15, 19, 27), but its image {images / 'case_1.nii.gz'} has (16, 20, 28) {way_out}",
            "case_2.nii.gz": f"lies elsewhere than its image {images / 'case_2.nii.gz'}: moved by (3, 0, 0) voxels, "
            f"expected the same affine {aside}",
            "case_7.nii.gz": "has no labels, which 7 of 8 cases have",
            "case_11.nii.gz": "belongs to no image: there is no case_11 in volumes",
        }

    def test_a_mask_of_foreground_among_instances(self, clean):
        for number in range(8):
            image = read_image(clean / f"volumes/case_{number}.nii.gz")
            ids = np.zeros((1, *image.space.shape), np.uint8)
            ids[0, 2:5, 2:5, 2:5] = ids[0, 8:10, 8:10, 8:10] = 255
            ids[0, 12, 12, 12] = number and 254  # every other file knows its objects apart
            write_image(clean / f"instances/case_{number}.nii.gz", ids, image.space)
        assert told(inspect(clean)) == [
            (
                "case_0.nii.gz",
                "one object in 2 pieces: expected an id for each object, not one for all that is foreground",
            )
        ]


class TestPixels:
    def spoil(self, root, number, change):
        path = root / f"volumes/case_{number}.nii.gz"
        image = read_image(path)
        write_image(path, change(image.array), image.space)

    def test_nan_and_infinity(self, clean):
        def change(array):
            array[0, 2, 3, 4:6] = np.nan, np.inf
            return array

        self.spoil(clean, 3, change)
        diagnosis = inspect(clean)
        file, message = only(diagnosis, "warning")
        assert (file, message.partition(" (")[0]) == (
            "case_3.nii.gz",
            f"2 of {np.prod(SHAPE)} voxels are NaN or infinite",
        )
        assert np.isfinite(diagnosis.rows[3].high)

    def test_nothing_but_nan(self, clean):
        self.spoil(clean, 3, lambda array: np.full_like(array, np.nan))
        diagnosis = inspect(clean)
        assert only(diagnosis)[1].startswith(f"{np.prod(SHAPE)} of {np.prod(SHAPE)} voxels")
        assert diagnosis.rows[3].low is None

    def test_constant(self, clean):
        self.spoil(clean, 3, lambda array: np.full_like(array, 7))
        assert only(inspect(clean), "warning") == ("case_3.nii.gz", "constant, every voxel is 7")

    def test_the_low_byte_of_a_wider_type(self, tmp_path, rng):
        ramp = np.linspace(0, 60_000, 32)[:, None, None] + np.linspace(0, 4_000, 24)[:, None] + np.linspace(0, 999, 20)
        wide = (ramp + rng.normal(0, 400, ramp.shape)).clip(0).astype(np.uint16)
        for name, values in (("good", wide >> 8), ("low", wide & 255)):
            write_image(tmp_path / f"{name}.nii.gz", values.astype(np.uint8)[None], Space.from_spacing(values.shape))
        file, message = only(inspect(tmp_path), "warning")
        assert file == "low.nii.gz"
        assert "the low byte of a wider type" in message

    def test_slabs_give_what_the_whole_gives(self, clean, monkeypatch):
        def change(array):
            array[0, 0, 0, 0], array[0, -1, -1, -1] = np.nan, 1e6
            return array

        self.spoil(clean, 3, change)
        whole = inspect(clean)
        monkeypatch.setattr("voxelry.data.doctor.inspect._SLAB_BYTES", 5000)  # two planes
        assert inspect(clean) == whole
        assert whole.rows[3].high == 1e6

    def test_of_a_very_large_image_parts_are_looked_at(self, clean, monkeypatch):
        def change(array):
            array[0, -1, -1, -1] = 1e6
            return array

        self.spoil(clean, 3, change)
        monkeypatch.setattr("voxelry.data.doctor.inspect._SLAB_BYTES", 5000)
        monkeypatch.setattr("voxelry.data.doctor.inspect._SLABS", 3)
        found = inspect(clean)
        parts = [message for _, message in told(found, "info") if "are looked at, spread evenly" in message]
        assert len(parts) == 8
        assert found.rows[3].high == 1e6, "the first and the last part are among them"

        def emptied(array):
            return np.zeros_like(array)

        self.spoil(clean, 3, emptied)
        constant = [message for _, message in told(inspect(clean), "warning") if "constant" in message]
        assert constant == ["constant, every voxel looked at is 0"]

    def test_channels(self, clean):
        self.spoil(clean, 3, lambda array: np.concatenate([array, array]))
        assert only(inspect(clean)) == ("case_3.nii.gz", "has 2 channels, expected 1 channel as in 7 of 8 cases")

    def test_types_are_an_info(self, tmp_path):
        for number in range(2):
            add_case(tmp_path, number, dtype=[np.int16, np.float32][number])
        diagnosis = inspect(tmp_path)
        assert diagnosis.ok
        assert [finding.message for finding in diagnosis.findings] == ["mixed types: 1 x int16, 1 x float32"]

    def test_spacings(self, clean):
        space = oblique(spacing=(2.4, 1.5, 0.8)).reorder((2, 0, 1), (True, False, True))
        add_case(clean, 3, space=space)
        file, message = only(inspect(clean), "warning")
        assert file == clean.name
        assert message.startswith(
            "mixed spacings in mm: left-right 0.8, posterior-anterior 1.5, inferior-superior 1.2 to 2.4"
        )
        assert "1 of 8 images differ from the median, most case_3.nii.gz" in message

    def test_ranks(self, tmp_path):
        for number in range(3):
            shape = (6, 7, 8) if number else (6, 7)
            write_image(
                tmp_path / f"{number}.nii.gz", np.random.default_rng(0).random((1, *shape)), Space.from_spacing(shape)
            )
        assert only(inspect(tmp_path)) == ("0.nii.gz", "is 2-D, expected 3-D as in 2 of 3 cases")


class TestPoints:
    def rewrite(self, root, number, change):
        """Put other numbers into the original's file."""
        path = root / f"landmarks/case_{number}.txt"
        points = change(np.loadtxt(path, skiprows=1))
        path.write_text(f"{len(points)}\n" + "\n".join(" ".join(map(str, row)) for row in points))

    def test_count(self, clean):
        self.rewrite(clean, 3, lambda points: points[:4])
        assert only(inspect(clean)) == ("case_3.txt", "has 4 points, expected 5 points as in 7 of 8 cases")

    def test_names(self, tmp_path):
        for number in range(3):
            _, landmarks = add_case(tmp_path, number, fmt="mrk.json")
        shuffled = LandmarkSet(landmarks.names[::-1], landmarks.world[::-1])
        write_landmarks(tmp_path / "landmarks/case_2.mrk.json", shuffled)
        assert inspect(tmp_path).ok  # another order is none
        renamed = dataclasses.replace(landmarks, names=("peak", *NAMES[1:]))
        write_landmarks(tmp_path / "landmarks/case_2.mrk.json", renamed)
        expected = "other names than in 2 of 3 cases: peak in place of tip"
        assert only(inspect(tmp_path)) == ("case_2.mrk.json", expected)

    def test_some_points_outside(self, tmp_path):
        add_case(tmp_path, 0, fmt="csv", points=np.array([80, -60, 30]) + ANATOMY * [1, 2, 1])
        assert only(inspect(tmp_path), "warning") == ("case_0.csv", "2 of 5 points lie outside the image: base, tip")

    def test_real_points_of_a_larger_scan(self, shared_data, tmp_path):
        for folder, name, copy in (
            ("volumes", "3DCT_lung_baseline_small.mha", "lung.mha"),
            ("landmarks", "3DCT_lung_baseline_landmarks.txt", "lung.txt"),
        ):
            (tmp_path / folder).mkdir()
            shutil.copy(shared_data / "elastix" / name, tmp_path / folder / copy)
        assert only(inspect(tmp_path), "warning")[1].startswith("49 of 100 points lie outside the image")

    @pytest.mark.parametrize("number", [0, 4, 5])  # a SAR, a mirrored and a turned grid
    def test_reversed_axes(self, clean, number):
        self.rewrite(clean, number, lambda points: points[:, ::-1])
        file, message = only(inspect(clean))
        assert file == f"case_{number}.txt"
        assert message.startswith("its points look misread: ")
        assert "with axis order reversed (set axis_order= or reorder the columns)" in message

    def test_other_swaps_name_the_columns(self, clean):
        self.rewrite(clean, 3, lambda points: points[:, [1, 0, 2]])
        assert "with columns taken in the order y, x, z" in only(inspect(clean))[1]

    def test_what_it_advises_is_right(self, clean):
        before = read_landmarks(clean / "landmarks/case_0.txt", space=oblique())
        self.rewrite(clean, 0, lambda points: points[:, ::-1])
        after = read_landmarks(clean / "landmarks/case_0.txt", space=oblique(), axis_order="zyx")
        np.testing.assert_allclose(after.world, before.world, atol=1e-9)

    def test_real_swap_among_real_cases(self, shared_data, tmp_path):
        source = shared_data / "hippocampus"
        for path in sorted((source / "volumes").iterdir())[:24]:
            for folder, name in (("volumes", path.name), ("landmarks", path.name.replace(".nii.gz", ".txt"))):
                (tmp_path / folder).mkdir(exist_ok=True)
                shutil.copyfile(source / folder / name, tmp_path / folder / name)
        spoilt = sorted((tmp_path / "landmarks").iterdir())[8]
        points = np.loadtxt(spoilt, skiprows=1)[:, ::-1]
        spoilt.write_text("6\n" + "\n".join(" ".join(map(str, row)) for row in points))
        file, message = only(inspect(tmp_path))
        assert file == spoilt.name
        assert "axis order reversed" in message

    def test_a_swap_that_all_share_shows_in_the_background(self, tmp_path):
        """A long body in an empty cube, points along it; every file has its columns reversed."""
        space = Space.from_spacing((30, 30, 30), (1.0, 1.0, 2.0))
        index = np.array([[z, 15.0, 14.0] for z in (3.0, 8.0, 20.0, 26.0)])  # along the first axis
        for number in range(3):
            rng = np.random.default_rng(number)
            image = np.zeros((1, *space.shape), np.float32)
            image[0, :, 11:19, 10:18] = rng.normal(100, 5, (30, 8, 8))
            write_image(tmp_path / f"volumes/{number}.nii.gz", image, space)
            points = LandmarkSet.from_index(index + rng.normal(0, 0.5, index.shape), space)
            write_landmarks(tmp_path / f"landmarks/{number}.txt", points, space=space, axis_order="zyx")
        assert inspect(tmp_path, point_options={"axis_order": "zyx"}).ok
        assert only(inspect(tmp_path)) == (
            tmp_path.name,
            "the points look misread: 100% of them lie in empty background, 0% with axis order reversed "
            "(set axis_order= or reorder the columns)",
        )

    def test_real_points_in_a_brain_without_its_skull(self, shared_data, tmp_path):
        source = shared_data / "afids_2009c"
        for folder, name, copy in (
            ("volumes", "CIT168toMNI152-2009c_T1w_brain.nii.gz", "brain.nii.gz"),
            ("landmarks", "tpl-MNI152NLin2009cAsym_afids.fcsv", "brain.fcsv"),
        ):
            (tmp_path / folder).mkdir()
            shutil.copyfile(source / name, tmp_path / folder / copy)
        diagnosis = inspect(tmp_path)
        assert diagnosis.ok
        assert diagnosis.rows[0].points == 32

    def test_lps_taken_for_ras_lies_outside(self, tmp_path):
        """One file is enough to see it where the image is away from the world's origin."""
        space, landmarks = add_case(tmp_path, 0, fmt="csv")
        path = tmp_path / "landmarks/case_0.csv"
        write_landmarks(path, landmarks, space=space, coordinate_system="LPS")
        assert inspect(tmp_path).ok
        path.write_text(path.read_text().replace("LPS", "RAS"))
        file, message = only(inspect(tmp_path))
        assert file == "case_0.csv"
        assert "0 of 5 points lie inside the image, 5 with LPS and RAS exchanged (set coordinate_system=)" in message

    def test_lps_taken_for_ras_inside_is_seen_beside_the_others(self, tmp_path):
        """Around the world's origin the mirrored points stay inside: the cohort tells."""
        for number in range(6):
            space, landmarks = add_case(tmp_path, number, space=oblique(centre=(0, 0, 0)), fmt="mrk.json")
        assert inspect(tmp_path).ok
        mirrored = dataclasses.replace(landmarks, world=landmarks.world * [-1, -1, 1])
        assert space.contains(mirrored.index(space)).all()
        write_landmarks(tmp_path / "landmarks/case_5.mrk.json", mirrored)
        file, message = only(inspect(tmp_path))
        assert file == "case_5.mrk.json"
        assert "with LPS and RAS exchanged" in message

    def test_an_odd_patient_is_no_swap(self, clean):
        self.rewrite(clean, 3, lambda points: 0.5 + (points - 0.5) * [1.3, 0.7, 1.2])
        assert inspect(clean).ok

"""Every landmark format by a worked example, and every fault by its message."""

import json

import numpy as np
import pytest

from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io.points.landmarks import POINT_FORMATS, LandmarkSet, landmark_format, read_landmarks, write_landmarks

# plane, row, column of 3, 2 and 0.5 mm; row and column mirrored, plane and row tilted into each other
OBLIQUE = Space(
    (20, 30, 40),
    np.array([[0.0, 0.0, -0.5, 7.0], [1.8, -1.6, 0.0, -11.0], [2.4, 1.2, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]]),
)
SPOT = np.array([[2.0, 3.0, 4.0]])  # z, y, x
SPOT_WORLD = OBLIQUE.affine[:3] @ [2.0, 3.0, 4.0, 1.0]


def put(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def fault(path, **options):
    """The message of reading it, checked to be one line that begins with the file."""
    with pytest.raises(FileError) as caught:
        read_landmarks(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


class TestSeedText:
    def test_x_runs_along_the_last_array_axis(self, tmp_path):
        path = put(tmp_path, "a.txt", "1\n0.1 0.1 0.1\n")
        found = read_landmarks(path, space=OBLIQUE)
        np.testing.assert_allclose(found.index(OBLIQUE), [[2.0, 3.0, 4.0]])
        np.testing.assert_allclose(found.world, [SPOT_WORLD])
        assert found.names == ("point_1",)

    def test_axis_order_zyx_begins_with_the_first_array_axis(self, tmp_path):
        path = put(tmp_path, "a.txt", "1\n0.5 0.1 0.25\n")
        np.testing.assert_allclose(read_landmarks(path, space=OBLIQUE).index(OBLIQUE), [[5.0, 3.0, 20.0]])
        swapped = read_landmarks(path, space=OBLIQUE, axis_order="zyx")
        np.testing.assert_allclose(swapped.index(OBLIQUE), [[10.0, 3.0, 10.0]])

    def test_two_coordinates_for_an_image_of_rank_two(self, tmp_path):
        space = Space.from_spacing((10, 20), (2.0, 0.5))
        found = read_landmarks(put(tmp_path, "a.txt", "2\n0.5 0.1\n0 1\n"), space=space)
        np.testing.assert_allclose(found.index(space), [[1.0, 10.0], [10.0, 0.0]])
        np.testing.assert_allclose(found.world[0], [5.0, 2.0, 0.0])

    def test_nan_is_absent_and_blank_lines_do_not_count(self, tmp_path):
        found = read_landmarks(put(tmp_path, "a.txt", "\n2\n\nnan nan nan\n0 0 0\n\n"), space=OBLIQUE)
        assert found.present.tolist() == [False, True]

    def test_real_file_points_lie_where_its_numbers_say(self, shared_data):
        nibabel = pytest.importorskip("nibabel")
        header = nibabel.load(shared_data / "hippocampus/volumes/hippocampus_001.nii.gz")
        affine = header.affine[:, [2, 1, 0, 3]]
        space = Space(header.shape[::-1], affine)
        found = read_landmarks(shared_data / "hippocampus/landmarks/hippocampus_001.txt", space=space)
        ijk = np.array([0.62709, 0.84483, 0.20443]) * header.shape
        np.testing.assert_allclose(found.world[0], header.affine[:3] @ [*ijk, 1.0])

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "is empty"),
            ("x y z\n1 2 3\n", "line 1: 'x y z' is no count of points"),
            ("-1\n", "line 1: '-1' is no count of points"),
            ("3\n0 0 0\n0 0 0\n", "line 1: announces 3 points, but 2 follow"),
            ("1\n0 0 0\n0 0 0\n", "line 1: announces 1 points, but 2 follow"),
            ("2\n0 0 0\n0 0\n", "line 3: 2 columns, expected 3 coordinates"),
            ("1\n0 0 0 0\n", "line 2: 4 columns, expected 2 or 3 coordinates"),
            ("1\n0 zero 0\n", "line 2: expected numbers, got '0 zero 0'"),
            ("1\n0 inf 0\n", "line 2: expected finite numbers"),
            ("1\n0 nan 0\n", "line 2: some coordinates are missing"),
            ("2\n0 0 0\n0.5 1.31 0\n", "line 3: coordinate 1.31 is outside [0, 1]; the format is normalised"),
            ("1\n-0.01 0 0\n", "line 2: coordinate -0.01 is outside [0, 1]"),
            ("1\n0.5 0.5\n", "line 2: 2 coordinates, expected 3 as the image has axes"),
        ],
    )
    def test_faults(self, tmp_path, text, expected):
        assert fault(put(tmp_path, "a.txt", text), space=OBLIQUE).startswith(expected)

    def test_the_grid_is_needed(self, tmp_path):
        assert "set space=" in fault(put(tmp_path, "a.txt", "1\n0 0 0\n"))

    def test_other_coordinates_after_a_count_when_told(self, tmp_path):
        path = put(tmp_path, "a.txt", "1\n-5 6 7\n")
        np.testing.assert_allclose(read_landmarks(path, coordinate_system="LPS").world, [[5.0, -6.0, 7.0]])
        np.testing.assert_allclose(read_landmarks(path, coordinate_system="RAS").world, [[-5.0, 6.0, 7.0]])

    def test_a_point_outside_can_not_be_written(self, tmp_path):
        outside = LandmarkSet.from_index([[0.0, -3.0, 0.0]], OBLIQUE, ["tip"])
        with pytest.raises(FileError, match=r"a.txt: 'tip' lies outside the image.*write mrk.json"):
            write_landmarks(tmp_path / "a.txt", outside, space=OBLIQUE)
        assert list(tmp_path.iterdir()) == []


class TestTable:
    @pytest.mark.parametrize(
        "text",
        [
            "# coordinateSystem = RAS\nname,x,y,z\ntip,1,-2,3\n",
            "name,x,y,z,coordinateSystem\ntip,1,-2,3,ras\n",
            "Label;X_mm;Y (mm);z [mm];coordinate_system\ntip;-1;2;3;LPS\n",
            "z\ty\tx\tNAME\tcoordinateSystem\n3\t-2\t1\ttip\t0\n",
            "name,R,A,S\ntip,1,-2,3\n",
            "name,x_lps,y_lps,z_lps\ntip,-1,2,3\n",
            "\ufeff# made by hand\r\n# CoordinateSystem = 1\r\n\r\nname,x,y,z\r\ntip,-1,2,3\r\n",
        ],
    )
    def test_a_point_in_mm(self, tmp_path, text):
        found = read_landmarks(put(tmp_path, "a.csv", text))
        assert found.names == ("tip",)
        np.testing.assert_allclose(found.world, [[1.0, -2.0, 3.0]])

    @pytest.mark.parametrize(
        ("header", "row"),
        [
            ("name,i,j,k", "tip,4,3,2"),
            ("name,index_z,index_y,index_x", "tip,2,3,4"),
            ("name,x_voxel,y_voxel,z_voxel", "tip,4,3,2"),
            ("name,x,y,z,coordinateSystem", "tip,4,3,2,index"),
            ("name,x_normalised,y_normalised,z_normalised", "tip,0.1,0.1,0.1"),
            ("name,x,y,z,index_x,index_y,index_z", "tip,99,99,99,4,3,2"),  # mm of an unknown system don't help
        ],
    )
    def test_a_point_on_the_grid(self, tmp_path, header, row):
        found = read_landmarks(put(tmp_path, "a.csv", f"{header}\n{row}\n"), space=OBLIQUE)
        np.testing.assert_allclose(found.index(OBLIQUE), SPOT)

    def test_named_axes_do_not_ask_for_an_axis_order(self, tmp_path):
        path = put(tmp_path, "a.csv", "name,i,j,k\ntip,4,3,2\n")
        np.testing.assert_allclose(read_landmarks(path, space=OBLIQUE, axis_order="zyx").index(OBLIQUE), SPOT)

    def test_coordinate_system_picks_the_columns(self, tmp_path):
        path = put(tmp_path, "a.csv", "name,x,y,z,coordinateSystem,index_x,index_y,index_z\ntip,1,2,3,RAS,4,3,2\n")
        np.testing.assert_allclose(read_landmarks(path, space=OBLIQUE).world, [[1.0, 2.0, 3.0]])
        np.testing.assert_allclose(read_landmarks(path, coordinate_system="LPS").world, [[-1.0, -2.0, 3.0]])
        by_index = read_landmarks(path, space=OBLIQUE, coordinate_system="index")
        np.testing.assert_allclose(by_index.world, [SPOT_WORLD])

    def test_labels_and_extras_are_kept(self, tmp_path):
        text = 'name,r,a,s,presence,note\n"tip, left ""A""",1,2,3,0.5,x\n#2,,,,,y\n'
        found = read_landmarks(put(tmp_path, "a.csv", text))
        assert found.names == ('tip, left "A"', "#2")
        assert found.present.tolist() == [True, False]
        assert list(found.extras) == ["presence"]
        np.testing.assert_array_equal(found.extras["presence"], [0.5, np.nan])

    def test_our_own_table(self, tmp_path):
        spot = LandmarkSet(("tip",), [[1.0, 2.0, 3.0]], {"uncertainty_mm": [0.5]})
        space = Space.from_spacing((4, 5, 6), (1.0, 2.0, 0.5))
        path = write_landmarks(tmp_path / "a.csv", spot, space=space)
        assert path.read_text() == (
            "name,x,y,z,coordinateSystem,index_z,index_y,index_x,uncertainty_mm\ntip,1,2,3,RAS,3,1,2,0.5\n"
        )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "has no header"),
            ("# only a comment\n", "has no header"),
            ("name,x,y,z\ntip,1,2,3\n", "it does not say which coordinates it holds"),
            ("name,size\ntip,1\n", "has no coordinate columns"),
            ("name,x,y,z\ntip,1,2\n", "line 2: 3 columns, expected 4 as in the header"),
            ("name,r,a,s\ntip,1,two,3\n", "line 2: expected a number in column 'a', got 'two'"),
            ("name,r,a,s\ntip,1,inf,3\n", "line 2: expected a finite number in column 'a'"),
            ("name,r,a,s\ntip,1,2,3\nend,1,,3\n", "line 3: some coordinates are missing"),
            (
                "name,x,y,z,coordinateSystem\na,1,2,3,RAS\nb,1,2,3,LPS\n",
                "rows of different coordinate systems: LPS, RAS",
            ),
            ("name,x,y,z,coordinateSystem\na,1,2,3,MNI\n", "coordinate system 'MNI', expected one of RAS, LPS"),
            ("name,x,y\na,1,2\n# coordinateSystem = RAS\n", "line 3: 1 columns, expected 3"),
        ],
    )
    def test_faults(self, tmp_path, text, expected):
        assert fault(put(tmp_path, "a.csv", text)).startswith(expected)

    def test_ambiguity_says_what_to_set(self, tmp_path):
        message = fault(put(tmp_path, "a.csv", "name,x,y,z\ntip,1,2,3\n"))
        assert "--point-option coordinate_system=index" in message
        assert "# coordinateSystem = RAS" in message

    def test_missing_columns_of_the_wanted_system(self, tmp_path):
        path = put(tmp_path, "a.csv", "name,r,a,s\ntip,1,2,3\n")
        assert fault(path, coordinate_system="LPS").startswith("has no columns of LPS coordinates")

    def test_two_mm_columns_need_an_axial_plane(self, tmp_path):
        path = put(tmp_path, "a.csv", "# coordinateSystem = LPS\nname,x,y\ntip,-1,-2\nnone,,\n")
        space = Space.from_spacing((8, 8), 1.0, origin=(0.0, 0.0, 7.0))
        np.testing.assert_array_equal(read_landmarks(path, space=space).world, [[1, 2, 7], [np.nan] * 3])
        assert fault(path).startswith("two coordinates a point")


class TestJson:
    @pytest.mark.parametrize(
        "content",
        [
            {"coordinateSystem": "RAS", "unit": "mm", "landmarks": [{"name": "tip", "position": [1, -2, 3]}]},
            {"coordinateSystem": "LPS", "landmarks": {"tip": [-1, 2, 3]}},
            {"coordinateSystem": "RAS", "units": "um", "points": [{"label": "tip", "x": 1000, "y": -2000, "z": 3000}]},
            {"coordinate_system": "RAS", "tip": [1, -2, 3]},
        ],
    )
    def test_a_point_in_mm(self, tmp_path, content):
        found = read_landmarks(put(tmp_path, "a.json", json.dumps(content)))
        assert found.names == ("tip",)
        np.testing.assert_allclose(found.world, [[1.0, -2.0, 3.0]])

    def test_bare_lists_when_told(self, tmp_path):
        path = put(tmp_path, "a.json", "[[4, 3, 2], null]")
        found = read_landmarks(path, space=OBLIQUE, coordinate_system="index")
        np.testing.assert_allclose(found.index(OBLIQUE), [*SPOT, [np.nan] * 3])
        assert found.names == ("point_1", "point_2")

    def test_our_own_schema(self, tmp_path):
        points = LandmarkSet(("tip", "end"), [[1.0, 2.0, 3.0], [np.nan] * 3], {"presence": [0.9, np.nan]})
        content = json.loads(write_landmarks(tmp_path / "a.json", points).read_text())
        assert content == {
            "coordinateSystem": "RAS",
            "unit": "mm",
            "landmarks": [
                {"name": "tip", "position": [1.0, 2.0, 3.0], "presence": 0.9},
                {"name": "end", "position": None, "presence": None},
            ],
        }

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("{", "line 1: not valid JSON"),
            ("[" * 100_000, "not valid JSON for a list of points"),
            ("3", "holds no list of landmarks"),
            ("[[1, 2, 3]]", "it does not say which coordinates it holds"),
            ('{"coordinateSystem": "RAS", "landmarks": [7]}', "landmark 1: expected an object with name and position"),
            ('{"coordinateSystem": "RAS", "landmarks": [{"name": "a"}]}', "landmark 1: has no position"),
            ('{"coordinateSystem": "RAS", "landmarks": [[1, "2", 3]]}', "landmark 1: expected a position of 2 or 3"),
            ('{"coordinateSystem": "RAS", "landmarks": [[1, 2, 3], [1, 2]]}', "some positions have two coordinates"),
            ('{"coordinateSystem": "RAS", "landmarks": [[1, null, 3]]}', "landmark 1: some coordinates are missing"),
            ('{"coordinateSystem": "RAS", "unit": "furlong", "landmarks": [[1, 2, 3]]}', "unit: 'furlong' is no unit"),
            ('{"coordinateSystem": ["RAS"], "landmarks": []}', "coordinate system"),
        ],
    )
    def test_faults(self, tmp_path, text, expected):
        assert fault(put(tmp_path, "a.json", text)).startswith(expected)


class TestElastix:
    def test_point_is_lps_in_mm(self, tmp_path):
        path = put(tmp_path, "a.txt", "point\n1\n1 2 3\n")
        np.testing.assert_allclose(read_landmarks(path).world, [[-1.0, -2.0, 3.0]])

    def test_index_begins_with_the_last_array_axis(self, tmp_path):
        path = put(tmp_path, "a.pts", "index\n1\n4 3 2\n")
        np.testing.assert_allclose(read_landmarks(path, space=OBLIQUE).world, [SPOT_WORLD])
        assert "set space=" in fault(path)

    def test_without_its_first_word_it_has_to_be_told(self, tmp_path):
        path = put(tmp_path, "a.pts", "1\n4 3 2\n")
        assert 'set coordinate_system="LPS" or "index"' in fault(path, space=OBLIQUE)
        found = read_landmarks(path, space=OBLIQUE, coordinate_system="index")
        np.testing.assert_allclose(found.world, [SPOT_WORLD])

    def test_what_we_write(self, tmp_path):
        spot = LandmarkSet.from_index(SPOT, OBLIQUE)
        lps = write_landmarks(tmp_path / "a.pts", LandmarkSet(("a",), [[1.0, 2.0, 3.5]]))
        assert lps.read_text() == "point\n1\n-1 -2 3.5\n"
        index = write_landmarks(tmp_path / "b.pts", spot, space=OBLIQUE, coordinate_system="index")
        words = index.read_text().split()
        assert words[:2] == ["index", "1"]
        np.testing.assert_allclose([float(word) for word in words[2:]], [4.0, 3.0, 2.0])

    def test_points_of_a_larger_scan_than_the_crop(self, tmp_path):
        index = np.array([[2.0, 3.0, 4.0], [19.0, 29.0, 39.0], [25.0, 3.0, 4.0], [2.0, -6.0, 4.0]])
        lps = OBLIQUE.to_world(index) * [-1, -1, 1]
        rows = "".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in lps)
        found = read_landmarks(put(tmp_path, "a.txt", f"point\n4\n{rows}"))
        np.testing.assert_allclose(found.index(OBLIQUE), index, atol=1e-4)
        assert OBLIQUE.contains(found.index(OBLIQUE)).tolist() == [True, True, False, False]

    def test_real_points_of_which_51_lie_in_the_crop(self, shared_data):
        sitk = pytest.importorskip("SimpleITK")
        image = sitk.ReadImage(str(shared_data / "elastix/3DCT_lung_baseline_small.mha"))
        matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine = np.eye(4)
        affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ np.column_stack([matrix[:, ::-1], image.GetOrigin()])
        space = Space(image.GetSize()[::-1], affine)
        found = read_landmarks(shared_data / "elastix/3DCT_lung_baseline_landmarks.txt")
        assert len(found) == 100
        assert int(space.contains(found.index(space)).sum()) == 51

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("point\n", "has no count of points"),
            ("", "has no count of points"),
            ("point\n2\n1 2 3\n", "line 2: announces 2 points, but 1 follow"),
            ("point\nmany\n", "line 2: 'many' is no count of points"),
        ],
    )
    def test_faults(self, tmp_path, text, expected):
        assert fault(put(tmp_path, "a.pts", text)).startswith(expected)


class TestOneDoor:
    def test_formats_are_told_by_the_name(self):
        assert [landmark_format(f"A.{fmt.upper()}") for fmt in POINT_FORMATS] == list(POINT_FORMATS)
        assert landmark_format("a.tsv") == "csv"
        assert landmark_format("a.nii.gz") is None

    def test_a_format_can_be_named(self, tmp_path):
        path = put(tmp_path, "a.dat", "1\n0.1 0.1 0.1\n")
        assert fault(path).startswith("unknown landmark format (expected one of .mrk.json, .fcsv")
        np.testing.assert_allclose(read_landmarks(path, space=OBLIQUE, format="txt").world, [SPOT_WORLD])

    def test_unreadable_files(self, tmp_path):
        assert fault(tmp_path / "none.txt") == "no such file"
        (tmp_path / "folder.csv").mkdir()
        assert fault(tmp_path / "folder.csv").startswith("can't be read")
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
        assert fault(tmp_path / "bytes.csv").startswith("is no UTF-8 text")

    def test_a_huge_file_is_refused_before_it_is_read(self, tmp_path):
        path = tmp_path / "huge.csv"
        with path.open("wb") as file:
            file.truncate(1 << 40)
        assert fault(path).startswith("is larger than 64 MiB")

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"axis_order": "yxz"}, "axis_order: expected one of xyz, zyx"),
            ({"coordinate_system": "MNI"}, "coordinate_system: expected one of auto, RAS, LPS"),
            ({"format": "xlsx"}, "format: expected one of mrk.json"),
        ],
    )
    def test_unknown_options(self, tmp_path, options, expected):
        path = put(tmp_path, "a.txt", "0\n")
        with pytest.raises(SettingError, match=expected):
            read_landmarks(path, space=OBLIQUE, **options)

    def test_a_system_that_the_format_does_not_have(self, tmp_path):
        with pytest.raises(SettingError, match=r"coordinate_system of fcsv: expected one of LPS, RAS, got 'index'"):
            write_landmarks(tmp_path / "a.fcsv", LandmarkSet((), []), coordinate_system="index")
        with pytest.raises(SettingError, match="space: normalised coordinates need the image's grid"):
            write_landmarks(tmp_path / "a.txt", LandmarkSet(("a",), [[0, 0, 0]]))
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_write_keeps_the_old_file(self, tmp_path):
        path = put(tmp_path, "a.json", "old")
        with pytest.raises(FileError, match=r"a.json: can't be written"):
            write_landmarks(path, LandmarkSet(("\ud800",), [[0, 0, 0]]))
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("fmt", [fmt for fmt in POINT_FORMATS if fmt not in ("roi", "zip")])
    def test_no_points_at_all(self, tmp_path, fmt):
        path = write_landmarks(tmp_path / f"a.{fmt}", LandmarkSet((), np.zeros((0, 3))), space=OBLIQUE)
        assert len(read_landmarks(path, space=OBLIQUE)) == 0

    def test_a_set_that_does_not_add_up(self):
        with pytest.raises(SettingError, match="names: expected 1, one per point, got 2"):
            LandmarkSet(("a", "b"), [[0, 0, 0]])
        with pytest.raises(SettingError, match="world: expected finite coordinates"):
            LandmarkSet(("a",), [[0, np.nan, 0]])
        with pytest.raises(SettingError, match=r"extras\['presence'\]: expected shape \(1,\)"):
            LandmarkSet(("a",), [[0, 0, 0]], {"presence": [1.0, 2.0]})

"""Slicer's two formats by worked examples, as its releases write them, and every fault by its message."""

import json

import numpy as np
import pytest

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.points.landmarks import LandmarkSet, read_landmarks, write_landmarks

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


class TestSlicerMarkups:
    def markups(self, **changes):
        points = [{"label": "tip, A", "position": [-1.0, 2.0, 3.0]}]
        return {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points} | changes

    def test_lps_and_ras(self, tmp_path):
        for system, sign in (("LPS", -1), ("RAS", 1)):
            text = json.dumps({"@schema": "", "markups": [self.markups(coordinateSystem=system)]})
            found = read_landmarks(put(tmp_path, "a.mrk.json", text))
            assert found.names == ("tip, A",)
            np.testing.assert_allclose(found.world, [[sign * -1.0, sign * 2.0, 3.0]])

    def test_the_schema_default_is_lps_and_mm(self, tmp_path):
        markup = self.markups()
        del markup["coordinateSystem"]
        found = read_landmarks(put(tmp_path, "a.mrk.json", json.dumps({"markups": [markup]})))
        np.testing.assert_allclose(found.world, [[1.0, -2.0, 3.0]])

    def test_several_lists_follow_each_other_and_other_markups_are_left_out(self, tmp_path):
        lists = [
            self.markups(),
            {"type": "Plane", "controlPoints": [{"label": "p", "position": [0, 0, 0]}]},
            self.markups(coordinateSystem="RAS", coordinateUnits=["um", "UCUM", "micrometer"]),
        ]
        found = read_landmarks(put(tmp_path, "a.mrk.json", json.dumps({"markups": lists})))
        np.testing.assert_allclose(found.world, [[1.0, -2.0, 3.0], [-0.001, 0.002, 0.003]])

    def test_points_that_were_not_placed_are_nan(self, tmp_path):
        points = [
            {"label": "a", "position": [1.0, 2.0, 3.0], "positionStatus": "undefined"},
            {"label": "b", "position": [1.0, 2.0, 3.0], "positionStatus": "missing"},
            {"label": "c"},
            {"label": "d", "position": [1.0, 2.0, 3.0], "positionStatus": "defined"},
        ]
        text = json.dumps({"markups": [self.markups(controlPoints=points)]})
        assert read_landmarks(put(tmp_path, "a.mrk.json", text)).present.tolist() == [False, False, False, True]

    def test_what_we_write(self, tmp_path):
        points = LandmarkSet(("tip", "end"), [[1.0, 2.0, 3.0], [np.nan] * 3], {"presence": [0.9, 0.1]})
        content = json.loads(write_landmarks(tmp_path / "a.mrk.json", points).read_text())
        assert "markups-schema-v1.0" in content["@schema"]
        (markup,) = content["markups"]
        assert (markup["type"], markup["coordinateSystem"], markup["coordinateUnits"]) == ("Fiducial", "LPS", "mm")
        first, second = markup["controlPoints"]
        assert first["position"] == [-1.0, -2.0, 3.0]
        assert first["description"] == "presence=0.9"
        assert second["positionStatus"] == "undefined"
        assert "position" not in second

    @pytest.mark.parametrize(
        ("markups", "expected"),
        [
            ({}, "`markups` is no list of markups"),
            ([], "holds no point list (Fiducial), only nothing"),
            ([{"type": "Line"}], "holds no point list (Fiducial), only Line"),
            ([{"type": "Fiducial", "coordinateSystem": "IJK"}], "coordinateSystem: index, expected LPS or RAS"),
            ([{"type": "Fiducial", "coordinateUnits": "furlong"}], "coordinateUnits: 'furlong' is no unit of length"),
            ([{"type": "Fiducial", "coordinateUnits": [[]]}], "coordinateUnits: '[]' is no unit of length"),
            ([{"type": "Fiducial", "controlPoints": 3}], "`controlPoints` is no list of points"),
            (
                [{"type": "Fiducial", "controlPoints": [{"position": [1, 2]}]}],
                "control point 1: expected a position of 3",
            ),
        ],
    )
    def test_faults(self, tmp_path, markups, expected):
        path = put(tmp_path, "a.mrk.json", json.dumps({"markups": markups}))
        assert fault(path).startswith(expected)


class TestSlicerFiducials:
    COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"

    @pytest.mark.parametrize(
        ("version", "system", "world"),
        [
            ("4.4", "0", [1.0, 2.0, 3.0]),
            ("4.6", "1", [-1.0, -2.0, 3.0]),
            ("4.11", "LPS", [-1.0, -2.0, 3.0]),
            ("5.6", "RAS", [1.0, 2.0, 3.0]),
            ("4.4", "2", OBLIQUE.affine[:3] @ [3.0, 2.0, 1.0, 1.0]),
            ("5.0", "IJK", OBLIQUE.affine[:3] @ [3.0, 2.0, 1.0, 1.0]),
        ],
    )
    def test_numeric_and_named_systems(self, tmp_path, version, system, world):
        head = f"# Markups fiducial file version = {version}\n# CoordinateSystem = {system}\n{self.COLUMNS}"
        row = 'vtkMRMLMarkupsFiducialNode_0,1,2,3,0,0,0,1,1,1,0,"tip, ""A""",presence=0.25 by hand,\n'
        found = read_landmarks(put(tmp_path, "a.fcsv", head + row), space=OBLIQUE)
        assert found.names == ('tip, "A"',)
        np.testing.assert_allclose(found.world, [world])
        np.testing.assert_allclose(found.extras["presence"], [0.25])

    def test_points_that_were_not_placed_are_nan(self, tmp_path):
        rows = "1,0,0,0,0,0,0,1,1,1,0,a,,,0,0\n2,1,2,3,0,0,0,1,1,1,0,b,,,2,0\n3,nan,nan,nan,0,0,0,1,1,1,0,c,,\n"
        path = put(tmp_path, "a.fcsv", f"# Markups fiducial file version = 5.2\n# CoordinateSystem = LPS\n{rows}")
        assert read_landmarks(path).present.tolist() == [False, True, False]

    def test_slicer_3(self, tmp_path):
        path = put(tmp_path, "a.fcsv", "# columns = label,x,y,z,sel,vis\ntip,1,2,3,1,1\n")
        assert "say which, one of LPS, RAS: 'data.point_options={coordinate_system: LPS}'" in fault(path)
        found = read_landmarks(path, coordinate_system="RAS")
        assert found.names == ("tip",)
        np.testing.assert_allclose(found.world, [[1.0, 2.0, 3.0]])

    def test_what_we_write(self, tmp_path):
        points = LandmarkSet(("tip, A", "end"), [[1.0, 2.0, 3.0], [np.nan] * 3], {"presence": [0.9, 0.1]})
        lines = write_landmarks(tmp_path / "a.fcsv", points).read_text().splitlines()
        assert lines[1] == "# CoordinateSystem = 1"
        assert lines[3] == '1,-1,-2,3,0,0,0,1,1,1,0,"tip, A",presence=0.9,,2,0'
        assert lines[4] == "2,0,0,0,0,0,0,1,0,1,0,end,presence=0.1,,0,0"

    def test_real_template_points(self, shared_data):
        found = read_landmarks(shared_data / "afids_2009c/tpl-MNI152NLin2009cAsym_afids.fcsv")
        assert len(found) == 32
        assert found.names[:2] == ("1", "2")
        np.testing.assert_allclose(found.world[0], [-0.231, 2.93275, -4.899])  # anterior commissure
        assert found.world[0, 1] > found.world[1, 1]  # lies anterior of the posterior one
        mirrored = np.abs(found.world[30] - found.world[31] * [-1, 1, 1])  # right and left of one pair
        assert mirrored.max() < 2

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("1,2,3\n", "line 2: 3 columns, expected id,x,y,z"),
            ("1,10,5,20,25,30,0,0,0,1,1,1,0,tip,,\n", "line 2: 16 columns, expected id,x,y,z"),  # decimal commas
            ("1,2,3,0,0,0,1,1,1,0,tip,,\n", "line 2: 13 columns, expected id,x,y,z"),
            ("1,a,2,3,0,0,0,1,1,1,0,tip,,\n", "line 2: expected numbers, got 'a,2,3'"),
            ("1,inf,2,3,0,0,0,1,1,1,0,tip,,\n", "line 2: expected finite numbers"),
            ("1,1,2,3,0,0,0,1,1,1,0,tip,,\n", "it does not say which coordinates it holds"),
            ("# columns = id,x,y\n", "the line `# columns` has no z, label"),
            ("# CoordinateSystem = 7\n", "coordinate system '7', expected one of RAS, LPS"),
        ],
    )
    def test_faults(self, tmp_path, body, expected):
        path = put(tmp_path, "a.fcsv", f"# Markups fiducial file version = 4.6\n{body}")
        assert fault(path).startswith(expected)

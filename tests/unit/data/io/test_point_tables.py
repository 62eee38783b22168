"""Points as Fiji, napari and 3D Slicer write them: tables, and ImageJ's selections."""

import shlex
import struct
import zipfile

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io import LandmarkSet, read_landmarks, write_landmarks
from voxelry.io.points.pixels import observer_points, pixel_table

PLANE = Space.from_spacing((40, 50), (0.25, 0.5))
STACK = Space.from_spacing((6, 40, 50), (2e-3, 0.25e-3, 0.5e-3), origin=(1.0, 2.0, 3.0))


def put(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


class TestFiji:
    def test_name_x_y_in_pixels(self, tmp_path):
        path = put(tmp_path, "a.csv", "name,X,Y\nleft,10,20\nright,10.5,3\n")
        found = read_landmarks(path, space=PLANE, coordinate_system="index")
        assert found.names == ("left", "right")
        np.testing.assert_allclose(found.index(PLANE), [[20, 10], [3, 10.5]])

    def test_x_y_z_in_pixels(self, tmp_path):
        path = put(tmp_path, "a.csv", "X,Y,Z\n10,20,5\n")
        found = read_landmarks(path, space=STACK, coordinate_system="index")
        np.testing.assert_allclose(found.index(STACK), [[5, 20, 10]])

    def test_the_advice_of_the_refusal_works_as_printed(self, tmp_path):
        path = put(tmp_path, "a.csv", "name,X,Y\nleft,10,20\n")
        with pytest.raises(FileError, match="it does not say which coordinates it holds") as refusal:
            read_landmarks(path, space=PLANE)
        quoted = str(refusal.value).split("'")[1]
        (word,) = shlex.split(f"'{quoted}'")
        override = OverridesParser.create().parse_override(word)
        assert override.get_key_element() == "data.point_options"
        found = read_landmarks(path, space=PLANE, **override.value())
        np.testing.assert_allclose(found.index(PLANE), [[20, 10]])
        key, _, value = str(refusal.value).split("--point-option ")[1].split()[0].partition("=")
        again = read_landmarks(path, space=PLANE, **{key: value})
        np.testing.assert_array_equal(again.world, found.world)

    def test_results_in_calibrated_units_with_slices(self, tmp_path):
        text = " ,Label,Area,X,Y,Slice\n1,a.tif,0,5,5,2\n2,a.tif,0,2.5,10,6\n"
        found = read_landmarks(put(tmp_path, "R.csv", text), space=STACK, coordinate_system="scaled", unit="um")
        np.testing.assert_allclose(found.index(STACK), [[1, 20, 10], [5, 40, 5]])
        assert found.names == ("point_1", "point_2")  # Label is the image
        assert list(found.extras) == ["Area"]

    def test_results_in_pixels_with_slices(self, tmp_path):
        text = " \tLabel\tX\tY\tSlice\n1\tone\t10\t20\t1\n2\ttwo\t11\t21\t6\n"
        found = read_landmarks(put(tmp_path, "R.tsv", text), space=STACK, coordinate_system="index")
        np.testing.assert_allclose(found.index(STACK), [[0, 20, 10], [5, 21, 11]])
        assert found.names == ("one", "two")

    def test_slices_of_a_plane_and_beyond_the_stack(self, tmp_path):
        flat = put(tmp_path, "a.csv", "X,Y,Slice\n10,20,1\n")
        found = read_landmarks(flat, space=PLANE, coordinate_system="index")
        np.testing.assert_allclose(found.index(PLANE), [[20, 10]])
        beyond = put(tmp_path, "b.csv", "X,Y,Slice\n10,20,7\n")
        with pytest.raises(FileError, match="line 2: plane 7, but the image has 6"):
            read_landmarks(beyond, space=STACK, coordinate_system="index")
        with pytest.raises(FileError, match="counts planes, so it can't hold RAS"):
            read_landmarks(beyond, space=STACK, coordinate_system="RAS")

    @pytest.mark.parametrize(
        "header", ["X (µm),Y (µm),Z (µm)", "x_um,y_um,z_um", "x [microns],y [microns],z [microns]"]
    )
    def test_units_in_the_columns_titles(self, tmp_path, header):
        path = put(tmp_path, "a.csv", f"{header}\n5,5,2\n")
        found = read_landmarks(path, space=STACK, coordinate_system="scaled")
        np.testing.assert_allclose(found.index(STACK), [[1, 20, 10]])
        np.testing.assert_allclose(read_landmarks(path, coordinate_system="RAS").world, [[5e-3, 5e-3, 2e-3]])

    def test_pixels_in_the_columns_titles_say_the_system(self, tmp_path):
        found = read_landmarks(put(tmp_path, "a.csv", "X (pixels),Y (pixels)\n10,20\n"), space=PLANE)
        np.testing.assert_allclose(found.index(PLANE), [[20, 10]])

    def test_different_units_are_refused(self, tmp_path):
        with pytest.raises(FileError, match="different units: mm, um"):
            read_landmarks(put(tmp_path, "a.csv", "x_um,y_mm,z_um\n1,2,3\n"), coordinate_system="RAS")


def roi(points, *, kind=10, position=0, stack=0, name="", floating=False, counters=()):
    """A selection as ImageJ writes it."""
    count = len(points)
    left, top = (int(min(axis)) for axis in zip(*points, strict=True))
    options = 128 if floating else 0
    body = b"".join(
        struct.pack(f">{count}h", *(int(p[axis]) - low for p in points)) for axis, low in ((0, left), (1, top))
    )
    if floating:
        body += b"".join(struct.pack(f">{count}f", *(p[axis] for p in points)) for axis in (0, 1))
    second = 64 + len(body)
    head = b"Iout" + struct.pack(">hBx", 228, kind) + struct.pack(">hhhhH", top, left, top + 9, left + 9, count)
    head = head.ljust(50, b"\0") + struct.pack(">h", options)
    head = head.ljust(56, b"\0") + struct.pack(">ii", position, second)
    tail = struct.pack(">iiii", 0, 0, stack, 0) + struct.pack(">ii", second + 64, len(name))
    tail = tail.ljust(48, b"\0") + struct.pack(">i", second + 64 + 2 * len(name) if counters else 0)
    tail = tail.ljust(64, b"\0") + name.encode("utf-16-be")
    return head + body + tail + struct.pack(f">{len(counters)}i", *(plane << 8 for plane in counters))


class TestSelections:
    def test_one_point_on_a_plane(self, tmp_path):
        (tmp_path / "a.roi").write_bytes(roi([(10, 20)], name="Spitze ä"))
        found = read_landmarks(tmp_path / "a.roi", space=PLANE)
        assert found.names == ("Spitze ä",)
        np.testing.assert_allclose(found.index(PLANE), [[20, 10]])

    def test_floating_points_with_their_planes(self, tmp_path):
        data = roi([(10.25, 20.5), (11, 3)], name="p", floating=True, counters=(2, 6))
        (tmp_path / "a.roi").write_bytes(data)
        found = read_landmarks(tmp_path / "a.roi", space=STACK)
        assert found.names == ("p_1", "p_2")
        np.testing.assert_allclose(found.index(STACK), [[1, 20.5, 10.25], [5, 3, 11]])

    def test_a_set_of_selections(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "RoiSet.zip", "w") as archive:
            archive.writestr("0001-a.roi", roi([(10, 20)], position=3))
            archive.writestr("0002-b.roi", roi([(-2, 21)], stack=4, position=17, name="b"))
        found = read_landmarks(tmp_path / "RoiSet.zip", space=STACK)
        assert found.names == ("0001-a", "b")
        np.testing.assert_allclose(found.index(STACK), [[2, 20, 10], [3, 21, -2]])

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b"", "doesn't begin with Iout"),
            (roi([(1, 2)])[:60], "is cut short"),
            (roi([(1, 2)], kind=1), "is a selection of type rectangle, expected points"),
            (roi([(1, 2)]), "2 coordinates, expected 3"),
            (roi([(1, 2)], position=9), "plane 9, but the image has 6"),
            (roi([(1, 2), (3, 4)], floating=True)[:78], "is cut short"),
        ],
    )
    def test_faults(self, tmp_path, data, expected):
        (tmp_path / "a.roi").write_bytes(data)
        with pytest.raises(FileError, match=expected):
            read_landmarks(tmp_path / "a.roi", space=STACK)

    def test_faults_of_sets(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"PK no zip")
        with pytest.raises(FileError, match="is no set of ImageJ's selections"):
            read_landmarks(tmp_path / "a.zip", space=STACK)
        zipfile.ZipFile(tmp_path / "b.zip", "w").close()
        with pytest.raises(FileError, match="holds no selections"):
            read_landmarks(tmp_path / "b.zip", space=STACK)
        found = read_landmarks(put(tmp_path, "c.csv", "r,a,s\n1,2,3\n"))
        with pytest.raises(FileError, match="read only"):
            write_landmarks(tmp_path / "c.roi", found)


class TestNapari:
    def test_axes_are_in_array_order(self, tmp_path):
        path = put(tmp_path, "a.csv", "index,axis-0,axis-1,axis-2\n0.0,5.0,20.0,10.0\n1.0,0.0,1.0,2.5\n")
        found = read_landmarks(path, space=STACK)
        np.testing.assert_allclose(found.index(STACK), [[5, 20, 10], [0, 1, 2.5]])
        assert found.extras == {}

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("index,axis-0,axis-1,axis-2,axis-3\n0,0,5,20,10\n", "has the axes axis_0, .*expected 2 or 3"),
            ("index,axis-0,axis-1\n0,20,10\n", "2 coordinates, expected 3"),
            ("index,shape-type,vertex-index,axis-0,axis-1,axis-2\n0,rectangle,0,1,2,3\n", "holds shapes"),
        ],
    )
    def test_faults(self, tmp_path, text, expected):
        with pytest.raises(FileError, match=expected):
            read_landmarks(put(tmp_path, "a.csv", text), space=STACK)


class TestSlicerTable:
    HEADER = "label,l,p,s,defined,selected,visible,locked,description\n"

    def test_points_that_are_not_defined_are_absent(self, tmp_path):
        rows = "A,10.5,-20.25,30,1,1,1,0,\nB,0,0,0,0,1,1,0,\nC,-1,2,3,1,0,0,1,tip\n"
        found = read_landmarks(put(tmp_path, "a.csv", self.HEADER + rows))
        np.testing.assert_allclose(found.world, [[-10.5, 20.25, 30], [np.nan] * 3, [1, -2, 3]])
        assert found.extras == {}  # hidden or not selected says nothing of where a point lies

    def test_an_unknown_status_is_refused(self, tmp_path):
        with pytest.raises(FileError, match="line 3: defined is 'maybe', expected one of"):
            read_landmarks(put(tmp_path, "a.csv", self.HEADER + "A,1,2,3,1,1,1,0,\nB,1,2,3,maybe,1,1,0,\n"))

    @pytest.mark.parametrize(("status", "placed"), [("defined", True), ("missing", False), ("2", True), ("1", False)])
    def test_position_status(self, tmp_path, status, placed):
        found = read_landmarks(put(tmp_path, "a.csv", f"name,r,a,s,positionStatus\nA,1,2,3,{status}\n"))
        assert found.present.tolist() == [placed]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name,r,a,s\nA,1,2,3\nB,1,5,2,5,3,5\n", "line 3: 7 columns, expected 4 as in the header .*decimal"),
        ("\ufeffname;r;a;s\r\n\r\nA;1,5;2;3\r\n", "line 3: expected a number in column 'r', got '1,5' .*decimal"),
        ("name\tr\ta\ts\nA\t1\t2\n", "line 2: 3 columns, expected 4"),
        ("name,x,y,z,X\nA,1,2,3,4\n", "line 1: two columns are called 'x'"),
    ],
)
def test_rows_that_do_not_fit_the_header_are_named(tmp_path, text, line):
    with pytest.raises(FileError, match=line):
        read_landmarks(put(tmp_path, "a.csv", text))


def test_tables_of_pixels_keep_one_count_of_numbers(tmp_path):
    path = put(tmp_path, "all.csv", "id,x0,y0,x1,y1\n1,10,20,30,40\n2,10,5,20,5\n3,1,5,2,5,3,5,4,5\n")
    with pytest.raises(FileError, match="line 4: 9 columns, expected 5"):
        pixel_table(path)
    with pytest.raises(FileError, match=r"line 1: expected finite numbers"):
        pixel_table(put(tmp_path, "inf.csv", "1,10,inf\n"))
    with pytest.raises(FileError, match="line 3: points go on after line 2"):
        observer_points([put(tmp_path, "a.txt", "10,20\n30 40\n50,60\n1\n")])
    np.testing.assert_array_equal(
        observer_points([put(tmp_path, "b.txt", "10,20\n30,40\n1\n2\n")]), [[20, 10], [40, 30]]
    )


class TestWhatIsToldBesideThePoints:
    @pytest.mark.parametrize(
        "text",
        [
            "name,x,y,z,coordinateSystem,unit\nA,1000,2000,3000,LPS,um\n",
            "# coordinateSystem = LPS\n# unit = µm\nname,x,y,z\nA,1000,2000,3000\n",
            "sep=;\nname;x;y;z;coordinate_system;units\nA;0.1;0.2;0.3;LPS;cm\n",
        ],
    )
    def test_a_unit_in_a_column_or_a_comment_counts(self, tmp_path, text):
        np.testing.assert_allclose(read_landmarks(put(tmp_path, "a.csv", text)).world, [[-1, -2, 3]])

    def test_units_that_differ_are_refused(self, tmp_path):
        path = put(tmp_path, "a.csv", "name,r,a,s,unit\nA,1,2,3,mm\nB,1,2,3,um\n")
        with pytest.raises(FileError, match="rows in different units: mm, um"):
            read_landmarks(path)

    @pytest.mark.parametrize("header", ["name,X (mm),Y (mm)", "# coordinateSystem = index\nname,x_mm,y_mm"])
    def test_lengths_are_no_pixels(self, tmp_path, header):
        path = put(tmp_path, "a.csv", f"{header}\nA,1,2\n")
        with pytest.raises(FileError, match=r"coordinates are in mm, so they can't be index .*one of RAS, LPS, scaled"):
            read_landmarks(path, space=PLANE, coordinate_system="index")

    @pytest.mark.parametrize("column", ["point", "fiducial", "bone"])
    def test_names_are_found_whatever_their_column_is_called(self, tmp_path, column):
        path = put(tmp_path, "a.csv", f"observer,{column},r,a,s\nme,nasion,1,2,3\nme,inion,4,5,6\n")
        assert read_landmarks(path).names == ("nasion", "inion")

    def test_points_of_several_images_are_refused(self, tmp_path):
        path = put(tmp_path, "a.csv", "image,name,r,a,s\na.nii,A,1,2,3\nb.nii,A,4,5,6\n")
        with pytest.raises(FileError, match=r"points of 2 different images \(a.nii, b.nii\) \(write a table for each"):
            read_landmarks(path)

    @pytest.mark.parametrize(("name", "text"), [("a.csv", "name,r,a,s\nA,1_5,2,3\n"), ("a.txt", "1\n0.5 0_1 0.5\n")])
    def test_an_underscore_is_no_digit(self, tmp_path, name, text):
        with pytest.raises(FileError, match="line 2: expected"):
            read_landmarks(put(tmp_path, name, text), space=STACK)

    def test_json_may_say_it_with_each_point(self, tmp_path):
        entry = '{"name": "A", "position": [1000, 2000, 3000], "coordinateSystem": "LPS", "unit": "um"}'
        np.testing.assert_allclose(read_landmarks(put(tmp_path, "a.json", f"[{entry}]")).world, [[-1, -2, 3]])
        path = put(tmp_path, "b.json", f'{{"coordinateSystem": "RAS", "landmarks": [{entry}]}}')
        with pytest.raises(FileError, match="coordinateSystem: LPS, RAS in one file"):
            read_landmarks(path)

    def test_the_count_of_an_elastix_file_may_follow_its_first_word(self, tmp_path):
        np.testing.assert_array_equal(read_landmarks(put(tmp_path, "a.txt", "point 1\n1 2 3\n")).world, [[-1, -2, 3]])
        listed = put(tmp_path, "outputpoints.txt", "Point\t0\t; InputIndex = [ 1 2 3 ]\t; OutputPoint = [ 1 2 3 ]\n")
        with pytest.raises(FileError, match=r"line 1: .* is no count of points"):
            read_landmarks(listed)

    @pytest.mark.parametrize("order", ["xyz", "zyx"])
    @pytest.mark.parametrize("system", ["index", "normalised"])
    def test_json_says_in_which_order_it_was_written(self, tmp_path, order, system):
        points = LandmarkSet.from_index([[1.0, 20.0, 30.0], [4.0, 5.0, 6.0]], STACK, ["a", "b"])
        path = write_landmarks(tmp_path / "a.json", points, space=STACK, coordinate_system=system, axis_order=order)
        for asked in ("xyz", "zyx"):
            found = read_landmarks(path, space=STACK, axis_order=asked)
            np.testing.assert_allclose(found.index(STACK), points.index(STACK), atol=1e-9)
        path.write_text(path.read_text().replace(order, "yxz"))
        with pytest.raises(FileError, match="axisOrder: expected xyz or zyx"):
            read_landmarks(path, space=STACK)


@pytest.mark.parametrize("header", ["i,j,k", "index_x,index_y,index_z"])
def test_columns_that_name_their_axes_are_the_same_in_any_axis_order(header, tmp_path):
    space = Space.from_spacing((5, 6, 7))
    path = tmp_path / "a.csv"
    path.write_text(f"name,{header}\np,6,5,4\n")
    for order in ("xyz", "zyx"):
        assert read_landmarks(path, space=space, axis_order=order).index(space).tolist() == [[4, 5, 6]]


def test_a_column_of_planes_is_one_in_any_axis_order(tmp_path):
    space = Space.from_spacing((5, 6, 7))
    (tmp_path / "a.csv").write_text("name,X,Y,Slice\np,6,5,4\n")
    for order in ("xyz", "zyx"):
        found = read_landmarks(tmp_path / "a.csv", space=space, coordinate_system="index", axis_order=order)
        assert found.index(space).tolist() == [[3, 5, 6]]


def test_an_axis_order_of_columns_that_stand_so_is_refused(tmp_path):
    space = Space.from_spacing((5, 6, 7))
    (tmp_path / "a.csv").write_text("name,z,y,x\np,4,5,6\n")
    told = {"space": space, "coordinate_system": "index"}
    assert read_landmarks(tmp_path / "a.csv", **told).index(space).tolist() == [[4, 5, 6]]
    with pytest.raises(FileError, match=r"stand z, y, x and are found by name.*leave axis_order out"):
        read_landmarks(tmp_path / "a.csv", **told, axis_order="zyx")
    (tmp_path / "b.csv").write_text("name,x,y,z\np,4,5,6\n")
    assert read_landmarks(tmp_path / "b.csv", **told, axis_order="zyx").index(space).tolist() == [[4, 5, 6]]

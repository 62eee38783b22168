"""Points come back from every format, whatever the grid they lie on."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.io.points.landmarks import POINT_FORMATS, LandmarkSet, read_landmarks, write_landmarks

NAMED = ("mrk.json", "fcsv", "csv", "json")
SYSTEMS = [
    *[(fmt, system) for fmt in ("mrk.json", "fcsv") for system in ("LPS", "RAS")],
    *[(fmt, system) for fmt in ("csv", "json") for system in ("RAS", "LPS", "index", "normalised")],
    *[("pts", system) for system in ("LPS", "index")],
    ("txt", "normalised"),
]
MM = 1e-6


@st.composite
def spaces(draw, ndims=(2, 3)):
    """Rotated, mirrored, anisotropic grids, up to 300 mm from the origin."""
    rank = draw(st.sampled_from(ndims))
    shape = draw(st.tuples(*[st.integers(2, 300)] * rank))
    spacing = draw(st.tuples(*[st.floats(0.05, 8.0)] * rank))
    seed = draw(st.integers(0, 2**32 - 1))
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]  # mirrored half of the time
    affine = np.zeros((4, rank + 1))
    affine[:3, :rank] = rotation[:, :rank] * spacing
    affine[:3, rank] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    affine[3, rank] = 1.0
    return Space(shape, affine)


@st.composite
def landmark_sets(draw, space):
    """Up to six points of the grid, some absent, with any names and extras."""
    count = draw(st.integers(0, 6))
    inside = draw(hnp.arrays(np.float64, (count, space.ndim), elements=st.floats(0, 1)))
    inside[draw(hnp.arrays(bool, count))] = np.nan
    printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
    names = draw(st.lists(printable, min_size=count, max_size=count))
    extras = {
        key: draw(hnp.arrays(np.float64, count, elements=st.one_of(st.just(np.nan), st.floats(0, 100))))
        for key in draw(st.sets(st.sampled_from(["uncertainty_mm", "presence"])))
    }
    return LandmarkSet.from_index(inside * space.shape, space, names, extras)


def there_and_back(landmarks, fmt, space, **options):
    with tempfile.TemporaryDirectory() as folder:
        path = write_landmarks(Path(folder) / f"points.{fmt}", landmarks, space=space, **options)
        assert [item.name for item in Path(folder).iterdir()] == [path.name]
        return read_landmarks(path, space=space, axis_order=options.get("axis_order", "xyz"))


@pytest.mark.parametrize(("fmt", "system"), SYSTEMS)
@given(data=st.data())
def test_a_round_trip_keeps_every_point(fmt, system, data):
    space = data.draw(spaces())
    landmarks = data.draw(landmark_sets(space))
    order = data.draw(st.sampled_from(["xyz", "zyx"]))
    found = there_and_back(landmarks, fmt, space, coordinate_system=system, axis_order=order)
    np.testing.assert_array_equal(found.present, landmarks.present)
    np.testing.assert_allclose(found.world, landmarks.world, rtol=0, atol=MM)
    if fmt in NAMED and any(landmarks.names):
        assert found.names == landmarks.names
    if fmt in NAMED:
        for key, values in landmarks.extras.items():
            if len(values) and np.isfinite(values).any():
                np.testing.assert_allclose(found.extras[key], values, rtol=1e-9)


@given(data=st.data())
def test_lps_and_ras_files_hold_the_same_points(data):
    space = data.draw(spaces((3,)))
    landmarks = data.draw(landmark_sets(space))
    for fmt in ("mrk.json", "fcsv", "csv", "json"):
        lps = there_and_back(landmarks, fmt, None, coordinate_system="LPS")
        ras = there_and_back(landmarks, fmt, None, coordinate_system="RAS")
        np.testing.assert_allclose(lps.world, ras.world, rtol=0, atol=MM)


@given(data=st.data())
def test_a_wrong_system_mirrors_x_and_y(data):
    space = data.draw(spaces((3,)))
    landmarks = data.draw(landmark_sets(space))
    with tempfile.TemporaryDirectory() as folder:
        path = write_landmarks(Path(folder) / "a.mrk.json", landmarks)
        mistaken = read_landmarks(path, coordinate_system="RAS")
    np.testing.assert_allclose(mistaken.world, landmarks.world * [-1, -1, 1], rtol=0, atol=MM)


@pytest.mark.parametrize("fmt", [fmt for fmt in POINT_FORMATS if fmt not in ("roi", "zip")])
@given(data=st.data(), axes=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3))
def test_copies_of_a_volume_in_other_axes_share_their_anatomy(fmt, data, axes, flips):
    """A RAS volume and its LAS, PSR, ... copies: each one's own file gives the same world points."""
    space = data.draw(spaces((3,)))
    copy = space.reorder(axes, flips)
    inside = data.draw(hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 1)))
    # in voxel centres of both, and inside [0, 1] of both, which the originals' format needs
    landmarks = LandmarkSet.from_index(inside * (np.asarray(space.shape) - 1), space)
    one = there_and_back(landmarks, fmt, space)
    other = there_and_back(landmarks, fmt, copy)
    np.testing.assert_allclose(one.world, other.world, rtol=0, atol=MM)
    np.testing.assert_allclose(space.to_index(other.world), landmarks.index(space), rtol=0, atol=1e-4)


@given(data=st.data())
def test_axis_order_is_the_reversal_of_the_columns(data):
    space = data.draw(spaces())
    points = data.draw(hnp.arrays(np.float64, (3, space.ndim), elements=st.floats(0, 1)))
    with tempfile.TemporaryDirectory() as folder:
        xyz, zyx = Path(folder) / "xyz.txt", Path(folder) / "zyx.txt"
        for path, columns in ((xyz, points), (zyx, points[:, ::-1])):
            path.write_text("3\n" + "\n".join(" ".join(map(repr, map(float, row))) for row in columns))
        one = read_landmarks(xyz, space=space)
        other = read_landmarks(zyx, space=space, axis_order="zyx")
    np.testing.assert_array_equal(one.world, other.world)


@pytest.mark.parametrize("fmt", [fmt for fmt in POINT_FORMATS if fmt not in ("roi", "zip")])
@given(content=st.one_of(st.binary(max_size=200), st.text('01,.-e{}[]":#=xyzn \n\tname', max_size=120).map(str.encode)))
def test_any_bytes_are_points_or_a_one_line_error(fmt, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{fmt}"
        path.write_bytes(content)
        message = ""
        try:
            found = read_landmarks(path, space=Space.from_spacing((4, 5, 6)))
        except FileError as error:
            message = str(error)
    if message:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
    else:
        assert found.world.shape == (len(found), 3)

"""Signed distances against analytic shapes, on grids nobody would choose."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops import sdf as ops
from voxelry.ops.mask_window import mask_window

TURNED = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix()
SHEAR = np.array([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [0.0, 0.2, 1.0]])


def grid(shape, spacing, *, directions=TURNED, mirror=1.0, shift=(12.0, -40.0, 70.0)):
    affine = np.eye(4)
    affine[:3, :3] = directions[:, ::-1] * np.asarray(spacing)
    affine[:3, 0] *= mirror
    affine[:3, 3] = shift
    return Space(shape, affine)


def places(space):
    return space.to_world(np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1).astype(float))


def middle(space):
    return space.to_world((np.asarray(space.shape) - 1) / 2 + 0.3)


def ball(space, radius, centre=None):
    return np.linalg.norm(places(space) - (middle(space) if centre is None else centre), axis=-1) - radius


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_sphere_on_an_oblique_anisotropic_grid_is_measured_to_less_than_half_a_voxel(mirror):
    space = grid((21, 72, 72), (3.0, 0.8, 0.8), mirror=mirror)
    exact = ball(space, 20.0)
    found = ops.signed_distance(exact < 0, space.spacing, truncation=12.0)
    assert found.dtype == np.float32
    assert np.abs(found - np.clip(exact, -12, 12)).mean() <= 0.4
    assert np.abs(found - exact)[np.abs(exact) < 11].mean() <= 0.3


def test_along_an_axis_the_surface_is_half_a_voxel_before_the_neighbour():
    mask = np.zeros((1, 8), dtype=bool)
    mask[0, 3:6] = True
    np.testing.assert_allclose(ops.signed_distance(mask, (9.0, 2.0))[0], [5, 3, 1, -1, -3, -1, 1, 3])


def test_between_axes_too():
    mask = np.zeros((3, 3), dtype=bool)
    mask[0, 0] = True
    # (3, 4) mm and the square root of two steps: 5 * (1 - 0.5 / 1.4142)
    assert ops.signed_distance(mask, (3.0, 4.0))[1, 1] == pytest.approx(5 - 2.5 / np.sqrt(2))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_sign_is_the_mask(ndim, rng):
    mask = rng.random((9,) * ndim) < 0.4
    found = ops.signed_distance(mask, 1.7)
    np.testing.assert_array_equal(found < 0, mask)
    assert (found != 0).all()


def test_a_mask_at_the_edge_is_closed_there():
    np.testing.assert_allclose(
        ops.signed_distance(np.ones((1, 4), dtype=bool), (3.0, 1.0))[0], [-0.5, -1.5, -1.5, -0.5]
    )


def test_truncation_only_clips(rng):
    mask = np.zeros((20, 24, 28), dtype=bool)
    mask[6:11, 8:12, 9:20] = rng.random((5, 4, 11)) < 0.7
    whole = ops.signed_distance(mask, (2.0, 0.7, 1.0))
    np.testing.assert_allclose(
        ops.signed_distance(mask, (2.0, 0.7, 1.0), truncation=3.0), np.clip(whole, -3, 3), rtol=1e-6
    )


def test_an_absent_class_has_no_distance():
    nothing = np.zeros((4, 5, 6), dtype=bool)
    assert ops.signed_distance(nothing, 1.0) is None
    assert ops.canonical_sdf(nothing, grid((4, 5, 6), 1.0), (0, 0, 0), 10.0, 8, 3.0) is None
    assert mask_window(nothing) is None


def test_the_canonical_cube_lies_where_it_says():
    space = ops.canonical_space((1.0, 2.0, 3.0), 8.0, 4)
    assert space.orientation == "SAR"
    assert space.spacing == pytest.approx((2.0, 2.0, 2.0))
    np.testing.assert_allclose(space.to_world(np.array([0.0, 0.0, 0.0])), [-2.0, -1.0, 0.0])
    np.testing.assert_allclose(space.to_world(np.array([1.5, 1.5, 1.5])), [1.0, 2.0, 3.0])
    # index z moves superior, x moves right
    np.testing.assert_allclose(space.to_world(np.array([3.0, 0.0, 1.0])), [0.0, -1.0, 6.0])


@pytest.mark.parametrize(
    "directions", [TURNED, TURNED @ SHEAR / np.linalg.norm(SHEAR, axis=0)], ids=["turned", "sheared"]
)
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_the_canonical_distance_of_a_sphere(directions, mirror):
    space = grid((22, 76, 76), (3.0, 0.8, 0.8), directions=directions, mirror=mirror)
    mask = ball(space, 17.0) < 0
    centre = middle(space) + np.array([3.0, -2.0, 1.0])
    found = ops.canonical_sdf(mask, space, centre, 70.0, 32, 10.0)
    exact = np.clip(ball(ops.canonical_space(centre, 70.0, 32), 17.0, middle(space)), -10, 10)
    assert found.shape == (32, 32, 32)
    assert np.abs(found).max() <= 10.0
    assert np.abs(found - exact).mean() <= 0.4


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_shape_survives_the_way_to_the_cube_and_back(mirror):
    space = grid((24, 60, 70), (2.5, 0.9, 0.8), mirror=mirror)
    offset = (places(space) - middle(space)) @ TURNED
    mask = np.linalg.norm(offset / (9.0, 14.0, 20.0), axis=-1) < 1
    found = ops.canonical_sdf(mask, space, middle(space), 70.0, 64, 8.0)
    back = ops.voxelise_sdf(found, ops.canonical_space(middle(space), 70.0, 64), space)
    assert 2 * np.count_nonzero(back & mask) / (back.sum() + mask.sum()) >= 0.98


def test_a_shape_cut_off_by_the_field_of_view_is_closed_at_its_edge():
    space = Space.from_spacing((10, 10, 10), 1.0)
    found = ops.canonical_sdf(np.ones(space.shape, dtype=bool), space, (4.5, 4.5, 4.5), 16.0, 16, 5.0)
    half = np.arange(2.5, -5.0, -1.0)
    np.testing.assert_allclose(found[8, 8], np.concatenate([half, half[::-1]]), atol=1e-5)


def test_a_shape_outside_the_cube_is_far_away():
    space = grid((8, 8, 8), 1.0)
    found = ops.canonical_sdf(np.ones(space.shape, dtype=bool), space, (500.0, 0.0, 0.0), 20.0, 8, 6.0)
    np.testing.assert_array_equal(found, 6.0)


def test_a_plane_reads_the_volume_it_lies_in():
    space = grid((20, 30, 30), (2.0, 1.0, 1.0), mirror=-1.0)
    exact = ball(space, 9.0)
    plane = Space(space.shape[1:], np.delete(space.crop((7, 0, 0), space.shape).affine, 0, axis=1))
    np.testing.assert_allclose(ops.resample_sdf(exact, space, plane), exact[7], atol=1e-4)
    tilted = Space((40, 40), np.array([[0.8, 0.1, 0.0], [0.1, 0.2, 0.0], [0.0, 0.7, 0.0], [0.0, 0.0, 1.0]]))
    shift = np.eye(4)[:, [0, 1, 3]] * 0
    shift[:3, 2] = middle(space) - tilted.to_world(np.array([20.0, 20.0]))
    tilted = Space(tilted.shape, tilted.affine + shift)
    expected = ball(tilted, 9.0, middle(space))
    assert np.abs(ops.resample_sdf(exact, space, tilted) - expected)[np.abs(expected) < 3].max() < 0.2


def test_int8_loses_no_more_than_it_says(rng):
    distances = rng.uniform(-20, 20, (6, 7, 8)).astype(np.float32)
    codes = ops.encode_int8(distances, 12.0)
    assert codes.dtype == np.int8
    back = ops.decode_int8(codes, 12.0)
    assert np.abs(back - np.clip(distances, -12, 12)).max() <= 12 / 254 + 1e-6
    np.testing.assert_array_equal(ops.encode_int8(back, 12.0), codes)


def test_the_largest_component_stays_where_it_is():
    distances = np.full((3, 12), 2.0, dtype=np.float32)
    distances[1, 1:3], distances[1, 5:10] = -1.0, -1.5
    kept = ops.largest_shape(distances)
    assert (kept[1, 1:3] == 1.0).all()
    np.testing.assert_array_equal(kept[:, 4:], distances[:, 4:])
    np.testing.assert_array_equal(ops.largest_shape(kept), kept)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda mask: ops.signed_distance(mask, 0.0), "spacing"),
        (lambda mask: ops.signed_distance(mask, (1.0, 1.0)), "spacing"),
        (lambda mask: ops.signed_distance(mask, 1.0, truncation=-1.0), "truncation"),
        (lambda mask: ops.canonical_sdf(mask, grid((4, 4, 4), 1.0), (0, 0, 0), 9.0, 8, 3.0), "mask"),
        (lambda mask: ops.canonical_space((0, 0, 0), np.nan, 8), "edge"),
        (lambda mask: ops.decode_int8(mask, 3.0), "codes"),
        (lambda mask: ops.resample_sdf(mask, grid((4, 4, 4), 1.0), grid((4, 4, 4), 1.0)), "sdf"),
    ],
)
def test_what_cannot_be_is_named(call, names):
    with pytest.raises(SettingError, match=names):
        call(np.ones((4, 5, 6), dtype=bool))

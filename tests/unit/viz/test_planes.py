import itertools

import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.viz.planes import grey_window, lay_out, paper, planes_of, volume_of

SPACING = np.array([3.0, 0.7, 1.1])  # right, anterior, superior


def rotation(degrees):
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x


def oriented(order, signs, degrees=0.0):
    """A grid whose array axis k runs along world axis order[k] with signs[k]."""
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * SPACING[world]
    affine[:3, :3] = rotation(degrees) @ affine[:3, :3]
    affine[:, 3] = (-20.0, 35.0, 4.0, 1.0)
    shape = tuple(int(size) for size in np.array([4, 9, 7])[list(order)])
    return Space(shape, affine)


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize("degrees", [0.0, 20.0])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_storage_order_gives_the_same_picture(order, signs, degrees, rng):
    reference = oriented((0, 1, 2), (1, 1, 1), degrees)
    volume = rng.random(reference.shape)
    flips = [slice(None, None, sign) for sign in signs]
    stored = volume.transpose(order)[tuple(flips)]
    space = reference.reorder(order, [sign < 0 for sign in signs])
    middle = (np.asarray(reference.shape) - 1) / 2
    world = reference.to_world(np.array([0.0, 2.0, 5.0]))
    for ours, theirs in zip(planes_of(space), planes_of(reference), strict=True):
        assert ours.edges == theirs.edges
        assert ours.size == pytest.approx(theirs.size)
        np.testing.assert_array_equal(
            ours.pixels(stored, space.to_index(reference.to_world(middle + 0.1))),
            theirs.pixels(volume, middle + 0.1),
        )
        np.testing.assert_allclose(
            ours.project(space.to_index(world)), theirs.project(reference.to_index(world)), atol=1e-9
        )


def test_a_step_to_the_right_front_or_top_goes_left_left_or_up():
    space = oriented((2, 0, 1), (-1, 1, -1), 15.0)
    axial, coronal, sagittal = planes_of(space)
    assert axial.edges == ("R", "L", "A", "P")
    assert coronal.edges == ("R", "L", "S", "I")
    assert sagittal.edges == ("A", "P", "S", "I")
    here = space.to_world(np.array([3.0, 2.0, 4.0]))
    moved = [
        {
            plane: plane.project(space.to_index(here + step)) - plane.project(space.to_index(here))
            for plane in (axial, coronal, sagittal)
        }
        for step in np.eye(3)
    ]
    right, front, top = moved
    assert right[axial][0] < 0
    assert right[coronal][0] < 0
    assert front[axial][1] < 0
    assert front[sagittal][0] < 0
    assert top[coronal][1] < 0
    assert top[sagittal][1] < 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_projected_voxel_centre_lies_in_its_own_pixel(ndim, rng):
    space = Space(tuple((5, 4, 6)[:ndim]), oriented((1, 2, 0), (-1, 1, -1)).affine[:, [*range(ndim), 3]])
    volume = np.zeros(space.shape)
    voxel = tuple(int(rng.integers(size)) for size in space.shape)
    volume[voxel] = 1.0
    for plane in lay_out(planes_of(space), gap=2.0):
        pixels = plane.pixels(volume, voxel)
        x, y = plane.project(np.asarray(voxel, dtype=float))
        left, right, bottom, top = plane.extent
        row = int((y - top) / (bottom - top) * pixels.shape[0])
        column = int((x - left) / (right - left) * pixels.shape[1])
        assert pixels[row, column] == 1.0
        assert pixels.sum() == 1.0


def test_a_grid_without_orientation_is_shown_as_stored(rng):
    image = rng.random((3, 5))
    (plane,) = planes_of(Space.from_spacing((3, 5), (2.0, 1.0)))
    assert plane.edges == ("", "x", "", "y")
    assert plane.size == (5.0, 6.0)
    np.testing.assert_array_equal(plane.pixels(image, (0, 0)), image)
    (anatomical,) = planes_of(Space.from_spacing((3, 5), (2.0, 1.0)), anatomical=True)
    assert anatomical.edges == ("R", "L", "A", "P")
    np.testing.assert_array_equal(anatomical.pixels(image, (0, 0)), image[::-1, ::-1])


def test_planes_in_a_row_do_not_overlap():
    placed = lay_out(planes_of(oriented((0, 1, 2), (1, 1, 1))), gap=1.5, corner=(4.0, 7.0))
    for one, other in itertools.pairwise(placed):
        assert other.extent[0] - one.extent[1] == pytest.approx(1.5)
    assert placed[0].extent[0] == 4.0
    assert min(plane.extent[3] for plane in placed) == 7.0
    assert paper(placed)[0] == pytest.approx(sum(plane.size[0] for plane in placed) + 3.0)


def test_distance_from_the_plane_is_in_millimetres():
    space = oriented((0, 1, 2), (1, 1, 1))
    axial, _, sagittal = planes_of(space)
    points = np.array([[1.0, 2.0, 3.0], [np.nan] * 3])
    np.testing.assert_allclose(axial.off_plane(points, (0, 0, 0), space), [3 * 1.1, np.nan])
    np.testing.assert_allclose(sagittal.off_plane(points, (0, 0, 0), space), [3.0, np.nan])
    (only,) = planes_of(Space.from_spacing((4, 4)))
    np.testing.assert_array_equal(only.off_plane(np.ones((5, 2)), (0, 0), Space.from_spacing((4, 4))), np.zeros(5))


def test_the_grey_window_ignores_what_is_not_finite():
    assert grey_window(np.array([0.0, 1.0, np.nan, np.inf])) == pytest.approx((0.005, 0.995))
    assert grey_window(np.full(3, np.nan)) == (0.0, 1.0)


def test_an_image_of_another_shape_is_named():
    with pytest.raises(SettingError, match=r"labels: expected spatial shape \(4, 4\), got \(3, 4\)"):
        volume_of(np.zeros((3, 4)), Space.from_spacing((4, 4)), "labels")

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.core.space import Space


def oblique(shape=(5, 7, 9), spacing=(3.0, 1.5, 0.8), angle=0.3, flip=True) -> Space:
    """Rotated about two axes, anisotropic, mirrored."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    columns = rotation[:, ::-1] * np.asarray(spacing)
    if flip:
        columns[:, 1] *= -1
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = (-12.0, 30.0, 7.5)
    return Space(shape, affine)


def test_identity_directions_put_columns_along_x():
    space = Space.from_spacing((4, 5, 6), (3, 2, 1), origin=(10, 20, 30))
    assert space.to_world(np.array([1.0, 1.0, 1.0])).tolist() == [11.0, 22.0, 33.0]
    assert space.orientation == "SAR"
    assert space.spacing == (3.0, 2.0, 1.0)


def test_a_slice_lies_in_the_world_of_its_volume():
    volume = oblique()
    affine = np.column_stack([volume.affine[:, 0], volume.affine[:, 2], volume.affine @ np.array([0, 4, 0, 1])])
    plane = Space((5, 9), affine)
    assert np.allclose(plane.to_world(np.array([2.0, 3.0])), volume.to_world(np.array([2.0, 4.0, 3.0])))
    assert np.allclose(plane.to_index(volume.to_world(np.array([2.0, 4.0, 3.0]))), [2.0, 3.0])


@given(st.lists(st.floats(-50, 50), min_size=3, max_size=3), st.booleans())
def test_world_and_back(point, flip):
    space = oblique(flip=flip)
    assert np.allclose(space.to_index(space.to_world(np.array(point))), point, atol=1e-9)


def test_tensors_stay_tensors_and_nan_stays_nan():
    space = oblique()
    world = space.to_world(torch.tensor([[1.0, 2.0, 3.0], [np.nan] * 3]))
    assert isinstance(world, torch.Tensor)
    assert world[1].isnan().all()
    assert torch.allclose(world[0].double(), torch.as_tensor(space.to_world(np.array([1.0, 2.0, 3.0]))), atol=1e-4)


def test_resizing_keeps_the_outer_edges():
    space = oblique()
    resized = space.resize((10, 14, 3))
    for share in (np.zeros(3), np.array([0.2, 0.9, 0.5]), np.ones(3)):
        old = share * np.array(space.shape) - 0.5
        new = share * np.array(resized.shape) - 0.5
        assert np.allclose(space.to_world(old), resized.to_world(new))


def test_respacing_keeps_the_centre_and_gives_the_spacing():
    space = oblique()
    respaced = space.respace((1.0, 1.0, 2.0))
    assert np.allclose(respaced.spacing, (1.0, 1.0, 2.0))
    centre = (np.array(space.shape) - 1) / 2
    assert np.allclose(space.to_world(centre), respaced.to_world((np.array(respaced.shape) - 1) / 2))


@given(st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3))
def test_reordering_moves_the_same_voxel(axes, flips):
    space = oblique()
    array = np.arange(np.prod(space.shape)).reshape(space.shape)
    moved = array.transpose(axes)
    moved = np.flip(moved, [axis for axis, flip in enumerate(flips) if flip])
    index = np.array([1, 1, 1])
    old = np.argwhere(array == moved[tuple(index)])[0]
    assert np.allclose(space.reorder(axes, flips).to_world(index.astype(float)), space.to_world(old.astype(float)))


def test_cropping_moves_the_origin():
    space = oblique()
    assert np.allclose(space.crop((1, 2, 3), (2, 2, 2)).to_world(np.zeros(3)), space.to_world(np.array([1.0, 2, 3])))


def test_closest_axes_use_no_world_axis_twice():
    angle = np.pi / 4 - 0.01
    worlds = [world for world, _ in oblique(angle=angle).closest_axes()]
    assert sorted(worlds) == [0, 1, 2]


def test_contains_reaches_half_a_voxel_beyond_the_centres():
    space = Space.from_spacing((4, 5))
    points = np.array([[-0.5, 0.0], [-0.6, 0.0], [3.5, 4.5], [np.nan, 1.0]])
    assert space.contains(points).tolist() == [True, False, True, False]


def test_is_close_sees_a_shift():
    space = oblique()
    assert space.is_close(space.crop((0, 0, 0), space.shape))
    assert not space.is_close(space.crop((0.01, 0, 0), space.shape))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_is_close_means_the_same_at_every_scale(scale, ndim):
    space = Space.from_spacing((4, 5, 6)[:ndim], [scale * step for step in (2.0, 0.5, 0.7)[:ndim]])
    shifted = space.crop([0.0] * (ndim - 1) + [0.01], space.shape)  # of the last axis' voxels
    assert not space.is_close(shifted)
    assert space.is_close(shifted, tolerance=0.02)
    assert not space.is_close(space.crop([0.5] * ndim, space.shape), tolerance=0.1)


@pytest.mark.parametrize(
    ("shape", "affine", "fault"),
    [
        ((4, 5, 6), np.eye(3), "expected shape (4, 4)"),
        ((4, 5), np.eye(4), "expected shape (4, 3)"),
        ((4, 5, 6), np.diag([1.0, 0, 1, 1]), "non-zero length"),
        ((4, 5, 6), np.full((4, 4), np.nan), "finite"),
        ((4,), np.eye(4), "ndim"),
    ],
)
def test_a_grid_that_is_none_is_refused(shape, affine, fault):
    with pytest.raises(SettingError, match=fault.replace("(", r"\(").replace(")", r"\)")):
        Space(shape, affine)


def test_per_axis_expands_scalars_and_refuses_other_lengths():
    assert per_axis(2, 3) == (2, 2, 2)
    assert per_axis([1.0, 2.0], 2) == (1.0, 2.0)
    with pytest.raises(SettingError, match=r"image_size: expected 1 or 3 values .* got 2"):
        per_axis((64, 64), 3, "image_size")
    with pytest.raises(SettingError, match="expected a number"):
        per_axis("64", 3, "image_size")

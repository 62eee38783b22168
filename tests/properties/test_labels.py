"""Label maps on another grid keep every class's volume, and classes that touch go on touching."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.frame import index_map
from voxelry.ops.labels import resample_labels

STEPS = st.floats(0.5, 3.0)


def rotation(numbers):
    """A rotation or reflection of the world."""
    axes, triangle = np.linalg.qr(np.random.default_rng(numbers).normal(size=(3, 3)))
    return axes * np.sign(np.diag(triangle))


def neighbours(labels, one, other):
    """How many faces two labels share, `(3,)` along the axes."""
    found = []
    for axis in range(3):
        low = np.take(labels, range(labels.shape[axis] - 1), axis)
        high = np.take(labels, range(1, labels.shape[axis]), axis)
        found.append(int((((low == one) & (high == other)) | ((low == other) & (high == one))).sum()))
    return np.array(found)


@given(
    steps=st.tuples(STEPS, STEPS, STEPS),
    size=st.tuples(*[st.floats(14.0, 26.0)] * 3),
    start=st.tuples(*[st.integers(1, 5)] * 3),
    spacing=st.floats(0.7, 3.0),
    turn=st.integers(0, 10**6),
    align=st.sampled_from(["nearest", "world"]),
    round_ones=st.booleans(),
)
def test_volumes_and_contacts_are_kept(steps, size, start, spacing, turn, align, round_ones):
    count = np.maximum(4, np.round(np.array(size) / steps)).astype(int)
    shape = count * [1, 1, 2] + np.array(start) + 3
    affine = np.eye(4)
    affine[:3, :3] = rotation(turn) * steps
    affine[:3, 3] = rotation(turn + 1)[0] * 80
    space = Space(tuple(shape.tolist()), affine)
    places = (np.indices(shape).T - start).T
    one, other = (
        ((places - shift).T >= 0).all(axis=-1).T & (count > (places - shift).T).all(axis=-1).T
        for shift in (np.zeros((3, 1, 1, 1), int), np.array([0, 0, count[2]]).reshape(3, 1, 1, 1))
    )
    if round_ones:  # a ball that a plane cuts in two
        middle = (count * [1, 1, 2] - 1) / 2
        ball = (((places.T - middle) / (count * [1, 1, 2] / 2)) ** 2).sum(axis=-1).T < 1
        one, other = one & ball, other & ball
    labels = one * np.uint8(3) + other * np.uint8(200)
    target = Preprocess(spacing=spacing, normalise=None, align=align).target(space)
    found = resample_labels(labels, *index_map(space, target), target.shape)
    assert found.dtype == np.uint8
    voxels = [abs(np.linalg.det(grid.affine[:3, :3])) for grid in (space, target)]
    for label in (3, 200):
        volume = (labels == label).sum() * voxels[0]
        assert abs((found == label).sum() * voxels[1] - volume) <= max(0.02 * volume, 0.51 * voxels[1])
    shared = float(neighbours(labels, 3, 200)[2] * steps[0] * steps[1])
    assert neighbours(found, 3, 200).sum() * spacing**2 > 0.6 * shared


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_tie_goes_to_the_side_of_the_lower_index(ndim):
    labels = np.zeros((8,) * ndim, np.int64)
    labels[(slice(None),) * (ndim - 1) + (slice(3, 7),)] = 5
    half = resample_labels(labels, np.eye(ndim), np.full(ndim, 0.5), (7,) * ndim)
    assert half[(3,) * (ndim - 1)].tolist() == [0, 0, 0, 5, 5, 5, 5]  # between 2 and 3 the lower is background
    np.testing.assert_array_equal(resample_labels(labels, np.eye(ndim), np.zeros(ndim), labels.shape), labels)


def test_a_label_without_background_around_it_keeps_its_volume():
    shape = (36, 36, 36)
    places = np.indices(shape).T - 17.3
    distance = np.linalg.norm(places, axis=-1).T
    labels = np.where(distance < 6.2, 2, np.where(distance < 14.1, 1, 0)).astype(np.int32)
    space = Space.from_spacing(shape, 1.0)
    for spacing in (1.7, 2.0, 2.6):
        target = space.respace(spacing)
        found = resample_labels(labels, *index_map(space, target), target.shape)
        for label in (1, 2):
            assert (found == label).sum() * spacing**3 == pytest.approx((labels == label).sum(), rel=0.02)


def test_what_makes_no_label_map_is_refused():
    with pytest.raises(SettingError, match="from 0 to 65535"):
        resample_labels(np.full((2, 2), -1), np.eye(2), np.zeros(2), (2, 2))
    with pytest.raises(SettingError, match="rank 2"):
        resample_labels(np.zeros((2, 2), int), np.eye(3), np.zeros(3), (2, 2))
    with pytest.raises(SettingError, match="invertible"):
        resample_labels(np.zeros((2, 2), int), np.zeros((2, 2)), np.zeros(2), (2, 2))

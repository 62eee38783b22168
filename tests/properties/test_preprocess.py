from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from voxelry.core.orientation import orientation_steps
from voxelry.core.space import Space
from voxelry.data.patches import crop
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.frame import world_aligned
from voxelry.data.sample import Sample

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*axes)
]


@st.composite
def samples(draw, ndim=None):
    """Any rank, shape, spacing and tilt, with points that may lie outside."""
    ndim = draw(st.sampled_from([2, 3])) if ndim is None else ndim
    shape = tuple(draw(st.lists(st.integers(3, 9), min_size=ndim, max_size=ndim)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spacing = rng.uniform(0.3, 4.0, ndim)
    directions, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.zeros((4, ndim + 1))
    affine[:3, :ndim] = directions[:, :ndim] * spacing
    affine[:3, ndim] = rng.uniform(-50, 50, 3)
    affine[3, ndim] = 1.0
    points = torch.from_numpy(rng.uniform(-2, np.asarray(shape) + 1, (4, ndim))).float()
    image = torch.from_numpy(rng.random((1, *shape))).float()
    return Sample(image, Space(shape, affine), "case", landmarks=points)


def world(sample: Sample) -> torch.Tensor:
    return sample.space.to_world(sample.landmarks.double())


@given(
    sample=samples(),
    align=st.sampled_from(["nearest", "world", "auto"]),
    trim=st.booleans(),
    grid=st.sampled_from([{}, {"image_size": 6}, {"image_size": 11}, {"spacing": 0.9}, {"spacing": 2.5}]),
)
def test_preprocessing_keeps_world_positions(sample, align, trim, grid):
    result = Preprocess(align=align, trim=trim, **grid)(sample)
    assert_close(world(result), world(sample), atol=1e-4, rtol=0)
    assert result.image.shape[1:] == result.space.shape
    assert 0 <= result.image.min() <= result.image.max() <= 1


@given(sample=samples(ndim=3))
def test_all_48_orientations_are_one_to_the_network(sample):
    expected = Preprocess()(sample)
    for code in ORIENTATIONS:
        axes, flips = orientation_steps(sample.space, code)
        image = sample.image.permute(0, *[axis + 1 for axis in axes]).flip([i + 1 for i in range(3) if flips[i]])
        space = sample.space.reorder(axes, flips)
        assert space.orientation == code
        points = space.to_index(world(sample)).float()
        result = Preprocess()(Sample(image.contiguous(), space, code, landmarks=points))
        assert torch.equal(result.image, expected.image)
        assert_close(world(result), world(expected), atol=1e-4, rtol=0)


@given(sample=samples(ndim=3))
def test_aligning_twice_is_aligning_once(sample):
    once = world_aligned(sample.space)
    assert np.allclose(np.abs(once.directions).max(axis=0), 1)
    assert np.allclose(once.spacing, sample.space.spacing)
    assert world_aligned(once) is once


@given(sample=samples(), data=st.data())
def test_a_crop_shows_the_same_voxels_at_the_same_place(sample, data):
    start = [data.draw(st.integers(-3, n + 1)) for n in sample.space.shape]
    size = [data.draw(st.integers(1, 8)) for _ in start]
    result = crop(sample, start, size)
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij"), dim=-1).reshape(-1, len(size))
    source = index + torch.tensor(start)
    inside = ((source >= 0) & (source < torch.tensor(sample.space.shape))).all(dim=1)
    values = result.image[0][tuple(index.T)]
    assert torch.equal(values[inside], sample.image[0][tuple(source[inside].T)])
    assert not values[~inside].any()
    assert_close(result.space.to_world(index.double()), sample.space.to_world(source.double()), atol=1e-9, rtol=0)
    present = ~result.landmarks.isnan().any(dim=1)
    assert_close(world(result)[present], world(sample)[present], atol=1e-4, rtol=0)
    assert (present == torch.from_numpy(result.space.contains(sample.landmarks.numpy() - np.asarray(start)))).all()

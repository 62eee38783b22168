from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.degrade import Degrade
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.normalise import physical
from voxelry.data.sample import Sample


@st.composite
def twins(draw):
    """A sample whose target is its image: any rank, tilt, mirroring and spacing."""
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.lists(st.integers(3, 10), min_size=ndim, max_size=ndim)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    directions, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.zeros((4, ndim + 1))
    affine[:3, :ndim] = directions[:, :ndim] * rng.uniform(0.3, 4.0, ndim) * rng.choice([-1, 1], ndim)
    affine[:3, ndim] = rng.uniform(-50, 50, 3)
    affine[3, ndim] = 1.0
    image = torch.from_numpy(rng.normal(200, 100, (1, *shape))).float()
    return Sample(image, Space(shape, affine), "case", target=image.clone())


@given(
    sample=twins(),
    align=st.sampled_from(["nearest", "world"]),
    grid=st.sampled_from([{}, {"image_size": 6}, {"spacing": 0.9}, {"spacing": 2.5}]),
    normalise=st.sampled_from(["minmax", "percentile", "zscore"]),
    intensity=st.sampled_from(["own", "shared"]),
    seed=st.integers(0, 2**32),
)
def test_what_is_equal_stays_equal(sample, align, grid, normalise, intensity, seed):
    generator = np.random.default_rng(seed)
    sample = Preprocess(align=align, normalise=normalise, intensity=intensity, **grid)(sample)
    sample = Patches(5, margin=1)(sample, generator)
    sample = Augment(rotation=20, elastic=2, flip=0.5, mirror=0.5, paired=True)(sample, generator)
    assert_close(sample.target, sample.image, atol=1e-6, rtol=0)
    assert torch.equal(sample.levels[0], sample.levels[1])


@given(sample=twins(), normalise=st.sampled_from(["minmax", "percentile", "zscore"]))
def test_nothing_is_lost_with_levels(sample, normalise):
    grid_only = Preprocess(normalise=None)(sample)
    scaled = Preprocess(normalise=normalise, outside="keep")(sample)
    assert_close(physical(scaled.target, scaled.levels[1:]), grid_only.target, atol=0.01, rtol=1e-5)


@given(sample=twins(), data=st.data())
def test_degradations_follow_the_patient_not_the_array(sample, data):
    """Reordering the axes before or after gives the same, for steps that draw nothing."""
    ndim = sample.ndim
    axes = data.draw(st.permutations(range(ndim)))
    flips = data.draw(st.lists(st.booleans(), min_size=ndim, max_size=ndim))
    world = data.draw(st.sampled_from([("LR", "AP", "IS")[axis] for axis, _ in sample.space.closest_axes()]))
    degrade = Degrade(
        [
            {"name": "kspace", "axis": world, "keep": 0.6},
            {"name": "thick_slices", "axis": world, "mm": 5.0},
            {"name": "blur", "fwhm": 2.0},
        ]
    )

    def turned(image: torch.Tensor) -> torch.Tensor:
        image = image.permute(0, *[axis + 1 for axis in axes])
        return image.flip([axis + 1 for axis, flip in enumerate(flips) if flip]).contiguous()

    generator = np.random.default_rng(0)
    expected = turned(degrade(sample.image, sample.space, generator))
    result = degrade(turned(sample.image), sample.space.reorder(axes, flips), generator)
    assert_close(result, expected, atol=1e-2, rtol=1e-4)

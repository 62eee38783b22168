"""The target moves with the image, wherever the image goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.collate import collate
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.normalise import find_levels, normalise, physical, scale
from voxelry.data.sample import Sample


@pytest.fixture
def sample(oblique: Space, rng: np.random.Generator) -> Sample:
    """Two channels, of which the target is the second, upside down."""
    image = torch.from_numpy(rng.normal(100, 20, (2, *oblique.shape))).float()
    return Sample(image, oblique, "case", source="case.nii", target=300 - image[1:])


def same(result: Sample, tolerance: float = 1e-3) -> None:
    assert_close(result.target, 300 - result.image[1:], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{}, {"spacing": 1.3}, {"image_size": 12}, {"orientation": "LPI"}, {"spacing": 0.6, "orientation": "RAS"}],
)
def test_through_preprocessing(sample, settings):
    result = Preprocess(normalise=None, **settings)(sample)
    same(result)
    assert result.target.shape[1:] == result.space.shape
    assert result.levels.tolist() == [[0, 1]] * 3


def test_what_lies_outside_is_the_smallest_of_each(sample):
    image = sample.image.clone()
    image[0] -= 1000
    result = Preprocess(normalise=None, align="world")(sample.replace(image=image))
    assert result.target.min() == pytest.approx(sample.target.min().item())
    corner = (slice(None), *[0] * 3)
    assert result.target[corner] == sample.target.min()
    assert result.image[corner].tolist() == image.flatten(1).amin(dim=1).tolist()


def test_through_patches_and_trim(sample):
    patches = Patches((8, 30, 9), margin=2, fill="edge")
    window = patches(sample, np.random.default_rng(1))
    assert window.target.shape == (1, 12, 34, 13)
    same(window)
    same(patches.trim(window))


def test_through_movement(sample):
    augment = Augment(rotation=30, scale=0.2, shift=3, elastic=4, fill="edge", intensity_probability=1)
    moved = augment(sample, np.random.default_rng(0))
    same(moved)
    assert not torch.equal(moved.target, sample.target)


def test_intensities_stay_by_default_and_change_together_when_asked(sample):
    still = {"movement_probability": 0.0, "intensity_probability": 1.0}
    unit = sample.replace(image=sample.image[1:] / 200, target=sample.image[1:] / 200)
    kept = Augment(**still)(unit, np.random.default_rng(0))
    assert torch.equal(kept.image, unit.image)
    assert torch.equal(kept.target, unit.target)
    paired = Augment(**still, paired=True, noise=0.5)(unit, np.random.default_rng(0))
    assert torch.equal(paired.image, paired.target)  # so there is no noise in either
    assert not torch.equal(paired.image, unit.image)


def test_an_absent_channel_stays_zero(sample):
    present = torch.tensor([True, False])
    image = torch.where(present[:, None, None, None], sample.image, 0.0)
    sample = sample.replace(image=image, present=present)
    result = Preprocess(normalise="window", window=(-50, 300), spacing=1.5)(sample)
    augment = Augment(paired=True, intensity_probability=1.0, fill="minimum")
    for one in (result, augment(result, np.random.default_rng(0))):
        assert one.image[1].abs().max() == 0
        assert one.image[0].max() > 0
    alone = Preprocess(per_channel=False)(sample)
    assert alone.levels[0].tolist() == [image[0].min(), image[0].max()]  # zeros have no say
    with pytest.raises(DataError, match=r"case\.nii: 2 channels, but channels is 1"):
        Preprocess(channels=1)(sample)


def test_levels_are_the_inverse(rng):
    image = torch.from_numpy(rng.normal(40, 300, (3, 9, 10))).float()
    for method, options in (("minmax", {}), ("percentile", {}), ("zscore", {}), ("window", {"window": (-200, 300)})):
        levels = find_levels(image, method, **options)
        assert torch.equal(normalise(image, method, **options), scale(image, levels))
        assert_close(physical(scale(image, levels, clip=False), levels), image, atol=1e-3, rtol=0)
    stacked = torch.stack([image, image])
    assert_close(physical(stacked, levels.expand(2, 3, 2))[1], physical(image, levels))


def test_a_constant_channel_comes_back():
    image = torch.full((1, 4, 4), 7.0)
    levels = find_levels(image)
    assert physical(scale(image, levels), levels).unique().tolist() == [7]


def test_batches_of_targets(oblique):
    image = torch.rand(1, 4, 4, 4)
    space = oblique.crop((0, 0, 0), (4, 4, 4))
    whole = Sample(image, space, "a", target=image)
    lacking = Sample(torch.zeros_like(image), space, "b", target=image, present=torch.tensor([False]))
    assert collate([whole, lacking]).present.tolist() == [[True], [False]]
    assert collate([whole, whole]).present is None
    with pytest.raises(DataError, match="c: a target of 2 channels can't share a batch with a, whose target has 1"):
        collate([whole, whole.replace(name="c", target=image.repeat(2, 1, 1, 1))])

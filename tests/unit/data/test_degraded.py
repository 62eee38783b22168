from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.context import whole_view
from voxelry.data.degrade import Degrade
from voxelry.data.degrade.dataset import DegradedDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.io import write_image

RECIPE = [{"name": "kspace", "axis": "IS", "keep": "1/3"}, {"name": "rician", "sigma": 0.03}]


@pytest.fixture
def root(write_volumes) -> Path:
    return write_volumes()


def dataset(root: Path, **settings) -> DegradedDataset:
    settings.setdefault("preprocess", Preprocess(normalise="percentile", orientation="PLI"))
    return DegradedDataset.from_folder(root, degrade=Degrade(RECIPE), need=(), **settings)


def test_the_target_is_the_volume_and_the_image_its_degraded_self(root):
    sample = dataset(root)[1]
    good = dataset(root).preprocessed(1)
    assert torch.equal(sample.target, good.image)
    assert sample.levels.tolist() == [good.levels[0].tolist()] * 2
    assert sample.present.tolist() == [True]
    without_noise = Degrade(RECIPE[:1])(good.image, good.space, np.random.default_rng(0))
    assert (sample.image - without_noise).std() == pytest.approx(0.03, rel=0.2)


def test_held_out_cases_are_always_the_same(root):
    first, second = dataset(root), dataset(root, cache="memory")
    assert torch.equal(first[2].image, second.sample(2, epoch=7).image)
    assert torch.equal(first[2].image, first.still(2).image)
    alone = DegradedDataset(first.cases[2:], degrade=first.degrade, preprocess=first.preprocess, need=())
    assert torch.equal(alone[0].image, first[2].image)  # whatever cases are beside it
    other = dataset(root, seed=1)
    assert not torch.equal(other[2].image, first[2].image)


def test_training_cases_are_drawn_anew(root):
    train = dataset(root, redraw=True)
    first, again = train[0], train[0]
    assert torch.equal(first.image, again.image)
    later = train.sample(0, epoch=1)
    assert not torch.equal(later.image, first.image)
    assert torch.equal(later.target, first.target)


def test_degraded_after_the_movement(root):
    """Noise that were moved along would be smoother than the scanner's."""
    augment = Augment(rotation=20, elastic=3, intensity_probability=1.0)
    sample = dataset(root, augment=augment, redraw=True)[0]
    expected = Degrade(RECIPE[:1])(sample.target, sample.space, np.random.default_rng(0))
    assert (sample.image - expected).std() == pytest.approx(0.03, rel=0.2)
    assert not torch.equal(sample.target, dataset(root)[0].target)


def test_patches_are_degraded_with_their_margin(root):
    sample = dataset(root, patches=Patches((8, 10, 12), margin=4), redraw=True)[0]
    assert sample.image.shape == sample.target.shape == (1, 8, 10, 12)
    assert sample.context is None


def test_the_context_shows_the_degraded_whole(root):
    """The good whole would tell what is asked for."""
    data = dataset(root, patches=Patches((8, 10, 12), context=True))
    sample, whole = data[0], data.still(0)
    assert sample.context.shape == (4, 8, 10, 12)
    assert_close(sample.context[3:], whole_view(whole.image, (8, 10, 12)))
    start = np.round(whole.space.to_index(sample.space.origin)).astype(int)
    window = (slice(None), *[slice(low, low + count) for low, count in zip(start, (8, 10, 12), strict=True)])
    assert torch.equal(sample.image, whole.image[window])
    assert torch.equal(sample.target, whole.target[window])


@pytest.mark.parametrize(("value", "message"), [(7.0, "constant"), (np.nan, "NaN or infinite")])
def test_unusable_volumes_are_refused(tmp_path, value, message):
    space = Space.from_spacing((6, 7, 8), (3.0, 1.0, 1.0))
    pixels = np.full((1, *space.shape), 7.0, np.float32)
    pixels[0, 1, 1, 1] = value
    write_image(tmp_path / "volumes" / "bad.nii.gz", pixels, space)
    with pytest.raises(DataError, match=rf"bad.nii.gz: .*{message}"):
        dataset(tmp_path)[0]


def test_planes(tmp_path, rng):
    space = Space.from_spacing((20, 16), (0.5, 2.0))
    write_image(tmp_path / "a.nii.gz", rng.random((1, 20, 16)).astype(np.float32), space)
    cases = find_cases(tmp_path, "images", options={"ndim": 2})
    degrade = Degrade([{"name": "kspace", "axis": 0, "keep": 0.5}])
    sample = DegradedDataset(cases, degrade=degrade)[0]
    assert sample.image.shape == sample.target.shape
    assert not torch.equal(sample.image, sample.target)

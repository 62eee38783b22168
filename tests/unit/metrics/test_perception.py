import numpy as np
import pytest
import torch
from scipy import ndimage

from voxelry.core.errors import SettingError
from voxelry.metrics.perception import detail_ratio, gmsd, spectral_distance


def textured(rng, shape):
    """An image with detail of all sizes, `(1, 1, *shape)`, about in [0, 1]."""
    noise = rng.standard_normal(shape)
    parts = [ndimage.gaussian_filter(noise, sigma) * sigma ** (len(shape) / 2) for sigma in (0.5, 1, 2, 4)]
    image = 0.5 + 0.08 * sum(parts)
    return torch.from_numpy(image)[None, None]


def blurred(image, sigma):
    return torch.from_numpy(ndimage.gaussian_filter(image[0, 0].numpy(), sigma))[None, None]


def paper_gmsd(image, reference):
    """Xue et al. 2014 on a pair in [0, 1], after their own code; the edge is repeated."""
    magnitudes = []
    for one in (image, reference):
        small = ndimage.uniform_filter(one, size=2, origin=-1)[tuple(slice(0, size // 2 * 2, 2) for size in one.shape)]
        parts = [ndimage.prewitt(small, axis=axis, mode="nearest") / 3 ** (one.ndim - 1) for axis in range(one.ndim)]
        magnitudes.append(np.sqrt(sum(part**2 for part in parts)))
    first, second = (255 * one for one in magnitudes)
    return np.std((2 * first * second + 170) / (first**2 + second**2 + 170))


@pytest.mark.parametrize("shape", [(41, 32), (18, 21, 16)])
def test_gmsd_is_that_of_the_paper(rng, shape):
    image, other = textured(rng, shape), textured(rng, shape)
    expected = paper_gmsd(image[0, 0].numpy(), other[0, 0].numpy())
    assert gmsd(image, other, data_range=1.0).item() == pytest.approx(expected, rel=1e-9)


def test_short_axes_are_not_halved(rng):
    image, other = textured(rng, (3, 24, 24)), textured(rng, (3, 24, 24))
    assert 0 < gmsd(image, other, data_range=1.0).item() < 1


@pytest.mark.parametrize("metric", [gmsd, spectral_distance])
@pytest.mark.parametrize("shape", [(32, 40), (12, 24, 20)])
def test_distances_are_zero_for_equal_images_and_grow_with_blur(rng, metric, shape):
    image = textured(rng, shape)
    distances = [metric(blurred(image, sigma), image, data_range=1.0).item() for sigma in (0.6, 1.0, 2.0)]
    assert metric(image, image, data_range=1.0).item() == 0
    assert 0 < distances[0] < distances[1] < distances[2]


def test_blur_has_less_detail_and_noise_more(rng):
    image = textured(rng, (20, 24, 28))
    noisy = image + 0.1 * torch.from_numpy(rng.standard_normal(image.shape))
    assert detail_ratio(blurred(image, 1.0), image, data_range=1.0).item() < 0.2
    assert detail_ratio(image, image, data_range=1.0).item() == 1
    assert detail_ratio(noisy, image, data_range=1.0).item() > 1.3


def test_a_gain_of_two_is_six_decibels_in_every_band(rng):
    image = textured(rng, (48, 48))
    assert spectral_distance(2 * image, image, data_range=1.0).item() == pytest.approx(20 * np.log10(2), abs=0.02)
    assert detail_ratio(2 * image, image, data_range=1.0).item() == pytest.approx(4, rel=0.01)


def test_texture_counts_and_place_does_not(rng):
    first, second = textured(rng, (64, 64)), textured(rng, (64, 64))
    softer = blurred(second, 1.0)
    assert spectral_distance(first, second, data_range=1.0) < 0.2 * spectral_distance(softer, second, data_range=1.0)
    assert gmsd(first, second, data_range=1.0) > gmsd(softer, second, data_range=1.0)


def test_frequencies_are_physical(rng):
    """What changes from slice to slice is fine detail in cubic voxels, and coarse where slices are thick."""
    image = textured(rng, (16, 40, 40))
    flicker = image + 0.2 * (torch.arange(16) % 2).reshape(-1, 1, 1)
    assert detail_ratio(flicker, image, data_range=1.0).item() > 2
    assert detail_ratio(flicker, image, data_range=1.0, spacing=(4.0, 1.0, 1.0)).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 5), (1, 1)])
@pytest.mark.parametrize("metric", [gmsd, spectral_distance, detail_ratio])
def test_constant_and_tiny_images_have_an_answer(metric, shape):
    image = torch.full((2, 1, *shape), 0.3)
    perfect = 1 if metric is detail_ratio else 0
    assert metric(image, image + 0.1, data_range=1.0).tolist() == pytest.approx([perfect, perfect], abs=1e-9)


@pytest.mark.parametrize("metric", [gmsd, spectral_distance, detail_ratio])
def test_batches_and_channels_are_means_of_their_members(rng, metric):
    image, other = (torch.cat([textured(rng, (16, 14)) for _ in range(4)]).reshape(2, 2, 16, 14) for _ in range(2))
    alone = [[metric(image[i, None, j, None], other[i, None, j, None], data_range=1.0) for j in (0, 1)] for i in (0, 1)]
    torch.testing.assert_close(metric(image, other, data_range=1.0), torch.tensor(alone).double().mean(dim=1))


def test_what_does_not_fit_is_refused(rng):
    image = textured(rng, (8, 8))
    with pytest.raises(SettingError, match="data_range"):
        gmsd(image, image, data_range=0)
    with pytest.raises(SettingError, match="spacing"):
        spectral_distance(image, image, data_range=1.0, spacing=(1.0, -1.0))
    with pytest.raises(SettingError, match="image"):
        detail_ratio(image, image[..., 1:], data_range=1.0)

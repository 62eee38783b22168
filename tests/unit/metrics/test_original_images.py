"""What an earlier project's formulas give, and by how much they are off."""

import math

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.metrics.images import psnr
from voxelry.metrics.original_images import original_dice, original_psnr, original_ssim

pytestmark = pytest.mark.filterwarnings("ignore:original_")


def pair(rng, shape=(24, 28, 26)):
    """A volume in [0, 1] and a copy with an error of 27.65 dB exactly."""
    waves = sum(np.sin(np.arange(size) / 3 + axis).reshape([-1 if i == axis else 1 for i in range(len(shape))])
                for axis, size in enumerate(shape))  # fmt: skip
    truth = (waves - waves.min()) / np.ptp(waves)
    noise = rng.standard_normal(shape)
    noise *= 10 ** (-27.65 / 20) / np.sqrt(np.mean(noise**2))
    return truth + noise, truth


def true_psnr(prediction, truth, data_range):
    images = (torch.from_numpy(np.asarray(image))[None, None] for image in (prediction, truth))
    return psnr(*images, data_range=data_range).item()


def test_psnr_is_48_dB_too_much_on_unit_range(rng):
    prediction, truth = pair(rng)
    assert true_psnr(prediction, truth, 1.0) == pytest.approx(27.65, abs=1e-9)
    assert original_psnr(prediction, truth) == pytest.approx(27.65 + 20 * math.log10(255), abs=1e-9)
    # 75.78 here; the documented 75.79 rounds 27.65 and 48.13 apart
    assert original_psnr(prediction, truth) == pytest.approx(75.79, abs=0.01)


def test_psnr_is_42_dB_too_much_on_a_range_of_two(rng):
    prediction, truth = pair(rng)
    assert original_psnr(2 * prediction - 1, 2 * truth - 1) == pytest.approx(69.76, abs=0.01)
    assert original_psnr(2 * prediction - 1, 2 * truth - 1) - true_psnr(
        2 * prediction, 2 * truth, 2.0
    ) == pytest.approx(20 * math.log10(255 / 2))


def test_psnr_is_right_for_8_bit_images_and_infinite_for_equal_ones(rng):
    prediction, truth = pair(rng)
    assert original_psnr(255 * prediction, 255 * truth) == pytest.approx(27.65)
    assert original_psnr(truth, truth) == math.inf


def test_ssim_of_anything_in_unit_range_is_near_one(rng):
    from skimage.metrics import structural_similarity

    prediction, truth = pair(rng)
    prediction, truth = prediction - 0.18 * truth, 0.82 * truth  # of the documented pair's contrast
    assert structural_similarity(truth, prediction, data_range=1.0) == pytest.approx(0.9195, abs=0.002)
    assert original_ssim(prediction, truth) == pytest.approx(0.99996, abs=2e-5)


def test_dice_of_a_volume_with_itself_is_not_one():
    # values with a mean of 0.106 and a mean square of 0.63 times that, as the documented volume has
    volume = np.zeros(10_000)
    volume[: round(10_000 * 0.106 / 0.63)] = 0.63
    assert original_dice(volume, volume) == pytest.approx(0.63, abs=0.005)
    assert original_dice(2 * volume - 1, 2 * volume - 1) == pytest.approx(-1.07, abs=0.005)
    assert original_dice(255 * volume, 255 * volume) == pytest.approx(160, abs=1)
    assert math.isnan(original_dice(0 * volume, 0 * volume))


def test_dice_is_right_for_binary_masks():
    a, b = np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])
    assert original_dice(a, b) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "fault", "instead"),
    [
        (original_psnr, "48.13 dB too much", "psnr"),
        (original_ssim, "all look alike", "ssim"),
        (original_dice, "itself", "dice"),
    ],
)
def test_each_says_what_is_wrong_with_it(rng, metric, fault, instead):
    prediction, truth = pair(rng, (9, 8, 7))
    with pytest.warns(UserWarning, match=f"{metric.__name__} .*{fault}.*see voxelry.metrics.*{instead}"):
        metric(prediction, truth)


def test_what_does_not_fit_is_refused(rng):
    with pytest.raises(SettingError, match="at least 7 voxels"):
        original_ssim(np.zeros((6, 8, 8)), np.zeros((6, 8, 8)))
    for metric in (original_psnr, original_ssim, original_dice):
        with pytest.raises(SettingError, match="prediction"):
            metric(np.zeros((8, 8)), np.zeros((8, 9)))

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.ops.acquisition import (
    add_gaussian,
    add_rician,
    gaussian_blur,
    slice_matrix,
    thick_slices,
    truncate_kspace,
)


def wave(shape: tuple[int, ...], axis: int, cycles: int) -> torch.Tensor:
    """A positive image with one frequency along an axis."""
    line = 2 + torch.cos(2 * torch.pi * cycles * torch.arange(shape[axis]) / shape[axis])
    return line.reshape(-1, *[1] * (len(shape) - axis - 1)).expand(1, *shape).clone()


@pytest.mark.parametrize(("shape", "axis"), [((24, 10), 0), ((7, 48), 1), ((9, 30, 8), 1), ((33, 5, 6), 0)])
def test_kspace_keeps_a_third_of_the_frequencies(shape, axis):
    largest = shape[axis] // 6  # |k| <= n / 6
    kept, lost = wave(shape, axis, largest), wave(shape, axis, largest + 1)
    assert_close(truncate_kspace(kept, axis, 1 / 3), kept, atol=1e-5, rtol=0)
    assert_close(truncate_kspace(lost, axis, 1 / 3), torch.full_like(lost, 2.0), atol=1e-5, rtol=0)


def test_kspace_is_what_numpy_makes_of_it(rng):
    image = rng.random((2, 13, 10, 12)).astype(np.float32)
    spectrum = np.fft.fft(image, axis=2)
    spectrum[:, :, np.abs(np.fft.fftfreq(10) * 10) > 10 / 6] = 0
    expected = np.abs(np.fft.ifft(spectrum, axis=2)).astype(np.float32)
    assert_close(truncate_kspace(torch.from_numpy(image), 1, 1 / 3), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_all_of_kspace_is_the_image(rng):
    image = torch.from_numpy(rng.random((1, 11, 8))).float()
    assert_close(truncate_kspace(image, 0, 1.0), image, atol=1e-6, rtol=0)


def test_rician_noise_has_the_moments_of_its_distribution(rng):
    dark = add_rician(torch.zeros(1, 200, 200), 0.1, rng)
    bright = add_rician(torch.ones(1, 200, 200), 0.1, rng)
    assert dark.mean().item() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh
    assert bright.square().mean().item() == pytest.approx(1 + 2 * 0.1**2, rel=0.005)
    assert bright.std().item() == pytest.approx(0.1, rel=0.03)


def test_gaussian_noise(rng):
    noisy = add_gaussian(torch.full((1, 100, 400), 5.0), 0.5, rng)
    assert noisy.mean().item() == pytest.approx(5, abs=0.02)
    assert noisy.std().item() == pytest.approx(0.5, rel=0.02)


def test_blur_has_its_width_on_each_axis():
    point = torch.zeros(1, 41, 41, 41)
    point[0, 20, 20, 20] = 1.0
    blurred = gaussian_blur(point, (0.0, 4.0, 8.0))
    index = torch.arange(41) - 20.0
    assert blurred.sum().item() == pytest.approx(1, rel=1e-4)
    for axis, fwhm in ((0, 0.0), (1, 4.0), (2, 8.0)):
        profile = blurred[0].sum(dim=[other for other in range(3) if other != axis])
        assert (profile * index**2).sum().sqrt().item() == pytest.approx(fwhm / 2.3548, abs=0.02)


def test_thick_slices_are_averages_of_thin_ones():
    weights = slice_matrix(6, 3.0, 3.0)
    assert_close(weights, np.repeat(np.eye(2), 3, axis=1) / 3)
    # from the middle of voxel 0 to the middle of voxel 2, and from there to the middle of voxel 4
    assert_close(slice_matrix(5, 2.0, 2.0), np.array([[1, 2, 1, 0, 0], [0, 0, 1, 2, 1]]) / 4)


@pytest.mark.parametrize("profile", ["box", "gaussian"])
@pytest.mark.parametrize(
    ("count", "thickness", "step"), [(20, 4.0, 4.0), (17, 2.5, 2.5), (9, 3.0, 4.5), (5, 30.0, 30.0)]
)
def test_slice_weights_sum_to_one(profile, count, thickness, step):
    weights = slice_matrix(count, thickness, step, profile)
    assert len(weights) == max(1, round(count / step))
    assert_close(weights.sum(axis=1), np.ones(len(weights)))
    assert weights.min() >= 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_survives_thick_slices_between_their_centres(axis):
    shape = [8, 8, 8]
    shape[axis] = 24
    ramp = torch.arange(24.0).reshape([-1 if place == axis else 1 for place in range(3)]).expand(1, *shape)
    thick = thick_slices(ramp, axis, 4.0)
    inside = [slice(None)] * 4
    inside[axis + 1] = slice(2, 22)
    assert_close(thick[tuple(inside)], ramp[tuple(inside)], atol=1e-4, rtol=0)
    assert thick.shape == ramp.shape


def test_slices_of_one_voxel_change_nothing(rng):
    image = torch.from_numpy(rng.random((2, 7, 5))).float()
    assert_close(thick_slices(image, 1, 1.0), image)


@pytest.mark.parametrize("settings", [{"thickness": 0.5}, {"thickness": 2.0, "profile": "sinc"}])
def test_refused(settings):
    with pytest.raises(SettingError, match=r"thickness|profile"):
        thick_slices(torch.zeros(1, 4, 4), 0, **settings)

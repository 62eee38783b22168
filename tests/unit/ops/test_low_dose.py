from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from voxelry.ops.low_dose import WATER, low_dose_noise, photons_left


def disc(radius: float, size: int = 96, spacing: float = 1.0) -> torch.Tensor:
    """A slice of water in air, `(1, size, size)` HU."""
    axis = (torch.arange(size) - (size - 1) / 2) * spacing
    inside = torch.hypot(axis[:, None], axis) <= radius
    return torch.where(inside, 0.0, -1000.0)[None]


def test_photons_through_the_middle_of_a_disc():
    counts = photons_left(disc(30.0), (1.0, 1.0), photons=1e5)
    assert counts[0, 48, 48].item() == pytest.approx(1e5 * math.exp(-60 * WATER), rel=0.04)
    # of the directions through a corner, 65 mm from the centre, 2 asin(30 / 65) / pi meet the disc
    assert 0.6e5 < counts[0, 2, 2].item() < 0.8e5
    air = photons_left(torch.full((1, 20, 20), -1000.0), (1.0, 1.0), photons=1e5)
    assert torch.allclose(air, torch.full_like(air, 1e5))


def test_photons_do_not_depend_on_the_spacing_of_the_same_body():
    fine = photons_left(disc(30.0, 96, 1.0), (1.0, 1.0), photons=1e5)[0, 48, 48]
    coarse = photons_left(disc(30.0, 96, 1.0)[:, ::2], (2.0, 1.0), photons=1e5)[0, 24, 48]
    assert coarse.item() == pytest.approx(fine.item(), rel=0.05)


def test_surrounding_water_takes_photons_away():
    bare, wrapped = (photons_left(disc(20.0), (1.0, 1.0), photons=1e5, surround=mm) for mm in (0.0, 50.0))
    assert torch.allclose(wrapped, bare * math.exp(-50 * WATER))


def test_noise_has_the_deviation_of_filtered_backprojection(rng):
    water = torch.zeros(6, 48, 48)
    count = photons_left(water, (0.8, 0.8), photons=5e5)[0, 24, 24].item()
    noise = low_dose_noise(water, (0.8, 0.8), rng, dose=0.25, photons=5e5, electronic=0.0, views=900)
    expected = math.pi * math.sqrt((1 / 0.25 - 1) / count) / (0.8 * math.sqrt(12 * 900)) * 1000 / WATER
    assert noise[:, 16:32, 16:32].std().item() == pytest.approx(expected, rel=0.15)


def test_less_dose_more_noise_and_none_at_full_dose():
    def deviation(dose: float) -> float:
        return low_dose_noise(disc(30.0), (1.0, 1.0), np.random.default_rng(0), dose=dose).std().item()

    assert deviation(1.0) == 0
    assert deviation(0.25) == pytest.approx(deviation(0.5) * math.sqrt(3), rel=0.1)


def test_noise_is_strongest_in_the_middle_and_fine_grained(rng):
    noise = low_dose_noise(disc(45.0).repeat(8, 1, 1), (1.0, 1.0), rng, dose=0.1)
    assert noise[:, 40:56, 40:56].std() > 1.3 * noise[:, :12, :12].std()
    power = torch.fft.fft2(noise.double()).abs().square().mean(dim=0)
    assert power[0, 0] < 1e-12 * power[0, 48]  # a ramp has nothing at 0
    assert power[:3, :3].mean() < 0.3 * power[20:30, 20:30].mean()


def test_a_ray_without_photons_stays_finite(rng):
    metal = torch.full((1, 32, 32), 20000.0)
    assert torch.isfinite(low_dose_noise(metal, (1.0, 1.0), rng, dose=0.1)).all()

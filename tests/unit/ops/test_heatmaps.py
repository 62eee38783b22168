"""Heatmaps and decoders, on anisotropic grids first."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.ops import peaks
from voxelry.ops.heatmaps import (
    covariance,
    disc_heatmaps,
    expectation,
    gaussian_heatmaps,
    marginals,
    outer,
    within,
)

NAN = float("nan")
SHAPES = {2: (17, 25), 3: (13, 17, 25)}
SPACINGS = {2: (3.0, 0.8), 3: (3.0, 1.2, 0.8)}
CENTRES = {2: (7.3, 12.6), 3: (5.8, 7.3, 12.6)}


def blob(ndim: int, sigma: float = 3.0) -> torch.Tensor:
    points = torch.tensor([[CENTRES[ndim]]])
    return gaussian_heatmaps(points, SHAPES[ndim], sigma=sigma, spacing=SPACINGS[ndim])


@pytest.mark.parametrize("ndim", [2, 3])
def test_value_is_the_gaussian_of_the_distance_in_mm(ndim):
    maps = blob(ndim)
    index = (4, 9, 15)[-ndim:]
    offset = [(i - c) * s for i, c, s in zip(index, CENTRES[ndim], SPACINGS[ndim], strict=True)]
    expected = math.exp(-0.5 * sum(value**2 for value in offset) / 9.0)
    assert maps[(0, 0, *index)].item() == pytest.approx(expected, rel=1e-4)


def test_a_blob_is_round_in_mm_not_in_voxels():
    sigma = 2.5
    spread = covariance(blob(3, sigma), spacing=SPACINGS[3])[0, 0]
    assert_close(spread, sigma**2 * torch.eye(3), atol=0.05, rtol=0)


def test_each_sample_has_its_own_spacing():
    points = torch.tensor([[[6.0, 8.0]], [[6.0, 8.0]]])
    spacing = torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    both = gaussian_heatmaps(points, (13, 17), sigma=2.0, spacing=spacing)
    for sample in range(2):
        alone = gaussian_heatmaps(points[:1], (13, 17), sigma=2.0, spacing=spacing[sample].tolist())
        assert_close(both[sample], alone[0])


@pytest.mark.parametrize("normalised", [False, True])
def test_an_absent_point_gives_an_empty_map_and_no_nan(normalised):
    points = torch.tensor([[[NAN, NAN], [3.0, 4.0], [NAN, 2.0]]])
    maps = gaussian_heatmaps(points, (8, 9), sigma=1.0, normalised=normalised)
    assert torch.isfinite(maps).all()
    assert maps[0, 0].sum() == 0
    assert maps[0, 2].sum() == 0
    assert maps[0, 1].sum() > 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_normalised_maps_sum_to_one_even_far_outside(ndim):
    points = torch.tensor([[CENTRES[ndim], [-300.0] * ndim]])
    maps = gaussian_heatmaps(points, SHAPES[ndim], sigma=1.0, spacing=SPACINGS[ndim], normalised=True)
    assert_close(maps.flatten(2).sum(dim=-1), torch.ones(1, 2))


@pytest.mark.parametrize("sigma", [0.0, -1.0, NAN])
def test_a_width_that_is_not_positive_is_refused(sigma):
    with pytest.raises(SettingError, match="sigma: expected positive"):
        gaussian_heatmaps(torch.zeros(1, 1, 2), (4, 4), sigma=sigma)


def test_wrong_lengths_are_refused():
    with pytest.raises(SettingError, match="spacing"):
        gaussian_heatmaps(torch.zeros(1, 1, 2), (4, 4), sigma=1.0, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(SettingError, match="points"):
        gaussian_heatmaps(torch.zeros(1, 1, 2), (4, 4, 4), sigma=1.0)


def test_the_disc_is_binary_and_has_the_half_maximum_radius():
    maps = disc_heatmaps(torch.tensor([[[10.4, 9.6]]]), (21, 21), sigma=3.0)
    assert set(maps.unique().tolist()) == {0.0, 1.0}
    radius = 3.0 * math.sqrt(2 * math.log(2))  # 3.53: whole voxels up to 3 to each side of (10, 10)
    assert maps[0, 0, 10].sum() == 2 * math.floor(radius) + 1
    assert_close(expectation(maps), torch.tensor([[[10.0, 10.0]]]))


def test_within_counts_half_a_voxel_beyond_the_centres():
    points = torch.tensor([[-0.5, 0.0], [-0.51, 0.0], [3.5, 4.5], [3.5, 4.51], [NAN, 0.0]])
    assert within(points, (4, 5)).tolist() == [True, False, True, False, False]


def test_marginals_of_an_outer_product_are_its_profiles():
    profiles = [torch.rand(2, 3, size) for size in (4, 5, 6)]
    profiles = [profile / profile.sum(dim=-1, keepdim=True) for profile in profiles]
    for found, expected in zip(marginals(outer(profiles)), profiles, strict=True):
        assert_close(found, expected)


def test_covariance_of_an_oblique_pair_of_voxels():
    maps = torch.zeros(1, 1, 5, 5)
    maps[0, 0, 1, 1] = maps[0, 0, 3, 3] = 0.5
    expected = torch.tensor([[4.0, 2.0], [2.0, 1.0]])  # ±1 voxel each, 2 mm and 1 mm per voxel
    assert_close(covariance(maps, spacing=(2.0, 1.0))[0, 0], expected)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("decode", "tolerance"),
    [
        (peaks.argmax, 0.5),
        (peaks.centroid, 0.5),
        (expectation, 0.02),
        (lambda maps: peaks.local_expectation(maps, window=6.0, spacing=SPACINGS[maps.ndim - 2]), 0.05),
        (lambda maps: peaks.gaussian_fit(maps, window=4.0, spacing=SPACINGS[maps.ndim - 2]), 1e-3),
    ],
)
def test_decoders_find_the_point_to_their_precision(ndim, decode, tolerance):
    found = decode(blob(ndim, 2.5))[0, 0]
    assert_close(found, torch.tensor(CENTRES[ndim]), atol=tolerance, rtol=0)


@pytest.mark.parametrize("decode", [peaks.argmax, peaks.centroid, peaks.local_expectation, peaks.gaussian_fit])
def test_an_empty_map_has_no_point(decode):
    maps = torch.zeros(2, 2, 6, 7)
    maps[0, 1, 2, 3] = 1.0
    found = decode(maps)
    assert_close(found[0, 1], torch.tensor([2.0, 3.0]), atol=1e-4, rtol=0)
    assert found.isnan().all(dim=-1).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("decode", [peaks.argmax, peaks.local_expectation, peaks.gaussian_fit])
def test_local_decoders_do_not_hear_a_second_mode(decode):
    points = torch.tensor([[[6.3, 6.8], [20.0, 25.0]]])
    modes = gaussian_heatmaps(points, (30, 32), sigma=1.5)
    maps = (modes[:, :1] + 0.6 * modes[:, 1:]).clamp(min=0)
    assert_close(decode(maps)[0, 0], points[0, 0], atol=0.35, rtol=0)
    assert (expectation(maps)[0, 0] - points[0, 0]).norm() > 5


def test_centroid_takes_the_largest_part_and_not_the_highest_voxel():
    maps = torch.zeros(1, 1, 12, 12)
    maps[0, 0, 1, 1] = 1.0
    maps[0, 0, 6:9, 6:10] = 0.7
    assert_close(peaks.centroid(maps)[0, 0], torch.tensor([7.0, 7.5]))


def test_the_fit_is_exact_for_an_oblique_gaussian_cut_by_the_border():
    precision = torch.tensor([[0.5, 0.2], [0.2, 0.3]])
    centre = torch.tensor([0.6, 9.7])
    grid = torch.stack(torch.meshgrid(torch.arange(14.0), torch.arange(20.0), indexing="ij"), dim=-1) - centre
    maps = torch.exp(-0.5 * torch.einsum("ija,ab,ijb->ij", grid, precision, grid))[None, None]
    assert_close(peaks.gaussian_fit(maps, window=3.0)[0, 0], centre, atol=1e-3, rtol=0)
    assert (peaks.local_expectation(maps, window=3.0)[0, 0] - centre).norm() > 0.1


def test_the_fit_falls_back_where_the_peak_is_no_parabola():
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 4, 2:7] = 1.0  # a ridge of equal voxels has no maximum along itself
    found = peaks.gaussian_fit(maps, window=2.0)
    assert_close(found, peaks.local_expectation(maps, window=2.0))


def test_expectation_passes_gradients():
    logits = torch.randn(1, 2, 5, 6, requires_grad=True)
    expectation(logits.flatten(2).softmax(-1).reshape(logits.shape)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0

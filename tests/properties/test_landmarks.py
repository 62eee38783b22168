"""Laws of heatmaps, decoders and tiles that hold for every grid."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from voxelry.metrics.landmarks import presence_auc, radial_errors
from voxelry.ops import peaks
from voxelry.ops.heatmaps import covariance, disc_heatmaps, expectation, gaussian_heatmaps
from voxelry.ops.tiles import BLENDS, predict_tiles, tile_starts

seeds = st.integers(0, 2**31 - 1)


def grids(draw) -> tuple[list[int], list[float], torch.Tensor]:
    """A shape, a spacing, and one point well inside, at least 6 voxels from every border."""
    ndim = draw(st.sampled_from([2, 3]))
    shape = [draw(st.integers(16, 24)) for _ in range(ndim)]
    spacing = [draw(st.floats(0.5, 2.0)) for _ in range(ndim)]
    point = [draw(st.floats(6.0, size - 7.0)) for size in shape]
    return shape, spacing, torch.tensor([[point]])


blobs = st.composite(grids)()


@given(blob=blobs)
def test_the_fit_recovers_every_gaussian(blob):
    shape, spacing, points = blob
    maps = gaussian_heatmaps(points, shape, sigma=1.5 * max(spacing), spacing=spacing)
    found = peaks.gaussian_fit(maps, window=3 * max(spacing), spacing=spacing)
    assert_close(found, points, atol=2e-3, rtol=0)


@given(blob=blobs, data=st.data())
def test_maps_and_decoders_do_not_care_about_the_order_of_axes(blob, data):
    shape, spacing, points = blob
    order = data.draw(st.permutations(range(len(shape))))
    maps = gaussian_heatmaps(points, shape, sigma=2.0, spacing=spacing)
    moved_spacing = [spacing[axis] for axis in order]
    moved = gaussian_heatmaps(points[..., order], [shape[axis] for axis in order], sigma=2.0, spacing=moved_spacing)
    assert_close(moved, maps.permute(0, 1, *(axis + 2 for axis in order)))
    local = peaks.local_expectation(maps, window=4.0, spacing=spacing)
    assert_close(
        peaks.local_expectation(moved, window=4.0, spacing=moved_spacing), local[..., order], atol=1e-3, rtol=0
    )
    assert_close(expectation(moved), expectation(maps)[..., order], atol=1e-3, rtol=0)
    spread = covariance(maps, spacing=spacing)
    assert_close(covariance(moved, spacing=moved_spacing), spread[..., order, :][..., order], atol=1e-3, rtol=1e-3)


@given(blob=blobs, data=st.data())
def test_a_mirrored_map_gives_the_mirrored_point(blob, data):
    shape, spacing, points = blob
    axis = data.draw(st.integers(0, len(shape) - 1))
    maps = gaussian_heatmaps(points, shape, sigma=2.0, spacing=spacing)
    for decode in (peaks.gaussian_fit, peaks.local_expectation):
        found = decode(maps.flip(axis + 2), window=4.0, spacing=spacing)
        expected = decode(maps, window=4.0, spacing=spacing).clone()
        expected[..., axis] = shape[axis] - 1 - expected[..., axis]
        assert_close(found, expected, atol=1e-2, rtol=0)


@given(blob=blobs, factor=st.floats(0.1, 10.0))
def test_only_the_ratio_of_sigma_and_spacing_matters(blob, factor):
    shape, spacing, points = blob
    one = gaussian_heatmaps(points, shape, sigma=1.5, spacing=spacing)
    other = gaussian_heatmaps(points, shape, sigma=1.5 * factor, spacing=[step * factor for step in spacing])
    assert_close(one, other, atol=1e-5, rtol=1e-3)


@given(blob=blobs)
def test_the_disc_is_the_gaussian_of_the_nearest_voxel_above_half(blob):
    shape, spacing, points = blob
    disc = disc_heatmaps(points, shape, sigma=2.0, spacing=spacing)
    found = peaks.centroid(disc)
    assert ((found - points).abs() <= 0.5 + 1e-4).all()
    assert_close(found, points.round(), atol=1e-4, rtol=0)


@given(size=st.integers(1, 200), tile=st.integers(1, 64), tenths=st.integers(0, 9), align=st.integers(1, 8))
def test_tiles_cover_an_axis_with_at_least_the_overlap(size, tile, tenths, align):
    overlap = tenths / 10
    if tile < size and int(tile * (1 - overlap)) < align:
        return
    starts = tile_starts(size, tile, overlap, align)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - tile)
    for before, after in itertools.pairwise(starts):
        assert before < after
        assert before + tile - after >= np.ceil(tile * overlap) - 1e-6


@given(seed=seeds, data=st.data())
def test_tiles_of_a_pointwise_network_equal_the_whole(seed, data):
    ndim = data.draw(st.sampled_from([2, 3]))
    shape = [data.draw(st.integers(3, 20)) for _ in range(ndim)]
    tile = [data.draw(st.integers(3, 12)) for _ in range(ndim)]
    overlap = data.draw(st.floats(0.0, 0.6))
    blend = data.draw(st.sampled_from(BLENDS))
    image = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(seed))
    tiled = predict_tiles(image, torch.tanh, tile_size=tile, overlap=overlap, blend=blend)
    assert_close(tiled, torch.tanh(image))


@given(seed=seeds, count=st.integers(2, 30))
def test_auc_is_the_fraction_of_ordered_pairs(seed, count):
    rng = np.random.default_rng(seed)
    scores, present = rng.integers(0, 5, count) / 4, rng.random(count) < 0.5
    present[:2] = [True, False]
    pairs = [float(a > b) + 0.5 * float(a == b) for a in scores[present] for b in scores[~present]]
    assert np.isclose(presence_auc(scores, present), np.mean(pairs))


@given(seed=seeds)
def test_errors_do_not_change_under_rigid_motion(seed):
    rng = np.random.default_rng(seed)
    predicted, truth = rng.normal(size=(2, 7, 3)) * 50
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shift = rng.normal(size=3) * 100
    np.testing.assert_allclose(
        radial_errors(predicted @ turn.T + shift, truth @ turn.T + shift), radial_errors(predicted, truth), atol=1e-9
    )

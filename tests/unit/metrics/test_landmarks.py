"""Landmark metrics: worked numbers, and the empty and absent cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.metrics.landmarks import (
    MeanPosition,
    case_row,
    oks_average_precision,
    presence_auc,
    radial_errors,
    success_rate,
    summarise,
)
from voxelry.ops.bootstrap import bootstrap_interval

NAN, INF = math.nan, math.inf


def test_radial_errors_are_distances_and_nan_where_absent():
    predicted = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [NAN] * 3])
    truth = np.array([[0.0, 0.0, 0.0], [NAN] * 3, [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(radial_errors(predicted, truth), [3.0, NAN, NAN])


def test_success_rate_counts_a_missed_point_and_skips_an_absent_one():
    errors = np.array([1.0, 2.0, 2.1, INF, NAN])
    assert success_rate(errors, 2.0) == 0.5
    assert math.isnan(success_rate(np.array([NAN]), 2.0))


def test_average_precision_of_known_similarities():
    # OKS 0.8 is at or above 0.50, 0.55, ..., 0.80 but for rounding: take 0.81, seven of ten thresholds
    error = 2.0 * math.sqrt(-2 * math.log(0.81))
    assert oks_average_precision(np.array([error]), sigma_mm=2.0) == pytest.approx(0.7)
    assert oks_average_precision(np.array([0.0, INF]), sigma_mm=2.0) == pytest.approx(0.5)
    assert math.isnan(oks_average_precision(np.array([])))


def test_presence_auc_counts_ordered_pairs_and_halves_ties():
    scores, present = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert presence_auc(scores, present) == pytest.approx(3.5 / 4)
    assert math.isnan(presence_auc(scores, np.ones(4, dtype=bool)))


def test_bootstrap_is_repeatable_and_holds_the_mean(rng):
    values = rng.exponential(size=(40, 6))
    low, high = bootstrap_interval(values, seed=3)
    assert (low, high) == bootstrap_interval(values, seed=3)
    assert low < values.mean() < high
    # the standard error of the mean of the case means, times 1.96 on either side
    width = 2 * 1.96 * values.mean(axis=1).std(ddof=1) / math.sqrt(40)
    assert high - low == pytest.approx(width, rel=0.2)


def test_bootstrap_draws_cases_not_points():
    values = np.repeat([[0.0], [1.0]], 500, axis=1)
    assert bootstrap_interval(values) == (0.0, 1.0)
    assert all(math.isnan(end) for end in bootstrap_interval(np.empty((0, 3))))


def test_mean_position_scales_with_the_image_and_skips_absent_points():
    small, large = Space.from_spacing((10, 20), 1.0), Space.from_spacing((20, 40), (0.5, 2.0))
    points = np.array([[4.5, 9.5], [NAN, NAN]]), np.array([[9.5, 19.5], [0.5, 0.5]])
    baseline = MeanPosition.fit(points, [small, large])
    np.testing.assert_allclose(baseline.fractions, [[0.5, 0.5], [0.05, 0.025]])
    np.testing.assert_allclose(baseline.predict(large)[0], large.to_world(np.array([9.5, 19.5])))
    with pytest.raises(DataError, match="at least one"):
        MeanPosition.fit([], [])


def test_mean_position_of_a_landmark_never_seen_is_absent():
    space = Space.from_spacing((10, 20))
    baseline = MeanPosition.fit([np.array([[1.0, 2.0], [NAN, NAN]])], [space])
    assert np.isnan(baseline.predict(space)).all(axis=-1).tolist() == [False, True]


def test_rows_and_summary_of_two_cases():
    names = ("tip", "base")
    truth = np.zeros((2, 3))
    first = case_row(
        "a",
        names,
        np.array([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]),
        truth,
        radii_mm=np.array([[1.0, 2.0], [1.0, 2.0]]),
        levels=(0.5, 0.95),
        presence=np.array([0.9, 0.8]),
    )
    second = case_row(
        "b",
        names,
        np.array([[NAN] * 3, [0.0, 0.0, 5.0]]),
        np.array([[0.0] * 3, [NAN] * 3]),
        presence=np.array([0.7, 0.2]),
    )
    assert first["mre_mm"] == 2.0
    assert first["worst_mm"] == 3.0
    assert second["missed"] == 1.0
    assert math.isnan(float(second["mre_mm"]))
    summary = summarise([first, second], names, levels=(0.5, 0.95))
    assert summary["mre_mm"] == 2.0
    assert summary["mse_mm2"] == 5.0
    assert summary["mre_mm.tip"] == 1.0
    assert summary["sdr_2mm"] == pytest.approx(1 / 3)  # of three points that are there
    assert summary["coverage_50"] == 0.5
    assert summary["coverage_95"] == 0.5
    assert summary["presence_auc"] == 1.0
    assert (summary["cases"], summary["points"], summary["missed"]) == (2, 3, 1)


def test_a_summary_of_nothing_is_nan_and_does_not_fail():
    summary = summarise([], ("tip",), levels=(0.5,))
    assert math.isnan(summary["mre_mm"])
    assert summary["cases"] == 0

import math

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.metrics.intervals import (
    LEVELS,
    calibration_factor,
    half_width,
    interval_coverage,
    standardised_errors,
)

DRAWS = 200_000


@pytest.mark.parametrize("level", LEVELS)
def test_a_spread_that_is_the_deviation_keeps_its_promise(level):
    spread = torch.rand(DRAWS).double() + 0.1
    mean = torch.randn(DRAWS).double()
    truth = mean + spread * torch.randn(DRAWS).double()
    errors = standardised_errors(mean, spread, truth)
    assert interval_coverage(errors, level=level) == pytest.approx(level, abs=0.005)
    assert calibration_factor(errors, level=level) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("samples", [2, 4, 10])
def test_few_samples_need_the_wider_interval_of_student(samples):
    drawn = torch.randn(samples, DRAWS).double()
    errors = standardised_errors(drawn.mean(dim=0), drawn.std(dim=0), torch.randn(DRAWS).double())
    assert interval_coverage(errors, level=0.9, samples=samples) == pytest.approx(0.9, abs=0.005)
    assert interval_coverage(errors, level=0.9) < 0.88
    assert calibration_factor(errors, level=0.9, samples=samples) == pytest.approx(1, abs=0.02)


def test_known_widths():
    assert half_width(0.9) == pytest.approx(1.644854, abs=1e-6)
    assert half_width(0.9, samples=4) == pytest.approx(2.353363 * math.sqrt(1.25), abs=1e-6)


def test_a_factor_makes_up_for_overconfidence():
    mean, truth = torch.zeros(DRAWS), torch.randn(DRAWS)
    halves = truth.chunk(2)
    errors = [standardised_errors(torch.zeros_like(half), torch.full_like(half, 0.25), half) for half in halves]
    factor = calibration_factor(errors[:1])
    assert factor == pytest.approx(4, rel=0.02)
    assert interval_coverage(errors[1], factor=factor) == pytest.approx(0.9, abs=0.01)
    assert calibration_factor(errors) == pytest.approx(
        calibration_factor(standardised_errors(mean, torch.full_like(mean, 0.25), truth))
    )


def test_what_is_sure_is_right_or_infinitely_wrong():
    errors = standardised_errors(
        torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 0.5]), torch.tensor([1, 2, 3.0])
    )
    assert errors.tolist() == [0, math.inf, 2]
    assert interval_coverage(errors, level=0.9) == pytest.approx(1 / 3)
    with pytest.raises(SettingError, match="more than 10% of the voxels are wrong without any spread"):
        calibration_factor(errors)


def test_only_voxels_inside_the_mask_count():
    truth = torch.tensor([[[0.0, 9.0], [0.0, 9.0]]])
    mask = torch.tensor([[True, False], [True, False]])
    errors = standardised_errors(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), truth, mask=mask)
    assert errors.tolist() == [0, 0]
    none = standardised_errors(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), truth, mask=torch.zeros(2, 2))
    assert math.isnan(interval_coverage(none))
    with pytest.raises(SettingError, match="at least one voxel"):
        calibration_factor(none)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: half_width(1.0), "level"),
        (lambda: half_width(0.9, samples=1), "samples"),
        (lambda: standardised_errors(torch.zeros(2), torch.zeros(3), torch.zeros(2)), "mean, spread, truth"),
        (lambda: standardised_errors(torch.zeros(2), -torch.ones(2), torch.zeros(2)), "spread"),
    ],
)
def test_what_does_not_fit_is_refused(call, word):
    with pytest.raises(SettingError, match=word):
        call()

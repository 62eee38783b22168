import pytest

from voxelry.core.errors import SettingError
from voxelry.engine.schedules import Constant, Cosine, Plateau


def test_cosine_climbs_then_falls_to_its_end():
    schedule = Cosine(warmup=0.1, final=0.01)
    values = [schedule.factor(progress / 100) for progress in range(101)]
    assert values[0] > 0
    assert values[:10] == sorted(values[:10])
    assert values[10] == pytest.approx(1.0)
    assert values[55] == pytest.approx((1 + 0.01) / 2)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] == pytest.approx(0.01)


def test_constant_is_one_after_the_warm_up():
    assert Constant(warmup=0.5).factor(0.25) == pytest.approx(0.5)
    assert Constant().factor(0.0) == 1.0


def test_plateau_waits_and_goes_on_where_it_stopped():
    schedule = Plateau(reduce=0.5, patience=1)
    for metric in (3.0, 2.0, 2.5, 2.5):
        schedule.observe(metric, higher_is_better=False)
    assert schedule.factor(0.9) == 0.5
    again = Plateau(reduce=0.5, patience=1)
    again.load_state_dict(schedule.state_dict())
    for one in (schedule, again):
        for metric in (2.5, 2.5):
            one.observe(metric, higher_is_better=False)
    assert again.factor(0.0) == schedule.factor(0.0) == 0.25


def test_plateau_knows_that_more_may_be_better():
    schedule = Plateau(patience=0)
    for metric in (0.1, 0.2, 0.3):
        schedule.observe(metric, higher_is_better=True)
    assert schedule.factor(0.0) == 1.0


def test_a_warm_up_is_a_fraction():
    with pytest.raises(SettingError, match="warmup"):
        Cosine(warmup=100)


def test_plateau_wants_more_than_the_threshold():
    schedule = Plateau(patience=0, threshold=0.1)
    for metric, factor in ((10.0, 1.0), (9.5, 0.5), (8.9, 0.5), (8.9, 0.25)):
        schedule.observe(metric, False)
        assert schedule.factor(0.0) == factor


def test_a_validation_that_is_no_number_hides_no_improvement():
    schedule = Plateau(patience=1)
    for metric in (float("nan"), 3.0, float("nan"), 2.0, float("nan"), 1.0):
        schedule.observe(metric, higher_is_better=False)
    assert schedule.factor(0.0) == 1.0
    assert schedule.best == 1.0


def test_a_plateau_makes_the_rate_smaller():
    with pytest.raises(SettingError, match="reduce"):
        Plateau(reduce=2.0)
    with pytest.raises(SettingError, match="minimum"):
        Plateau(minimum=5.0)

"""Which cases a validation measures."""

import pytest

from voxelry.engine.validations import ValidatedCases


def test_as_many_cases_are_measured_as_a_tenth_of_the_training_pays_for():
    validated = ValidatedCases(50, "auto")
    assert len(list(validated)) == 50
    assert validated.settle(trained=400.0, case=12.0) == 10  # 0.1 * 3 * 400 / 12
    chosen = list(validated)
    assert len(validated) == len(set(chosen)) == 10
    assert validated.settle(trained=9e9, case=1.0) == 10  # settled once
    assert list(validated) == chosen


@pytest.mark.parametrize(
    ("cases", "limit", "count"), [(50, "auto", 4), (3, "auto", 3), (50, None, 50), (50, 7, 7), (5, 7, 5)]
)
def test_four_cases_at_least_or_the_number_that_is_asked_for(cases, limit, count):
    validated = ValidatedCases(cases, limit)
    assert validated.settle(trained=1.0, case=1.0) == count
    assert len(set(validated)) == len(validated) == count
    if count == cases:
        assert list(validated) == list(range(cases))


@pytest.mark.parametrize(("cases", "limit", "world_size"), [(11, 7, 2), (2, None, 3), (9, "auto", 2)])
def test_processes_share_the_chosen_cases(cases, limit, world_size):
    parts = [ValidatedCases(cases, limit, rank=rank, world_size=world_size) for rank in range(world_size)]
    counts = {one.settle(trained=1.0, case=1.0) for one in parts}
    (count,) = counts
    alone = ValidatedCases(cases, count if count < cases else None)
    places = [list(one) for one in parts]
    assert [len(one) for one in parts] == [len(one) for one in places]
    taken = [part[turn] for turn in range(len(places[0])) for part in places if turn < len(part)]
    assert taken[:count] == list(alone)

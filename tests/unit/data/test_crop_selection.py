from __future__ import annotations

import operator

import numpy as np
import pytest

from voxelry.core.errors import SettingError
from voxelry.data.crops.selection import parse_selection


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("split=train", "train", True),
        ("split=train", "test", False),
        ("quality>=3", 3, True),
        ("quality>=3", 2.5, False),
        ("quality < 3", 2, True),
        ("roi!=4", 4, False),
        ("roi!=4", 5, True),
        ("roi=1,2", 2, True),
        ("roi=1,2", 3, False),
        ("grade=null", None, True),
        ("grade=null", 1, False),
        ("grade>1", None, False),
        ("tile=007", "007", True),
        ("tile!=007", "007", False),
        ("tile=007", "7", False),
        ("tile=007", 7, True),
        ("version=1.10", "1.10", True),
        ("version=1.10", "1.1", False),
        ("run=1_2", "1_2", True),
        ("run=1e3", "1e3", True),
        ("checked=true", True, True),
        ("checked!=True", True, False),
        ("checked=false", False, True),
        ("tile='007'", "007", True),
        ("tile=7", "7", True),
    ],
)
def test_a_criterion_holds(text, value, met):
    (criterion,) = parse_selection([text])
    assert criterion.holds(value) is met


def test_a_mapping_says_the_same():
    criteria = parse_selection({"split": "train", "quality": ">=3", "roi": [1, 2], "volume": 8000})
    assert [str(one) for one in criteria] == ["split=train", "quality>=3", "roi=1,2", "volume>=8000"]
    assert [one.about_objects for one in criteria] == [False, False, False, True]


def test_a_criterion_is_told_as_it_was_typed():
    assert [str(one) for one in parse_selection(["tile=007", "tile='7'", "grade=null"])] == [
        "tile=007",
        "tile=7",
        "grade=null",
    ]


def test_of_arrays_element_by_element():
    (volume,), (kind,) = parse_selection(["volume>=5"]), parse_selection(["class!=1,3"])
    assert volume.holds(np.array([4.0, 5.0])).tolist() == [False, True]
    assert kind.holds(np.array([1, 2, 3])).tolist() == [False, True, False]


SIGNS = {">=": operator.ge, "<=": operator.le, "!=": operator.ne, "=": operator.eq, "==": operator.eq,
         ">": operator.gt, "<": operator.lt}  # fmt: skip
COLUMNS = [[1, 2, 3, None], [1.0, 2.0, 2.5, float("nan")], ["b", "2", "a", None], [True, False]]


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize(("column", "wanted"), [(COLUMNS[0], 2), (COLUMNS[1], 2.0), (COLUMNS[2], "b"), (COLUMNS[3], 1)])
def test_every_operator_on_every_kind_of_column_is_that_of_python(sign, column, wanted):
    (criterion,) = parse_selection([f"key{sign}{wanted}"])
    absent = sign == "!="
    expected = [absent if value is None else SIGNS[sign](value, wanted) for value in column]
    assert [criterion.holds(value) for value in column] == expected
    assert criterion.holds(np.array(column, dtype=object)).tolist() == expected
    if None not in column:
        assert criterion.holds(np.array(column)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("class=2", [False, True, False]), ("class=1,3", [True, False, True]), ("class!=2", [True, False, True])],
)
def test_classes_of_an_index_are_those_asked_for(text, expected):
    (criterion,) = parse_selection([text])
    assert criterion.holds(np.array([1, 2, 3], np.int64)).tolist() == expected


def test_a_number_kept_as_text_is_compared_as_a_number():
    (criterion,) = parse_selection(["quality>=5"])
    assert criterion.holds("10") is True


@pytest.mark.parametrize("text", ["split", "=train", "a>=1,2", "a>null", "volume=big", "1; DROP TABLE annotations"])
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(SettingError, match="selection: ") as caught:
        parse_selection([text])
    assert "\n" not in str(caught.value)


def test_text_is_not_compared_with_a_number():
    (criterion,) = parse_selection(["roi>3"])
    with pytest.raises(SettingError, match="compares a number with 'left'"):
        criterion.holds("left")

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.data.layouts.case import Case
from voxelry.data.parts import named_cases
from voxelry.data.splits import SPLITS, few_shot, read_split, split_cases


def make_cases(count: int) -> list[Case]:
    return [Case(f"case_{number:03d}", Path(f"case_{number:03d}.nii.gz")) for number in range(count)]


def names(cases) -> list[str]:
    return [case.name for case in cases]


def assert_partition(splits, cases):
    listed = [name for split in SPLITS for name in names(splits[split])]
    assert sorted(listed) == sorted(names(cases))


def test_fractions_are_the_same_everywhere():
    cases = make_cases(10)
    splits = split_cases(cases, fractions=(0.6, 0.2, 0.2), seed=3)
    assert_partition(splits, cases)
    assert [len(splits[split]) for split in SPLITS] == [6, 2, 2]
    # fixed by SHA-256 of seed and name, so by nothing of this machine or Python
    assert names(splits["validation"]) == ["case_000", "case_008"]
    assert names(splits["test"]) == ["case_002", "case_004"]


def test_fractions_ignore_the_order_of_cases_and_follow_the_seed():
    cases = make_cases(40)
    one = split_cases(cases, fractions=(0.5, 0.25, 0.25))
    backwards = split_cases(cases[::-1], fractions={"train": 0.5, "val": 0.25, "test": 0.25})
    assert all(set(names(one[split])) == set(names(backwards[split])) for split in SPLITS)
    assert names(split_cases(cases, fractions=(0.5, 0.25, 0.25), seed=1)["test"]) != names(one["test"])


@pytest.mark.parametrize("count", [3, 4, 7, 11])
def test_a_share_above_zero_gets_a_case(count):
    splits = split_cases(make_cases(count), fractions=(0.98, 0.01, 0.01))
    assert len(splits["validation"]) == len(splits["test"]) == 1
    assert len(splits["train"]) == count - 2


def test_two_fractions_leave_no_test():
    splits = split_cases(make_cases(10), fractions=(0.8, 0.2))
    assert [len(splits[split]) for split in SPLITS] == [8, 2, 0]


def test_folds_hold_every_case_out_once():
    cases = make_cases(13)
    held_out = []
    for fold in range(5):
        splits = split_cases(cases, fold=fold, folds=5, seed=2)
        assert_partition(splits, cases)
        assert len(splits["validation"]) in (2, 3)
        held_out += names(splits["validation"])
    assert sorted(held_out) == names(cases)


def test_few_shot_subsets_of_a_seed_are_nested():
    cases = make_cases(60)
    subsets = [names(few_shot(cases, n, seed=1)) for n in (1, 5, 10, 25, 50)]
    for small, large in itertools.pairwise(subsets):
        assert large[: len(small)] == small
    assert names(few_shot(cases, 10, seed=1)) != names(few_shot(cases, 10, seed=2))
    assert names(few_shot(cases[::-1], 5, seed=1)) == subsets[1]
    assert few_shot(cases, "all") == few_shot(cases, None) == cases


def test_list_file_with_a_header(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("name,split\ncase_001,train\ncase_000.nii.gz,Val  # with its suffix\n\ncase_003,test\n")
    splits = split_cases(make_cases(5), file=path)
    assert [names(splits[split]) for split in SPLITS] == [["case_001"], ["case_000"], ["case_003"]]


def test_list_file_per_split(tmp_path):
    (tmp_path / "training.txt").write_text("case_001\ncase_002\n")
    (tmp_path / "test.txt").write_text("case_000\n")
    (tmp_path / "notes.txt").write_text("not a split\n")
    assert read_split(tmp_path) == {"test": ["case_000"], "train": ["case_001", "case_002"]}


def test_list_as_json_or_in_python(tmp_path):
    listed = {"train": ["case_002", "case_001"], "validation": ["case_000"]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps(listed))
    cases = make_cases(4)
    assert split_cases(cases, file=path) == split_cases(cases, file=listed)
    assert names(split_cases(cases, file=path)["train"]) == ["case_002", "case_001"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case_000,train\ncase_009,test\n", r"split\.csv: 'case_009' in test is none of the 5 cases"),
        ("case_000,train\ncase_000,test\n", r"split\.csv: 'case_000' is listed in train and in test"),
        ("case_000,train\ncase_000.nii.gz,train\n", r"'case_000.nii.gz' is listed in train and in train"),
        ("case_000,train\ncase_001,trial\n", r"split\.csv: line 2: expected name,split"),
        ("case_000,train\n\ncase_001\n", r"split\.csv: line 3: expected name,split"),
        ("", r"split\.csv: names no case"),
    ],
)
def test_bad_lists_are_named(tmp_path, content, message):
    path = tmp_path / "split.csv"
    path.write_text(content)
    with pytest.raises((DataError, FileError), match=message) as caught:
        split_cases(make_cases(5), file=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "expected an object"),
        ('{"train": "case_000"}', "train: expected a list of names"),
        ('{"dev": ["case_000"]}', "unknown split 'dev'"),
        ('{"train": [', "line 1: not JSON"),
    ],
)
def test_bad_json_is_named(tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(FileError, match=message):
        read_split(path)


def test_a_list_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        read_split(tmp_path / "split.csv")
    (tmp_path / "split.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(FileError, match="not a text file"):
        read_split(tmp_path / "split.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"no train\.txt"):
        read_split(tmp_path / "empty")


def test_splits_that_came_with_the_data_are_kept():
    cases = [Case(f"c{i}", Path(f"c{i}.npy"), split=split) for i, split in enumerate(("train", "test", "train"))]
    splits = split_cases(cases)
    assert [names(splits[split]) for split in SPLITS] == [["c0", "c2"], [], ["c1"]]
    assert len(split_cases(cases, fractions=(0.5, 0.5))["validation"]) > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"fractions": (0.5, 0.6)},
        {"fractions": (1.2, -0.2)},
        {"fractions": (1.0,)},
        {"fractions": {"train": 0.5, "dev": 0.5}},
        {"fold": 5, "folds": 5},
        {"fold": 0, "folds": 1},
        {"fold": 0, "fractions": (0.5, 0.5)},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(SettingError):
        split_cases(make_cases(10), **settings)


@pytest.mark.parametrize(
    ("count", "settings", "sizes", "empty"),
    [
        (2, {}, [1, 1, 0], "only 2 cases: none for test"),
        (1, {}, [1, 0, 0], "only 1 case: none for validation or test"),
        (2, {"seed": None}, [1, 1, 0], "only 2 cases: none for test"),
        (1, {"fractions": (0.5, 0.0, 0.5)}, [1, 0, 0], "only 1 case: none for test"),
        (2, {"fractions": (0.1, 0.9)}, [1, 1, 0], None),
        (0, {}, [0, 0, 0], "only 0 cases: none for train or validation or test"),
    ],
)
def test_few_cases_train_first_then_validate(count, settings, sizes, empty, caplog):
    parts = split_cases(make_cases(count), **settings)
    assert [len(parts[split]) for split in SPLITS] == sizes
    assert [record.getMessage() for record in caplog.records] == ([] if empty is None else [empty])


def test_two_groups_are_two_cases(caplog):
    cases = [Case(name, Path(f"{name}.npy"), group=name[0]) for name in ("a1", "a2", "b1")]
    parts = split_cases(cases)
    assert {case.group for case in parts["train"]}.isdisjoint({case.group for case in parts["validation"]})
    assert [record.getMessage() for record in caplog.records] == ["only 2 groups of 3 cases: none for test"]


def test_too_few_cases():
    with pytest.raises(DataError, match="only 2 cases"):
        split_cases(make_cases(2), fold=0, folds=5)
    with pytest.raises(DataError, match="3 cases asked for, 2 are there"):
        few_shot(make_cases(2), 3)
    with pytest.raises(SettingError, match="few_shot"):
        few_shot(make_cases(2), 0)


def test_names_must_be_unique():
    twice = [Case("a", Path("x/a.npy")), Case("a", Path("y/a.npy"))]
    for divide in (split_cases, lambda cases: few_shot(cases, 1)):
        with pytest.raises(DataError, match=r"two cases are called a: x/a\.npy and y/a\.npy"):
            divide(twice)


def test_groups_are_never_parted():
    cases = [
        Case(f"{patient}_{slice}", Path(f"{patient}_{slice}.png"), group=patient)
        for patient in "abcdefghij"
        for slice in range(4)
    ]
    parts = [split_cases(cases, fractions=(0.6, 0.2, 0.2), seed=3), *(split_cases(cases, fold=k) for k in range(5))]
    for split in parts:
        patients = [{case.group for case in part} for part in split.values()]
        assert sum(len(part) for part in patients) == 10
        assert sum(len(part) for part in split.values()) == 40
    assert [len(parts[0][part]) for part in SPLITS] == [24, 8, 8]
    with pytest.raises(DataError, match="only 10 groups of 40 cases"):
        split_cases(cases, fold=0, folds=11)


@pytest.mark.parametrize(("count", "sizes"), [(10, [8, 1, 1]), (15, [12, 1, 2]), (30, [24, 3, 3]), (5, [3, 1, 1])])
def test_without_a_seed_cases_stay_in_the_order_of_their_names(count, sizes):
    cases = make_cases(count)
    splits = split_cases(cases[::-1], fractions=(0.8, 0.1, 0.1), seed=None)
    assert [len(splits[split]) for split in SPLITS] == sizes
    assert [name for split in SPLITS for name in sorted(names(splits[split]))] == names(cases)


def test_without_a_seed_few_shots_are_the_first_by_name():
    assert names(few_shot(make_cases(9)[::-1], 3, None)) == ["case_000", "case_001", "case_002"]


def test_a_first_line_of_a_case_is_no_header(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("case_000.nii.gz,trian\ncase_001,train\n")
    with pytest.raises(FileError, match="line 1: expected name,split with split one of train"):
        split_cases(make_cases(3), file=path)


def test_a_hash_within_a_name_starts_no_comment(tmp_path):
    cases = [Case(name, Path(f"{name}.png")) for name in ("mouse", "mouse#2", "rat # 3")]
    (tmp_path / "train.txt").write_text("# all of ours\nmouse#2  # the second\n")
    (tmp_path / "split.json").write_text(json.dumps({"train": ["mouse#2", "rat # 3"]}))
    assert names(split_cases(cases, file=tmp_path)["train"]) == ["mouse#2"]
    assert names(split_cases(cases, file=tmp_path / "split.json")["train"]) == ["mouse#2", "rat # 3"]


def test_a_name_on_each_line_is_a_list_of_cases(tmp_path):
    path = tmp_path / "cases.txt"
    path.write_text("# of our own\ncase_002\ncase_000.nii.gz\n")
    assert names(named_cases(make_cases(4), path)) == ["case_002", "case_000"]
    path.write_text("case_000,train\ncase_003,test\n")
    assert names(named_cases(make_cases(4), path)) == ["case_003"]
    path.write_text("case_000\ncase_009\n")
    with pytest.raises(DataError, match="'case_009'"):
        named_cases(make_cases(4), path)

"""Which cases train, which tune and which test.

Every shuffle orders the cases by the SHA-256 of seed and name: the same on every machine and Python,
and hardly changed when a case is added.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TypeVar

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.remote import as_path
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name

__all__ = ["SPLITS", "CaseType", "few_shot", "read_names", "read_split", "split_cases"]

SPLITS = ("train", "validation", "test")

_COMMENT = re.compile(r"(?:^|\s)#")  # mouse#3 is a name
_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}

log = logging.getLogger(__name__)

CaseType = TypeVar("CaseType", bound=Case)
Splits = dict[str, list[CaseType]]


def split_cases(
    cases: Sequence[CaseType],
    *,
    file: str | PathLike[str] | Mapping[str, Sequence[str]] | None = None,
    fractions: Sequence[float] | Mapping[str, float] | None = None,
    fold: int | None = None,
    folds: int = 5,
    seed: int | None = 0,
) -> Splits[CaseType]:
    """Divide cases into `train`, `validation` and `test`; no case is in two of them.

    Cases of one `group` stay together in folds and fractions, which then count groups.

    One of these decides:
        `file`: a list, see `read_split`. Cases it doesn't name are in no split.
        `fold`: `validation` is fold `fold` (from 0) of `folds`, `train` the other folds, `test` is empty.
        `fractions`: shares of train, validation and test (two numbers: no test), shuffled by `seed`; a share
            above zero gets at least one case. With `seed=None` in the order of the names: the shares of train and
            validation are then rounded down. Of fewer cases than shares one trains, a second one validates, and it
            is logged which part is left empty.
        None of them: the split that came with the data (subfolders, the originals' subsets), else
            fractions of 0.7, 0.1 and 0.2.

    Raises:
        DataError: two cases share a name, the list names an unknown case or one twice, fewer cases than folds.
        SettingError: more than one way is asked for, fractions don't sum to 1, a fold is out of range.
    """
    _unique(cases)
    if sum(way is not None for way in (file, fractions, fold)) > 1:
        raise SettingError("split: expected one of file, fractions and fold, got more")
    if file is not None:
        known = {case.name for case in cases}
        return _by_names(cases, file if isinstance(file, Mapping) else read_split(file, known), str(file))
    if fold is not None:
        return _by_fold(cases, fold, folds, seed)
    if fractions is None and any(case.split for case in cases):
        return {split: [case for case in cases if case.split == split] for split in SPLITS}
    return _by_fraction(cases, (0.7, 0.1, 0.2) if fractions is None else fractions, seed)


def few_shot(cases: Sequence[CaseType], n: int | str | None, seed: int | None = 0) -> list[CaseType]:
    """`n` of the cases, drawn by `seed` or, with None, the first by name; `"all"` or None keeps every one.

    Subsets of one seed are nested: its 5 shots are among its 10 shots.

    Raises:
        DataError: fewer than `n` cases.
        SettingError: `n` is not a positive whole number.
    """
    _unique(cases)
    if n is None or n == "all":
        return list(cases)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise SettingError(f"few_shot: expected a positive whole number or 'all', got {n!r}")
    if n > len(cases):
        raise DataError(f"few_shot: {n} cases asked for, {len(cases)} are there")
    return _shuffled(cases, seed, "few-shot")[:n]


def read_names(path: str | PathLike[str]) -> list[str]:
    """The names of a text file with one on each line; empty for whatever else `read_split` reads.

    Raises:
        FileError: the file can't be read.
    """
    path = as_path(path)
    if path.is_dir() or path.suffix.lower() == ".json":
        return []
    lines = [line for _, line in _lines(path)]
    return [] if any("," in line for line in lines) else lines


def read_split(path: str | PathLike[str], cases: Collection[str] = ()) -> dict[str, list[str]]:
    """The names of each split, from

    - a folder with `train.txt`, `validation.txt`, `test.txt` (one name a line; not all need be there),
    - a `.json` file, `{"train": ["case_01", ...], ...}`,
    - any other text file, a line `name,split` each; a header line is allowed.

    `#` at the beginning of a line or after a blank starts a comment. `val` and `training` and the like are
    understood; a name may carry its image suffix.

    Args:
        path: of the list.
        cases: the names that there are: a first line with one of them is no header.

    Raises:
        FileError: the file can't be read, or a line is not understood; the message names the line.
    """
    path = as_path(path)
    if path.is_dir():
        found = {entry.stem: entry for entry in sorted(path.glob("*.txt")) if _canonical(entry.stem)}
        if not found:
            raise FileError(path, "no train.txt, validation.txt or test.txt in this folder")
        return {_canonical(stem): [line for _, line in _lines(entry)] for stem, entry in found.items()}
    if path.suffix.lower() == ".json":
        return _read_json(path)
    names: dict[str, list[str]] = {}
    for number, (line_number, line) in enumerate(_lines(path)):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        split = _canonical(cells[1]) if len(cells) == 2 else ""
        if split:
            names.setdefault(split, []).append(cells[0])
        elif number or len(cells) != 2 or {cells[0], case_name(Path(cells[0]))} & set(cases):
            raise FileError(path, f"line {line_number}: expected name,split with split one of {', '.join(SPLITS)}")
    if not names:
        raise FileError(path, "names no case")
    return names


def _read_json(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise FileError(path, f"line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(content, dict):
        raise FileError(path, 'expected an object such as {"train": ["name", ...], "test": [...]}')
    names = {}
    for key, value in content.items():
        if not _canonical(key):
            raise FileError(path, f"unknown split {key!r}; expected {', '.join(SPLITS)}")
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise FileError(path, f"{key}: expected a list of names")
        names[_canonical(key)] = value
    return names


def _lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers from 1 and the lines, without blank ones and comments."""
    lines = [(number, _COMMENT.split(line)[0].strip()) for number, line in enumerate(_text(path).splitlines(), 1)]
    return [(number, line) for number, line in lines if line]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FileError(path, "not a text file; expected a list of names") from None
    except OSError as error:
        raise FileError(path, f"can't be read: {error.strerror}") from None


def _canonical(split: str) -> str:
    split = split.strip().lower()
    split = _ALIASES.get(split, split)
    return split if split in SPLITS else ""


def _by_names(cases: Sequence[CaseType], names: Mapping[str, Sequence[str]], where: str) -> Splits[CaseType]:
    known = {case.name: case for case in cases}
    splits: Splits[CaseType] = {split: [] for split in SPLITS}
    seen: dict[str, str] = {}
    for key, entries in names.items():
        split = _canonical(key)
        if not split:
            raise DataError(f"{where}: unknown split {key!r}; expected {', '.join(SPLITS)}")
        for entry in entries:
            name = entry if entry in known else case_name(Path(entry))
            if name not in known:
                raise DataError(f"{where}: {entry!r} in {split} is none of the {len(cases)} cases")
            if name in seen:
                raise DataError(f"{where}: {entry!r} is listed in {seen[name]} and in {split}")
            seen[name] = split
            splits[split].append(known[name])
    return splits


def _by_fraction(
    cases: Sequence[CaseType], fractions: Sequence[float] | Mapping[str, float], seed: int | None
) -> Splits[CaseType]:
    if isinstance(fractions, Mapping):
        unknown = [key for key in fractions if not _canonical(key)]
        if unknown:
            raise SettingError(f"fractions: unknown split {unknown[0]!r}; expected {', '.join(SPLITS)}")
        given = {_canonical(key): float(value) for key, value in fractions.items()}
        shares = [given.get(split, 0.0) for split in SPLITS]
    else:
        shares = [*map(float, fractions), 0.0][:3] if len(fractions) == 2 else [float(share) for share in fractions]
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SettingError(f"fractions: expected shares of train, validation and test that sum to 1, got {fractions}")
    order = _shuffled_groups(cases, seed, "fraction")
    shares = _enough(shares, cases, len(order))
    counts = [max(round(share * len(order)), 1) if share else 0 for share in shares]
    if seed is None:
        down = [math.floor(share * len(order) + 1e-9) for share in shares[:2]]  # 0.1 * 30 is 2.9999...
        rest = [*down, len(order) - sum(down)]
        counts = rest if all(count > 0 or not share for count, share in zip(rest, shares, strict=True)) else counts
    # Rounding and the least of one case are settled by the largest split.
    largest = counts.index(max(counts))
    counts[largest] += len(order) - sum(counts)
    starts = [0, counts[0], counts[0] + counts[1]]
    return {
        split: _as_given(cases, itertools.chain(*order[start : start + count]))
        for split, start, count in zip(SPLITS, starts, counts, strict=True)
    }


def _enough(shares: list[float], cases: Sequence[Case], groups: int) -> list[float]:
    """Shares of the first `groups` parts only where that is fewer than are asked for."""
    wanted = [split for split, share in zip(SPLITS, shares, strict=True) if share]
    if groups >= len(wanted):
        return shares
    empty = wanted[groups:]
    log.warning("%s: none for %s", _number(cases, groups), " or ".join(empty))
    return [share if split not in empty else 0.0 for split, share in zip(SPLITS, shares, strict=True)]


def _by_fold(cases: Sequence[CaseType], fold: int, folds: int, seed: int | None) -> Splits[CaseType]:
    if folds < 2 or not 0 <= fold < folds:
        raise SettingError(f"fold: expected 0 to folds - 1 with folds at least 2, got fold {fold} of {folds}")
    order = _shuffled_groups(cases, seed, "fold")
    if len(order) < folds:
        raise DataError(f"folds: {folds} asked for, but there are {_number(cases, len(order))}")
    others = [group for place, group in enumerate(order) if place % folds != fold]
    return {
        "train": _as_given(cases, itertools.chain(*others)),
        "validation": _as_given(cases, itertools.chain(*order[fold::folds])),
        "test": [],
    }


def _shuffled(cases: Iterable[CaseType], seed: int | None, purpose: str) -> list[CaseType]:
    """By SHA-256; `purpose` keeps the draws of folds, fractions and few-shot subsets independent."""
    return sorted(cases, key=lambda case: _rank(case.name, seed, purpose))


def _shuffled_groups(cases: Iterable[CaseType], seed: int | None, purpose: str) -> list[list[CaseType]]:
    """The cases of each group, a case without one by itself, in the order of `_shuffled`."""
    groups: dict[str, list[CaseType]] = {}
    for case in cases:
        groups.setdefault(case.group or case.name, []).append(case)
    return [groups[name] for name in sorted(groups, key=lambda name: _rank(name, seed, purpose))]


def _rank(name: str, seed: int | None, purpose: str) -> bytes:
    if seed is None:
        return name.encode()
    return hashlib.sha256(f"{purpose}\0{seed}\0{name}".encode()).digest()


def _number(cases: Sequence[Case], groups: int) -> str:
    number = f"{len(cases)} case{'s' * (len(cases) != 1)}"
    return f"only {number}" if groups == len(cases) else f"only {groups} group{'s' * (groups != 1)} of {number}"


def _as_given(cases: Sequence[CaseType], chosen: Iterable[CaseType]) -> list[CaseType]:
    names = {case.name for case in chosen}
    return [case for case in cases if case.name in names]


def _unique(cases: Sequence[Case]) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        if case.name in seen:
            raise DataError(f"two cases are called {case.name}: {seen[case.name].image} and {case.image}")
        seen[case.name] = case

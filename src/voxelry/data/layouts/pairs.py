"""Which images belong together, of one patient or place: what is given, and what it is to become.

`ab`:
    `A/NAME.npy` to become `B/NAME.npy` (any reader's format, volumes or slices). Where no name is in both folders
    but they hold equally many files, these belong together in the order of their names.
`contrasts`:
    a folder per contrast, `t1/NAME.nii.gz`, `t2/NAME.nii.gz`, ...; one of them is the target (the folder `target`
    if there is one, else it has to be said), the others are the conditions. A case may lack some of them.
`csv`:
    a table with the columns `name`, `target`, and `image` or several that begin with `image` (`image_t1`, `image_t2`);
    paths are relative to the table, an empty cell is a contrast that isn't there; `split` may say train, validation
    or test, `group` the patient.
`ldfdct`:
    `**/*ld.png` (low dose) to become `**/*fd.png` (full dose).
`pmub`:
    slices `CASE_<k>.png`: k - 1 and k + 1 to become k; the ends of a stack have no such neighbours and are no case.

Each of them may also lie in subfolders `train`, `validation` (or `val`) and `test`, which are then the split. Beside
folders of images, `labels/NAME.*` is a class per voxel on the target's grid. Slices of one folder (`ldfdct`) or CASE
(`pmub`) are a group, which no split parts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.data.layouts.find import (
    SPLIT_NAMES,
    Case,
    case_name,
    check_names,
    files_by_name,
    images_in,
    split_folders,
)

__all__ = ["PAIR_LAYOUTS", "PairCase", "find_pairs", "pair_layout"]

PAIR_LAYOUTS = ("ab", "contrasts", "csv", "ldfdct", "pmub")

_NO_CONTRAST = ("labels", "instances", "masks", "landmarks")
_TABLES = (".csv", ".tsv")
_SLICE = re.compile(r"(?P<case>.+)_(?P<number>\d+)\.png", re.IGNORECASE)


@dataclass(frozen=True)
class PairCase(Case):
    """What is given of a case, and what it is to become.

    Attributes:
        images: the conditions, None for one that this case doesn't have; in the same order for all cases.
        target: what they are to become; None where that isn't known.
        contrasts: a name for each of `images`.
        image: the file whose grid counts: the target, else the first of `images`.
    """

    images: tuple[Path | None, ...] = ()
    target: Path | None = None
    contrasts: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, images: Sequence[Path | None], target: Path | None, **more: Any) -> Self:
        """A case of these files; `more` are other fields, such as `contrasts`, `labels` and `options`.

        Raises:
            DataError: none of the images is there.
        """
        there = [path for path in images if path is not None]
        if not there:
            raise DataError(f"{target or name}: none of the images that are to become it")
        more.setdefault("contrasts", tuple(f"image {number}" for number in range(1, len(images) + 1)))
        image = there[0] if target is None else target
        return cls(name=name, image=image, images=tuple(images), target=target, layout="pairs", **more)

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Everything the case is read from, by what it is used for."""
        given = {f"image {place}": (path,) for place, path in enumerate(self.images) if path is not None}
        return {**super().files, **given, **({} if self.target is None else {"target": (self.target,)})}


def find_pairs(
    root: str | PathLike[str],
    layout: str = "auto",
    *,
    target: str | None = None,
    conditions: Sequence[str] | None = None,
    need_target: bool = True,
    options: Mapping[str, Any] | None = None,
    unpaired: list[tuple[Path, str]] | None = None,
) -> list[PairCase]:
    """The pairs under `root`, sorted by name.

    Args:
        root: a folder in one of the layouts above, or a table.
        layout: one of `PAIR_LAYOUTS`, or `"auto"` to tell by what is there.
        target: of `contrasts`, the folder that is the target.
        conditions: of `contrasts` and `csv`, the folders or columns that are given, in this order; None: all others.
        need_target: whether a condition without its target is an error; otherwise such cases are kept.
        options: for the reader of every file, as in `Case`.
        unpaired: a list that files without a partner are added to, each with what it lacks; None: they are an error.

    Raises:
        DataError: no pair, files without a partner, two of one name; the message names the file.
        FileError: `root` doesn't exist, or the table can't be read.
        SettingError: an unknown layout, or a folder or column that isn't there.
    """
    if layout not in ("auto", *PAIR_LAYOUTS):
        raise SettingError(f"layout: expected auto or one of {', '.join(PAIR_LAYOUTS)}, got {layout!r}")
    root = Path(root)
    if not root.exists():
        raise FileError(root, "no such file or folder")
    wanted = _Wanted(target, None if conditions is None else tuple(conditions), need_target, unpaired)
    parts = split_folders(root) if not (root / "A").is_dir() else []
    cases = [
        replace(case, split=split or case.split, options=dict(options or {}))
        for split, folder in parts or [("", root)]
        for case in _FINDERS[pair_layout(folder) if layout == "auto" else layout](folder, wanted)
    ]
    if not cases:
        raise DataError(f"{root}: no pairs of images (layout {layout})")
    cases.sort(key=lambda case: case.name)
    check_names(cases)
    return cases


@dataclass(frozen=True)
class _Wanted:
    target: str | None
    conditions: tuple[str, ...] | None
    need_target: bool
    unpaired: list[tuple[Path, str]] | None

    def refuse(self, path: Path, lacks: str) -> None:
        """Note a file without its partner, or raise for it."""
        if self.unpaired is None:
            raise DataError(f"{path}: unpaired, {lacks}")
        self.unpaired.append((path, lacks))


def pair_layout(root: Path) -> str:
    """The layout that a folder or table looks like.

    Raises:
        DataError: none of them.
    """
    if root.is_file():
        return "csv"
    if (root / "A").is_dir() and (root / "B").is_dir():
        return "ab"
    if next(root.rglob("*ld.png"), None) is not None:
        return "ldfdct"
    if _contrast_folders(root):
        return "contrasts"
    if any(_SLICE.fullmatch(path.name) for path in root.iterdir()):
        return "pmub"
    raise DataError(f"{root}: no pairs of images; expected folders A and B, a folder per contrast, or a table")


def _ab(root: Path, wanted: _Wanted) -> list[PairCase]:
    given, targets = files_by_name(root / "A"), files_by_name(root / "B")
    if not given.keys() & targets.keys() and len(given) == len(targets):
        targets = dict(zip(given, targets.values(), strict=True))
    return _by_name(root, {"A": given}, targets, wanted)


def _contrasts(root: Path, wanted: _Wanted) -> list[PairCase]:
    folders = _contrast_folders(root)
    target = wanted.target or ("target" if "target" in folders else None)
    if target not in folders and (wanted.need_target or target is not None):
        raise SettingError(f"target: expected one of the folders {', '.join(folders)} of {root}, got {target!r}")
    names = [name for name in folders if name != target] if wanted.conditions is None else list(wanted.conditions)
    for name in names:
        if name not in folders or name == target:
            raise SettingError(f"conditions: expected folders of {', '.join(folders)} but the target, got {name!r}")
    targets = {} if target is None else files_by_name(root / target)
    return _by_name(root, {name: files_by_name(root / name) for name in names}, targets, wanted)


def _by_name(
    root: Path, given: Mapping[str, Mapping[str, Path]], targets: Mapping[str, Path], wanted: _Wanted
) -> list[PairCase]:
    """A case for every name; every target has a condition, and the other way round where it is needed."""
    labels = files_by_name(root / "labels")
    cases = []
    for name in sorted(targets.keys() | {name for files in given.values() for name in files}):
        images = tuple(files.get(name) for files in given.values())
        target = targets.get(name)
        first = next(filter(None, images), None)
        if target is not None and first is None:
            wanted.refuse(target, f"no image {name} in {' or '.join(given)}")
        elif first is not None and target is None and wanted.need_target:
            wanted.refuse(first, f"no target of the name {name}")
        else:
            cases.append(PairCase.of(name, images, target, contrasts=tuple(given), labels=labels.get(name)))
    return cases


def _contrast_folders(root: Path) -> list[str]:
    return [
        folder.name
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name[0] != "." and folder.name not in _NO_CONTRAST and images_in(folder)
    ]


def _table(path: Path, wanted: _Wanted) -> list[PairCase]:
    if path.suffix.lower() not in _TABLES:
        raise FileError(path, f"expected a folder or a table ({', '.join(_TABLES)})")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(path, f"can't be read as a table: {error}") from None
    uneven = next((number for number, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if uneven is not None:
        raise FileError(path, f"line {uneven}: another number of cells than the header")
    columns = list(rows[0]) if rows else []
    names = [name for name in columns if name.startswith("image")]
    if wanted.conditions is not None:
        names = list(wanted.conditions)
    absent = [name for name in [*names, *(["target"] if wanted.need_target else [])] if name not in columns]
    if not names or absent:
        raise FileError(path, f"expected the columns name, image and target, got {', '.join(columns) or 'none'}")
    cases = []
    for number, row in enumerate(rows, 2):
        found = {column: _cell(path, number, row, column) for column in [*names, "target", "labels"]}
        images = tuple(found[name] for name in names)
        first = next(filter(None, images), None)
        split = (row.get("split") or "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise FileError(path, f"line {number}: split: expected one of {', '.join(SPLIT_NAMES)}, got {split!r}")
        if first is None or (found["target"] is None and wanted.need_target):
            wanted.refuse(path, f"line {number}: no {'image' if first is None else 'target'}")
            continue
        cases.append(
            PairCase.of(
                row.get("name") or case_name(first),
                images,
                found["target"],
                contrasts=tuple(names),
                labels=found["labels"],
                split=SPLIT_NAMES.get(split, ""),
                group=(row.get("group") or "").strip(),
            )
        )
    return cases


def _cell(table: Path, number: int, row: Mapping[str, str | None], column: str) -> Path | None:
    """The file a cell names, None for an empty one."""
    text = (row.get(column) or "").strip()
    if not text:
        return None
    path = table.parent / text
    if not path.exists():
        raise FileError(table, f"line {number}: {column}: no file {path}")
    return path


def _ldfdct(root: Path, wanted: _Wanted) -> list[PairCase]:
    low, full = (
        {str(path.relative_to(root))[: -len(ending)]: path for path in sorted(root.rglob(f"*{ending}"))}
        for ending in ("ld.png", "fd.png")
    )
    cases = _by_name(root, {"low dose": low}, full, wanted)
    return [
        replace(
            case,
            name=re.sub(r"[/\\]", "_", case.name).rstrip("_-. ") or "case",
            group="" if case.image.parent == root else str(case.image.parent.relative_to(root)),
        )
        for case in cases
    ]


def _pmub(root: Path, wanted: _Wanted) -> list[PairCase]:
    stacks: dict[str, dict[int, Path]] = {}
    for path in sorted(root.iterdir()):
        if found := _SLICE.fullmatch(path.name):
            stacks.setdefault(found["case"], {})[int(found["number"])] = path
    return [
        PairCase.of(
            case_name(path), (stack[number - 1], stack[number + 1]), path, contrasts=("before", "after"), group=name
        )
        for name, stack in stacks.items()
        for number, path in stack.items()
        if number - 1 in stack and number + 1 in stack
    ]


_FINDERS: dict[str, Callable[[Path, _Wanted], list[PairCase]]] = {
    "ab": _ab,
    "contrasts": _contrasts,
    "csv": _table,
    "ldfdct": _ldfdct,
    "pmub": _pmub,
}

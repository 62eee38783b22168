"""A list of images and labels: a CSV file.

    name,image,label,split
    a,scans/a.nii.gz,truth/a.nii.gz,train

`name` and `split` may be left out; paths are relative to the list.
"""

from __future__ import annotations

import csv
from pathlib import Path

from voxelry.core.errors import FileError
from voxelry.core.remote import beside
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import SPLIT_NAMES, case_name
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["TABLES", "Table", "header_of", "read_rows", "split_of"]

TABLES = (".csv", ".tsv")


class Table(Layout):
    """A table with the columns `image` and `label`."""

    def fits(self, root: Path) -> bool:
        """By these columns, without `target`, which pairs have."""
        header = header_of(root) if root.is_file() and root.suffix.lower() in TABLES else set()
        return {"image", "label"} <= header and "target" not in header

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per row."""
        rows = read_rows(root)
        if not rows or not {"image", "label"} <= set(rows[0]):
            raise FileError(root, "expected columns image and label (perhaps name and split), and at least one row")
        cases = []
        for number, row in enumerate(rows, start=2):
            image, label = (beside(root, row[column]) for column in ("image", "label"))
            for column, file in (("image", image), ("label", label)):
                if not row[column] or not file.exists():
                    raise FileError(root, f"line {number}: no such {column}: {row[column] or 'empty'}")
            name = row.get("name") or case_name(image)
            cases.append(Case(name, image, labels=label, layout="list", split=split_of(root, number, row)))
        return cases


def header_of(path: Path) -> set[str]:
    """The names of a table's columns; none of a file that is no text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return set(next(csv.reader(stream, delimiter=_delimiter(path)), ()))
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table by the names of its columns.

    Raises:
        FileError: no table, or a row of another length.
    """
    if path.suffix.lower() not in TABLES:
        raise FileError(path, f"expected a folder or a table ({', '.join(TABLES)})")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter=_delimiter(path)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(path, f"can't be read as a table: {error}") from None
    uneven = next((number for number, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if uneven is not None:
        raise FileError(path, f"line {uneven}: another number of cells than the header")
    return rows


def split_of(path: Path, number: int, row: dict[str, str]) -> str:
    """What a row's column `split` says, empty where it says nothing.

    Raises:
        FileError: another word.
    """
    split = (row.get("split") or "").strip().lower()
    if split and split not in SPLIT_NAMES:
        raise FileError(path, f"line {number}: split: expected one of {', '.join(SPLIT_NAMES)}, got {split!r}")
    return SPLIT_NAMES.get(split, "")


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","

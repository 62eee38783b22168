"""Pairs in a table.

    name,image_t1,image_t2,target,split,group
    a,t1/a.nii.gz,,t3/a.nii.gz,train,patient_7

One column `image` or several that begin so; paths are relative to the table, an empty cell is a contrast that isn't
there. `split` may say train, validation or test, `group` the patient, `labels` a class per voxel on the target's grid.
"""

from __future__ import annotations

from pathlib import Path

from voxelry.core.errors import FileError
from voxelry.core.remote import beside
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.data.layouts.table import TABLES, read_rows, split_of

__all__ = ["PairTable"]


class PairTable(Layout):
    """A table with the columns `name`, `image` (or several) and `target`."""

    pairs = True

    def fits(self, root: Path) -> bool:
        """By the suffix of the file."""
        return root.is_file() and root.suffix.lower() in TABLES

    def cases(self, root: Path, wanted: Wanted) -> list[PairCase]:
        """One per row."""
        rows = read_rows(root)
        columns = list(rows[0]) if rows else []
        found = [name for name in columns if name.startswith("image")]
        names = found if wanted.conditions is None else list(wanted.conditions)
        absent = [name for name in [*names, *(["target"] if wanted.need_target else [])] if name not in columns]
        if not names or absent:
            raise FileError(root, f"expected the columns name, image and target, got {', '.join(columns) or 'none'}")
        cases = []
        for number, row in enumerate(rows, 2):
            files = {column: _cell(root, number, row, column) for column in [*names, "target", "labels"]}
            images = tuple(files[name] for name in names)
            first = next(filter(None, images), None)
            split = split_of(root, number, row)
            if first is None or (files["target"] is None and wanted.need_target):
                wanted.refuse(root, f"line {number}: no {'image' if first is None else 'target'}")
                continue
            cases.append(
                PairCase.of(
                    row.get("name") or case_name(first),
                    images,
                    files["target"],
                    contrasts=tuple(names),
                    labels=files["labels"],
                    split=split,
                    group=(row.get("group") or "").strip(),
                )
            )
        return cases


def _cell(table: Path, number: int, row: dict[str, str], column: str) -> Path | None:
    """The file a cell names, None for an empty one."""
    text = (row.get(column) or "").strip()
    if not text:
        return None
    path = beside(table, text)
    if not path.exists():
        raise FileError(table, f"line {number}: {column}: no file {path}")
    return path

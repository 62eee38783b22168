"""Pairs in two folders: what is given, and what it is to become.

    A/NAME.npy    any reader's format, volumes or slices
    B/NAME.npy

Where no name is in both folders but they hold equally many files, these belong together in the order of their names.
"""

from __future__ import annotations

from pathlib import Path

from voxelry.data.layouts.by_name import pairs_by_name
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.files import files_by_name
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["AB"]


class AB(Layout):
    """`A/NAME.*` to become `B/NAME.*`."""

    pairs = True

    def fits(self, root: Path) -> bool:
        """By the two folders."""
        return (root / "A").is_dir() and (root / "B").is_dir()

    def cases(self, root: Path, wanted: Wanted) -> list[PairCase]:
        """One per name."""
        given, targets = files_by_name(root / "A"), files_by_name(root / "B")
        if not given.keys() & targets.keys() and len(given) == len(targets):
            targets = dict(zip(given, targets.values(), strict=True))
        return pairs_by_name(root, {"A": given}, targets, wanted)

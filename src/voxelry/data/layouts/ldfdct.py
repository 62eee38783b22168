"""Pairs of low-dose and full-dose CT slices.

    PATIENT/001ld.png    low dose, at any depth
    PATIENT/001fd.png    full dose, which it is to become

Slices of one folder are a group, which no split parts.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from voxelry.data.layouts.by_name import pairs_by_name
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["LowDoseCT"]


class LowDoseCT(Layout):
    """`**/*ld.png` to become `**/*fd.png`."""

    pairs = True

    def fits(self, root: Path) -> bool:
        """By a slice of low dose."""
        return next(root.rglob("*ld.png"), None) is not None

    def cases(self, root: Path, wanted: Wanted) -> list[PairCase]:
        """One per slice."""
        low, full = (
            {str(path.relative_to(root))[: -len(ending)]: path for path in sorted(root.rglob(f"*{ending}"))}
            for ending in ("ld.png", "fd.png")
        )
        return [
            replace(
                case,
                name=re.sub(r"[/\\]", "_", case.name).rstrip("_-. ") or "case",
                group="" if case.image.parent == root else str(case.image.parent.relative_to(root)),
            )
            for case in pairs_by_name(root, {"low dose": low}, full, wanted)
        ]

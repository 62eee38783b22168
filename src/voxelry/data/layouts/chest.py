"""Chest radiographs with lung outlines, as their original landmark network has them.

    pngs/NAME.png
    labels/NAME.txt    first line the count, then `x y` in [0, 1] a line

Nine images of the collection are left out, as its authors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, existing, images_in, partners, with_subsets
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["Chest"]

_LEFT_OUT = {f"CHNCXR_{number:04d}_0" for number in (59, 178, 228, 267, 276, 285, 295, 303, 310)}


class Chest(Layout):
    """`pngs/` with points in `labels/`; the authors' split is by sorted name, 195 / 34 / rest."""

    images_alone = True

    def fits(self, root: Path) -> bool:
        """By the folder `pngs`."""
        return (root / "pngs").is_dir()

    def cases(self, root: Path, wanted: Wanted) -> Sequence[Case]:
        """One per image."""
        cases = []
        for image in images_in(existing(root / "pngs")):
            name = case_name(image)
            if name not in _LEFT_OUT:
                found = partners(image, wanted.landmarks, [root / "labels" / f"{name}.txt"])
                cases.append(Case(name, image, found, layout="chest"))
        return with_subsets(cases, 195, 34)

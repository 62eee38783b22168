"""Cephalograms with the points of two observers, as their original landmark network has them.

    jpg/NAME.jpg
    400_junior/NAME.txt    `x,y` a line, pixels of 0.1 mm; what follows the points is ignored
    400_senior/NAME.txt

A point is the mean of the two observers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, existing, images_in, partners, with_subsets
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.io.points.pixels import observer_points

__all__ = ["Cephalometric"]

_OBSERVERS = ("400_junior", "400_senior")
_SPACING = 0.1


class Cephalometric(Layout):
    """`jpg/` with two folders of points; the authors' split is by sorted name, 130 / 20 / rest."""

    images_alone = True

    def fits(self, root: Path) -> bool:
        """By the folders `jpg` and of an observer."""
        return (root / "jpg").is_dir() and any((root / folder).is_dir() for folder in _OBSERVERS)

    def cases(self, root: Path, wanted: Wanted) -> Sequence[Case]:
        """One per image."""
        cases = []
        for image in images_in(existing(root / "jpg")):
            name = case_name(image)
            found = partners(image, wanted.landmarks, [root / folder / f"{name}.txt" for folder in _OBSERVERS])
            if found:
                observer_points(found)  # a difference between the observers' counts shows before training does
            cases.append(Case(name, image, found, layout="cephalometric", options={"spacing": _SPACING}))
        return with_subsets(cases, 130, 20)

"""Folders of one DICOM series each, with labels beside them.

NAME/                 a series
NAME-label.nii.gz     or NAME_label.*, NAME.*, labels/NAME.*
"""

from __future__ import annotations

from pathlib import Path

from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, images_in
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.io import is_image

__all__ = ["Dicom"]


class Dicom(Layout):
    """`NAME/*.dcm` with `NAME-label.*`; without any labels they are `images`."""

    own_reader = "images"

    def fits(self, root: Path) -> bool:
        """By a series and its labels."""
        return root.is_dir() and not is_image(root) and any(case.labels for case in self.cases(root, Wanted()))

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per series."""
        cases = []
        for folder in [path for path in images_in(root) if path.is_dir()]:
            name = folder.name
            places = [(root, f"{name}-label"), (root, f"{name}_label"), (root, name), (root / "labels", name)]
            found = [path for parent, stem in places for path in images_in(parent) if case_name(path) == stem]
            label = next((path for path in found if path != folder), None)
            cases.append(Case(name, folder, labels=label, layout="dicom"))
        return cases

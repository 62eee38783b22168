"""Images and labels beside each other, told apart by the end of their names.

NAME-image.nii.gz    or NAME_image.*, in the folder or one below
NAME-label.nii.gz    or NAME_label.*
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, images_in, visible
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.io import is_image

__all__ = ["Suffixes"]

_IMAGE = re.compile(r"[-_]image$", re.IGNORECASE)


class Suffixes(Layout):
    """`NAME-image.*` with `NAME-label.*`."""

    own_reader = "images"

    def fits(self, root: Path) -> bool:
        """By an image and its labels of such names."""
        return root.is_dir() and not is_image(root) and any(case.labels for case in self.cases(root, Wanted()))

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per image; a case without a name has that of its folder."""
        everything = list(_deep(root))
        by_stem = {(path.parent, case_name(path).lower()): path for path in everything}
        cases = []
        for image in everything:
            stem = case_name(image)
            if end := _IMAGE.search(stem):
                name = stem[: end.start()]
                label = by_stem.get((image.parent, f"{name}{stem[end.start()]}label".lower()))
                cases.append(Case(name or image.parent.name, image, labels=label, layout="suffixes"))
        return cases


def _deep(root: Path) -> Iterator[Path]:
    """Images of a folder and of those one below; a DICOM folder is an image."""
    for path in visible(root):
        if is_image(path):
            yield path
        elif path.is_dir():
            yield from images_in(path)

"""Hand radiographs with points in one table, as their original landmark network has them.

    jpg/NAME.jpg
    labels/all.csv    a row `id,x0,y0,x1,y1,...` per image, pixels

Where the rows are at hand, the spacing is set so that points 0 and 4, the wrist, are 50 mm apart (Payer et al. 2019,
Medical Image Analysis 54, 207-219), as these images have no scale of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxelry.core.errors import DataError, FileError
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, existing, images_in, with_subsets
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.io.points.pixels import pixel_row, pixel_table

__all__ = ["Hand"]

_WRIST_MM = 50.0


class Hand(Layout):
    """`jpg/` with `labels/all.csv`; the authors' split is by sorted name, 550 / 59 / rest."""

    images_alone = True

    def fits(self, root: Path) -> bool:
        """By the folder `jpg`, which `cephalometric` has, too."""
        return (root / "jpg").is_dir()

    def cases(self, root: Path, wanted: Wanted) -> Sequence[Case]:
        """One per image."""
        table = root / "labels" / "all.csv"
        known = table.is_file()
        if wanted.landmarks and not known:
            raise FileError(table, "no such file; the hand layout has its points there")
        rows = pixel_table(table) if known else {}
        cases = []
        for image in images_in(existing(root / "jpg")):
            name = case_name(image)
            points = pixel_row(rows, name)
            if wanted.landmarks and points is None:
                raise DataError(f"{image}: no row {name} in {table}")
            options = {}
            if points is not None and len(points) > 4:
                wrist = float(np.linalg.norm(points[0] - points[4]))
                options = {"spacing": _WRIST_MM / wrist} if wrist > 0 else {}
            cases.append(Case(name, image, () if points is None else (table,), layout="hand", options=options))
        return with_subsets(cases, 550, 59)

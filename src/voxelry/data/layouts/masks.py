"""Two folders, of images and of their instances.

images/NAME.tif
masks/NAME.tif     an id per voxel
"""

from __future__ import annotations

from pathlib import Path

from voxelry.core.errors import DataError
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import case_name, existing, files_by_name, images_in
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["Masks"]


class Masks(Layout):
    """`images/NAME.*` with `masks/NAME.*`."""

    images_alone = True

    def fits(self, root: Path) -> bool:
        """By the two folders."""
        return (root / "images").is_dir() and (root / "masks").is_dir()

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per image, each with its mask."""
        masks = files_by_name(existing(root / "masks"))
        cases = []
        for image in images_in(existing(root / "images")):
            name = case_name(image)
            if name not in masks:
                raise DataError(f"{image}: no labels for this image; expected {root / 'masks' / name}.*")
            cases.append(Case(name, image, instances=masks[name], layout="masks"))
        return cases

"""Pairs in a folder for every contrast: one of them is the target, the others are the conditions.

    t1/NAME.nii.gz
    t2/NAME.nii.gz
    target/NAME.nii.gz    or the folder that `target` names

A case may lack some of them.
"""

from __future__ import annotations

from pathlib import Path

from voxelry.core.errors import SettingError
from voxelry.data.layouts.by_name import pairs_by_name
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.files import files_by_name, images_in, visible
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.io import is_image

__all__ = ["Contrasts"]

_NO_CONTRAST = ("labels", "instances", "masks", "landmarks")


class Contrasts(Layout):
    """A folder of images for every contrast."""

    pairs = True

    def fits(self, root: Path) -> bool:
        """By subfolders with images that aren't images themselves, as a DICOM series and a zarr are."""
        return sum(not is_image(root / name) for name in _folders(root)) > 1

    def cases(self, root: Path, wanted: Wanted) -> list[PairCase]:
        """One per name."""
        folders = _folders(root)
        target = wanted.target or ("target" if "target" in folders else None)
        if target not in folders and (wanted.need_target or target is not None):
            told = f"target: expected one of the folders {', '.join(folders)} of {root}, got {target!r}"
            found = {name for folder in folders for name in files_by_name(root / folder)}
            if len(found) < len(folders):  # a folder for each case, not for each contrast
                told += (
                    f"; if these are cases, expected a folder for each contrast, such as {min(found)}/{folders[0]}.*"
                )
            raise SettingError(told)
        others = [name for name in folders if name != target]
        names = others if wanted.conditions is None else list(wanted.conditions)
        for name in names:
            if name not in others:
                raise SettingError(f"conditions: expected folders of {', '.join(folders)} but the target, got {name!r}")
        targets = {} if target is None else files_by_name(root / target)
        return pairs_by_name(root, {name: files_by_name(root / name) for name in names}, targets, wanted)


def _folders(root: Path) -> list[str]:
    return [
        folder.name
        for folder in visible(root)
        if folder.is_dir() and folder.name not in _NO_CONTRAST and images_in(folder)
    ]

"""TotalSegmentator: a folder for every case, a file for every organ.

    s0001/ct.nii.gz                      or mri, mr, us
    s0001/segmentations/liver.nii.gz     a mask of 0 and 1
    meta.csv                             columns image_id and split, where there is one

The masks of a case become one label map. The classes are numbered by name over all cases, or are those of
`options={"label_dataset": [liver, spleen]}` in that order. Where masks overlap, the first class has the voxel. Each
class of a case is one object.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelry.core.errors import DataError
from voxelry.core.remote import as_path
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.description import MODALITIES
from voxelry.data.layouts.files import SPLIT_NAMES, files_by_name, visible
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["TotalSegmentator"]

_SCANS = ("ct", "mri", "mr", "us")


class TotalSegmentator(Layout):
    """`CASE/ct.*` with `CASE/segmentations/ORGAN.*`."""

    answers = ("label_dataset",)

    def fits(self, root: Path) -> bool:
        """By a subfolder that has one called `segmentations`."""
        return any((folder / "segmentations").is_dir() for folder in visible(root))

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per folder."""
        folders = [path for path in visible(root) if (path / "segmentations").is_dir()]
        masks = {folder: files_by_name(folder / "segmentations") for folder in folders}
        names = _names(root, masks, wanted.options.get("label_dataset"))
        splits = _splits(root / "meta.csv")
        cases = []
        for folder in folders:
            scans = files_by_name(folder)
            scan = next((kind for kind in _SCANS if kind in scans), None)
            if scan is None:
                raise DataError(f"{folder}: no image; expected ct.nii.gz or mri.nii.gz beside segmentations/")
            if not any(name in masks[folder] for name in names):
                raise DataError(f"{folder / 'segmentations'}: no masks of {', '.join(names[:10])}")
            labels = as_path(f"{folder / 'segmentations'}::{','.join(names)}")
            cases.append(
                Case(
                    folder.name,
                    scans[scan],
                    labels=labels,
                    instances=labels,
                    layout="totalsegmentator",
                    split=splits.get(folder.name, ""),
                    modality=MODALITIES[scan],
                    classes=dict(enumerate(names, start=1)),
                )
            )
        return cases


def _names(root: Path, masks: Mapping[Path, Mapping[str, Path]], chosen: Any) -> Sequence[str]:
    """The organs in the order of their classes.

    Raises:
        DataError: one is asked for that no case has.
    """
    every = sorted({name for found in masks.values() for name in found})
    if not chosen:
        return every
    names = [name.strip() for name in (chosen.split(",") if isinstance(chosen, str) else map(str, chosen))]
    for name in names:
        if name not in every:
            raise DataError(f"{root}: no mask of {name!r} in any segmentations/; there are {', '.join(every[:20])}")
    return names


def _splits(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",")
    return {row.get("image_id") or "": SPLIT_NAMES.get(row.get("split") or "", "") for row in rows}

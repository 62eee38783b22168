"""Pairs of files that belong together by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.files import files_by_name
from voxelry.data.layouts.layout import Wanted

__all__ = ["pairs_by_name"]


def pairs_by_name(
    root: Path, given: Mapping[str, Mapping[str, Path]], targets: Mapping[str, Path], wanted: Wanted
) -> list[PairCase]:
    """A case for every name; every target has a condition, and the other way round where it is needed.

    Args:
        root: the folder; its `labels/NAME.*` is a class per voxel on the target's grid.
        given: the files of each contrast by name.
        targets: what they are to become by name.
        wanted: see `Wanted.refuse`.

    Raises:
        DataError: a file without its partner.
    """
    labels = files_by_name(root / "labels")
    cases = []
    for name in sorted(targets.keys() | {name for files in given.values() for name in files}):
        images = tuple(files.get(name) for files in given.values())
        target = targets.get(name)
        first = next(filter(None, images), None)
        if target is not None and first is None:
            wanted.refuse(target, f"no image {name} in {' or '.join(given)}")
        elif first is not None and target is None and wanted.need_target:
            wanted.refuse(first, f"no target of the name {name}")
        else:
            cases.append(PairCase.of(name, images, target, contrasts=tuple(given), labels=labels.get(name)))
    return cases

"""What is in a folder of pairs, and what is wrong with it: every file by itself, then each with its partner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from voxelry.core.errors import VoxelryError
from voxelry.core.remote import as_path
from voxelry.data.demands import Demands
from voxelry.data.doctor.diagnosis import Diagnosis
from voxelry.data.doctor.inspect import compare_images, find_unsplit, inspect_case, without_path
from voxelry.data.layouts.case import Case, PairCase
from voxelry.data.layouts.files import case_name, split_folders
from voxelry.data.layouts.find import find_pairs, layouts_of, recognise
from voxelry.data.layouts.layout import LAYOUTS
from voxelry.data.pairs import grid_fault

__all__ = ["holds_pairs", "inspect_pairs"]

_DEMANDS = Demands((), contrast=True)


def holds_pairs(path: str | PathLike[str], layout: str = "auto") -> bool:
    """Whether a path is to be looked at as pairs: by its layout, or by what is there where that is clear."""
    if layout != "auto":
        return layout in layouts_of(pairs=True)
    root = as_path(path)
    folder = root if (root / "A").is_dir() else next((part for _, part in split_folders(root)), root)
    return LAYOUTS[recognise(folder)].pairs


def inspect_pairs(
    path: str | PathLike[str],
    *,
    layout: str = "auto",
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    to_train: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Look at every image and at how it fits its partners.

    Args:
        path, layout, target, options: as in `voxelry.data.layouts.find.find_pairs`. Of `contrasts` without a
            target, all are taken as given.
        to_train: whether there must be enough cases to train on.
        progress: called with the number of cases done and of all, before each and at the end.

    Raises:
        FileError: `path` does not exist.
        SettingError: an unknown layout or target.
    """
    root = as_path(path)
    found = Diagnosis(str(root))
    unpaired: list[tuple[Path, str]] = []
    try:
        needed = target is not None or layout != "auto" or _knows_its_target(root)
        cases = find_pairs(root, layout, target=target, need_target=needed, options=options, unpaired=unpaired)
    except VoxelryError as error:
        if isinstance(error, ValueError) or not root.exists():
            raise
        found.add("error", getattr(error, "path", root), without_path(error))
        cases = []
    if cases and to_train:
        find_unsplit(found, cases)
    for file, lacks in unpaired:
        found.add("error", file, f"is unpaired: {lacks}")
    reads: dict[str, list[Any]] = {}
    for number, case in enumerate(cases):
        if progress is not None:
            progress(number, len(cases))
        for use, file in _files(case).items():
            read = inspect_case(found, Case(f"{case.name}, {use}", file, options=case.options), _DEMANDS)
            if read is not None:
                reads.setdefault(use, []).append(read)
        _compare_grids(found, case)
    if progress is not None:
        progress(len(cases), len(cases))
    for alike in reads.values():
        compare_images(found, alike, greyed=False)
    _find_order(found, cases)
    _find_gaps(found, cases)
    found.sort()
    return found


def _knows_its_target(root: Path) -> bool:
    """Whether the layout itself tells what is the target."""
    parts = [part for _, part in split_folders(root)] or [root]
    return recognise(parts[0], pairs=True) != "contrasts" or (parts[0] / "target").is_dir()


def _files(case: PairCase) -> dict[str, Path]:
    given = {name: path for name, path in zip(case.contrasts, case.images, strict=True) if path is not None}
    return given if case.target is None else {**given, "target": case.target}


def _compare_grids(found: Diagnosis, case: PairCase) -> None:
    """Images that don't lie where the case's target does, or its first image."""
    for path in case.images:
        try:
            fault = None if path is None or path == case.image else grid_fault(path, case)
        except VoxelryError:  # one can't be read, which is a finding of its own
            continue
        if fault is not None:
            found.add("error", path, fault)


def _find_order(found: Diagnosis, cases: list[PairCase]) -> None:
    """Pairs that belong together by their order alone, of folders A and B."""
    for case in cases:
        if case.contrasts == ("A",) and case.target is not None and case_name(case.target) != case.name:
            file = case.images[0]
            found.add("info", found.root, f"paired by order, not by name: {file and file.name} with {case.target.name}")
            return


def _find_gaps(found: Diagnosis, cases: list[PairCase]) -> None:
    """How many cases lack a contrast."""
    for place, name in enumerate(cases[0].contrasts if cases else ()):
        lacking = [case.name for case in cases if case.images[place] is None]
        if lacking:
            few = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
            found.add("info", found.root, f"{len(lacking)} of {len(cases)} cases have no {name}: {few}")

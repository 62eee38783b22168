"""What files of labels, or the folder they are in, call their classes, over all cases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelry.core.errors import DataError, FileError
from voxelry.data.layouts.case import Case
from voxelry.io import open_image
from voxelry.io.advice import way_to_say
from voxelry.io.meshes import is_mesh

__all__ = ["check_numbers", "class_list", "segment_names"]

log = logging.getLogger("voxelry")


def segment_names(cases: Sequence[Case], *, skip_broken: bool = False) -> dict[int, str]:
    """The name of each label value, as the folder or files of segments give them; empty where none does.

    Args:
        cases: with labels or without.
        skip_broken: pass over files whose header can't be read; whoever reads them whole says so.

    Raises:
        DataError: a name that has other numbers in other cases, a number with other names, or a name that was asked
            for and that no case has; one line naming the file and the way out.
        FileError: the header of a file can't be read (`skip_broken` is false).
    """
    names: dict[int, str] = {}
    owners: dict[str, tuple[int, Path]] = {}
    known: set[str] = set()
    for case in cases:
        try:
            held = _held(case)
        except FileError:
            if not skip_broken:
                raise
            continue
        known.update(held.get("segment_names", ()))
        for name, number in held.get("segments", {}).items():
            assert case.labels is not None
            before, file = owners.setdefault(name, (number, case.labels))
            other = names.setdefault(number, name)
            if before != number:
                raise _contradicts(
                    case.labels, f"segment {name} has the number {number}, but {before} in {file}", known
                )
            if other != name:
                fault = f"number {number} is segment {name}, but {other} in {owners[other][1]}"
                raise _contradicts(case.labels, fault, known)
    _check_asked(cases, set(owners), known)
    return names


def check_numbers(cases: Sequence[Case], model: Mapping[int, str]) -> None:
    """Refuse labels that give a class another number than a model does, and log names that it doesn't know.

    Args:
        cases: with labels or without.
        model: the name of each number that it knows.

    Raises:
        DataError: a class of the model has another number here; names the file.
        FileError: the header of a file can't be read.
    """
    numbers = {name.casefold(): number for number, name in model.items()}
    names = segment_names(cases)
    for number, name in names.items():
        if numbers.get(name.casefold(), number) != number:
            file = next(case.labels for case in cases if case.labels is not None)
            expected = ", ".join(f"{number} {name}" for number, name in model.items())
            raise DataError(
                f"{file}: {name} is class {number} here, but {numbers[name.casefold()]} for the model; expected labels "
                f"that are numbered as the model's: {expected}"
            )
    for number in sorted(names.keys() & model.keys()):
        if names[number].casefold() != model[number].casefold():
            log.warning("class %d is %s here, and %s for the model", number, names[number], model[number])


def _held(case: Case) -> Mapping[str, Any]:
    """`segments`, name to number, and the names of all there are in the file."""
    if case.labels is None or is_mesh(case.labels):
        return {}
    if case.classes:
        return {"segments": {name: number for number, name in case.classes.items()}}
    return open_image(case.labels, spacing=1.0).metadata  # the grid doesn't matter


def class_list(names: dict[int, str]) -> list[str]:
    """Names of classes 1, 2, ...; a number that no case has is called after itself."""
    return [names.get(number, f"class_{number}") for number in range(1, max(names, default=0) + 1)]


def _contradicts(path: Path, fault: str, names: set[str]) -> DataError:
    return DataError(f"{path}: {fault} (number segments by name: {way_to_say(label_dataset=sorted(names))})")


def _check_asked(cases: Sequence[Case], found: set[str], known: set[str]) -> None:
    """Refuse names that were asked for and that no file of segments has."""
    for case in cases:
        _, sign, asked = str(case.labels or "").partition("::")
        if not sign or not known or asked in found:
            continue
        for name in (part.strip() for part in asked.split(",")):
            if name not in found:
                raise DataError(f"{case.labels}: no case has a segment {name!r}; there are {', '.join(sorted(known))}")

"""Slices of stacks, each to be made from its neighbours.

    CASE_1.png, CASE_2.png, ...    k - 1 and k + 1 are to become k

The ends of a stack have no such neighbours and are no case. Slices of one stack are a group, which no split parts.
"""

from __future__ import annotations

import re
from pathlib import Path

from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.files import case_name, visible
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["Pmub"]

_SLICE = re.compile(r"(?P<case>.+)_(?P<number>\d+)\.png", re.IGNORECASE)


class Pmub(Layout):
    """`CASE_<k>.png`."""

    pairs = True
    certain = False  # pictures with numbers may be anything

    def fits(self, root: Path) -> bool:
        """By the name of a slice."""
        return any(_SLICE.fullmatch(path.name) for path in visible(root))

    def cases(self, root: Path, wanted: Wanted) -> list[PairCase]:
        """One per slice between two others."""
        stacks: dict[str, dict[int, Path]] = {}
        for path in visible(root):
            if found := _SLICE.fullmatch(path.name):
                stacks.setdefault(found["case"], {})[int(found["number"])] = path
        return [
            PairCase.of(
                case_name(path), (stack[number - 1], stack[number + 1]), path, contrasts=("before", "after"), group=name
            )
            for name, stack in stacks.items()
            for number, path in stack.items()
            if number - 1 in stack and number + 1 in stack
        ]

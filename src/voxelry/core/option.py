"""What can be asked of a prediction: declared once, known to the command line, Python and the docs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Option"]


@dataclass(frozen=True)
class Option:
    """A keyword of a prediction and, with dashes before it, of `voxelry predict`.

    Attributes:
        name: of both.
        type: of what is typed on the command line: `str`, `int`, `float` or `Path`.
        help: a line for people.
        repeated: whether it may be given more than once there.
        read: what makes the keyword's value of that: of one text or number, or of the list of them where `repeated`.
        files: the images that a value names, where it takes the place of an input.
    """

    name: str
    type: type
    help: str
    repeated: bool = False
    read: Callable[[Any], Any] | None = None
    files: Callable[[Any], list[Path]] | None = None

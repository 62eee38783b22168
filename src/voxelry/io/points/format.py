"""What a format of named points is to the rest of the program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelry.io.points.landmark_set import FilePoints

__all__ = ["PointFormat"]


@dataclass(frozen=True)
class PointFormat:
    """One format of points; `landmarks.POINT_FORMATS` lists them all.

    Attributes:
        parse: `(path, content, coordinate_system)` to the points as the file holds them; `content` is text, the path is
            for messages, and `coordinate_system` (or `auto`) picks one where a file holds several.
        systems: the coordinate systems it can hold, the first being what is written when nothing is said.
        format: `(landmarks, system, *, space, axis_order)` to text; None for a format that is read only.
        binary: whether `content` is bytes.
        inside: whether it holds points inside of their image only.
    """

    parse: Callable[[Path, Any, str], FilePoints]
    systems: tuple[str, ...] = ()
    format: Callable[..., str] | None = None
    binary: bool = False
    inside: bool = False

"""What a crop index is asked for, and what its building reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError

__all__ = ["PADS", "BuildReport", "CropSettings", "SourceSettings"]

PADS = ("error", "zero", "edge")


@dataclass(frozen=True)
class CropSettings:
    """What crops are wanted, and of which objects.

    Args:
        crop_size: voxels, one number or one per axis in array order.
        overlap: voxels that neighbouring crops share, one number or one per axis.
        channels: channels per crop; None for all, else crops step through the channels as well.
        pad: what a crop larger than its volume is filled with, `zero` or `edge`; `error` refuses it.
        min_volume: objects of fewer voxels don't count, and are background in the masks.
        min_objects: crops that show fewer objects are left out, where objects are known.
        min_visible: share of an object's box that a crop must hold to show it.
        bad_boxes: `error`, or `drop` for boxes of the source that are NaN, empty or outside of the image.
        statistics: whether intensities are read, which normalisation needs unless a window is given.
        digest: `sampled` or `whole`, see `crop_digest`.

    Raises:
        SettingError: a value out of range.
    """

    crop_size: int | tuple[int, ...] = 64
    overlap: int | tuple[int, ...] = 0
    channels: int | None = None
    pad: str = "error"
    min_volume: float = 0.0
    min_objects: int = 1
    min_visible: float = 0.0
    bad_boxes: str = "error"
    statistics: bool = True
    digest: str = "sampled"

    def __post_init__(self) -> None:
        for name, least in (("crop_size", 1), ("overlap", 0)):
            value = getattr(self, name)
            values = tuple(value) if isinstance(value, Sequence) else (value,)
            if any(isinstance(number, bool) or int(number) != number or number < least for number in values):
                raise SettingError(f"{name}: expected whole numbers of voxels from {least}, got {value}")
            whole = tuple(int(number) for number in values)
            object.__setattr__(self, name, whole if isinstance(value, Sequence) else whole[0])
        for name, choices in (("pad", PADS), ("bad_boxes", ("error", "drop")), ("digest", ("sampled", "whole"))):
            check_choice(name, getattr(self, name), choices)
        if self.channels is not None and self.channels < 1:
            raise SettingError(f"channels: expected a positive number or none, got {self.channels}")
        if not 0 <= self.min_visible <= 1:
            raise SettingError(f"min_visible: expected a share in [0, 1], got {self.min_visible}")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """How the images of an index are found and read.

    Attributes:
        layout: of a folder, see `crop_scan`; `table` for a database.
        selection: see `parse_selection`.
        table, boxes_table, box_edges, root: see `open_table`.
        options: for `open_image`, such as `spacing` or `ndim`.
        on_error: `skip` leaves out images that can't be read and reports them.

    Raises:
        SettingError: another word for `on_error`.
    """

    layout: str = "auto"
    selection: Mapping[str, Any] | Sequence[str] | None = None
    table: str = "annotations"
    boxes_table: str = "boxes"
    box_edges: str = "voxel"
    root: str | Path | None = None
    options: Mapping[str, Any] | None = None
    on_error: str = "raise"

    def __post_init__(self) -> None:
        check_choice("on_error", self.on_error, ("raise", "skip"))


@dataclass
class BuildReport:
    """What a build did: images done now, found finished, removed, left out (a line each); boxes dropped, cut."""

    path: Path
    done: int = 0
    kept: int = 0
    removed: int = 0
    waited: bool = False
    skipped: list[str] = field(default_factory=list)
    dropped_boxes: int = 0
    cut_boxes: int = 0

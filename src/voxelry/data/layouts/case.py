"""The record of one case: its image and the files that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One image and the files that belong to it.

    Attributes:
        name: unique in a dataset; the file name without its suffixes.
        image: file, or folder of a DICOM series or a Zarr image.
        landmarks: the point files; several are averaged (observers).
        labels: image with a class per voxel.
        instances: image with an instance id per voxel, 0 for background; may be `file.h5::dataset`.
        layout: how the landmark files are to be read, one of `voxelry.data.layouts.find.LAYOUTS`.
        split: `train`, `validation` or `test` where the data says so, else empty.
        group: what the case has in common with others, such as the patient, where a split must not part them.
        options: for `voxelry.io.open_image`, such as `spacing`.
        point_options: for `voxelry.io.read_landmarks`, such as `axis_order`.
    """

    name: str
    image: Path
    landmarks: tuple[Path, ...] = ()
    labels: Path | None = None
    instances: Path | None = None
    layout: str = "volumes"
    split: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    point_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    group: str = ""

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Everything the case is read from, by what it is used for."""
        single = {"image": self.image, "labels": self.labels, "instances": self.instances}
        return {"landmarks": self.landmarks, **{use: (path,) for use, path in single.items() if path is not None}}

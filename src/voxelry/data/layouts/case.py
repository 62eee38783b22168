"""The record of one case: its image and the files that belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from voxelry.core.errors import DataError

__all__ = ["Case", "PairCase"]


@dataclass(frozen=True)
class Case:
    """One image and the files that belong to it.

    Attributes:
        name: unique in a dataset; the file name without its suffixes.
        image: file, or folder of a DICOM series or a Zarr image; the first of several files of one channel each, the
            others being `options["channel_files"]`.
        landmarks: the point files; several are averaged (observers).
        labels: image with a class per voxel; may be `file.seg.nrrd::liver,spleen`, or `folder::liver,spleen` of one
            with a file of a mask for each class, which are numbered in that order.
        instances: image with an instance id per voxel, 0 for background; may be `file.h5::dataset`.
        layout: where it was found, one of `data.layouts.layout.LAYOUTS`; also how the landmark files are to be read.
        split: `train`, `validation` or `test` where the data says so, else empty.
        group: what the case has in common with others, such as the patient, where a split must not part them.
        options: for `voxelry.io.open_image`, such as `spacing`.
        point_options: for `voxelry.io.read_landmarks`, such as `axis_order`.
        modality: `ct`, `mr` or `us` where the data says so.
        classes: the names of label values where the data says so, the same for all cases of a folder.
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
    modality: str = ""
    classes: Mapping[int, str] = field(default_factory=dict, hash=False)

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Everything the case is read from, by what it is used for."""
        channels = tuple(self.image.parent / name for name in self.options.get("channel_files") or ())
        single = {"labels": self.labels, "instances": self.instances}
        beside = {use: (path,) for use, path in single.items() if path is not None}
        return {"landmarks": self.landmarks, "image": (self.image, *channels), **beside}


@dataclass(frozen=True)
class PairCase(Case):
    """What is given of a case, and what it is to become.

    Attributes:
        images: the conditions, None for one that this case doesn't have; in the same order for all cases.
        target: what they are to become; None where that isn't known.
        contrasts: a name for each of `images`.
        image: the file whose grid counts: the target, else the first of `images`.
    """

    images: tuple[Path | None, ...] = ()
    target: Path | None = None
    contrasts: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, images: Sequence[Path | None], target: Path | None, **more: Any) -> Self:
        """A case of these files; `more` are other fields, such as `contrasts`, `labels` and `options`.

        Raises:
            DataError: none of the images is there.
        """
        there = [path for path in images if path is not None]
        if not there:
            raise DataError(f"{target or name}: none of the images that are to become it")
        more.setdefault("contrasts", tuple(f"image {number}" for number in range(1, len(images) + 1)))
        image = there[0] if target is None else target
        return cls(name=name, image=image, images=tuple(images), target=target, layout="pairs", **more)

    @property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Everything the case is read from, by what it is used for."""
        given = {f"image {place}": (path,) for place, path in enumerate(self.images) if path is not None}
        return {**super().files, **given, **({} if self.target is None else {"target": (self.target,)})}

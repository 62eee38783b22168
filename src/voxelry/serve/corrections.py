"""Corrected cases as a data set that `voxelry train` reads, and the record of who corrected what.

volumes/NAME.nii.gz       the image
landmarks/NAME.mrk.json   points; or instances/NAME.nii.gz, and labels/NAME.nii.gz where there are several classes;
                          or labels/NAME.nii.gz, the organs
corrections.csv           file, what, who, when, model, image: a line for every time that a case was kept
"""

from __future__ import annotations

import csv
import getpass
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.atomic import replacing
from voxelry.core.errors import SettingError
from voxelry.data.layouts.files import case_name
from voxelry.io import open_image, read_image, write_image
from voxelry.io.images.image import split_dataset
from voxelry.serve.answers import POINTS, Answer

__all__ = ["Corrections"]

COLUMNS = ("file", "what", "who", "when", "model", "image")
_SUFFIXES = {2: ".tif", 3: ".nii.gz"}
_ONE_FILE = (".nii", ".nii.gz", ".mha", ".nrrd", ".tif", ".tiff", ".ome.tif", ".png", ".jpg", ".zarr", ".ome.zarr")
"""Formats of images that are a file or a folder of their own and say where they lie."""


class Corrections:
    """The folder of corrected cases.

    Args:
        folder: made with the first case.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def rows(self) -> list[dict[str, str]]:
        """The record, the oldest line first."""
        path = self.folder / "corrections.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def images(self) -> dict[str, str]:
        """The file that each case came from, by its name."""
        return {case_name(Path(row["file"])): row["image"] for row in self.rows}

    def keep(self, image: Path, answer: Answer, *, reading: Mapping[str, Any]) -> dict[str, str]:
        """Put a corrected case into the folder, in place of what was kept of it before.

        Args:
            image: the file that was looked at.
            answer: as it was corrected.
            reading: options of the image's reader.

        Returns:
            The line of the record.

        Raises:
            SettingError: another image of that name is kept already, or nothing that can be learned from.
            FileError: the image can't be read, or the folder can't be written.
        """
        origin = str(image.absolute())
        if (known := self.images.get(answer.case, origin)) != origin:
            raise SettingError(f"{answer.case}: {known} was kept under this name; expected other names")
        with answer.lock:
            labels = self._put_labels(answer)
        self._put_image(image, answer.case, reading)
        row = {
            "file": labels.relative_to(self.folder).as_posix(),
            "what": labels.parent.name,
            "who": _user(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": answer.model if answer.adapter is None else f"{answer.model} with adapter {answer.adapter}",
            "image": origin,
        }
        rows = [*self.rows, row]
        with replacing(self.folder / "corrections.csv") as place, place.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return row

    def _put_labels(self, answer: Answer) -> Path:
        """The corrected part of an answer; its file."""
        name, suffix = answer.case, _SUFFIXES[answer.space.ndim]
        if answer.instances is not None:
            kinds = answer.instances.labels(classes=True)
            if kinds.max(initial=0) > 1:
                write_image(self.folder / "labels" / f"{name}{suffix}", kinds[None], answer.space)
            labels = answer.instances.labels()
            return write_image(self.folder / "instances" / f"{name}{suffix}", labels[None], answer.space)
        for path in answer.files:
            if path.name == f"{name}{POINTS}":
                return _copied(path, self.folder / "landmarks" / path.name)
            if path.name == f"{name}.nii.gz" and answer.is_labels(path):
                return self._put_organ(path)
        raise SettingError("keep: expected an answer with points, instances or a label map")

    def _put_organ(self, path: Path) -> Path:
        """A label map, beside the other organs that were kept of the case."""
        place = self.folder / "labels" / path.name
        found = read_image(path)
        array = found.array
        if place.is_file():
            before = read_image(place).array
            array = np.where(array > 0, array, np.where(np.isin(before, array[array > 0]), 0, before))
        return write_image(place, array, found.space)

    def _put_image(self, image: Path, name: str, reading: Mapping[str, Any]) -> None:
        path, dataset = split_dataset(image)
        suffix = path.name.removeprefix(name)
        folder = self.folder / "volumes"
        if not reading and not dataset and suffix.lower() in _ONE_FILE:
            if not (folder / path.name).exists():
                _copied(path, folder / path.name)
            return
        found = open_image(image, **reading)
        write_image(folder / f"{name}.nii.gz", found.read([slice(None)] * found.space.ndim), found.space)


def _copied(path: Path, target: Path) -> Path:
    with replacing(target) as place:
        if path.is_dir():
            shutil.copytree(path, place)
        else:
            shutil.copyfile(path, place)
    return target


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"

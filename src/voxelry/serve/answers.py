"""What a prediction wrote, as the page shows it: images, meshes, points, tables, numbers."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.atomic import replacing
from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.io import LandmarkSet, is_image, open_image, read_landmarks, write_landmarks
from voxelry.io.meshes import is_mesh, read_mesh, write_mesh
from voxelry.ops.rle import Crop
from voxelry.serve.instances import MASKS, EditedInstances
from voxelry.serve.volumes import TURN, put, shown

__all__ = ["POINTS", "POINT_CHOICES", "Answer", "best_format"]

_FORMATS = ("ply", "nii.gz", "mrk.json")  # that the page can show, the best first
_MESHES = (".ply", ".stl", ".obj")
POINTS = ".mrk.json"
POINT_CHOICES = ("mrk.json", "fcsv", "csv", "txt")
"""Formats that points are saved in."""
_LONGEST_NAME = 200


def best_format(formats: Sequence[str]) -> str:
    """Of the formats of a task the one that the page shows."""
    return next((name for name in _FORMATS if name in formats), formats[0])


@dataclass(frozen=True)
class Answer:
    """The files of a prediction.

    Attributes:
        folder: where they lie.
        case: name of the image.
        space: its grid.
        model: the bundle that gave it; empty where nobody knows.
        mask: what was drawn and asked with.
        adapter: the name of the model's adapter that gave it; None: its base alone.
        lock: who changes or saves it holds it.
    """

    folder: Path
    case: str
    space: Space
    model: str = ""
    mask: Path | None = None
    adapter: str | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @cached_property
    def instances(self) -> EditedInstances | None:
        """The instances of an answer that has any."""
        return EditedInstances.read(self.folder)

    @property
    def files(self) -> list[Path]:
        """All of them, in the order of their names."""
        return sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))

    def file(self, name: str) -> Path:
        """The file of that name.

        Raises:
            SettingError: there is none.
        """
        for path in self.files:
            if path.name == name:
                return path
        raise SettingError(f"file: expected one of {', '.join(path.name for path in self.files)}, got {name!r}")

    def record(self) -> dict[str, Any]:
        """For the page: who gave it, the files with what each is, points, instances, what a summary in JSON says."""
        return {
            "model": self.model,
            "adapter": self.adapter,
            "files": [{"name": path.name, "kind": _sort(path)} for path in self.files],
            "points": self.points(),
            "instances": None if self.instances is None else self.instances.record(),
            "summary": self._summary(),
            "uncertainty": self.uncertainty(),
            "hypotheses": self._content().get("volumes_ml", []),
        }

    def uncertainty(self) -> float | None:
        """How unsure the model was, to compare answers of one task by; None where it doesn't say.

        The mean radius of points in mm, one less the mean score of instances, or the spread of a shape in mm.
        """
        if self.instances is not None:
            scores = [item.score for item in self.instances.items]
            return 1 - sum(scores) / len(scores) if scores else 1.0
        radii = [point["radius"] for point in self.points() if point["radius"] is not None]
        spread = self._summary().get("spread_mm")
        return sum(radii) / len(radii) if radii else spread

    def overlay(self, name: str, path: Path, most: int, *, oriented: bool = True) -> Path:
        """A file as the page can show it: images as NIfTI of at most `most` voxels at `path`, all others as they are.

        Where the image that was answered for isn't `oriented`, images and meshes are turned as it is, see `volumes`.

        Raises:
            SettingError: there is no such file.
        """
        file = self.file(name)
        if is_mesh(file) and not oriented:
            mesh = read_mesh(file)
            return write_mesh(path.with_name(path.stem), replace(mesh, vertices=mesh.vertices @ TURN[:3, :3]))
        if not is_image(file):
            return file
        with self.lock:
            if self.instances is not None:
                return put(self.instances.labels()[None], self.space, path, most, oriented=oriented)
            return shown(open_image(file), path, most, oriented=oriented)

    def edit(self, asked: Mapping[str, Any], drawn: Crop | None = None) -> dict[str, Any]:
        """Change the instances, see `EditedInstances.edit`; their record.

        Raises:
            SettingError: there are none, or it can't be done.
        """
        if self.instances is None:
            raise SettingError("instances: expected an answer with instances")
        with self.lock:
            self.instances.edit(asked, drawn)
            return self.instances.record()

    def points(self) -> list[dict[str, Any]]:
        """Name, place in RAS mm (none of absent points) and radius of uncertainty in mm of each point."""
        path = self._points_file()
        if path is None:
            return []
        found = read_landmarks(path)
        extras = found.extras.get("uncertainty_mm", np.full(len(found.names), math.nan))
        return [
            {"name": name, "position": _finite(place), "radius": _number(radius)}
            for name, place, radius in zip(found.names, found.world, extras, strict=True)
        ]

    def move(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Put points elsewhere, say that they are absent, call them otherwise, or add some; the others stay.

        Args:
            points: each with `index`, its number from 0, or None to add it; and what changes: `position`, RAS mm or
                None, and `name`, both of a new one.

        Raises:
            SettingError: there is no such point, a position is neither three numbers nor none, or a name is no text.
        """
        path = self._points_file()
        if path is None:
            raise SettingError("points: expected an answer with points")
        with self.lock:
            found = read_landmarks(path)
            names, places = list(found.names), [*found.world]
            for point in points:
                index = point.get("index")
                if index is None:
                    index = len(names)
                    names.append("")
                    places.append(np.full(3, math.nan))
                    point = {"name": None, "position": None, **point}
                elif not isinstance(index, int) or not 0 <= index < len(names):
                    raise SettingError(f"points: index: expected a number from 0 to {len(names) - 1}, got {index!r}")
                if "name" in point:
                    names[index] = _called(point["name"])
                if "position" in point:
                    places[index] = _position(names[index], point["position"])
            extras = {
                key: np.pad(values, (0, len(names) - len(values)), constant_values=math.nan)
                for key, values in found.extras.items()
            }
            write_landmarks(path, LandmarkSet(tuple(names), np.array(places), extras=extras), space=self.space)

    @staticmethod
    def is_labels(path: Path) -> bool:
        """Whether a file is an image of whole numbers."""
        return _sort(path) == "labels"

    def save(self, folder: Path, points: str = "mrk.json") -> list[Path]:
        """Copy all files into a folder, each whole or not at all; what was drawn, as `NAME_mask.nii.gz`, with them.

        Args:
            points: the format of the points, one of `POINT_CHOICES`.

        Raises:
            FileError: the folder can't be written, or the format can't hold a point.
            SettingError: another format.
        """
        check_choice("points", points, POINT_CHOICES)
        with self.lock:
            if self.instances is not None:
                self.instances.write(self.folder)
            written = []
            for path in self.files:
                if path.name.endswith(POINTS) and points != "mrk.json":
                    target = folder / f"{path.name.removesuffix(POINTS)}.{points}"
                    written.append(write_landmarks(target, read_landmarks(path), space=self.space))
                    continue
                with replacing(folder / path.name) as place:
                    shutil.copyfile(path, place)
                written.append(folder / path.name)
            if self.mask is not None:
                written.append(folder / f"{self.case}_mask.nii.gz")
                with replacing(written[-1]) as place:
                    shutil.copyfile(self.mask, place)
        return written

    def _points_file(self) -> Path | None:
        return next((path for path in self.files if path.name.endswith(POINTS)), None)

    def _summary(self) -> dict[str, Any]:
        """Numbers and words of the answer's own JSON file."""
        return {name: value for name, value in self._content().items() if isinstance(value, int | float | str)}

    def _content(self) -> dict[str, Any]:
        """The answer's own JSON file; empty where there is none."""
        for path in self.files:
            if path.suffix == ".json" and not path.name.endswith((POINTS, MASKS)):
                content = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(content, dict):
                    return content
        return {}


def _sort(path: Path) -> str:
    """`mesh`, `points`, `labels` (whole numbers), `image`, or `file`."""
    if path.suffix in _MESHES:
        return "mesh"
    if path.name.endswith(POINTS):
        return "points"
    if is_image(path):
        return "labels" if open_image(path).dtype.kind in "iu" else "image"
    return "file"


def _finite(place: np.ndarray) -> list[float] | None:
    return [float(value) for value in place] if np.isfinite(place).all() else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _called(name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
        raise SettingError(f"points: name: expected a text of 1 to {_LONGEST_NAME} letters, got {name!r}")
    return name.strip()


def _position(name: str, position: Any) -> np.ndarray:
    if position is None:
        return np.full(3, math.nan)
    try:
        place = np.asarray(position, dtype=np.float64)
    except (TypeError, ValueError):
        place = np.empty(0)
    if place.shape != (3,) or not np.isfinite(place).all():
        raise SettingError(f"points: {name}: expected three numbers in mm or null, got {position!r}")
    return place

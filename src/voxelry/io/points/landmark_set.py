"""Named points, what a file says of them, and the way from one to the other.

Inside the program points are world RAS mm. Files hold them in one of five systems: `RAS` and `LPS` (mm),
`index` (voxel centres at integers), `normalised` (index / size, in [0, 1]) and `scaled` (index * spacing: what a
viewer without orientation measures, such as Fiji on a calibrated image). In a file the coordinates are x, y, z: x
runs along the last array axis, as i of a NIfTI file does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io.advice import way_to_say
from voxelry.io.units import millimetres

__all__ = [
    "COORDINATE_SYSTEMS",
    "ROUNDING",
    "FilePoints",
    "LandmarkSet",
    "from_world",
    "numbered",
    "parse_number",
    "system_advice",
    "system_named",
    "to_world",
]

Floats = NDArray[np.float64]

COORDINATE_SYSTEMS = ("RAS", "LPS", "index", "normalised", "scaled")
_WORDS = {
    "ras": "RAS", "0": "RAS", "lps": "LPS", "1": "LPS",
    "index": "index", "ijk": "index", "voxel": "index", "pixel": "index", "2": "index",
    "normalised": "normalised", "normalized": "normalised", "scaled": "scaled",
}  # fmt: skip
_UNIT_ADVICE = "expected mm, um, nm or the like"
_ON_GRID = ("index", "scaled")
_BREAKS = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")
ROUNDING = 1e-9  # of a normalised coordinate: 0.5 nm in 500 mm
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass
class LandmarkSet:
    """Named points in the world.

    Attributes:
        names: one per point; need not be unique (several instances of one landmark). Line breaks and control
            characters become spaces: no format but JSON could hold them.
        world: `(N, 3)` float64, mm, RAS+; a row of NaN is an absent point.
        extras: further numbers per point, each `(N,)`, such as `uncertainty_mm` (>= 0) and `presence` (0 to 1).

    Raises:
        SettingError: counts differ, or a point is absent in some coordinates only.
    """

    names: tuple[str, ...]
    world: Floats
    extras: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = tuple(_BREAKS.sub(" ", str(name)) for name in self.names)
        self.world = np.array(self.world, dtype=np.float64).reshape(-1, 3)
        if len(self.names) != len(self.world):
            raise SettingError(f"names: expected {len(self.world)}, one per point, got {len(self.names)}")
        if np.isinf(self.world).any() or (self.present != np.isfinite(self.world).any(axis=1)).any():
            raise SettingError("world: expected finite coordinates, or NaN in all three of an absent point")
        self.extras = {key: np.array(values, dtype=np.float64) for key, values in self.extras.items()}
        for key, values in self.extras.items():
            if values.shape != (len(self.names),):
                raise SettingError(f"extras[{key!r}]: expected shape ({len(self.names)},), got {values.shape}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which points are there, `(N,)`."""
        return np.asarray(np.isfinite(self.world).all(axis=1))

    def index(self, space: Space) -> Floats:
        """Index coordinates on a grid, `(N, ndim)`, array order; NaN stays NaN."""
        return np.asarray(space.to_index(self.world), dtype=np.float64)

    @classmethod
    def from_index(
        cls, index: Floats, space: Space, names: Sequence[str] = (), extras: dict[str, Floats] | None = None
    ) -> LandmarkSet:
        """Points given as index coordinates `(N, ndim)` of a grid; without names they are `point_1`, ..."""
        index = np.asarray(index, dtype=np.float64)
        world = np.asarray(space.to_world(index), dtype=np.float64)
        return cls(tuple(names) or numbered(len(index)), world, extras or {})


@dataclass
class FilePoints:
    """Points as a file holds them, before anything is known of the image.

    Attributes:
        points: `(N, 2 | 3)` x, y(, z) as the file orders them, NaN for absent.
        system: one of `COORDINATE_SYSTEMS`, or "" where the file does not say.
        where: place of each point in the file ("line 4"), for messages.
        array_order: the axes of index coordinates are named in the file, so `axis_order` has no say.
        unit: unit of `RAS`, `LPS` and `scaled` coordinates, or "" where the file does not say.
        planes: the last coordinate is the number of a plane from 0, whatever the system of the others.
        stands: the letters of the coordinates as their columns stand in the file, where these were found by name.
        hint: what to set where the system is not known.
    """

    points: Floats
    system: str
    names: tuple[str, ...] = ()
    extras: dict[str, Floats] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    array_order: bool = False
    unit: str = ""
    planes: bool = False
    stands: str = ""
    hint: str = ""


def system_advice(systems: Sequence[str] = COORDINATE_SYSTEMS) -> str:
    """How to say the system of a file that doesn't, as each of our commands takes it."""
    first = "index" if "index" in systems else systems[0]
    listed = ", ".join(f"{system} (pixels from 0)" if system == "index" else system for system in systems)
    return f"say which, one of {listed}: {way_to_say('point_options', '--point-option', coordinate_system=first)}"


def numbered(count: int) -> tuple[str, ...]:
    """Names for points that have none: `point_1`, `point_2`, ..."""
    return tuple(f"point_{number}" for number in range(1, count + 1))


def parse_number(text: str) -> float:
    """A number as it stands in a file; Python's own underscores between digits are none.

    Raises:
        ValueError: something else.
    """
    if "_" in text:
        raise ValueError(f"no number: {text}")
    return float(text)


def system_named(path: str | PathLike[str], word: object) -> str:
    """One of `COORDINATE_SYSTEMS` from a file's word for it; 0, 1 and 2 are Slicer's RAS, LPS and IJK.

    Raises:
        FileError: another word.
    """
    try:
        return _WORDS[str(word).strip().lower()]
    except KeyError:
        expected = ", ".join(COORDINATE_SYSTEMS)
        raise FileError(path, f"coordinate system {str(word).strip()[:40]!r}, expected one of {expected}") from None


def to_world(
    path: str | PathLike[str],
    found: FilePoints,
    *,
    space: Space | None,
    coordinate_system: str,
    axis_order: str,
    unit: str = "mm",
) -> LandmarkSet:
    """What the file says, in world RAS mm; `unit` is for lengths of which the file doesn't say it.

    Raises:
        FileError: the system is not known or contradicts the unit, the image is needed and not given, a normalised
            coordinate lies outside [0, 1], or a plane outside the image.
    """
    if len(found.points) == 0:
        return LandmarkSet((), np.zeros((0, 3)), found.extras)
    system = found.system if coordinate_system == "auto" else coordinate_system
    if not system:
        raise FileError(path, "it does not say which coordinates it holds", found.hint or system_advice())
    partial = np.isnan(found.points).any(axis=1) & ~np.isnan(found.points).all(axis=1)
    if partial.any():
        place = _place(found, int(np.argmax(partial)))
        raise FileError(path, f"{place}: some coordinates are missing", "an absent point has nan in all of them")
    lengths = system in ("RAS", "LPS", "scaled")
    if found.unit and not lengths and millimetres(path, found.unit, "unit", _UNIT_ADVICE) is not None:
        raise FileError(
            path,
            f"its coordinates are in {found.unit}, so they can't be {system}",
            system_advice([one for one in COORDINATE_SYSTEMS if one not in ("index", "normalised")]),
        )
    length = millimetres(path, found.unit or unit, "unit", _UNIT_ADVICE) if lengths else 1.0
    if length is None:
        raise FileError(path, f"holds {system} coordinates in {found.unit or unit}, which is no length")
    if system in ("RAS", "LPS"):
        if found.planes:
            raise FileError(path, f"counts planes, so it can't hold {system} coordinates", system_advice(_ON_GRID))
        world = _patient_mm(path, found.points * length, space, system)
    else:
        world = _from_grid(path, found, space, system, axis_order, length)
    return LandmarkSet(found.names or numbered(len(world)), world, found.extras)


def from_world(landmarks: LandmarkSet, system: str, *, space: Space | None, axis_order: str = "xyz") -> Floats:
    """Coordinates of the points in one of `COORDINATE_SYSTEMS`: `(N, 3)` x, y, z, or `(N, ndim)` on a grid.

    Raises:
        SettingError: `index` and `normalised` without a `space`.
    """
    if system == "RAS":
        return landmarks.world
    if system == "LPS":
        return landmarks.world * _LPS_TO_RAS
    if space is None:
        raise SettingError(f"space: {system} coordinates need the image's grid")
    index = landmarks.index(space)
    if system == "normalised":
        index = index / np.asarray(space.shape)
    return index[:, ::-1] if axis_order == "xyz" else index


def _patient_mm(path: str | PathLike[str], points: Floats, space: Space | None, system: str) -> Floats:
    """mm in RAS, `(N, 3)`; two coordinates are enough where the image is an axial plane."""
    if points.shape[1] == 2:
        if space is None or space.ndim != 2 or np.any(space.affine[2, :2] != 0):
            raise FileError(path, "two coordinates a point, expected x, y and z", "a plane's own points may be index")
        height = np.where(np.isnan(points[:, :1]), np.nan, space.origin[2])
        points = np.concatenate([points, height], axis=1)
    return points * _LPS_TO_RAS if system == "LPS" else points


def _from_grid(
    path: str | PathLike[str], found: FilePoints, space: Space | None, system: str, axis_order: str, length: float
) -> Floats:
    if space is None:
        raise FileError(path, f"holds {system} coordinates, which need the image's grid", "set space=")
    points = _on_planes(path, found, space, system) if found.planes else found.points
    if np.isnan(points).all():  # absent points don't show how many coordinates they would have
        points = np.full((len(points), space.ndim), np.nan)
    if points.shape[1] != space.ndim:
        place = _place(found, 0)
        raise FileError(path, f"{place}: {points.shape[1]} coordinates, expected {space.ndim} as the image has axes")
    if system == "normalised":
        outside = (points < -ROUNDING) | (points > 1 + ROUNDING)
        if outside.any():
            row = int(np.argmax(outside.any(axis=1)))
            value = points[row][outside[row]][0]
            raise FileError(
                path,
                f"{_place(found, row)}: coordinate {value:g} is outside [0, 1]; the format is normalised",
                "for millimetres use a Slicer .mrk.json or a .csv with columns name,x,y,z,coordinateSystem",
            )
    if axis_order == "zyx" and not found.array_order and found.stands[:1] > found.stands[-1:]:
        raise FileError(
            path,
            f"its columns stand {', '.join(found.stands)} and are found by name: axis_order=zyx would turn them again",
            "leave axis_order out",
        )
    if (axis_order == "xyz" or found.planes) and not found.array_order:
        points = points[:, ::-1]
    index = points
    if system == "normalised":
        index = points * np.asarray(space.shape)
    elif system == "scaled":
        steps = np.asarray(space.spacing) / length
        if found.planes and space.ndim == 3:
            steps[0] = 1.0
        index = points / steps
    return np.asarray(space.to_world(index), dtype=np.float64)


def _on_planes(path: str | PathLike[str], found: FilePoints, space: Space, system: str) -> Floats:
    """Points whose last coordinate counts planes; on an image of one plane it is left out."""
    if system == "normalised":
        raise FileError(path, "counts planes, so it can't hold normalised coordinates", system_advice(_ON_GRID))
    planes = found.points[:, -1]
    count = space.shape[0] if space.ndim == 3 else 1
    outside = (planes < 0) | (planes >= count)
    if outside.any():
        row = int(np.argmax(outside))
        raise FileError(
            path,
            f"{_place(found, row)}: plane {planes[row] + 1:g}, but the image has {count}",
            "positions in a hyperstack count channels and times, too: save the points of one channel's stack",
        )
    return found.points if space.ndim == 3 else found.points[:, :-1]


def _place(found: FilePoints, row: int) -> str:
    return found.where[row] if row < len(found.where) else f"point {row + 1}"

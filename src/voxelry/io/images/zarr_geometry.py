"""Axes, units and transforms of OME-Zarr metadata, versions 0.1 to 0.6 (ngff.openmicroscopy.org).

Up to 0.5 an image has `axes`, and scales and translations for each level and for all of them. 0.6 names coordinate
systems and transforms between them: a level goes to the image's intrinsic system, and from there on if there is
exactly one way. Linear transforms are read (also from arrays beside the image); anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import FileError
from voxelry.io.units import Lengths

__all__ = [
    "Geometry",
    "check_version",
    "coordinate_system",
    "image_document",
    "level_geometry",
    "spatial_axes",
]

"""The versions that are written."""

Floats = NDArray[np.float64]
Arrays = Callable[[str], np.ndarray]
"""A path inside the image's group -> the array there."""

_KNOWN = re.compile(r"0\.[1-6](\D.*)?")
_OLD_AXES = "tczyx"  # OME-Zarr before 0.3 had these five and no names for them
_LINEAR = ("identity", "scale", "translation", "rotation", "affine", "mapAxis", "sequence", "byDimension")
_ORIENTATIONS = {  # of an axis that increases so (RFC 4) -> axis and sign in RAS
    "left-to-right": (0, 1.0),
    "right-to-left": (0, -1.0),
    "posterior-to-anterior": (1, 1.0),
    "anterior-to-posterior": (1, -1.0),
    "inferior-to-superior": (2, 1.0),
    "superior-to-inferior": (2, -1.0),
}


@dataclass(frozen=True)
class Geometry:
    """Where a stored array lies.

    Attributes:
        letters: one per stored axis; `z`, `y`, `x` are spatial.
        steps: world mm per voxel for each stored spatial axis.
        origin: world mm of voxel 0.
        oriented: whether the axes' directions in the patient are told.
    """

    letters: str
    steps: dict[int, Floats]
    origin: Floats
    oriented: bool


def check_version(path: Path, holder: Mapping[str, Any], multiscale: Mapping[str, Any]) -> None:
    """Refuse versions that aren't known: their fields may mean anything.

    Raises:
        FileError: a version beside 0.1 to 0.6.
    """
    version = holder.get("version", multiscale.get("version"))
    if version is not None and not _KNOWN.fullmatch(str(version)):
        raise FileError(
            path,
            f"OME-Zarr version {str(version)[:20]!r}, expected 0.1 to 0.6",
            "open one of its arrays by its own path",
        )


def level_geometry(
    path: Path, multiscale: Mapping[str, Any], level: Mapping[str, Any], rank: int, *, arrays: Arrays, lengths: Lengths
) -> Geometry:
    """Axes and place of one level of a pyramid.

    Args:
        path: named in errors.
        multiscale: the entry of `multiscales`.
        level: the entry of its `datasets`.
        rank: number of stored axes.
        arrays: reads parameters that are kept in an array.
        lengths: takes the faults of units.

    Raises:
        FileError: axes that don't fit the array, or a transform that isn't linear.
    """
    axes, transforms = _chain(path, multiscale, level, rank)
    matrix = np.eye(rank + 1)
    for transform in transforms:
        matrix = _matrix(path, transform, len(matrix) - 1, arrays) @ matrix
    if len(matrix) - 1 != len(axes):
        raise FileError(path, f"its transforms end in {len(matrix) - 1} axes, of which {len(axes)} are named")
    return _placed(path, axes, matrix, lengths)


def coordinate_system(path: Path, multiscale: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The axes of a named coordinate system.

    Raises:
        FileError: there is none of that name.
    """
    systems = multiscale["coordinateSystems"]
    found = next((system for system in systems if system.get("name") == name), systems[0] if not name else None)
    if found is None:
        raise FileError(path, f"a transform leads to the coordinate system {name!r}, which isn't there")
    return [dict(axis) for axis in found["axes"]]


def spatial_axes(axes: Sequence[Mapping[str, Any]]) -> str:
    """One letter per axis; spatial axes with names of their own are z, y, x in the order they come."""
    names = [str(axis.get("name", "")).lower() for axis in axes]
    default = ["space" if name in ("z", "y", "x") else "" for name in names]
    spatial = [place for place, axis in enumerate(axes) if axis.get("type", default[place]) == "space"]
    if not {names[place] for place in spatial} <= set("zyx"):
        for place, letter in zip(spatial, "zyx"[-len(spatial) :], strict=False):
            names[place] = letter
    return "".join(
        name if place in spatial else "t" if name == "t" or axes[place].get("type") == "time" else "c"
        for place, name in enumerate(names)
    )


def image_document(
    version: str,
    name: str,
    axes: Sequence[Mapping[str, Any]],
    levels: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    world: Floats | None = None,
) -> dict[str, Any]:
    """The attribute `ome` of an image: axes as the format has them, and path, scale and translation of each level.

    `world` (0.6): the affine `(n, n + 1)` that takes the levels' system to RAS mm, where that isn't the same.
    """
    if version == "0.5":
        datasets = [{"path": path, "coordinateTransformations": _steps(scale, shift)} for path, scale, shift in levels]
        return {"version": "0.5", "multiscales": [{"name": name, "axes": list(axes), "datasets": datasets}]}
    multiscale: dict[str, Any] = {
        "name": name,
        "coordinateSystems": [{"name": "physical", "axes": list(axes)}],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {
                        "type": "sequence",
                        "input": {"path": path},
                        "output": {"name": "physical"},
                        "transformations": _steps(scale, shift),
                    }
                ],
            }
            for path, scale, shift in levels
        ],
    }
    if world is not None:
        multiscale["coordinateSystems"].append({"name": "RAS", "axes": list(axes)})
        multiscale["coordinateTransformations"] = [
            {"type": "affine", "affine": world.tolist(), "input": {"name": "physical"}, "output": {"name": "RAS"}}
        ]
    return {"version": "0.6", "multiscales": [multiscale]}


def _steps(scale: Sequence[float], shift: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"type": "scale", "scale": [float(step) for step in scale]},
        {"type": "translation", "translation": [float(step) for step in shift]},
    ]


def _chain(
    path: Path, multiscale: Mapping[str, Any], level: Mapping[str, Any], rank: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The axes where the level ends up, and the transforms on the way."""
    own = list(level.get("coordinateTransformations", []))
    shared = list(multiscale.get("coordinateTransformations", []))
    if not multiscale.get("coordinateSystems"):
        entries = multiscale.get("axes") or list(_OLD_AXES[-rank:])
        axes = [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in entries]
        if len(axes) != rank:
            raise FileError(path, f"{len(axes)} axes are named, the array has {rank}")
        return axes, own + shared
    intrinsic = _system(own[-1].get("output")) if own else ""
    axes = coordinate_system(path, multiscale, intrinsic)
    onward = [transform for transform in shared if _system(transform.get("input")) == intrinsic]
    if len(onward) == 1:
        return coordinate_system(path, multiscale, _system(onward[0].get("output"))), own + onward
    if onward and all(axis.get("type") == "array" for axis in axes):
        raise FileError(path, f"names {len(onward)} coordinate systems for its pixels, expected one", "leave one")
    return axes, own


def _system(reference: object) -> str:
    """The name that `input` and `output` give, as text or as an object."""
    return str(reference.get("name") or "") if isinstance(reference, Mapping) else str(reference or "")


def _matrix(path: Path, transform: Mapping[str, Any], count: int, arrays: Arrays) -> Floats:
    """A transform of points with `count` coordinates, homogeneous `(m + 1, count + 1)`."""
    kind = transform.get("type")
    if kind == "sequence":
        whole = np.eye(count + 1)
        for part in transform.get("transformations", []):
            whole = _matrix(path, part, len(whole) - 1, arrays) @ whole
        return whole
    if kind == "byDimension":
        return _by_dimension(path, transform, count, arrays)
    if kind not in _LINEAR:
        raise FileError(path, f"a transform of type {kind!r} isn't understood", f"known are {', '.join(_LINEAR)}")
    if kind == "identity":
        return np.eye(count + 1)
    values = _parameters(path, transform, str(kind), arrays)
    whole = np.eye(count + 1)
    expected = {"rotation": (count, count), "affine": (len(values), count + 1)}.get(str(kind), (count,))
    if values.shape != expected or not np.isfinite(values).all():
        raise FileError(
            path, f"its transform of type {kind!r}: expected numbers of shape {expected}, got {values.shape}"
        )
    if kind == "scale":
        whole[:count, :count] = np.diag(values)
    elif kind == "translation":
        whole[:count, count] = values
    elif kind == "rotation":
        if not np.allclose(values @ values.T, np.eye(count), atol=1e-4):
            raise FileError(path, "its rotation changes lengths", "write it as an affine")
        whole[:count, :count] = values
    elif kind == "affine":
        whole = np.concatenate([values, np.eye(count + 1)[-1:]])
    else:
        if sorted(values.tolist()) != list(range(count)):
            raise FileError(path, f"its mapAxis {values.tolist()} is no order of {count} axes")
        whole[:count, :count] = np.eye(count)[values.astype(int)]
    return whole


def _parameters(path: Path, transform: Mapping[str, Any], name: str, arrays: Arrays) -> Floats:
    try:
        if name not in transform and isinstance(transform.get("path"), str):
            return np.asarray(arrays(transform["path"]), dtype=np.float64)
        return np.asarray(transform[name], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        raise FileError(path, f"its transform of type {name!r} has no numbers") from None


def _by_dimension(path: Path, transform: Mapping[str, Any], count: int, arrays: Arrays) -> Floats:
    """Transforms of some axes each; every axis of the result comes from exactly one of them."""
    parts = []
    for item in transform.get("transformations", []):
        sources = _indices(path, item, ("input_axes", "inputAxes"))
        targets = _indices(path, item, ("output_axes", "outputAxes"))
        part = _matrix(path, item.get("transformation", item), len(sources), arrays)
        if len(part) - 1 != len(targets) or not set(sources) <= set(range(count)):
            raise FileError(path, f"its byDimension takes axes {sources} to {targets}, which doesn't fit")
        parts.append((part, sources, targets))
    rows = [row for _, _, targets in parts for row in targets]
    if sorted(rows) != list(range(len(rows))) or not rows:
        raise FileError(path, f"its byDimension gives the axes {sorted(rows)}, expected each once")
    whole = np.zeros((len(rows) + 1, count + 1))
    whole[-1, -1] = 1.0
    for part, sources, targets in parts:
        whole[np.ix_(targets, [*sources, count])] = part[:-1]
    return whole


def _indices(path: Path, item: Mapping[str, Any], names: Sequence[str]) -> list[int]:
    axes = next((item[name] for name in names if name in item), None)
    if not isinstance(axes, list) or not all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes):
        raise FileError(path, "its byDimension names axes in a way that isn't understood", "expected their numbers")
    return axes


def _placed(path: Path, axes: Sequence[Mapping[str, Any]], matrix: Floats, lengths: Lengths) -> Geometry:
    names = spatial_axes(axes)
    rows = [row for row, letter in enumerate(names) if letter in "zyx"]
    stored = [axis for axis in range(matrix.shape[1] - 1) if matrix[rows, axis].any()]
    others = [row for row in range(len(names)) if row not in rows]
    missing = len(rows) - len(stored)  # a plane may lie in a space of three axes
    if (missing and len(matrix) == matrix.shape[1]) or missing < 0 or matrix[np.ix_(others, stored)].any():
        raise FileError(path, "its transforms flatten spatial axes or mix them with others", "expected each by itself")
    _check_units(axes, rows, lengths)
    world, oriented = _world(axes, names, rows, lengths)
    steps = {axis: world @ matrix[rows, axis] for axis in stored}
    single = [np.flatnonzero(matrix[rows, axis]) for axis in stored]
    letters = ["c"] * (matrix.shape[1] - 1)
    for place, axis in enumerate(stored):
        straight = all(len(found) == 1 for found in single)
        letters[axis] = names[rows[single[place][0]]] if straight else "zyx"[-len(stored) :][place]
    for row in others:
        for axis in np.flatnonzero(matrix[row, :-1]).tolist():
            letters[axis] = names[row]
    return Geometry("".join(letters), steps, world @ matrix[rows, -1], oriented)


def _check_units(axes: Sequence[Mapping[str, Any]], rows: Sequence[int], lengths: Lengths) -> None:
    told = [axes[row].get("unit") for row in rows]
    if any(told) and not all(told):
        bare = ", ".join(str(axes[row].get("name")) for row, unit in zip(rows, told, strict=True) if not unit)
        lengths.lack(f"says the unit of some axes, not of {bare}")


def _world(axes: Sequence[Mapping[str, Any]], names: str, rows: Sequence[int], lengths: Lengths) -> tuple[Floats, bool]:
    """From coordinates along the spatial axes to world mm, `(3, n)`; axes without a direction are x, y, z."""
    told = []
    for row in rows:
        orientation = axes[row].get("orientation", axes[row].get("anatomicalOrientation"))
        value = orientation.get("value") if isinstance(orientation, Mapping) else orientation
        if value is not None and value not in _ORIENTATIONS:
            lengths.lack(f"axis {axes[row].get('name')!r} runs {str(value)[:40]!r}, which isn't known")
        told.append(_ORIENTATIONS.get(value) if isinstance(value, str) else None)
    known = [direction for direction in told if direction is not None]
    oriented = len(known) == len(rows) == len({axis for axis, _ in known})
    world = np.zeros((3, len(rows)))
    for column, row in enumerate(rows):
        axis, sign = known[column] if oriented else ("xyz".index(names[row]), 1.0)
        factor = lengths.factor(axes[row].get("unit"), f"unit of axis {axes[row].get('name')!r}")
        world[axis, column] = sign * (factor or 1.0)
    return world, oriented

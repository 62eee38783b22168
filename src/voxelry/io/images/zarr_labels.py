"""OME-Zarr label images: instance ids over an image, level by level, with a table of what is known of each.

A label image lies inside an OME-Zarr image of 0.5 or 0.6, in its version, at `labels/NAME`, where viewers look for it,
or by itself. It has as many levels as its image, on the same grids; each level asks the nearest voxel of the one above
it.
"""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from numpy.typing import NDArray

from voxelry.core.atomic import final_place, replacing
from voxelry.core.errors import FileError, SettingError
from voxelry.core.remote import Remote, as_path
from voxelry.core.space import Space
from voxelry.io.images.zarr_geometry import coordinate_system, image_document

__all__ = ["BLOCK", "colour_of", "write_labels"]

Blocks = Iterable[tuple[tuple[slice, ...], NDArray[np.integer]]]

_CHUNK = 64  # voxels along each axis, as in images
BLOCK = 2 * _CHUNK  # blocks of this many voxels a side hold whole chunks: each is written once
_GOLDEN = 0.618033988749895  # of the colour circle between an id and the next: neighbours in number differ most


@dataclass(frozen=True)
class _Level:
    """One grid of a pyramid: its array's name, its shape and where its voxels lie, per spatial axis."""

    path: str
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]


def write_labels(
    path: str | Path,
    blocks: Blocks | NDArray[np.integer],
    space: Space,
    *,
    image: str | Path | None = None,
    properties: Sequence[Mapping[str, Any]] = (),
    dtype: Any = np.uint32,
) -> Path:
    """Write a label image, whole or not at all.

    Args:
        path: the folder of the label image: `IMAGE.zarr/labels/NAME` inside an image, which then lists it, or any
            other `NAME.zarr`.
        blocks: ids `(*spatial)`, or windows with their ids one by one, so that the volume needn't fit into memory;
            what no block covers is 0. Blocks of `BLOCK` voxels a side from the origin on are quickest.
        space: their grid, that of the image's finest level.
        image: an OME-Zarr image (0.4 to 0.6) whose levels, axes and units are taken over, and which is named as the
            source; for a path inside an image, that image. None: one level in mm.
        properties: one mapping per id 1, 2, ... of plain values; ids are coloured and named even if they have none.
        dtype: an unsigned integer that holds every id.

    Raises:
        SettingError: the dtype isn't an unsigned integer.
        FileError: the image isn't OME-Zarr or has another shape, or is too old for labels inside it, or the disk
            refuses.
    """
    path, kind = Path(path), np.dtype(dtype)
    if kind.kind != "u":
        raise SettingError(f"dtype: expected an unsigned integer, got {kind}")
    inside = path.parent.name == "labels"
    if image is None and inside:
        image = path.parent.parent
    axes, levels, version = (
        _own_geometry(space) if image is None else _geometry_of(as_path(image), space, inside=inside)
    )
    document = image_document(version, path.stem, axes, [(level.path, level.scale, level.shift) for level in levels])
    document["image-label"] = {
        "version": version,
        **_described(properties),
        **({} if image is None else {"source": {"image": f"{_way(as_path(image), final_place(path))}/"}}),
    }
    attributes = {"ome": document, "voxelry": {"affine": space.affine.tolist()}}
    with replacing(path) as place:
        names = [str(axis["name"]) for axis in axes]
        stores = [_create(place / level.path, level.shape, kind, names) for level in levels]
        for window, ids in _as_blocks(blocks, space.shape):
            stores[0][window].write(np.ascontiguousarray(ids, dtype=kind)).result()
        for number in range(1, len(levels)):
            _downsample(stores[number - 1], levels[number - 1], stores[number], levels[number])
        _write_group(place, attributes)
    if inside:
        _list_label(path.parent, path.name, version)
    return path


def _way(image: Path, label: Path) -> str:
    """The way from a label image to its image; where one of them is an address, the image's own place."""
    if isinstance(image, Remote) or isinstance(label, Remote):
        return str(image if isinstance(image, Remote) else image.absolute())
    return Path(os.path.relpath(image, label)).as_posix()


def colour_of(number: int) -> list[int]:
    """Red, green, blue and opacity of an id, 0 to 255; consecutive ids are far apart on the colour circle."""
    hue = number * _GOLDEN % 1
    return [*(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)), 255]


def _described(properties: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Colours and properties, which the format wants absent rather than empty."""
    if not properties:
        return {}
    rows = list(enumerate(properties, start=1))
    return {
        "colors": [{"label-value": number, "rgba": colour_of(number)} for number, _ in rows],
        "properties": [{"label-value": number, **row} for number, row in rows],
    }


def _own_geometry(space: Space) -> tuple[list[dict[str, Any]], list[_Level], str]:
    letters = "zyx"[-space.ndim :]
    origin = dict(zip("xyz", space.origin.tolist(), strict=True))
    axes = [{"name": letter, "type": "space", "unit": "millimeter"} for letter in letters]
    return axes, [_Level("0", space.shape, space.spacing, tuple(origin[letter] for letter in letters))], "0.5"


def _geometry_of(image: Path, space: Space, *, inside: bool) -> tuple[list[dict[str, Any]], list[_Level], str]:
    """Axes and levels of labels on the grids of an image, and the version that they are written in."""
    axes, levels, version = _read_geometry(image)
    if levels[0].shape != space.shape:
        raise FileError(image, f"its finest level has shape {levels[0].shape}, the labels {space.shape}")
    if inside and version < "0.5":
        raise FileError(image, "labels inside it would have to be OME-Zarr 0.4", "write them to a folder of their own")
    return axes, levels, "0.6" if inside and version >= "0.6" else "0.5"


def _read_geometry(image: Path) -> tuple[list[dict[str, Any]], list[_Level], str]:
    """Spatial axes in the order z, y, x, levels, and the version of an image."""
    zarr = 3 if (image / "zarr.json").is_file() else 2
    try:
        if zarr == 3:
            attributes = json.loads((image / "zarr.json").read_text(encoding="utf-8"))["attributes"]["ome"]
        else:
            attributes = json.loads((image / ".zattrs").read_text(encoding="utf-8"))
        multiscale = attributes["multiscales"][0]
        systems = multiscale.get("coordinateSystems")
        output = multiscale["datasets"][0]["coordinateTransformations"][-1].get("output")
        name = str(output.get("name") if isinstance(output, Mapping) else output or "")
        found = coordinate_system(image, multiscale, name) if systems else multiscale["axes"]
        letters = [str(axis["name"]) for axis in found]
        order = [letters.index(letter) for letter in "zyx" if letter in letters]
        axes = [{key: found[place][key] for key in ("name", "type", "unit") if key in found[place]} for place in order]
        shared = [] if systems else multiscale.get("coordinateTransformations", [])
        levels = [_read_level(image, zarr, level, shared, order) for level in multiscale["datasets"]]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise FileError(image, f"expected an OME-Zarr image of version 0.4 to 0.6 ({error!r})") from error
    version = "0.6" if systems else "0.5" if zarr == 3 else "0.4"
    # an image one voxel thick is read as a plane: so are its labels
    thin = [place for place, letter in enumerate(letters[at] for at in order) if letter == "z"]
    if thin and all(level.shape[thin[0]] == 1 for level in levels):
        axes = axes[1:]
        levels = [_Level(level.path, level.shape[1:], level.scale[1:], level.shift[1:]) for level in levels]
    return axes, levels, version


def _read_level(
    image: Path, zarr: int, level: Mapping[str, Any], shared: list[dict[str, Any]], order: list[int]
) -> _Level:
    shape = _stored_shape(image / str(level["path"]), zarr)
    scale, shift = np.ones(len(shape)), np.zeros(len(shape))
    for step in _flat([*level["coordinateTransformations"], *shared]):
        if step["type"] == "scale":
            scale, shift = scale * step["scale"], shift * step["scale"]
        elif step["type"] == "translation":
            shift = shift + step["translation"]
        elif step["type"] != "identity":
            raise ValueError(f"a transform of type {step['type']}")
    return _Level(
        str(level["path"]),
        tuple(shape[place] for place in order),
        tuple(float(scale[place]) for place in order),
        tuple(float(shift[place]) for place in order),
    )


def _flat(transforms: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The steps of sequences, one after the other."""
    for transform in transforms:
        if transform["type"] == "sequence":
            yield from _flat(transform["transformations"])
        else:
            yield transform


def _stored_shape(array: Path, version: int) -> list[int]:
    return json.loads((array / ("zarr.json" if version == 3 else ".zarray")).read_text())["shape"]


def _as_blocks(blocks: Blocks | NDArray[np.integer], shape: Sequence[int]) -> Blocks:
    if not hasattr(blocks, "shape"):
        yield from blocks
        return
    if tuple(blocks.shape) != tuple(shape):
        raise SettingError(f"labels: expected shape {tuple(shape)}, got {tuple(blocks.shape)}")
    for window in _windows(shape):
        yield window, np.asarray(blocks[window])  # type: ignore[index]


def _windows(shape: Sequence[int]) -> Iterable[tuple[slice, ...]]:
    for corner in product(*(range(0, size, BLOCK) for size in shape)):
        yield tuple(slice(start, min(start + BLOCK, size)) for start, size in zip(corner, shape, strict=True))


def _create(path: Path, shape: Sequence[int], dtype: np.dtype, names: Sequence[str]) -> Any:
    return tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": {
                "shape": list(shape),
                "data_type": dtype.name,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [min(_CHUNK, size) for size in shape]},
                },
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "zstd", "configuration": {"level": 3}},
                ],
                "dimension_names": list(names),
            },
        },
        create=True,
        write=True,
        read=True,
    ).result()


def _downsample(finer: Any, above: _Level, store: Any, level: _Level) -> None:
    """Every voxel takes the id of the finer level's nearest one, block by block."""
    places = [
        np.clip(np.floor((np.arange(size) * scale + shift - above_shift) / above_scale + 0.5), 0, limit - 1).astype(int)
        for size, scale, shift, above_scale, above_shift, limit in zip(
            level.shape, level.scale, level.shift, above.scale, above.shift, above.shape, strict=True
        )
    ]
    for window in _windows(level.shape):
        chosen = [place[part] for place, part in zip(places, window, strict=True)]
        low = [int(index.min()) for index in chosen]
        region = tuple(slice(start, int(index.max()) + 1) for start, index in zip(low, chosen, strict=True))
        ids = finer[region].read().result()
        store[window].write(ids[np.ix_(*(index - start for index, start in zip(chosen, low, strict=True)))]).result()


def _write_group(path: Path, attributes: Mapping[str, Any]) -> None:
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(group), encoding="utf-8")


def _list_label(folder: Path, name: str, version: str) -> None:
    """Add a name to the `labels` group of an image."""
    listing = folder / "zarr.json"
    attributes: dict[str, Any] = {}
    if listing.is_file():
        try:
            attributes = json.loads(listing.read_text()).get("attributes", {})
        except ValueError as error:
            raise FileError(listing, f"its zarr metadata can't be read: {error}") from error
    known = attributes.get("ome", {}).get("labels", [])
    attributes["ome"] = {"version": version, "labels": [*known, *([] if name in known else [name])]}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    with replacing(listing) as place:
        place.write_text(json.dumps(group, indent=2), encoding="utf-8")

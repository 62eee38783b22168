"""OME-Zarr (0.1 to 0.6) and plain zarr arrays (v2, v3), read and written through TensorStore.

Axes, units and transforms are read in `zarr_geometry`; the world x, y, z of a foreign file are its own axes unless
these say their direction. Our files carry the whole affine as well, as attribute `voxelry.affine` of the image's group
(level 0 index to world RAS+ mm, row by row), and it wins when they are read. Axes without a unit are taken as mm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from voxelry.core.errors import FileError
from voxelry.core.memory import available_memory
from voxelry.core.remote import Remote, reaching
from voxelry.core.space import Space
from voxelry.io.advice import choice
from voxelry.io.guard import check_numeric, check_stored
from voxelry.io.images.axes import AxisOrder, named_axes, order_axes
from voxelry.io.images.packing import unpacked
from voxelry.io.images.record import ImageFile
from voxelry.io.images.zarr_geometry import Geometry, check_version, image_document, level_geometry
from voxelry.io.images.zarr_sparse import read_part
from voxelry.io.units import Lengths

__all__ = ["open_file", "write_file"]

_CHUNK = 64  # voxels along each spatial axis: 0.5 MiB of uint16, a fair unit for both disk and network
_PLAIN_CODECS = ("blosc", "zlib", "gzip", "bz2", "lz4", "lzma", "zstd")
_V3_CODECS = ("bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed")
_INDEX = 16  # bytes of a shard's index for each of its chunks
_WASTE = 16  # images in a chunk: no writer makes such
_LARGE = 1 << 28  # bytes, below which nobody asks how much memory there is
_MOST_PARAMETERS = 100  # of a linear transform of a few axes


@dataclass
class _Node:
    """An array or a group on disk: its metadata and attributes, and of an array in a pyramid its image's."""

    path: Path
    version: int
    is_array: bool
    attributes: dict[str, Any]
    names: list[str | None] = field(default_factory=list)
    multiscale: dict[str, Any] | None = None
    own: dict[str, Any] = field(default_factory=dict)
    group: Path = Path()


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a zarr folder; see `open_image` for the keywords.

    `dataset` is the path inside the folder of an array, of a pyramid level or of an image group.

    Raises:
        FileError: no zarr metadata, several images to choose from, an unknown version, transforms that aren't
            linear.
    """
    node = _find(path, dataset)
    shape, stored, _ = _store(node)
    dtype = check_numeric(path, stored)
    check_stored(path, shape, 0, 0)  # chunks may be absent and are then the fill value: any size is possible
    lengths = Lengths(path)
    place = _geometry(path, node, shape, lengths, ndim=ndim, channel_axis=channel_axis)
    order = order_axes(path, shape, place.letters, ndim=ndim, channel_axis=channel_axis)
    affine = _own_affine(path, node, place, order, lengths)
    stack = np.array([0.0, 0.0, 1.0])  # of channels read as a volume
    steps = {axis: place.steps.get(axis, stack) for axis in order.spatial}
    image = ImageFile(
        path=path,
        space=order.space(steps, place.origin) if affine is None else Space(order.spatial_shape, affine),
        channels=order.channels,
        dtype=dtype,
        format="zarr" if node.multiscale is None else "OME-Zarr",
        loader=partial(_load, node, order),
        has_orientation=affine is not None or place.oriented,
        metadata=_metadata(node) | {"array": node.path.relative_to(path).as_posix()},
        order=order,
        spacing_fault=None if affine is not None else lengths.fault,
    )
    return unpacked(image, node.attributes)


def write_file(
    path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None, version: str = "0.5"
) -> None:
    """OME-Zarr with one level, axes `czyx` or `cyx` in mm, zstd-compressed chunks of 64 voxels a side.

    The format keeps spacing and the position of voxel 0, from 0.6 on the directions of a volume, too; the attribute
    `voxelry.affine` keeps everything.
    """
    letters = "zyx"[-space.ndim :]
    tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path / '0'}/"},
            "metadata": {
                "shape": list(array.shape),
                "data_type": array.dtype.name,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [1, *(min(_CHUNK, size) for size in space.shape)]},
                },
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "zstd", "configuration": {"level": 3}},
                ],
                "dimension_names": ["c", *letters],
            },
        },
        create=True,
        write=True,
    ).result().write(array).result()
    origin = dict(zip("xyz", space.origin, strict=True))
    shift = [0.0, *(float(origin[letter]) for letter in letters)]
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": letter, "type": "space", "unit": "millimeter"} for letter in letters]
    document = image_document(version, path.stem, axes, [("0", [1.0, *space.spacing], shift)], _to_ras(space, shift))
    if channel_names is not None:
        document["omero"] = {
            "channels": [
                {"label": name, "color": "FFFFFF", "window": {"min": low, "max": high, "start": low, "end": high}}
                for name, (low, high) in zip(channel_names, map(_range, array), strict=True)
            ]
        }
    attributes = {"ome": document, "voxelry": {"affine": space.affine.tolist()}}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(group, indent=2), encoding="utf-8")


def _to_ras(space: Space, shift: list[float]) -> np.ndarray | None:
    """From `c, z, y, x` along the grid's axes to RAS, `(4, 5)`; None where these are the same, and for planes."""
    turn = space.directions[::-1] if space.ndim == 3 else np.eye(3)
    if np.array_equal(turn, np.eye(3)):
        return None
    world = np.eye(4, 5)
    world[1:, 1:4] = turn
    world[1:, 4] = np.asarray(shift[1:]) - turn @ np.asarray(shift[1:])
    return world


def _range(channel: np.ndarray) -> tuple[float, float]:
    finite = channel[np.isfinite(channel)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _find(root: Path, dataset: str | None) -> _Node:
    """The array that is meant, going down through groups while there is nothing to choose."""
    inside = Path(*[part for part in (dataset or "").split("/") if part])
    if ".." in inside.parts:
        raise FileError(root, f"dataset {dataset!r} leaves the folder")
    node = _node(root / inside)
    if node is None:
        fault = (
            f"no zarr array or group at {dataset!r}" if dataset else "no zarr metadata (zarr.json, .zarray, .zgroup)"
        )
        raise FileError(root, fault, _choices(root))
    while not node.is_array:
        multiscale = _multiscale(root, node)
        if multiscale is not None:
            level = _node(node.path / str(multiscale["datasets"][0]["path"]))
            if level is None or not level.is_array:
                raise FileError(
                    root, f"the array {multiscale['datasets'][0]['path']!r} that its metadata names is missing"
                )
            level.multiscale, level.own, level.group = multiscale, node.attributes, node.path
            return level
        children = [child for child in _children(node.path) if _holds_image(child)]
        if len(children) != 1:
            raise FileError(root, f"holds {len(children)} images, expected one to be chosen", _choices(root))
        node = children[0]
    for folder in node.path.parents if node.path != root else ():
        parent = _node(folder)
        levels = _multiscale(root, parent) if parent is not None and not parent.is_array else None
        within = node.path.relative_to(folder).as_posix()
        if levels is not None and within in [str(level.get("path")).strip("/") for level in levels["datasets"]]:
            assert parent is not None
            node.multiscale, node.own, node.group = levels, parent.attributes, folder
        if levels is not None or folder == root:
            break
    return node


def _node(path: Path) -> _Node | None:
    try:
        if (path / "zarr.json").is_file():
            document = json.loads((path / "zarr.json").read_text())
            names = document.get("dimension_names") or []
            return _Node(path, 3, document["node_type"] == "array", document.get("attributes", {}), names)
        marker = next((name for name in (".zarray", ".zgroup") if (path / name).is_file()), None)
        if marker is None:
            return None
        json.loads((path / marker).read_text())
        attributes = json.loads((path / ".zattrs").read_text()) if (path / ".zattrs").is_file() else {}
        return _Node(path, 2, marker == ".zarray", attributes, attributes.get("_ARRAY_DIMENSIONS", []))
    except (ValueError, KeyError, AttributeError) as error:
        raise FileError(path, f"its zarr metadata can't be read: {error}") from error


def _children(path: Path) -> list[_Node]:
    nodes = [_node(item) for item in sorted(path.iterdir()) if item.is_dir()]
    return [node for node in nodes if node is not None]


def _holds_image(node: _Node) -> bool:
    """Whether there is an array in it: bioformats2raw keeps a group of metadata beside the images."""
    return node.is_array or any(_holds_image(child) for child in _children(node.path))


def _choices(root: Path) -> str:
    names = [node.path.name for node in _children(root) if _holds_image(node)]
    return choice(names)


def _multiscale(root: Path, node: _Node) -> dict[str, Any] | None:
    holder = node.attributes.get("ome", node.attributes)
    found = holder.get("multiscales") if isinstance(holder, dict) else None
    if not found:
        return None
    if not isinstance(found, list) or not isinstance(found[0], dict) or not found[0].get("datasets"):
        raise FileError(root, "its OME metadata has multiscales without datasets")
    check_version(root, holder, found[0])
    return found[0]


def _check_chunks(node: _Node, store: tensorstore.TensorStore) -> None:
    """Refuse chunks that no memory holds: TensorStore ends the process where it finds none for one.

    Raises:
        FileError: a chunk, or the index of a shard, is larger than the memory that may be taken, or than many images.
    """
    layout, size = store.chunk_layout, store.dtype.numpy_dtype.itemsize
    chunk, shard = (prod(n or 1 for n in part.shape or ()) for part in (layout.read_chunk, layout.write_chunk))
    needed = max(chunk * size, _INDEX * (shard // max(chunk, 1)))
    if needed <= _LARGE:
        return
    free, whole = available_memory(), prod(store.shape) * size
    if needed > _WASTE * whole or (free is not None and needed > free):
        told = f"of {whole / 1e9:.3g} GB of pixels" if free is None else f"and {free / 1e9:.3g} GB are free"
        raise FileError(node.path, f"its chunks take {needed / 1e9:.3g} GB of memory each, {told}")


def _store(node: _Node) -> tuple[tuple[int, ...], np.dtype, Callable[[tuple[slice, ...]], np.ndarray]]:
    """Shape, stored type and a function that reads a part of an array."""
    if isinstance(node.path, Remote):
        return _store_elsewhere(node, node.path)
    spec = {
        "driver": "zarr3" if node.version == 3 else "zarr",
        "kvstore": {"driver": "file", "path": f"{node.path}/"},
    }
    try:
        store = tensorstore.open(spec, read=True, open=True).result()
        _check_chunks(node, store)
        return tuple(store.shape), np.dtype(store.dtype.numpy_dtype), partial(read_part, store)
    except ValueError:
        if node.version == 3 or not _is_plain(node):
            raise
    # some writers' v2 metadata (a fill value as text, an empty list of filters) is too loose for TensorStore
    import zarr

    array = zarr.open_array(node.path, mode="r", zarr_format=2)
    return tuple(array.shape), np.dtype(array.dtype), lambda part: np.asarray(array[part])


def _store_elsewhere(
    node: _Node, path: Remote
) -> tuple[tuple[int, ...], np.dtype, Callable[[tuple[slice, ...]], np.ndarray]]:
    """As `_store`, of an array elsewhere: only the chunks, or the parts of shards, that are asked for are read."""
    import zarr
    from zarr.storage import FsspecStore

    if not _is_plain(node):
        raise FileError(path, "its codecs aren't those that are read from elsewhere", "copy it to this machine first")
    with reaching(path):
        store = FsspecStore.from_url(str(path), read_only=True)
        array = zarr.open_array(store, mode="r", zarr_format=3 if node.version == 3 else 2)
    return tuple(array.shape), np.dtype(array.dtype), lambda part: np.asarray(array[part])


def _is_plain(node: _Node) -> bool:
    """Whether an array has codecs alone that can't run code: zarr's codec registry includes pickle."""
    if node.version == 3:
        return _are_plain(json.loads((node.path / "zarr.json").read_text()).get("codecs") or [])
    document = json.loads((node.path / ".zarray").read_text())
    compressor = document.get("compressor")
    return not document.get("filters") and (compressor is None or compressor.get("id") in _PLAIN_CODECS)


def _are_plain(codecs: Sequence[Any]) -> bool:
    """Whether codecs of a v3 array, and those within its shards, are of the specification."""
    for codec in codecs:
        if not isinstance(codec, dict) or codec.get("name") not in _V3_CODECS:
            return False
        inner = codec.get("configuration") or {}
        if not _are_plain([*(inner.get("codecs") or ()), *(inner.get("index_codecs") or ())]):
            return False
    return True


def _geometry(
    path: Path, node: _Node, shape: tuple[int, ...], lengths: Lengths, *, ndim: int | None, channel_axis: int | None
) -> Geometry:
    if node.multiscale is not None:
        return _geometry_of(path, node, _level(node), len(shape), lengths)
    names = node.names if len(node.names) == len(shape) else [None] * len(shape)
    letters = named_axes(path, names, shape, ndim=ndim, channel_axis=channel_axis)
    spatial = [axis for axis, letter in enumerate(letters) if letter in "zyx"]
    size = node.attributes.get("element_size_um")
    steps = np.ones(len(spatial))
    if size is None:
        lengths.overlook(node.attributes)
    else:
        steps = np.asarray(size, dtype=np.float64).ravel() * 1e-3
        if len(steps) != len(spatial) or not np.all(np.isfinite(steps) & (steps > 0)):
            lengths.lack(f"element_size_um: expected {len(spatial)} positive numbers, got {str(size)[:60]}")
            steps = np.ones(len(spatial))
    world = {axis: step * np.eye(3)["xyz".index(letters[axis])] for axis, step in zip(spatial, steps, strict=True)}
    return Geometry(letters, world, np.zeros(3), oriented=False)


def _geometry_of(path: Path, node: _Node, level: Mapping[str, Any], rank: int, lengths: Lengths) -> Geometry:
    assert node.multiscale is not None
    arrays = partial(_parameters, path, node.group)
    return level_geometry(path, node.multiscale, level, rank, arrays=arrays, lengths=lengths)


def _level(node: _Node) -> dict[str, Any]:
    assert node.multiscale is not None
    inside = node.path.relative_to(node.group).as_posix()
    return next(item for item in node.multiscale["datasets"] if str(item["path"]).strip("/") == inside)


def _parameters(path: Path, group: Path, inside: str) -> np.ndarray:
    """The array that holds a transform's numbers."""
    place = Path(*[part for part in inside.split("/") if part])
    node = None if ".." in place.parts else _node(group / place)
    if node is None or not node.is_array:
        raise FileError(path, f"the array {inside!r} with a transform's numbers is missing")
    shape, _, read = _store(node)
    if prod(shape) > _MOST_PARAMETERS:
        raise FileError(path, f"a transform's numbers in {inside!r} have shape {shape}, too many for a linear one")
    return read(tuple(slice(0, size) for size in shape))


def _own_affine(path: Path, node: _Node, place: Geometry, order: AxisOrder, lengths: Lengths) -> np.ndarray | None:
    """The affine of our own note, which is that of the first level."""
    note = node.own.get("voxelry", {}).get("affine") if isinstance(node.own.get("voxelry"), dict) else None
    if note is None:
        return None
    affine = np.asarray(note, dtype=np.float64)
    spatial = [axis for axis, letter in enumerate(place.letters) if letter in "zyx"]
    if affine.shape != (4, len(spatial) + 1) or not set(order.spatial) <= set(spatial):
        raise FileError(
            path, f"its attribute voxelry.affine has shape {affine.shape}, expected (4, {len(spatial) + 1})"
        )
    first = None if node.multiscale is None else node.multiscale["datasets"][0]
    if first is not None and first is not _level(node):
        affine = affine @ _between(place, _geometry_of(path, node, first, len(place.letters), lengths), spatial)
    return affine[:, [*(spatial.index(axis) for axis in order.spatial), -1]]


def _between(level: Geometry, first: Geometry, spatial: Sequence[int]) -> np.ndarray:
    """From indices of a level to those of the first one, `(n + 1, n + 1)`."""
    back = np.linalg.pinv(np.stack([first.steps[axis] for axis in spatial], axis=1))
    matrix = np.eye(len(spatial) + 1)
    matrix[:-1, :-1] = back @ np.stack([level.steps[axis] for axis in spatial], axis=1)
    matrix[:-1, -1] = back @ (level.origin - first.origin)
    return matrix


def _metadata(node: _Node) -> dict[str, Any]:
    holder = node.own.get("ome", node.own)
    channels = holder.get("omero", {}).get("channels", []) if isinstance(holder, dict) else []
    names = [str(channel["label"]) for channel in channels if "label" in channel]
    metadata: dict[str, Any] = {"zarr_format": node.version}
    if names:
        metadata["channel_names"] = names
    if node.multiscale is not None:
        metadata["levels"] = [str(level.get("path")) for level in node.multiscale["datasets"]]
    return metadata


def _load(node: _Node, order: AxisOrder, window: tuple[slice, ...]) -> np.ndarray:
    return order.arrange(_store(node)[2](order.index(window)))

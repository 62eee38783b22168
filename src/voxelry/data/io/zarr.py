"""OME-Zarr (0.1 to 0.5) and plain zarr arrays (v2, v3), read and written through TensorStore.

OME-Zarr up to 0.5 has scales and translations but no rotations: the world x, y, z of a foreign file are its
own axes. Our files carry the whole affine as well, as attribute `voxelry.affine` of the image's group (level
0 index to world RAS+ mm, row by row), and it wins when they are read. Axes without a unit are taken as mm.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.io.axes import AxisOrder, named_axes, order_axes
from voxelry.data.io.guard import check_numeric, check_stored
from voxelry.data.io.record import ImageFile
from voxelry.data.io.units import Lengths

__all__ = ["open_file", "write_file"]

_CHUNK = 64  # voxels along each spatial axis: 0.5 MiB of uint16, a fair unit for both disk and network
_PLAIN_CODECS = ("blosc", "zlib", "gzip", "bz2", "lz4", "lzma", "zstd")
_OLD_AXES = "tczyx"  # OME-Zarr before 0.3 had these five and no names for them


@dataclass
class _Node:
    """An array or a group on disk: its metadata and attributes, and of an array in a pyramid the transforms."""

    path: Path
    version: int
    is_array: bool
    attributes: dict[str, Any]
    names: list[str | None] = field(default_factory=list)
    multiscale: dict[str, Any] | None = None
    own: dict[str, Any] = field(default_factory=dict)


def open_file(path: Path, *, dataset: str | None, channel_axis: int | None, ndim: int | None) -> ImageFile:
    """Header of a zarr folder; see `open_image` for the keywords.

    `dataset` is the path inside the folder of an array, of a pyramid level or of an image group.

    Raises:
        FileError: no zarr metadata, several images to choose from, transforms that aren't scale or translation.
    """
    node = _find(path, dataset)
    shape, stored, _ = _store(node)
    dtype = check_numeric(path, stored)
    check_stored(path, shape, 0, 0)  # chunks may be absent and are then the fill value: any size is possible
    lengths = Lengths(path)
    axes, scale, shift = _geometry(path, node, len(shape), ndim, channel_axis, lengths)
    order = order_axes(path, shape, axes, ndim=ndim, channel_axis=channel_axis)
    affine = _own_affine(path, node, axes, order)
    steps = {axis: scale[axis] * np.eye(3)["xyz".index(axes[axis])] for axis in order.spatial if axes[axis] in "xyz"}
    origin = np.zeros(3)
    for axis, letter in enumerate(axes):
        if letter in "xyz":
            origin["xyz".index(letter)] = shift[axis]
    for axis in order.spatial:  # a stack of channels read as a volume
        steps.setdefault(axis, np.array([0.0, 0.0, scale[axis]]))
    return ImageFile(
        path=path,
        space=order.space(steps, origin) if affine is None else Space(order.spatial_shape, affine),
        channels=order.channels,
        dtype=dtype,
        format="zarr" if node.multiscale is None else "OME-Zarr",
        loader=partial(_load, node, order),
        has_orientation=affine is not None,
        metadata=_metadata(node) | {"array": node.path.relative_to(path).as_posix()},
        order=order,
        spacing_fault=lengths.fault,
    )


def write_file(path: Path, array: np.ndarray, space: Space, channel_names: tuple[str, ...] | None) -> None:
    """OME-Zarr 0.5 with one level, axes `czyx` or `cyx` in mm, zstd-compressed chunks of 64 voxels a side.

    The format keeps spacing and the position of voxel 0; the attribute `voxelry.affine` keeps directions.
    """
    from yaozarrs import v05

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
    level = v05.Dataset(
        path="0",
        coordinateTransformations=[
            v05.ScaleTransformation(scale=[1.0, *space.spacing]),
            v05.TranslationTransformation(translation=[0.0, *(float(origin[letter]) for letter in letters)]),
        ],
    )
    axes = [v05.ChannelAxis(name="c", type="channel")]
    axes += [v05.SpaceAxis(name=letter, type="space", unit="millimeter") for letter in letters]
    omero = None
    if channel_names is not None:
        windows = [v05.OmeroWindow(min=low, max=high, start=low, end=high) for low, high in map(_range, array)]
        omero = v05.Omero(
            channels=[
                v05.OmeroChannel(label=name, color="FFFFFF", window=window)
                for name, window in zip(channel_names, windows, strict=True)
            ]
        )
    image = v05.Image(
        version="0.5", multiscales=[v05.Multiscale(name=path.stem, axes=axes, datasets=[level])], omero=omero
    )
    attributes = {
        "ome": image.model_dump(mode="json", exclude_none=True),
        "voxelry": {"affine": space.affine.tolist()},
    }
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (path / "zarr.json").write_text(json.dumps(group, indent=2))


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
            level.multiscale, level.own = multiscale, node.attributes
            return level
        children = _children(node.path)
        if len(children) != 1:
            raise FileError(root, f"holds {len(children)} images, expected one to be chosen", _choices(root))
        node = children[0]
    parent = _node(node.path.parent) if node.path != root else None
    levels = _multiscale(root, parent) if parent is not None and not parent.is_array else None
    if levels is not None and node.path.name in [str(level.get("path")) for level in levels["datasets"]]:
        assert parent is not None
        node.multiscale, node.own = levels, parent.attributes
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


def _choices(root: Path) -> str:
    names = [node.path.name for node in _children(root)]
    return f"choose one with dataset=, among {', '.join(names[:10])}" if names else ""


def _multiscale(root: Path, node: _Node) -> dict[str, Any] | None:
    holder = node.attributes.get("ome", node.attributes)
    found = holder.get("multiscales") if isinstance(holder, dict) else None
    if not found:
        return None
    if not isinstance(found, list) or not isinstance(found[0], dict) or not found[0].get("datasets"):
        raise FileError(root, "its OME metadata has multiscales without datasets")
    return found[0]


def _store(node: _Node) -> tuple[tuple[int, ...], np.dtype, Callable[[tuple[slice, ...]], np.ndarray]]:
    """Shape, stored type and a function that reads a part of an array."""
    spec = {
        "driver": "zarr3" if node.version == 3 else "zarr",
        "kvstore": {"driver": "file", "path": f"{node.path}/"},
    }
    try:
        store = tensorstore.open(spec, read=True, open=True).result()
        return tuple(store.shape), np.dtype(store.dtype.numpy_dtype), lambda part: store[part].read().result()
    except ValueError:
        if not _is_plain(node):
            raise
    # some writers' v2 metadata (a fill value as text, an empty list of filters) is too loose for TensorStore
    import zarr

    array = zarr.open_array(node.path, mode="r", zarr_format=2)
    return tuple(array.shape), np.dtype(array.dtype), lambda part: np.asarray(array[part])


def _is_plain(node: _Node) -> bool:
    """Whether a v2 array has a codec that can't run code: zarr's codec registry includes pickle."""
    if node.version != 2:
        return False
    document = json.loads((node.path / ".zarray").read_text())
    compressor = document.get("compressor")
    return not document.get("filters") and (compressor is None or compressor.get("id") in _PLAIN_CODECS)


def _geometry(
    path: Path, node: _Node, rank: int, ndim: int | None, channel_axis: int | None, lengths: Lengths
) -> tuple[str, list[float], list[float]]:
    """Axis letters, and mm per voxel and mm of voxel 0 along each stored axis."""
    scale, shift = np.ones(rank), np.zeros(rank)
    if node.multiscale is None:
        names = node.names if len(node.names) == rank else [None] * rank
        axes = named_axes(path, names, ndim=ndim, channel_axis=channel_axis)
        size = node.attributes.get("element_size_um")
        if size is not None:
            for axis, step in zip([i for i, letter in enumerate(axes) if letter in "zyx"], size, strict=False):
                scale[axis] = float(step) * 1e-3
        return axes, scale.tolist(), shift.tolist()
    entries = node.multiscale.get("axes") or list(_OLD_AXES[-rank:])
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    if len(entries) != rank:
        raise FileError(path, f"{len(entries)} axes are named, the array has {rank}")
    level = next(
        item
        for item in node.multiscale["datasets"]
        if str(item["path"]) == node.path.name or node.path.as_posix().endswith("/" + str(item["path"]))
    )
    for transform in [
        *level.get("coordinateTransformations", []),
        *node.multiscale.get("coordinateTransformations", []),
    ]:
        kind = transform.get("type")
        if kind == "identity":
            continue
        values = transform.get(kind)
        if kind not in ("scale", "translation") or not isinstance(values, list) or len(values) != rank:
            raise FileError(path, f"expected {rank} numbers of scale or translation, got a transform of type {kind!r}")
        if kind == "scale":
            scale, shift = scale * values, shift * values
        else:
            shift = shift + values
    letters = _letters(entries)
    factors = np.ones(rank)
    for axis, entry in enumerate(entries):
        if letters[axis] in "zyx":
            factors[axis] = lengths.factor(entry.get("unit"), f"unit of axis {entry.get('name')!r}") or 1.0
    return letters, (scale * factors).tolist(), (shift * factors).tolist()


def _letters(entries: list[dict[str, Any]]) -> str:
    """One letter per axis; spatial axes with names of their own are z, y, x in the order they come."""
    names = [str(entry.get("name", "")).lower() for entry in entries]
    spatial = [
        i for i, entry in enumerate(entries) if entry.get("type", "space" if names[i] in "zyx" else "") == "space"
    ]
    if not {names[i] for i in spatial} <= set("zyx"):
        for i, letter in zip(spatial, "zyx"[-len(spatial) :], strict=False):
            names[i] = letter
    return "".join(name if i in spatial else "t" if name == "t" else "c" for i, name in enumerate(names))


def _own_affine(path: Path, node: _Node, axes: str, order: AxisOrder) -> np.ndarray | None:
    note = node.own.get("voxelry", {}).get("affine") if isinstance(node.own.get("voxelry"), dict) else None
    if note is None:
        return None
    affine = np.asarray(note, dtype=np.float64)
    spatial = [axis for axis, letter in enumerate(axes) if letter in "zyx"]
    if affine.shape != (4, len(spatial) + 1) or not set(order.spatial) <= set(spatial):
        raise FileError(
            path, f"its attribute voxelry.affine has shape {affine.shape}, expected (4, {len(spatial) + 1})"
        )
    return affine[:, [*(spatial.index(axis) for axis in order.spatial), -1]]


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

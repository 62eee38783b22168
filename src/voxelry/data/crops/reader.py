"""Windows of stored images, many and small: files stay open, and only the chunks of a window are read.

Zarr goes through TensorStore, HDF5 through h5py, TIFF through its strips and tiles (`TiffStack`); other
formats through the readers of `voxelry.io`. A chunk of a zarr that isn't there is the fill value, as the
format says; one that is cut short or can't be decoded is a `FileError` that names it.

Before a process forks, what is open is closed, so that no two processes share the position in a file.
TensorStore's threads don't survive a fork, and it ends a process that tries: in a process forked after its
import, zarr-python reads instead (slower; DataLoader's `multiprocessing_context="forkserver"` avoids that).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from voxelry.core.errors import FileError
from voxelry.core.guard import guarded
from voxelry.data.crops.tiff import TiffStack
from voxelry.data.label_grid import Placement
from voxelry.io import ImageFile, open_image
from voxelry.io.images.axes import AxisOrder

__all__ = ["CropReader", "Stored", "UnopenedError"]

_KINDS = {"zarr": "zarr", "OME-Zarr": "zarr", "HDF5": "hdf5", "TIFF": "tiff", "OME-TIFF": "tiff", "ImageJ TIFF": "tiff"}
_SAFE_CODECS = {"bytes", "transpose", "crc32c", "sharding_indexed", "gzip", "zlib", "zstd", "blosc", "lz4", "bz2"}

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Stored:
    """What must be known of an image to read windows of it without looking at its header again.

    Attributes:
        path: file or folder.
        kind: `zarr`, `hdf5`, `tiff` or `other`.
        array: which array inside, for zarr and HDF5.
        shape: shape as stored; `spatial`: its axes that are plane, row, column.
        chunk: stored shape of the parts that the file is read in.
        channels, dtype: of what is read.
        options: for `open_image`.
        placement: how labels are turned to lie on their image; None where they are read as they are.
    """

    path: Path
    kind: str
    array: str
    shape: tuple[int, ...]
    spatial: tuple[int, ...]
    channels: int
    dtype: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    placement: Placement | None = None

    @classmethod
    def of(cls, image: ImageFile, options: Mapping[str, Any], placement: Placement | None = None) -> Self:
        """From a header read by `open_image(path, **options)`."""
        order = image.order
        kind = "other" if order is None else _KINDS.get(image.format, "other")
        array = str(image.metadata.get("array") or image.metadata.get("dataset") or "")
        shape, spatial = (image.shape, ()) if order is None else (order.shape, order.spatial)
        return cls(image.path, kind, array, shape, spatial, image.channels, str(image.dtype), dict(options), placement)

    @classmethod
    def from_json(cls, text: str, root: Path) -> Self:
        """From `to_json`, with a path that is relative to `root` unless it is absolute."""
        values = json.loads(text)
        values["path"] = root / values["path"]
        values["shape"], values["spatial"] = tuple(values["shape"]), tuple(values["spatial"])
        if values["placement"] is not None:
            values["placement"] = Placement(**{key: tuple(value) for key, value in values["placement"].items()})
        return cls(**values)

    def to_json(self, root: Path) -> str:
        """Plain text; the path relative to `root`, an absolute folder, if it lies there, and absolute if not."""
        path = self.path.absolute()
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        return json.dumps(dataclasses.asdict(self) | {"path": name})

    @property
    def order(self) -> AxisOrder:
        """Which stored axis is which."""
        return AxisOrder(self.shape, self.spatial)


class UnopenedError(FileError):
    """A file of which nothing can be read."""


class CropReader:
    """Reads windows of any number of images, keeping the last `handles` of them open.

    May be sent to another process and used after a fork; threads take turns.
    """

    def __init__(self, handles: int = 32):
        self.handles = handles
        self._open: OrderedDict[Stored, _Handle] = OrderedDict()
        self._lock = threading.RLock()
        weakref.finalize(self, _close_all, self._open)
        _readers.add(self)

    def __getstate__(self) -> dict[str, int]:
        return {"handles": self.handles}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, stored: Stored, window: Window, channels: slice | None = None) -> NDArray[Any]:
        """Pixels of a window inside the image.

        Args:
            stored: which image.
            window: slices with start and stop inside the image, one per spatial axis in array order.
            channels: which, None for all.

        Returns:
            `(C, *window)`, contiguous, in the image's own numbers.

        Raises:
            UnopenedError: the file can't be read at all, or isn't the one that was indexed.
            FileError: a part that can't be read, named by chunk or page where the format has them.
        """
        with self._lock:
            handle = self._open.get(stored)
            if handle is None:
                handle = self._open[stored] = _opened(stored)
                while len(self._open) > self.handles:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(stored)
            if stored.placement is None:
                pixels = _pixels(stored, handle, window, channels)
            else:
                pixels = stored.placement.read(lambda part: _pixels(stored, handle, part, channels), window)
            return np.ascontiguousarray(pixels, dtype=np.dtype(stored.dtype))

    def close(self) -> None:
        """Close every file; the next read opens what it needs again."""
        with self._lock:
            _close_all(self._open)


@dataclass
class _Handle:
    """An open image: `read(index)` takes slices of the stored axes (of the spatial ones for `other`)."""

    read: Callable[[Window], NDArray[Any]]
    chunk: tuple[int, ...] | None = None
    close: Callable[[], None] = lambda: None


def _close_all(handles: OrderedDict[Stored, _Handle]) -> None:
    while handles:
        handles.popitem()[1].close()


def _opened(stored: Stored) -> _Handle:
    try:
        with guarded(stored.path):
            return _OPENERS[stored.kind](stored)
    except FileError as error:
        raise UnopenedError(error.path, error.fault, error.hint) from None


def _pixels(stored: Stored, handle: _Handle, window: Window, channels: slice | None) -> NDArray[Any]:
    if stored.kind == "other":
        pixels = handle.read(window)
        return pixels if channels is None else pixels[channels]
    order = stored.order
    index = list(order.index(window))
    if channels is not None and len(order.others) == 1:  # several stored axes together: read all, then choose
        index[order.others[0]], channels = channels, None
    try:
        pixels = handle.read(tuple(index))
    except FileError:
        raise
    except Exception as error:
        raise _located(stored, handle, tuple(index), error) from None
    pixels = order.arrange(pixels)
    return pixels if channels is None else pixels[channels]


def _located(stored: Stored, handle: _Handle, index: Window, error: Exception) -> FileError:
    """The fault of a window as that of the first of its chunks that fails on its own."""
    chunk = handle.chunk or stored.shape
    ranges = [range(part.start // step, -(-part.stop // step)) for part, step in zip(index, chunk, strict=True)]
    for place in np.ndindex(*[len(steps) for steps in ranges]):
        cell = tuple(steps[step] for steps, step in zip(ranges, place, strict=True))
        part = tuple(
            slice(number * step, min((number + 1) * step, size))
            for number, step, size in zip(cell, chunk, stored.shape, strict=True)
        )
        try:
            with guarded(stored.path, f"chunk {'/'.join(map(str, cell))} can't be read"):
                handle.read(part)
        except FileError as fault:
            return fault
    try:
        with guarded(stored.path):
            raise error
    except FileError as fault:
        return fault


def _open_zarr(stored: Stored) -> _Handle:
    folder = stored.path / stored.array
    if _forked_with_tensorstore:
        return _open_zarr_slowly(stored, folder)
    import tensorstore

    driver = "zarr3" if (folder / "zarr.json").is_file() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}}
    try:
        # Metadata are read once: `False` trusts what was read when the array was opened.
        store = tensorstore.open(spec, read=True, open=True, recheck_cached_metadata=False).result()
    except ValueError:  # metadata too loose for TensorStore, which our reader knows how to take
        return _open_zarr_slowly(stored, folder)
    _check_shape(stored, store.shape)
    steps: Any = store.chunk_layout.read_chunk.shape
    chunk = tuple(int(step) for step in steps)
    return _Handle(lambda index: store[index].read().result(), chunk)


def _open_zarr_slowly(stored: Stored, folder: Path) -> _Handle:
    import zarr

    is_third = (folder / "zarr.json").is_file()
    unknown = _codecs(json.loads((folder / ("zarr.json" if is_third else ".zarray")).read_text())) - _SAFE_CODECS
    if unknown:  # zarr's registry holds codecs that run what they read
        raise FileError(stored.path, f"compressed with {', '.join(sorted(unknown))}, which isn't read in this process")
    array = zarr.open_array(folder, mode="r", zarr_format=3 if is_third else 2)
    _check_shape(stored, array.shape)
    return _Handle(lambda index: np.asarray(array[index]), tuple(array.chunks))


def _codecs(metadata: dict[str, Any]) -> set[str]:
    """Names of all codecs of an array, with those inside of shards."""
    entries = [*(metadata.get("filters") or []), metadata.get("compressor"), *metadata.get("codecs", [])]
    names: set[str] = set()
    for entry in entries:
        if entry is not None:
            names.add(str(entry.get("id", entry.get("name"))))
            inside = entry.get("configuration", {})
            names |= (
                _codecs({"codecs": [*inside.get("codecs", []), *inside.get("index_codecs", [])]}) if inside else set()
            )
    return names


def _open_hdf5(stored: Stored) -> _Handle:
    import h5py

    file = h5py.File(stored.path, "r")
    try:
        dataset = file[stored.array]
        _check_shape(stored, dataset.shape)
    except BaseException:
        file.close()
        raise
    return _Handle(lambda index: dataset[index], dataset.chunks, file.close)


def _open_tiff(stored: Stored) -> _Handle:
    stack = TiffStack(stored.path, stored.shape)
    return _Handle(stack.__getitem__, None, stack.close)


def _open_other(stored: Stored) -> _Handle:
    image = open_image(stored.path, **stored.options)
    if stored.placement is not None:  # labels, see `open_labels`
        image = image.indices or image
    if image.shape != stored.shape:
        raise FileError(stored.path, f"has shape {image.shape} now, and had {stored.shape}")
    return _Handle(image.read)


def _check_shape(stored: Stored, shape: Sequence[int]) -> None:
    if tuple(shape) != stored.shape:
        raise FileError(stored.path, f"has shape {tuple(shape)} now, and had {stored.shape}")


_OPENERS: dict[str, Callable[[Stored], _Handle]] = {
    "zarr": _open_zarr,
    "hdf5": _open_hdf5,
    "tiff": _open_tiff,
    "other": _open_other,
}
_readers: weakref.WeakSet[CropReader] = weakref.WeakSet()
_forked_with_tensorstore = False


def _before_fork() -> None:
    for reader in list(_readers):
        reader.close()


def _after_fork() -> None:
    global _forked_with_tensorstore
    _forked_with_tensorstore = "tensorstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)

"""Instances of a volume that is too large for the detector, tile by tile, and resumable.

Tiles overlap; a detection counts only in the tile whose core, the part up to the middle of the overlap, holds
its centre (with some slack, because two tiles place a centre slightly apart), and `stitch` joins the rest.
What is held at any time is one tile, what the detector makes of it, and one bit per voxel of the objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from voxelry.core.atomic import replacing
from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.io.images.record import ImageFile
from voxelry.ops.instances import Instances, PackedCrops
from voxelry.ops.tiles import tiles
from voxelry.tasks.segment.stitch import TileDetections, stitch

__all__ = ["Tiles", "image_key", "predict_tiled", "tile_cores"]

Window = tuple[slice, ...]
Detect = Callable[[NDArray[Any]], Instances]
"""A tile `(C, *tile)` to its instances in the tile's own index coordinates."""

_FORMAT = 1  # of the state folder
_NEAR = 2  # voxels: a mask head blurs edges, so that a mask may end just before the border that cut its object
_SLACK = 0.25  # of the overlap: how far beyond its core a tile's detections are still compared with its neighbour's


class Tiles:
    """The tiles of a volume, and what the detector makes of each; a sequence, whose entries are made when asked for.

    With a state folder every finished tile is kept as a file of its own, by whichever process made it, and is never
    made again.

    Args:
        read_window: pixels `(C, *window)` of a window of the volume, or an image file.
        shape: spatial shape of the volume.
        detect: called once per tile; must depend on its pixels alone.
        tile_size: voxels per axis; an axis shorter than its tile is taken whole.
        overlap: fraction of a tile shared with its neighbour, in [0, 1).
        align: tiles start at multiples of this, the network's stride.
        state: folder for finished tiles. Runs with another volume, grid or `key` don't disturb each other in it.
        key: whatever else the detections depend on: the image (see `image_key`) and the model.

    Attributes:
        windows: of every tile.
        places: `(tiles, 2 * ndim)` the first voxel of each and the one after its last.

    Raises:
        SettingError: sizes or overlap make no sense.
    """

    def __init__(
        self,
        read_window: Callable[[Window], NDArray[Any]] | ImageFile,
        shape: Sequence[int],
        detect: Detect,
        *,
        tile_size: int | Sequence[int],
        overlap: float = 0.25,
        align: int = 1,
        state: str | Path | None = None,
        key: str = "",
    ):
        self.shape = tuple(int(size) for size in shape)
        self._read = read_window.read if isinstance(read_window, ImageFile) else read_window
        self._detect = detect
        self.windows = list(tiles(self.shape, tile_size, overlap, align))
        self.places = np.array([[p.start for p in w] + [p.stop for p in w] for w in self.windows], dtype=np.int64)
        self._cores = tile_cores(self.places, self.shape)
        self._folder = None
        if state is not None:
            size = per_axis(tile_size, len(self.shape), "tile_size")
            grid = {"shape": self.shape, "tile_size": size, "overlap": overlap, "align": align}
            facts = {"format": _FORMAT, **grid, "key": key}
            self._folder = Path(state) / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> tuple[Instances, NDArray[np.bool_]]:
        """Detections of a tile, in the coordinates of the volume, and which of them its borders cut.

        Raises:
            SettingError: the detector answers in another rank or outside its tile.
            FileError: the state can't be written.
        """
        place = None if self._folder is None else self._folder / f"tile_{number:06d}.npz"
        done = None if place is None else _load(place)
        if done is None:
            window = self.windows[number]
            done = _own(self._detect(self._read(window)), window, self._cores[number], self.shape)
            if place is not None:
                _save(place, *done)
        return done


def predict_tiled(
    volume: Tiles,
    *,
    join_iou: float = 0.5,
    nms_iou: float = 0.5,
    least_score: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Instances:
    """Instances of a whole volume by falling score, in its index coordinates, with packed masks.

    An object up to the size of the overlap is seen whole by some tile; larger ones are put together from their
    parts. A run that was killed goes on with the tiles that aren't kept: the answer is the same to the bit. The last
    tile is asked for first, so that whoever joins tiles that others are still at, from the first one on, meets them
    once and doesn't do what they are just doing all the way.

    Args:
        volume: its tiles.
        join_iou, nms_iou, least_score: see `stitch`.
        progress: called with the number of finished tiles and of all tiles.

    Raises:
        SettingError, FileError: see `Tiles`.
    """
    done = []
    for number in reversed(range(len(volume))):
        done.append(volume[number])
        if progress is not None:
            progress(len(done), len(volume))
    parts, cuts = zip(*reversed(done), strict=True)
    counts = [len(part) for part in parts]
    everything = TileDetections(
        instances=_concatenate(parts, len(volume.shape)),
        tiles=np.repeat(np.arange(len(parts)), counts),
        cut=np.concatenate(cuts),
        windows=volume.places,
    )
    return stitch(everything, join_iou=join_iou, nms_iou=nms_iou, least_score=least_score)


def tile_cores(windows: NDArray[np.int64], shape: Sequence[int]) -> NDArray[np.float64]:
    """The box of centres that each tile owns, widened by a quarter of the overlap, `(tiles, 2 * ndim)`.

    Without the slack the cores of a grid of tiles share no point and leave none out.

    Args:
        windows: `(tiles, 2 * ndim)` first voxel and the one after the last of each tile of a grid.
        shape: of the volume, whose outermost cores have no end.
    """
    ndim = len(shape)
    cores = np.empty(windows.shape)
    for axis in range(ndim):
        starts, which = np.unique(windows[:, axis], return_inverse=True)
        size = windows[0, ndim + axis] - windows[0, axis]
        # voxels shared by neighbours run from the later start to the earlier end; centres are split in their middle
        middle = (starts[1:] + starts[:-1] + size - 1) / 2
        slack = _SLACK * (starts[:-1] + size - starts[1:])
        cores[:, axis] = np.concatenate([[-np.inf], middle - slack])[which]
        cores[:, ndim + axis] = np.concatenate([middle + slack, [np.inf]])[which]
    return cores


def image_key(image: ImageFile, model: str) -> str:
    """What identifies an image and a model in `Tiles(key=...)`, from the header alone.

    Args:
        model: identifies the weights, such as their digest in the bundle.
    """
    path = image.path
    entries = [path] if path.is_file() else sorted(path.glob("**/zarr.json")) + sorted(path.glob("**/.z*"))
    facts = {
        "shape": image.shape,
        "dtype": str(image.dtype),
        "affine": image.space.affine.tolist(),
        "files": [[entry.name, entry.stat().st_size, entry.stat().st_mtime_ns] for entry in entries],
        "model": model,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _own(
    found: Instances, window: Window, core: NDArray[np.float64], shape: Sequence[int]
) -> tuple[Instances, NDArray[np.bool_]]:
    """Detections that a tile keeps, in the coordinates of the volume, and which of them its borders cut."""
    ndim = len(shape)
    start = np.array([part.start for part in window])
    size = np.array([part.stop - part.start for part in window])
    if found.ndim != ndim:
        raise SettingError(f"detect: expected instances of rank {ndim}, got {found.ndim}")
    low, high = found.windows()
    if (low < 0).any() or (high > size).any():
        raise SettingError(f"detect: expected masks inside the tile of shape {tuple(size.tolist())}")
    packed = found.packed()
    tight = _tight(packed)
    centres = (tight[:, :ndim] + tight[:, ndim:] - 1) / 2 + start
    mine = ((centres >= core[:ndim]) & (centres < core[ndim:])).all(axis=1) & (packed.voxels() > 0)
    inner_low, inner_high = start > 0, start + size < np.asarray(shape)
    at_low, at_high = tight[:, :ndim] <= _NEAR, tight[:, ndim:] >= size - _NEAR
    cut = (at_low & inner_low).any(axis=1) | (at_high & inner_high).any(axis=1)
    kept = Instances(found.boxes, found.scores, found.classes, packed).take(np.flatnonzero(mine))
    shift = np.concatenate([start, start]).astype(np.float32)
    return Instances(kept.boxes + shift, kept.scores, kept.classes, kept.packed().shift(start)), cut[mine]


def _tight(crops: PackedCrops) -> NDArray[np.int64]:
    """First voxel of each mask and the one after its last, `(K, 2 * ndim)`; its window's where it is empty."""
    bounds = np.concatenate([crops.starts, crops.starts + crops.sizes], axis=1)
    ndim = bounds.shape[1] // 2
    for row, (window, mask) in enumerate(crops):
        for axis, part in enumerate(window):
            filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(ndim) if other != axis)))
            if len(filled):
                bounds[row, [axis, ndim + axis]] = part.start + filled[0], part.start + filled[-1] + 1
    return bounds


def _concatenate(parts: Sequence[Instances], ndim: int) -> Instances:
    return Instances(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.classes for part in parts]),
        PackedCrops.join([part.packed() for part in parts], ndim),
    )


def _save(path: Path, found: Instances, cut: NDArray[np.bool_]) -> None:
    crops = found.packed()
    values: dict[str, Any] = {
        "boxes": found.boxes,
        "scores": found.scores,
        "classes": found.classes,
        "starts": crops.starts,
        "sizes": crops.sizes,
        "bits": crops.bits,
        "cut": cut,
    }
    with replacing(path) as place:
        np.savez_compressed(place, **values)


def _load(path: Path) -> tuple[Instances, NDArray[np.bool_]] | None:
    """A finished tile; None where there is none, or none that can be read: then it is done again."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            boxes, scores, classes, starts, sizes, bits, cut = (
                file[name] for name in ("boxes", "scores", "classes", "starts", "sizes", "bits", "cut")
            )
        return Instances(boxes, scores, classes, PackedCrops(starts, sizes, bits)), cut
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None

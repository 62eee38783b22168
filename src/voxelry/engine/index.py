"""What `voxelry index` does: build a crop index, and say what is in it and which anchors would suit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.data.crops.build import build_crop_index
from voxelry.data.crops.index import CropIndex
from voxelry.data.crops.settings import BuildReport, CropSettings

__all__ = ["Anchors", "IndexSummary", "build_index", "propose_anchors"]


@dataclass(frozen=True)
class Anchors:
    """Anchor shapes for a detector: in-plane side `size`, row/column ratio, plane/size ratio.

    Attributes:
        sizes: voxels, one per level, ascending.
        ratios: height over width. An anchor of size s is `s * sqrt(ratio)` high and `s / sqrt(ratio)` wide.
        z_ratios: depth over size; empty for images of rank 2.
        coverage: share of the objects whose best anchor, put on their centre, has an IoU of at least 0.5.
    """

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    z_ratios: tuple[float, ...]
    coverage: float

    def overrides(self, levels: int = 2) -> list[str]:
        """Overrides of a training for a backbone of so many levels, each with as many sizes, some on two levels."""
        each = -(-len(self.sizes) // levels)
        first = np.linspace(0, len(self.sizes) - each, levels).round().astype(int).tolist()
        sizes = [list(self.sizes[start : start + each]) for start in first]
        plain = {"sizes": sizes, "ratios": list(self.ratios), "z_ratios": list(self.z_ratios)}
        return [f"model.anchors.{name}={value}".replace(" ", "") for name, value in plain.items() if value]


def propose_anchors(extents: NDArray[np.float64], *, levels: int = 4) -> Anchors | None:
    """Anchors for boxes of these sizes; None without any.

    Sizes are quantiles of the in-plane side (geometric mean of rows and columns) in the middle of `levels`
    equal parts, ratios the 10th, 50th and 90th percentiles, equal ones once.

    Args:
        extents: `(K, ndim)` voxels in array order; all depths 1 count as images of rank 2.
    """
    if not len(extents):
        return None
    height, width = extents[:, -2], extents[:, -1]
    depth = extents[:, 0] if extents.shape[1] > 2 else np.ones(len(extents))
    flat = bool((depth == 1).all())
    side = np.sqrt(height * width)
    middles = (np.arange(levels) + 0.5) / levels * 100
    sizes = _distinct(np.percentile(side, middles), 0.5)
    ratios = _distinct(np.percentile(height / width, (10, 50, 90)), 0.05)
    z_ratios = () if flat else _distinct(np.percentile(depth / side, (10, 50, 90)), 0.05)
    best = np.zeros(len(extents))
    volume = height * width * depth
    for size in sizes:
        for ratio in ratios:
            for z_ratio in z_ratios or (1 / size,):
                shape = (size * z_ratio, size * np.sqrt(ratio), size / np.sqrt(ratio))
                shared = np.minimum(depth, shape[0]) * np.minimum(height, shape[1]) * np.minimum(width, shape[2])
                best = np.maximum(best, shared / (volume + np.prod(shape) - shared))
    return Anchors(sizes, ratios, z_ratios, float((best >= 0.5).mean()))


def _distinct(values: NDArray[np.float64], step: float) -> tuple[float, ...]:
    """Rounded to a multiple of `step` that isn't 0, each once."""
    rounded = np.maximum(np.round(values / step), 1) * step
    return tuple(round(float(value), 4) for value in np.unique(rounded))


@dataclass(frozen=True)
class IndexSummary:
    """What an index holds.

    Attributes:
        path: the index.
        report: what the build did.
        images, crops, objects: how many.
        splits: crops per split, "" where the source doesn't say.
        empty: names of images without a crop.
        crop_size: voxels per axis, or one number for all.
        shown: mean number of objects that a crop shows.
        volumes: 5th, 50th and 95th percentile of the box volumes in voxels, empty without objects.
        anchors: proposed from the data.
    """

    path: Path
    report: BuildReport
    images: int
    crops: int
    objects: int
    splits: Mapping[str, int]
    empty: tuple[str, ...]
    crop_size: int | tuple[int, ...]
    shown: float
    volumes: tuple[float, ...]
    anchors: Anchors | None

    def render(self) -> str:
        """Text for the terminal."""
        report = self.report
        size = self.crop_size if isinstance(self.crop_size, int) else " x ".join(map(str, self.crop_size))
        lines = [
            f"{self.path}: {self.crops} crops of {size} voxels from {self.images} images",
            f"  images   {report.done} indexed, {report.kept} already there, {report.removed} removed",
        ]
        if any(self.splits):
            parts = [f"{name or 'no split'} {count}" for name, count in sorted(self.splits.items())]
            lines.append(f"  crops    {', '.join(parts)}")
        if self.objects:
            low, middle, high = self.volumes
            lines.append(
                f"  objects  {self.objects}, {self.shown:.1f} in a crop; box volume {middle:.0f} voxels"
                f" (5 % below {low:.0f}, 5 % above {high:.0f})"
            )
        if self.empty:
            more = f" and {len(self.empty) - 5} more" if len(self.empty) > 5 else ""
            lines.append(f"  no crop  {', '.join(self.empty[:5])}{more}: no object passes the selection")
        if report.dropped_boxes or report.cut_boxes:
            lines.append(f"  boxes    {report.dropped_boxes} left out, {report.cut_boxes} cut at the image's edge")
        lines += [f"  left out {line}" for line in report.skipped]
        if self.anchors is not None:
            lines.append(f"  anchors  {' '.join(self.anchors.overrides())}")
            lines.append(f"           IoU of at least 0.5 with {self.anchors.coverage:.0%} of the objects")
        return "\n".join(lines)


def build_index(
    source: str | Path,
    out: str | Path,
    *,
    wait: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> IndexSummary:
    """Build a crop index or bring it up to date.

    Args:
        source, out, wait: see `build_crop_index`.
        progress: called as `progress(done, total, name)` before each image, and at the end.
        say: told in one line when another process is waited for.
        settings: of `CropSettings` and `SourceSettings`, such as `crop_size=64, layout="volumes"`.

    Raises:
        DataError, FileError, SettingError: see `build_crop_index`.
    """
    known = {field.name for field in fields(CropSettings)}
    crops = CropSettings(**{name: value for name, value in settings.items() if name in known})
    reading = {name: value for name, value in settings.items() if name not in known}
    report = build_crop_index(source, out, crops, wait=wait, progress=progress, say=say, **reading)
    index = CropIndex(out)
    try:
        return summarise(index, report, crops.crop_size)
    finally:
        index.close()


def summarise(index: CropIndex, report: BuildReport, crop_size: int | tuple[int, ...]) -> IndexSummary:
    """Count what an index holds, and propose anchors for it."""
    splits: dict[str, int] = {}
    for file in index.files:
        splits[file.split] = splits.get(file.split, 0) + file.crops
    extents = index.extents()
    volumes = np.percentile(extents.prod(axis=1), (5, 50, 95)) if len(extents) else ()
    return IndexSummary(
        path=index.path,
        report=report,
        images=len(index.files),
        crops=len(index),
        objects=sum(file.objects for file in index.files),
        splits=splits,
        empty=tuple(file.name for file in index.files if not file.crops),
        crop_size=crop_size,
        shown=index.shown() / len(index),
        volumes=tuple(float(volume) for volume in volumes),
        anchors=propose_anchors(extents),
    )

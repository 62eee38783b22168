"""Crops of an index as a torch dataset: image, instance masks, boxes and classes of each."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.rank import per_axis
from voxelry.core.settings import Configured, settle
from voxelry.core.space import Space
from voxelry.data.crops.index import CropIndex, CropRecord, IndexedFile
from voxelry.data.crops.reader import CropReader, UnopenedError
from voxelry.data.crops.scan import QUANTILES
from voxelry.data.crops.selection import parse_selection
from voxelry.data.dataset import one_line_errors
from voxelry.data.label_grid import whole_numbers
from voxelry.data.layouts.case import Case
from voxelry.data.patches import crop
from voxelry.data.preprocess.normalise import check_normalise, finite, normalise, scale, zscore_levels
from voxelry.data.sample import Sample
from voxelry.data.splits import SPLITS, split_cases
from voxelry.ops.masks import mask_boxes

__all__ = ["CropDataset", "split_crops"]

log = logging.getLogger(__name__)

ON_ERROR = ("skip", "raise")


@dataclass(frozen=True, kw_only=True)
class CropReading:
    """What is read of a crop, and how.

    Attributes:
        margin: voxels read around each crop for the augmentation, which are then cut off; one number or one per
            axis. Beyond the image it is filled as `fill` says.
        fill: `edge` or `zero`; crops larger than their image are filled as the index says (`pad`).
        normalise, window, percentiles, clip: as in `voxelry.data.preprocess.normalise`, but with the statistics of the
            whole image, which the index holds, so that all crops of an image share one scale.
        boxes: `masks`: around what the crop shows of each object; `index`: the object's box in the whole image,
            cut at the crop's edges. Without labels it is always the index.
        on_error: `skip` delivers the next crop that can be read in place of one that can't, the same one each
            time, and reports the fault once, whatever number of workers meets it; `raise` stops.
        seed: of the augmentation. Random numbers depend on seed, epoch and index alone.

    Raises:
        SettingError: a setting out of range.
    """

    margin: int | Sequence[int] = 0
    fill: str = "edge"
    normalise: str | None = "percentile"
    window: Sequence[float] | None = None
    percentiles: Sequence[float] = (0.5, 99.5)
    clip: float = 3.0
    boxes: str = "masks"
    on_error: str = "skip"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("fill", self.fill, ("edge", "zero"))
        check_choice("boxes", self.boxes, ("masks", "index"))
        check_choice("on_error", self.on_error, ON_ERROR)
        check_normalise(self.normalise, window=self.window, percentiles=self.percentiles, clip=self.clip)


class CropDataset(Configured, torch.utils.data.Dataset[Sample]):
    """Crops of an index, 2-D or 3-D.

    Args:
        index: a `CropIndex`, or its path.
        split: only crops of images of this split; None for all.
        names: only crops of images with these names.
        where: only crops of images that meet these criteria on the source's columns (see `parse_selection`).
        augment: called as `augment(sample, generator)` on the crop and its margin.
        settings: of `CropReading`.

    Raises:
        SettingError: a setting that there isn't, or out of range.
        DataError: no crop is left, or the index has no statistics for this normalisation.
        FileError: the index can't be read.
    """

    Settings = CropReading
    _settings: CropReading

    def __init__(
        self,
        index: CropIndex | str | Path,
        *,
        split: str | None = None,
        names: Sequence[str] | None = None,
        where: Mapping[str, Any] | Sequence[str] | None = None,
        augment: Callable[[Sample, np.random.Generator], Sample] | None = None,
        **settings: Any,
    ):
        self._settings = settle(CropReading, settings)
        self.index = index if isinstance(index, CropIndex) else CropIndex(index)
        self.augment = augment
        self.files = _chosen(self.index, split, names, where)
        self._ends = np.cumsum([file.crops for file in self.files])
        if not len(self):
            raise DataError(f"{self.index.path}: no crop of split {split!r} and the other criteria")
        if (method := self._settings.normalise) not in (None, "window"):
            without = next((file for file in self.files if file.statistics is None), None)
            if without is not None:
                raise DataError(
                    f"{self.index.path}: has no statistics of {without.name}, which normalise={method} needs "
                    "(build it with statistics, or give normalise=window)"
                )
        self.reader = CropReader()
        self.reports = _Reports()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        """Crop `index` as `sample` makes it, in the first epoch."""
        return self.sample(index, 0)

    def sample(self, index: int, epoch: int) -> Sample:
        """Crop `index`, normalised and augmented.

        Returns:
            `image (C, *crop)` float32, `masks (*crop)` int64 with ids 1 to K (None without labels), `boxes (K,
            2 * ndim)` float32, `classes (K,)` int64, `space` the crop's own grid in the world. Images of which
            nothing is known (no labels, no boxes) have neither boxes nor classes.

        Raises:
            FileError, DataError: it can't be read and `on_error` is `raise`, or none can.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"crop {index} of a dataset of {len(self)}")
        with one_line_errors():
            return self._drawn(index % len(self), epoch)

    def spaces(self, most: int | None = None) -> list[Space]:
        """Grids of the first images, whole."""
        return [file.space for file in self.files[:most]]

    def record(self, index: int) -> CropRecord:
        """What the index says of crop `index` of this dataset."""
        at = int(np.searchsorted(self._ends, index, side="right"))
        file = self.files[at]
        return self.index.crop_of(file, index - int(self._ends[at]) + file.crops)

    @property
    def start_method(self) -> str | None:
        """How a DataLoader should start workers: TensorStore, which reads zarr, doesn't survive a fork."""
        return "forkserver" if any(stored.kind == "zarr" for stored in _stored(self.files)) else None

    @property
    def faults(self) -> list[str]:
        """What was skipped so far, by this process and its workers: a line per chunk, page or file."""
        return self.reports.lines()

    def check(self) -> None:
        """Compare the images with the index, to find at once what would spoil the training later.

        Raises:
            DataError: contents that changed, or an image that isn't there; one line naming the first.
        """
        self.index.check()

    def _drawn(self, index: int, epoch: int) -> Sample:
        step = 0
        while step < len(self):
            place = (index + step) % len(self)
            record = self.record(place)
            try:
                sample = self._read(record)
            except (FileError, DataError) as error:
                if self._settings.on_error == "raise":
                    raise
                self.reports.add(str(error))
                # A chunk costs the crops that need it, a file that can't be opened all of its crops.
                step += self._to_next_file(place) if isinstance(error, UnopenedError) else 1
                continue
            if self.augment is not None:
                sample = self.augment(sample, np.random.default_rng([self._settings.seed, epoch, index]))
            return self._trimmed(sample)
        raise DataError(f"{self.index.path}: none of its {len(self)} crops can be read ({self.faults[0]})")

    def _to_next_file(self, place: int) -> int:
        return int(self._ends[np.searchsorted(self._ends, place, side="right")]) - place

    def _read(self, record: CropRecord) -> Sample:
        """A crop with its margin."""
        file, ndim = record.file, record.file.space.ndim
        size = self.index.shape(file)
        margin = per_axis(self._settings.margin, ndim, "margin") if self.augment is not None else (0,) * ndim
        wide = [start - border for start, border in zip(record.start, margin, strict=True)]
        length = [voxels + 2 * border for voxels, border in zip(size, margin, strict=True)]
        window = tuple(
            slice(max(0, low), min(low + count, end))
            for low, count, end in zip(wide, length, file.space.shape, strict=True)
        )
        channels = slice(record.channel, record.channel + self.index.channels(file))
        image = self._scaled(self.reader.read(file.image, window, channels), file, channels)
        inside = [part.start for part in window]
        masks = boxes = classes = ids = None
        if file.label is not None:
            stored = whole_numbers(self.reader.read(file.label, window)[0], file.label.path)
            masks, boxes, classes, ids = self._shown(stored, record, inside)
        elif file.knows_objects:
            boxes, classes = self._indexed_boxes(record, inside), torch.from_numpy(record.classes.copy())
        sample = Sample(
            image=image,
            space=file.space.crop(inside, [part.stop - part.start for part in window]),
            name=f"{file.name}@{','.join(map(str, (*record.start, record.channel)))}",
            source=str(file.image.path),
            masks=masks,
            boxes=boxes,
            classes=classes,
            ids=ids,
        )
        if list(image.shape[1:]) == length:
            return sample
        pad = self.index.settings["pad"]
        fill = self._settings.fill if pad == "error" else pad
        start = [low - corner for low, corner in zip(wide, inside, strict=True)]
        return crop(sample, start, length, fill="edge" if fill == "edge" else "zero")

    def _shown(
        self, ids: NDArray[np.integer], record: CropRecord, inside: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Masks renumbered from 1, and the boxes, classes and ids that belong to them; other ids are background."""
        known, ids = record.instance.astype(np.uint64), ids.astype(np.uint64)  # growing
        kept = np.zeros(len(known), dtype=bool)
        numbers = np.zeros(ids.shape, dtype=np.int64)
        if len(known):
            places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            found = known[places] == ids
            kept[places[found]] = True
            numbers[found] = np.cumsum(kept)[places[found]]
        masks, seen = torch.from_numpy(numbers), known[kept]
        if self._settings.boxes == "masks":
            boxes = mask_boxes(masks, len(seen))
        else:
            boxes = self._indexed_boxes(record, inside)[torch.from_numpy(kept)]
        return masks, boxes, torch.from_numpy(record.classes[kept]), tuple(seen.tolist())

    @staticmethod
    def _indexed_boxes(record: CropRecord, inside: Sequence[int]) -> Tensor:
        shift = np.subtract(record.start, inside)
        return torch.from_numpy((record.boxes + np.tile(shift, 2)).astype(np.float32))

    def _scaled(self, pixels: NDArray[Any], file: IndexedFile, channels: slice) -> Tensor:
        image = torch.from_numpy(pixels.astype(np.float32, copy=False))
        own = self._settings
        if own.normalise is None or (own.normalise == "window" and own.window is not None):
            return normalise(image, own.normalise, window=own.window)
        assert file.statistics is not None  # checked at the start
        levels = [self._range(known) for known in file.statistics[channels]]
        return scale(finite(image), torch.tensor(levels, dtype=torch.float64))

    def _range(self, known: Mapping[str, Any]) -> tuple[float, float]:
        """What becomes 0 and 1, from the statistics of a channel."""
        own, quantiles = self._settings, known["quantiles"]
        if own.normalise == "percentile":
            low, high = np.interp(own.percentiles, QUANTILES, quantiles)
            return float(low), float(high)
        if own.normalise == "zscore":
            return zscore_levels(known["mean"], known["deviation"], own.clip)
        return quantiles[0], quantiles[-1]

    def _trimmed(self, sample: Sample) -> Sample:
        margin = per_axis(self._settings.margin, sample.ndim, "margin")
        if self.augment is None or not any(margin):
            return sample
        size = [voxels - 2 * border for voxels, border in zip(sample.space.shape, margin, strict=True)]
        return crop(sample, margin, size)


def split_crops(
    index: CropIndex | str | Path,
    *,
    file: str | Path | None = None,
    fractions: Sequence[float] | None = None,
    fold: int | None = None,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Names of the images of `train`, `validation` and `test`, for `CropDataset(names=...)`.

    Whole images are divided, never the crops of one, which may overlap. Settings are those of `split_cases`:
    a list, fractions, folds, or what the source says.

    Raises:
        DataError, SettingError: see `split_cases`.
    """
    index = index if isinstance(index, CropIndex) else CropIndex(index)
    cases = [
        Case(one.name, one.image.path, split=one.split if one.split in SPLITS else "")
        for one in index.files
        if one.crops
    ]
    parts = split_cases(cases, file=file, fractions=fractions, fold=fold, folds=folds, seed=seed)
    return {part: [case.name for case in cases_of] for part, cases_of in parts.items()}


def _chosen(
    index: CropIndex, split: str | None, names: Sequence[str] | None, where: Mapping[str, Any] | Sequence[str] | None
) -> list[IndexedFile]:
    criteria = parse_selection(where)
    if names is not None:
        unknown = set(names) - {file.name for file in index.files}
        if unknown:
            raise DataError(f"{index.path}: has no image {min(unknown)!r}")
    chosen = []
    for file in index.files:
        columns = {"name": file.name, "split": file.split, **file.columns}
        absent = next((criterion.key for criterion in criteria if criterion.key not in columns), None)
        if absent is not None:
            raise SettingError(f"where: the index has no column {absent!r} (columns: {', '.join(columns)})")
        if (
            (split is None or file.split == split)
            and (names is None or file.name in names)
            and all(criterion.holds(columns[criterion.key]) for criterion in criteria)
        ):
            chosen.append(file)
    return chosen


def _stored(files: Sequence[IndexedFile]) -> list[Any]:
    return [stored for file in files for stored in (file.image, file.label) if stored is not None]


class _Reports:
    """Lines that are logged once, by whichever process is first: a file each in a folder that all of them share."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="voxelry-faults-"))
        self._owner = os.getpid()
        weakref.finalize(self, _tidy, self.folder, self._owner)

    def add(self, line: str) -> None:
        name = hashlib.sha256(line.encode()).hexdigest()
        try:
            with (self.folder / name).open("x", encoding="utf-8") as file:  # fails for all but the first
                file.write(line)
        except FileExistsError:
            return
        except OSError:  # the owner is gone
            pass
        log.warning("%s; crops that need it are skipped", line)

    def lines(self) -> list[str]:
        return [file.read_text(encoding="utf-8") for file in sorted(self.folder.iterdir())]


def _tidy(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)

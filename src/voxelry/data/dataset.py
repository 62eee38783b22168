"""Cases as a torch dataset: read, preprocessed (once, with a cache), cut to patches, augmented.

A dataset of one's own needs one method:

    class MyDataset(VolumeDataset):
        def read_volume(self, path):
            return my_loader(path)          # a tensor (C, D, H, W), or (C, H, W)

    dataset = MyDataset.from_folder("datasets/mine", preprocess=Preprocess(image_size=64))

Such a tensor lies on a grid of 1 mm; return a `voxelry.io.Image` to say where it lies in the world.
Files of points that need the image's size, labels, resizing, augmentation and the cache work as they do with
our readers. The cache knows a method by its source; what it reads besides the file it is given, it can't know.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import DataError, SettingError, VoxelryError
from voxelry.core.space import Space
from voxelry.data.cache import Cache
from voxelry.data.context import border_distances
from voxelry.data.label_grid import Reference, class_numbers, open_labels
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.layouts.points import read_case_landmarks
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.modality import own_image
from voxelry.data.sample import Sample
from voxelry.data.units import Unit
from voxelry.io import Image, open_image
from voxelry.io.points.landmark_set import numbered
from voxelry.ops.masks import mask_boxes

__all__ = ["NEEDS", "VolumeDataset", "WorkerError", "on_grid", "one_line_errors"]

NEEDS = ("landmarks", "labels", "masks")

log = logging.getLogger(__name__)


class VolumeDataset(torch.utils.data.Dataset[Sample]):
    """Samples of some cases, in their order, 2-D or 3-D.

    Args:
        cases: from `find_cases`, `split_cases` or `few_shot`.
        preprocess: by default canonical orientation and min-max normalisation, sizes as they are.
        augment: called as `augment(sample, generator)` after the patch is cut (with its margin, if it has one).
        patches: cuts a window from each sample, anew in every epoch.
        cache: where preprocessed samples are kept: a folder (`Cache` or a path), `"memory"`, or None.
        seed: of patches and augmentation. Their random numbers depend on seed, epoch and index alone, so the
            number of workers and the order of access change nothing.
        landmark_names: the points wanted, in this order; what a case doesn't have is absent (NaN). None: the
            names of the first case, which all must have.
        need: what is read beside the image, where a case has it; of `landmarks`, `labels` and `masks`.
        borders: samples carry each voxel's distances to the borders of the preprocessed image.

    Raises:
        SettingError: an unknown word in `need`.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        preprocess: Preprocess | None = None,
        augment: Callable[[Sample, np.random.Generator], Sample] | None = None,
        patches: Patches | None = None,
        cache: Cache | str | PathLike[str] | None = None,
        seed: int = 0,
        landmark_names: Sequence[str] | None = None,
        need: Sequence[str] = NEEDS,
        borders: bool = False,
    ):
        unknown = [word for word in need if word not in NEEDS]
        if unknown:
            raise SettingError(f"need: expected words of {', '.join(NEEDS)}, got {unknown[0]!r}")
        self.cases = list(cases)
        self._options = {path: case.options for case in self.cases for paths in case.files.values() for path in paths}
        self.preprocess = Preprocess() if preprocess is None else preprocess
        if self.reads_own():
            self.preprocess = Preprocess(**{**self.preprocess.settings(), "keep_range": True})
        self.augment = augment
        self.patches = patches
        in_memory = cache == "memory"
        self.cache = cache if isinstance(cache, Cache) or cache is None or in_memory else Cache(cache)
        self.seed = seed
        self.need = tuple(need)
        self.borders = borders
        self._given_names = None if landmark_names is None else tuple(landmark_names)
        self._names = self._given_names
        self._memory: dict[int, Sample] | None = {} if in_memory else None

    @classmethod
    def from_folder(
        cls,
        root: str | PathLike[str],
        *,
        layout: str = "auto",
        need_landmarks: bool = False,
        suffix: str | None = None,
        **settings: Any,
    ) -> Self:
        """All cases under `root` (see `find_cases`), or every file for a class with a `read_volume` of its own."""
        wanted = "" if suffix is None and cls.reads_own() else suffix
        return cls(find_cases(root, layout, need_landmarks=need_landmarks, suffix=wanted), **settings)

    @classmethod
    def reads_own(cls) -> bool:
        """Whether `read_volume` is somebody's own, so that files may have any format."""
        return cls.read_volume is not VolumeDataset.read_volume

    def read_volume(self, path: Path) -> Tensor | Image:
        """The pixels of a file: the method to override.

        Returns:
            `(C, *spatial)`: a tensor (on a grid of 1 mm then) or an `Image`, any real type and range; what is within
            [0, 1] already isn't normalised again.
        """
        return own_image(path, **self._options.get(path, {}))

    def volume(self, path: Path) -> Tensor | Image:
        """What `read_volume` answers.

        Raises:
            FileError: of our reader.
            DataError: whatever goes wrong in somebody's own; one line naming the file.
        """
        try:
            return self.read_volume(path)
        except Exception as error:
            if isinstance(error, VoxelryError) or not self.reads_own():
                raise
            raise DataError(f"{path}: {type(self).__name__}.read_volume: {error or type(error).__name__}") from error

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Sample:
        """Case `index` as `sample` makes it, in the first epoch."""
        return self.sample(index, 0)

    def sample(self, index: int, epoch: int) -> Sample:
        """Case `index`, preprocessed, as a patch and augmented where that is wanted.

        Raises:
            FileError, DataError: the case can't be read or doesn't fit the others; one line naming the file.
                Through a DataLoader with workers it is always a DataError, of that same one line.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)}")
        with one_line_errors():
            return self._drawn(index % len(self), epoch)

    def _drawn(self, index: int, epoch: int) -> Sample:
        sample = self.preprocessed(index)
        if self.borders:
            sample = sample.replace(borders=border_distances(sample.space))
        generator = np.random.default_rng([self.seed, epoch, index])
        patches = self.patches
        if patches is None:
            return self.altered(sample, generator)
        if patches.context:  # of the whole image as it was changed, so it is changed first
            return patches(self.altered(sample, generator), generator)
        return patches.trim(self.altered(patches(sample, generator), generator))

    def altered(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """What becomes of a preprocessed sample, or of a window of it, in one epoch: the augmentation, if any."""
        return sample if self.augment is None else self.augment(sample, generator)

    def units(self) -> list[Unit]:
        """A unit for each case."""
        return [
            Unit(
                name=case.name,
                image=case.image,
                files=tuple(dict.fromkeys(path for paths in self._keyed(case).files.values() for path in paths)),
                numbers=(number,),
                settings={
                    "layout": case.layout,
                    "options": dict(case.options),
                    "point_options": dict(case.point_options),
                    "landmark_names": self._given_names,
                },
            )
            for number, case in enumerate(self.cases)
        ]

    def part(self, numbers: Sequence[int]) -> Self:
        """The same of some cases alone, in that order."""
        found = copy(self)
        found.cases = [self.cases[number] for number in numbers]
        found._memory = None if self._memory is None else {}
        return found

    @property
    def in_memory(self) -> bool:
        """Whether preprocessed samples are kept in memory."""
        return self._memory is not None

    @property
    def landmark_names(self) -> tuple[str, ...]:
        """One name per landmark of every sample; empty without landmarks."""
        if self._names is None:
            first = next((case for case in self.cases if case.landmarks), None)
            known = first is not None and "landmarks" in self.need
            self._names = read_case_landmarks(first, self._space(first))[1] if first and known else ()
        return self._names

    def check(self) -> None:
        """Read every case's points and the headers of its labels, to find at once what would stop the training later.

        Names that are asked for are those that every case has, and no others; without any asked for, some of the
        points have a position in some case.

        Raises:
            FileError, DataError: the first fault; one line naming the file.
        """
        if "landmarks" in self.need:
            self._check_points()
        for case in self.cases:
            maps = {"labels": case.labels, "masks": case.instances}
            paths = [path for need, path in maps.items() if path is not None and need in self.need]
            if paths and self._reads_files:
                reference = Reference.of_file(case.image, case.options)
                for path in paths:
                    open_labels(path, reference)

    def _check_points(self) -> None:
        """Refuse points by their names and where none has a position in any case; tell of other odd positions."""
        known: set[str] = set()
        outside: list[str] = []
        annotated = [case for case in self.cases if case.landmarks]
        for case in annotated:
            space = self._space(case)
            points, names = read_case_landmarks(case, space)
            self._order(names, case, complete=True)
            present = np.isfinite(points).all(axis=1)
            known |= {names[place] for place in np.flatnonzero(present)}
            outside += [str(case.landmarks[0])] * int((present & ~space.contains(points)).sum())
        if outside:
            log.warning(
                "%s: %s outside of the image (voxelry doctor names each)",
                outside[0],
                f"{len(outside)} landmarks of this and other files lie" if outside[1:] else "a landmark lies",
            )
        never = [name for name in self.landmark_names if name not in known]
        if not never or self._given_names is not None:
            return
        if not known:
            file = annotated[0].landmarks[0]
            raise DataError(f"{file}: no landmark has a position, here or in any other case that is learned from")
        log.warning("no case that is learned from has a position of %s: it won't be found", ", ".join(never))

    def spaces(self, most: int | None = None) -> list[Space]:
        """Grids of the first cases after preprocessing, whole; by the headers alone where our own reader reads them."""
        return [self.preprocess.target(self._space(case)) for case in self.cases[:most]]

    def preprocessed(self, index: int) -> Sample:
        """Case `index` on its target grid, from the cache if there is one; do not change its tensors."""
        if self._memory is not None:
            if index not in self._memory:
                self._memory[index] = self._named(self._made(self.cases[index]), self.cases[index])
            return self._memory[index]
        case = self.cases[index]
        if isinstance(self.cache, Cache):
            sample = self.cache.fetch(self._keyed(case), self._cache_settings(), lambda: self._made(case))
            return self._named(sample, case)
        return self._named(self._made(case), case)

    def on_own_grid(self, index: int) -> Sample:
        """Case `index` on the voxels of its file, with the intensities that `preprocess` makes of it.

        Raises:
            FileError, DataError: see `read`.
        """
        case = self.cases[index]
        return self._named(self.preprocess.on_own_grid()(self.read(case)), case)

    def read(self, case: Case) -> Sample:
        """A case as it is in its files: no preprocessing, the points as they are named there.

        Raises:
            FileError, DataError: unreadable, or its files don't fit together.
        """
        volume = self.volume(case.image)
        image, space = on_grid(volume, case.image)
        if not torch.isfinite(image).any():
            raise DataError(f"{case.image}: {image.numel()} of {image.numel()} voxels are NaN or infinite")
        reference = self._reference(case, space, placed=isinstance(volume, Image))
        landmarks: Tensor | None = None
        names: tuple[str, ...] = ()
        if "landmarks" in self.need and case.landmarks:
            points, names = read_case_landmarks(case, space)
            landmarks = torch.from_numpy(points.astype(np.float32))
        labels = None
        if "labels" in self.need and case.labels is not None:
            file = open_labels(case.labels, reference)
            labels = torch.from_numpy(class_numbers(file.read(), case.labels))
        masks = boxes = classes = ids = None
        if "masks" in self.need and case.instances is not None:
            masks, boxes, ids = _instances(open_labels(case.instances, reference).read())
            classes = None if labels is None else _instance_classes(masks, labels, len(boxes))
        return Sample(
            image=image,
            space=space,
            name=case.name,
            source=str(case.image),
            landmarks=landmarks,
            landmark_names=names,
            labels=labels,
            boxes=boxes,
            masks=masks,
            classes=classes,
            ids=ids,
            despeckled=isinstance(volume, Image) and volume.despeckled,
        )

    def _reference(self, case: Case, space: Space, *, placed: bool) -> Reference:
        """What a case's labels must lie on; `placed` says whether a reader of one's own gave a place in the world."""
        if self._reads_files:
            return Reference.of_file(case.image, case.options)
        return Reference(case.image, space, placed)

    def _made(self, case: Case) -> Sample:
        return self.preprocess(self.read(case))

    def _keyed(self, case: Case) -> Case:
        """The case without the files that aren't read."""
        return replace(
            case,
            landmarks=case.landmarks if "landmarks" in self.need else (),
            labels=case.labels if "labels" in self.need else None,
            instances=case.instances if "masks" in self.need else None,
        )

    def _cache_settings(self) -> dict[str, Any]:
        return {"preprocess": self.preprocess.settings(), "reader": self._reader()}

    def _reader(self) -> str:
        method = type(self).read_volume
        if self._reads_files:
            return "voxelry 2"
        try:
            return f"{method.__qualname__}\n{inspect.getsource(method)}"
        except OSError:  # typed into an interpreter
            return f"{method.__module__}.{method.__qualname__}"

    @property
    def _reads_files(self) -> bool:
        """Whether `read_volume` is ours, and so has a header to look at."""
        return not self.reads_own()

    def _space(self, case: Case) -> Space:
        """The grid of a case: by its header alone where our own reader reads it."""
        if self._reads_files:
            return open_image(case.image, **case.options).space
        return on_grid(self.volume(case.image), case.image)[1]

    def _named(self, sample: Sample, case: Case) -> Sample:
        """The sample with its landmarks in the order of the dataset."""
        if sample.landmarks is None:
            return sample
        order = self._order(sample.landmark_names, case)
        if order == list(range(len(sample.landmarks))):
            return sample.replace(landmark_names=self.landmark_names)
        absent = torch.full((1, sample.ndim), torch.nan)
        return sample.replace(
            landmarks=torch.cat([sample.landmarks, absent])[order], landmark_names=self.landmark_names
        )

    def _order(self, names: tuple[str, ...], case: Case, *, complete: bool = False) -> list[int]:
        """For each landmark of the dataset its place among the `names` of a case, -1 for an absent one.

        Points without names of their own are told apart by their order, so their number must be right.

        Args:
            complete: a case has all names that are asked for, and no others.
        """
        wanted = self.landmark_names
        file = case.landmarks[0] if case.landmarks else case.image
        if names == wanted:
            return list(range(len(names)))
        overlap = set(names) & set(wanted)
        if self._given_names is not None:
            unnamed = names == numbered(len(wanted)) or (len(names), wanted) == (len(wanted), numbered(len(wanted)))
            if complete and set(names) != set(wanted):
                raise DataError(f"{file}: landmarks {', '.join(names)}; expected {', '.join(wanted)}")
            if not overlap and unnamed:
                return list(range(len(names)))
            if not overlap:
                raise DataError(f"{file}: {len(names)} landmarks, none of the {len(wanted)} asked for")
        else:
            first = next(one for one in self.cases if one.landmarks)
            if len(names) != len(wanted):
                raise DataError(f"{file}: {len(names)} landmarks, but {first.landmarks[0]} has {len(wanted)}")
            if len(overlap) != len(wanted):
                other = sorted(set(names) - overlap)
                raise DataError(f"{file}: landmark {(other or names)[0]!r} is not in {first.landmarks[0]}")
        places = {name: place for place, name in enumerate(names)}
        return [places.get(name, -1) for name in wanted]


class WorkerError(DataError):
    """What a worker raises: `DataLoader` builds it anew in the main process from the text of a traceback."""

    def __init__(self, message: str):
        last = message.rstrip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{__name__}.{type(self).__qualname__}: "))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """In a worker of a DataLoader, errors of ours become `WorkerError`; elsewhere they stay what they are."""
    try:
        yield
    except VoxelryError as error:
        if torch.utils.data.get_worker_info() is None:
            raise
        raise WorkerError(str(error)) from None


def on_grid(volume: Tensor | NDArray[Any] | Image, path: Path) -> tuple[Tensor, Space]:
    """What `read_volume` gave for a file as float32 `(C, *spatial)`, and its grid.

    Raises:
        DataError: it is no image; names `path`.
    """
    space = volume.space if isinstance(volume, Image) else None
    array = volume.array if isinstance(volume, Image) else volume
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore"):  # beyond float32: infinite, which normalisation deals with
            array = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not isinstance(array, Tensor) or array.ndim not in (3, 4) or 0 in array.shape:
        got = f"shape {tuple(array.shape)}" if hasattr(array, "shape") else type(array).__name__
        raise DataError(f"{path}: read_volume gave {got}; expected a tensor (C, D, H, W) or (C, H, W)")
    if space is None:
        space = Space.from_spacing(array.shape[1:])
    elif space.shape != tuple(array.shape[1:]):
        raise DataError(f"{path}: read_volume gave shape {tuple(array.shape)} on a grid of {space.shape}")
    return array.to(torch.float32), space


def _instances(ids: NDArray[np.integer]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Ids renumbered 1, 2, ..., the box around each, from outer edge to outer edge of its voxels, and the ids."""
    known, places = np.unique(ids, return_inverse=True)
    without_background = int(known[0] != 0)  # the first id is to be 1 then, too
    masks = torch.from_numpy(places.reshape(ids.shape) + without_background)
    names = tuple(known[1 - without_background :].tolist())
    return masks, mask_boxes(masks, len(names)), names


def _instance_classes(masks: Tensor, labels: Tensor, count: int) -> Tensor:
    """The label that most voxels of each instance have, `(count,)`; 0 where all of them are background."""
    inside = masks > 0
    pairs = torch.stack([masks[inside] - 1, labels[inside]])
    classes = int(pairs[1].max()) + 1 if pairs.shape[1] else 1
    votes = torch.bincount(pairs[0] * classes + pairs[1], minlength=count * classes).reshape(count, classes)
    votes[:, 0] = 0
    return votes.argmax(dim=1)

"""Pairs of images as a torch dataset: conditions as the channels of `image`, what they are to become as `target`.

    dataset = PairDataset(find_pairs("datasets/brain", target="t2"), preprocess=Preprocess(normalise="percentile"))
    sample = dataset[0]                    # sample.image (C, D, H, W), sample.target (1, D, H, W)

Everything else is as `VolumeDataset` has it: a reader of one's own, the cache, patches, augmentation, workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset, on_grid
from voxelry.data.label_grid import Reference, difference, fit
from voxelry.data.layouts.case import Case, PairCase
from voxelry.data.preprocess import move
from voxelry.data.preprocess.normalise import check_values
from voxelry.data.sample import Sample
from voxelry.data.target_grid import TargetGrid
from voxelry.io import Image, open_image

__all__ = ["PairDataset", "grid_fault"]


class PairDataset(VolumeDataset):
    """Samples of pairs, in their order, 2-D or 3-D.

    Args:
        cases: from `find_pairs`.
        resample: whether images on other grids than their target are brought onto it; otherwise they are an error.
        settings: as for `VolumeDataset`; `Preprocess(intensity=...)` decides about the target's range.

    A condition that a case doesn't have is zeros in `image`, and False in `present`.

    Raises:
        DataError, FileError: when a case is read whose images lie on different grids, aren't finite or are constant;
            one line naming the file.
    """

    cases: list[PairCase]  # type: ignore[assignment]  # the only ones that fit

    def __init__(self, cases: Sequence[PairCase], *, resample: bool = False, **settings: Any):
        super().__init__(cases, **settings)
        self.resample = resample
        self._widths: dict[int, int] = {}

    def read(self, case: Case) -> Sample:
        """A case as it is in its files, on the grid of its target."""
        assert isinstance(case, PairCase)
        sample = super().read(case)
        check_values(sample.image, case.image)
        images = [
            torch.zeros(self._width(place), *sample.space.shape)
            if path is None
            else self._condition(path, sample, case)
            for place, path in enumerate(case.images)
        ]
        there = [torch.full((len(image),), path is not None) for image, path in zip(images, case.images, strict=True)]
        return sample.replace(
            image=torch.cat(images),
            present=torch.cat(there),
            target=None if case.target is None else sample.image,
        )

    def check(self) -> None:
        """Read every header, to find at once what would stop the training later.

        Raises:
            FileError, DataError: the first fault; one line naming the file.
        """
        super().check()
        if not self._reads_files:
            return
        self._check_channels()
        if self.resample:
            return
        for case in self.cases:
            for path in filter(None, case.images):
                fault = grid_fault(path, case)
                if fault is not None:
                    raise DataError(f"{path}: {fault}")

    def _check_channels(self) -> None:
        """Refuse a contrast that is grey in one case and coloured in another."""
        firsts: dict[str, tuple[Path, int]] = {}
        for case in self.cases:
            named = dict(zip(case.contrasts, case.images, strict=True)) | {"the target": case.target}
            for contrast, path in named.items():
                if path is None:
                    continue
                channels = open_image(path, **case.options).channels
                first, expected = firsts.setdefault(contrast, (path, channels))
                if channels != expected:
                    raise DataError(
                        f"{path}: {channels} channels, but {first} has {expected}; expected one number for all cases "
                        "(data.options={channel: 0} reads the first one alone)"
                    )

    def target_grid(self) -> TargetGrid | None:
        """How much finer targets are than their conditions, by the headers; None where they are equally fine."""
        grids = []
        for case in self.cases:
            path = next(filter(None, case.images), None)
            if path is not None and case.target is not None:
                target, given = (self._grid(one, case) for one in (case.target, path))
                oriented = self._oriented(path, case)
                grids.append((given if oriented else target.resize(given.shape), target))
        return TargetGrid.between(grids) if grids else None

    def _grid(self, path: Path, case: PairCase) -> Space:
        if self._reads_files:
            return open_image(path, **case.options).space
        return on_grid(self.volume(path), path)[1]

    def _oriented(self, path: Path, case: PairCase) -> bool:
        """Whether a file and its case's say where they lie; else they are taken to show the same."""
        if not self._reads_files:
            return all(isinstance(self.volume(one), Image) for one in (path, case.image))
        return all(open_image(one, **case.options).has_orientation for one in (path, case.image))

    def _condition(self, path: Path, sample: Sample, case: PairCase) -> Tensor:
        """The pixels of a file on the grid of `sample`, which `case.image` has."""
        if path == case.image:
            return sample.image
        volume = self.volume(path)
        image, space = on_grid(volume, path)
        check_values(image, path)
        placed = isinstance(volume, Image)
        target = self._reference(case, sample.space, placed=placed)
        own = Reference.of_file(path, case.options) if self._reads_files else Reference(path, space, placed)
        placement = fit(own.space, own.oriented, target)
        if placement is not None and placement.is_whole:
            return torch.from_numpy(placement.turn(image.numpy()))
        if not self.resample or space.ndim != sample.ndim:
            raise DataError(f"{path}: {other_grid(own.space, target)}")
        if not (own.oriented and target.oriented):  # the same field of view is all that can be meant
            space = sample.space.resize(space.shape)
        return move(Sample(image, space, case.name), sample.space).image

    def _width(self, place: int) -> int:
        """Channels of a condition, by the first case that has it."""
        if place not in self._widths:
            path = next((path for case in self.cases if (path := case.images[place]) is not None), None)
            self._widths[place] = 1 if path is None else len(on_grid(self.volume(path), path)[0])
        return self._widths[place]

    def _cache_settings(self) -> dict[str, Any]:
        return {**super()._cache_settings(), "resample": self.resample}


def grid_fault(path: Path, case: PairCase) -> str | None:
    """What is wrong with the grid of a file beside its case's, by their headers; None where they are the same voxels.

    A file without orientation, beside one that has it, is taken to lie where the other does; one that is stored
    along other axes is turned.

    Raises:
        FileError: one of them can't be read.
    """
    file, image = (Reference.of_file(one, case.options) for one in (path, case.image))
    placement = fit(file.space, file.oriented, image)
    return None if placement is not None and placement.is_whole else other_grid(file.space, image)


def other_grid(grid: Space, image: Reference) -> str:
    """What is said of an image on another grid than its target's."""
    return f"{difference(grid, image)}; expected one grid (or data.pairs.resample=true, which brings it onto that)"

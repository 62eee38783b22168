"""Batches of the training cases, in an order that depends on the seed alone.

Training counts steps, not passes, so its loader never ends: place `i` of the order belongs to pass
`i // len(dataset)`, and each pass is shuffled anew from (seed, pass). Knowing how many batches were
taken is therefore enough to go on exactly where a run stopped, with any number of workers. Where passes
are closed (`engine.pace`), the same order is cut so that no batch holds cases of two passes.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from voxelry.data.collate import collate
from voxelry.data.parts import SampleSource
from voxelry.data.sample import Sample

__all__ = ["ClosedPasses", "EndlessOrder", "Loading", "evaluation_loader", "pass_loader", "training_loader"]


class EndlessOrder(Sampler[int]):
    """Shuffled passes over `size` samples, one after the other, for ever.

    Args:
        size: samples in a pass.
        seed: the order's seed.
        start: places already taken by all processes together.
        rank, world_size: this process takes places `start + rank`, `start + rank + world_size`, ...

    Yields:
        `pass * size + index`, so that the dataset knows the pass as well.
    """

    def __init__(self, size: int, *, seed: int, start: int = 0, rank: int = 0, world_size: int = 1):
        self.size, self.seed, self.start = size, seed, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[int]:
        place = self.start + self.rank
        current, order = -1, np.empty(0, dtype=int)
        while True:
            number, position = divmod(place, self.size)
            if number != current:
                current, order = number, _shuffled(self.size, self.seed, number)
            yield number * self.size + int(order[position])
            place += self.world_size


class ClosedPasses(Sampler[list[int]]):
    """The batches of one pass after the other, of `EndlessOrder`'s numbers; the last one of a pass may be smaller.

    Args:
        size: samples in a pass.
        batch_size: samples in a batch of this process.
        seed: the order's seed.
        taken: batches that this process has taken so far, over all passes.
        rank, world_size: each process takes every `world_size`-th sample from its rank on; of a pass that doesn't
            come out even, the first ones are taken twice.

    Yields:
        What is left of the pass that is under way, in lists.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        batches_taken: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ):
        self.size, self.batch_size, self.seed, self.batches_taken = size, batch_size, seed, batches_taken
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.size / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        number, done = divmod(self.batches_taken(), len(self))
        order = _shuffled(self.size, self.seed, number)
        even = np.resize(order, math.ceil(self.size / self.world_size) * self.world_size)
        own = (number * self.size + even[self.rank :: self.world_size]).tolist()
        for start in range(done * self.batch_size, len(own), self.batch_size):
            yield own[start : start + self.batch_size]


def _shuffled(size: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(size)


class _Passes(Dataset[Sample]):
    """A dataset seen through `EndlessOrder`'s numbers."""

    def __init__(self, dataset: SampleSource):
        self.dataset = dataset

    def __getitem__(self, place: int) -> Sample:
        number, index = divmod(place, len(self.dataset))
        return self.dataset.sample(index, epoch=number)


@dataclass(frozen=True)
class Loading:
    """How a process loads its samples.

    Attributes:
        batch_size: samples in a batch of this process.
        num_workers: processes that read; None takes what suits the machine: none without a GPU, else up to eight.
        pin_memory: whether batches go to pinned memory where there is a GPU.
        rank, world_size: of several processes that share the samples, which one this is.
    """

    batch_size: int = 1
    num_workers: int | None = None
    pin_memory: bool = False
    rank: int = 0
    world_size: int = 1


def training_loader(
    dataset: SampleSource,
    loading: Loading,
    *,
    seed: int,
    batches_taken: Callable[[], int] = int,
    closed: bool = False,
) -> DataLoader[Any]:
    """A loader that starts after `batches_taken()` batches of this process, endless or of single passes.

    Args:
        closed: end with the pass that is under way, see `ClosedPasses`.
    """
    common: dict[str, Any] = {"seed": seed, "rank": loading.rank, "world_size": loading.world_size}
    if closed:
        passes = ClosedPasses(len(dataset), batch_size=loading.batch_size, batches_taken=batches_taken, **common)
        return _loader(dataset, _Passes(dataset), loading, batch_sampler=passes)
    start = batches_taken() * loading.batch_size * loading.world_size
    order = EndlessOrder(len(dataset), start=start, **common)
    return _loader(dataset, _Passes(dataset), loading, batch_size=loading.batch_size, sampler=order)


def pass_loader(dataset: SampleSource, loading: Loading, *, seed: int = 0) -> DataLoader[Any]:
    """One pass over the training samples each time it is gone through, every pass shuffled and augmented anew."""
    passes = itertools.count()
    batches = math.ceil(math.ceil(len(dataset) / loading.world_size) / loading.batch_size)
    return training_loader(dataset, loading, seed=seed, batches_taken=lambda: next(passes) * batches, closed=True)


def evaluation_loader(
    dataset: SampleSource, loading: Loading = Loading(), sampler: Iterable[int] | None = None
) -> DataLoader[Any]:
    """Every sample once, in order; of several processes, each gets every `world_size`-th sample from its rank on.

    A process for which none is left gets another one's sample, since all of them have to go through
    an evaluation together.

    Args:
        sampler: places of this process's samples, in place of those.
    """
    count, rank = len(dataset), loading.rank
    places = range(rank, count, loading.world_size) or ([rank % count] if count else [])
    samples = cast("Dataset[Sample]", dataset)
    return _loader(dataset, samples, loading, batch_size=loading.batch_size, sampler=sampler or places)


def _loader(dataset: SampleSource, samples: Dataset[Sample], loading: Loading, **sampling: Any) -> DataLoader[Any]:
    count = loading.num_workers
    if count is None:
        count = min(8, (os.cpu_count() or 1) - 1) if torch.cuda.is_available() else 0
    return DataLoader(
        samples,
        collate_fn=getattr(dataset, "collate", collate),
        num_workers=count,
        multiprocessing_context=getattr(dataset, "start_method", None) if count else None,
        persistent_workers=count > 0,
        pin_memory=loading.pin_memory and torch.cuda.is_available(),
        **sampling,
    )

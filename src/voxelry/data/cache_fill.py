"""The cache of a dataset filled before a training, by several processes."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import DataLoader, Dataset

from voxelry.core.errors import SettingError, VoxelryError
from voxelry.data.cache import ABANDONED, Cache
from voxelry.data.dataset import VolumeDataset

__all__ = ["fill_cache"]


def fill_cache(dataset: VolumeDataset, *, workers: int = 0, progress: Callable[[int, int], None] | None = None) -> int:
    """Make every entry of a dataset's cache that isn't there yet.

    Args:
        dataset: one with a `cache` on disk.
        workers: processes to share the work; 0 does it in this one.
        progress: called as `progress(done, total)` after each case.

    Returns:
        Number of cases, all of which now have an entry.

    Raises:
        SettingError: the dataset has no cache on disk.
        VoxelryError: the first case that can't be made, in one line; entries made before it stay.
    """
    cache = dataset.cache
    if not isinstance(cache, Cache):
        raise SettingError("cache: expected a folder to build in, as the dataset has none")
    cache.sweep(ABANDONED)
    # One thread a worker, so that processes don't fight for cores; only error or None travels back.
    loader = DataLoader(_Builder(dataset), batch_size=None, num_workers=workers)
    for done, error in enumerate(loader, 1):
        if error is not None:
            raise error
        if progress is not None:
            progress(done, len(dataset))
    return len(dataset)


class _Builder(Dataset[VoxelryError | None]):
    def __init__(self, dataset: VolumeDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> VoxelryError | None:
        if index >= len(self):
            raise IndexError(index)
        try:
            self.dataset.preprocessed(index)
        except VoxelryError as error:
            return error
        return None

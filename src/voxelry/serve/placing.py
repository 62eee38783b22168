"""Labels of another grid, put onto that of an image by the nearest voxel."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from voxelry.core.space import Space
from voxelry.data.preprocess.frame import index_map
from voxelry.ops.resample import resample

__all__ = ["nearest_labels"]


def nearest_labels(labels: NDArray[np.int64], space: Space, target: Space) -> NDArray[np.int64] | None:
    """For each voxel of `target` the label of the nearest of `space`, 0 outside of it; None where all are outside.

    Args:
        labels: `(*space.shape)`, from 0.
        space, target: of rank 3.
    """
    found = resample(torch.from_numpy(labels)[None], *index_map(space, target), target.shape, order=0, fill=-1)[0]
    placed: NDArray[np.int64] = found.numpy()
    return None if (placed < 0).all() else np.maximum(placed, 0)

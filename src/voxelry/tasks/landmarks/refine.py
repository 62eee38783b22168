"""From coarse to fine: a first pass on a smaller image, a second on crops around its points.

The same network sees both scales. A first pass over an image that is averaged down by `coarse` costs
`coarse ** ndim` times less memory; the crops have the full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.data.sample import Batch
from voxelry.ops.tiles import cut

__all__ = ["coarsen", "crop_batch", "crop_starts", "to_coarse", "to_fine"]


def coarsen(batch: Batch, factor: Sequence[int]) -> Batch:
    """The batch with its image averaged over blocks of `factor` voxels, and points and spaces to match.

    A size that is no multiple is filled up with its border value.
    """
    shape = batch.image.shape[2:]
    missing = [-size % step for size, step in zip(shape, factor, strict=True)]
    padding = [amount for extra in reversed(missing) for amount in (0, extra)]
    image = F.pad(batch.image, padding, mode="replicate") if any(missing) else batch.image
    for axis, step in enumerate(factor):
        image = image.unflatten(axis + 2, (image.shape[axis + 2] // step, step)).mean(dim=axis + 3)
    start = (np.asarray(factor, dtype=np.float64) - 1) / 2
    matrix = np.diag(np.asarray(factor, dtype=np.float64))
    return replace(
        batch,
        image=image,
        spaces=[space.remap(matrix, start, image.shape[2:]) for space in batch.spaces],
        landmarks=None if batch.landmarks is None else to_coarse(batch.landmarks, factor),
        labels=None,
        masks=None,
        boxes=None,
    )


def to_coarse(points: Tensor, factor: Sequence[int]) -> Tensor:
    """Index coordinates `(..., ndim)` on the full grid to those on the coarse one."""
    step = torch.tensor(list(factor), dtype=points.dtype, device=points.device)
    return (points - (step - 1) / 2) / step


def to_fine(points: Tensor, factor: Sequence[int]) -> Tensor:
    """Index coordinates `(..., ndim)` on the coarse grid to those on the full one."""
    step = torch.tensor(list(factor), dtype=points.dtype, device=points.device)
    return points * step + (step - 1) / 2


def crop_starts(centres: Tensor, shape: Sequence[int], size: Sequence[int]) -> Tensor:
    """First voxel of a window of `size` around each centre, moved to lie inside `shape`; int64 `(..., ndim)`.

    A NaN centre gives the middle of the image.
    """
    room = torch.tensor(
        [max(0, have - want) for have, want in zip(shape, size, strict=True)],
        device=centres.device,
        dtype=centres.dtype,
    )
    half = (torch.tensor(list(size), device=centres.device, dtype=centres.dtype) - 1) / 2
    starts = torch.where(centres.isfinite(), (centres - half).round(), (room / 2).floor())
    return torch.minimum(starts.clamp(min=0), room).long()


def crop_batch(batch: Batch, samples: Sequence[int], starts: Tensor, size: Sequence[int]) -> Batch:
    """Windows of some samples as a batch of their own.

    Args:
        samples: index into the batch for each window.
        starts: `(windows, ndim)` first voxels, inside the image.
        size: voxels per axis; an axis that is shorter is taken whole.
    """
    size = [min(want, have) for want, have in zip(size, batch.image.shape[2:], strict=True)]
    corners = starts.tolist()
    images = [
        cut(batch.image[sample], [slice(low, low + length) for low, length in zip(corner, size, strict=True)])
        for sample, corner in zip(samples, corners, strict=True)
    ]
    landmarks = None
    if batch.landmarks is not None:
        landmarks = batch.landmarks[list(samples)] - starts[:, None].to(batch.landmarks)
    return Batch(
        image=torch.stack(images),
        spaces=[batch.spaces[sample].crop(corner, size) for sample, corner in zip(samples, corners, strict=True)],
        names=[batch.names[sample] for sample in samples],
        sources=[batch.sources[sample] for sample in samples] if batch.sources else [],
        landmarks=landmarks,
        landmark_names=batch.landmark_names,
    )

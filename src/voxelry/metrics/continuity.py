"""Whether an image is continuous: from slice to slice, and across the borders of tiles.

Images are `(B, C, *spatial)`. A network that sees slices or tiles one by one can be right in each of them and still
flicker along an axis, which no mean over voxels shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.metrics.images import checked_pair

__all__ = ["gradient_error", "seam_ratio"]


def gradient_error(image: Tensor, reference: Tensor, *, spacing: float | Sequence[float] = 1.0) -> Tensor:
    """Mean absolute error of the steps between neighbouring slices, along each axis, `(B, ndim)`, per mm.

    A flat error counts nothing here, one that changes from slice to slice counts in full. NaN along an axis of one
    voxel.

    Args:
        image, reference: `(B, C, *spatial)`.
        spacing: mm, one number or one per axis in array order.
    """
    image, reference = checked_pair(image, reference)
    steps = per_axis(spacing, image.ndim - 2, "spacing")
    error = image - reference
    axes = [error.diff(dim=axis).abs().flatten(1).mean(dim=1) / step for axis, step in enumerate(steps, start=2)]
    return torch.stack(axes, dim=1)


def seam_ratio(image: Tensor, borders: Sequence[Sequence[int]], *, reference: Tensor | None = None) -> float:
    """Mean absolute step across the borders of tiles over that at all other places; 1 without seams.

    Args:
        image: `(B, C, *spatial)`, made of tiles.
        borders: for each axis the indices that a tile begins or the one before it has ended at, so that a seam would
            be between `index - 1` and `index`.
        reference: the same content without tiles; its own ratio is divided out, since the content may be steeper
            where the borders are. It has to have some gradient there.

    Returns:
        The ratio over all axes together; 1 where the image is flat everywhere.

    Raises:
        SettingError: no border inside the image, or indices outside of it.
    """
    ratio = _border_ratio(image, borders)
    return ratio if reference is None else ratio / _border_ratio(reference, borders)


def _border_ratio(image: Tensor, borders: Sequence[Sequence[int]]) -> float:
    ndim = image.ndim - 2
    if len(borders) != ndim:
        raise SettingError(f"borders: expected a list of indices for each of {ndim} axes, got {len(borders)}")
    across, elsewhere = [], []
    for axis, places in enumerate(borders, start=2):
        size = image.shape[axis]
        if any(not 0 < place < size for place in places):
            raise SettingError(f"borders: expected indices from 1 to {size - 1}, got {list(places)}")
        steps = image.double().diff(dim=axis).abs().movedim(axis, 0).flatten(1)
        at_border = torch.zeros(size - 1, dtype=torch.bool)
        at_border[[place - 1 for place in places]] = True
        across.append(steps[at_border].flatten())
        elsewhere.append(steps[~at_border].flatten())
    at, away = torch.cat(across), torch.cat(elsewhere)
    if not len(at) or not len(away):
        raise SettingError("borders: expected some borders inside the image, and voxels between them")
    if not bool(at.any()) and not bool(away.any()):
        return 1.0
    return float(at.mean() / away.mean())

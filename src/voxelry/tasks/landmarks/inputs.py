"""What the network sees of an image: its values in their range and, where it was trained so, where the image ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelry.data.context import border_distances, swapped_borders
from voxelry.data.sample import Batch

__all__ = ["mirrored", "network_input"]


def network_input(batch: Batch, value_range: tuple[float, float], borders: float | None) -> Tensor:
    """Images mapped from [0, 1] to `value_range`, then distances to their borders, `(B, C [+ 2 * ndim], *spatial)`.

    Args:
        borders: mm that become 1; None for images alone. A batch that doesn't carry distances is of whole images.
    """
    low, high = value_range
    image = batch.image * (high - low) + low
    if borders is None:
        return image
    distances = batch.borders
    if distances is None:
        distances = torch.stack([border_distances(space) for space in batch.spaces]).to(image)
    return torch.cat([image, distances / borders], dim=1)


def mirrored(image: Tensor, axes: Sequence[int], borders: float | None) -> Tensor:
    """The network's input of a mirrored image, from that of the image: low borders for high ones."""
    image = image.flip([axis + 2 for axis in axes])
    if borders is None:
        return image
    ndim = image.ndim - 2
    values = image.shape[1] - 2 * ndim
    return image[:, [*range(values), *(values + place for place in swapped_borders(ndim, axes))]]

"""What the network is to answer, in its own units, and the mean shape that it starts from.

Distances are in edges of the frame inside the network and in mm outside of it. An organ's size is told by its volume:
`log_edge` is a third of the logarithm of its volume over the mean shape's, both in their frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import DataError
from voxelry.data.slices.case import SliceBatch
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.sources import SliceSource
from voxelry.models.shape.prior import MeanShape

__all__ = ["Targets", "make_targets", "mean_shape", "occupancy", "organ_shapes"]

_SOFT = 0.015  # width of the edge of an occupancy, in edges of the frame


@dataclass
class Targets:
    """The truth of a batch.

    Attributes:
        sdf: `(B, 1, n, n, n)` mm, clipped to the network's truncation.
        limit: `(B, 1, 1, 1, 1)` mm, that truncation.
        edge: `(B, 1, 1, 1, 1)` mm.
        offset: `(B, 3)`, the centroid in the frame.
        log_edge: `(B,)`, see above.
        mask: `(B, S, H, W)` in {0, 1}.
        pixels: `(B, S, H, W)` bool, where the mask is known.
    """

    sdf: Tensor
    limit: Tensor
    edge: Tensor
    offset: Tensor
    log_edge: Tensor
    mask: Tensor
    pixels: Tensor


def make_targets(batch: SliceBatch, prior: MeanShape, label: Tensor, truncation: float) -> Targets:
    """The truth of a batch for a network.

    Args:
        batch: with distances.
        prior: the network's mean shapes.
        label: `(B,)`, classes of the network.
        truncation: of the network, in edges.

    Raises:
        DataError: the batch has no truth.
    """
    if batch.sdf is None or batch.centroid is None:
        raise DataError(f"{batch.sources[0] or batch.names[0]}: no true shape to learn from")
    edge = batch.edge.view(-1, 1, 1, 1, 1)
    limit = truncation * edge
    sdf = torch.minimum(torch.maximum(batch.sdf, -limit), limit)
    share = occupancy(sdf / edge).mean(dim=(1, 2, 3, 4))
    usual = occupancy(prior.distances).mean(dim=(1, 2, 3, 4)).to(share)[label]
    return Targets(
        sdf=sdf,
        limit=limit,
        edge=edge,
        offset=((batch.centroid - batch.centre) / batch.edge).clamp(-0.5, 0.5),
        log_edge=(share.clamp(min=1e-6) / usual).log() / 3,
        mask=batch.mask_target,
        pixels=batch.has_target[:, :, None, None] & batch.slice_valid[:, :, None, None] & (batch.validity > 0),
    )


def occupancy(sdf: Tensor) -> Tensor:
    """How much of each cell is inside, `(B, 1, n, n, n)` edges to [0, 1]; smooth at the surface."""
    return torch.sigmoid(-sdf / _SOFT)


def organ_shapes(source: SliceSource, organ: tuple[int, ...], truncation: float) -> list[OrganShape]:
    """The true shape of every case that has the organ."""
    present = [case for case in range(len(source.names)) if source.has(case, organ)]
    return [source.shape(case, organ, truncation) for case in present]


def mean_shape(shapes: Iterable[OrganShape], edge: float, n: int, truncation: float) -> Tensor:
    """Mean signed distance of shapes with their centroids at one place and their volumes made equal.

    The mean of distances encloses too little, as thin parts that don't lie on each other vanish; it is shifted to
    that level at which it encloses the (geometric) mean volume.

    Args:
        shapes: at least one.
        edge: mm of the frame, the organ's usual one.
        n: cells per axis.
        truncation: mm.

    Returns:
        `(n, n, n)` in edges.

    Raises:
        DataError: no shape.
    """
    known = list(shapes)
    if not known:
        raise DataError("shapes: expected at least one to take the mean of")
    sizes = np.array([np.cbrt(max(shape.volume_ml, np.finfo(np.float64).tiny)) for shape in known])
    total = np.zeros((n,) * 3)
    for shape, size in zip(known, sizes / np.exp(np.log(sizes).mean()), strict=True):
        own = edge * float(size)
        limit = min(truncation, shape.truncation)
        total += shape.canonical(shape.centroid, own, n, limit) / own
    mean = total / len(known)
    share = np.exp(3 * np.log(sizes).mean()) * 1000 / edge**3  # of the frame's cells
    return torch.from_numpy((mean - np.quantile(mean, share)).astype(np.float32))


def class_of(labels: Tensor, organs: Sequence[Sequence[int]]) -> Tensor:
    """The network's class for each label value, `(B,) -> (B,)`.

    Raises:
        DataError: a label of no organ.
    """
    first = {int(organ[0]): place for place, organ in enumerate(organs)}
    unknown = [value for value in labels.tolist() if value not in first]
    if unknown:
        raise DataError(f"label {unknown[0]}: expected one of {', '.join(map(str, first))}, the model's organs")
    return torch.tensor([first[value] for value in labels.tolist()], device=labels.device)

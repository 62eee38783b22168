"""Group normalisation as one factor and offset per channel of each sample, and the way back through it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from voxelry.nn.lean import rows

__all__ = ["Fold", "fold_norm", "norm_gradients"]


class Fold(NamedTuple):
    """A group normalisation of B samples of C channels in G groups."""

    factor: Tensor  # (B, C), in the dtype of the feature map
    offset: Tensor  # (B, C), likewise
    centre: Tensor  # (B, G) float64, the mean of each group
    rstd: Tensor  # (B, G) float64, 1 / deviation


def fold_norm(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> Fold:
    """Group normalisation of `x` `(B, C, *S)` as one factor and offset per channel."""
    mean, variance = rows.sums(x)
    grouped = mean.unflatten(1, (groups, -1))
    centre = grouped.mean(dim=2)
    spread = variance.unflatten(1, (groups, -1)).mean(dim=2) + grouped.var(dim=2, correction=0)
    rstd = (spread + eps).rsqrt()
    size = gamma.numel() // groups
    factor = rstd.repeat_interleave(size, dim=1) * gamma.double()
    offset = beta.double() - centre.repeat_interleave(size, dim=1) * factor
    return Fold(factor.to(x.dtype), offset.to(x.dtype), centre, rstd)


def norm_gradients(
    plain: Tensor, weighted: Tensor, voxels: int, gamma: Tensor, centre: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chain rule through `fold_norm`, from the sums `(B, C)` of the gradient and of the gradient times `x`.

    Returns:
        slope and offset `(B, C)` of what the statistics add to the gradient of `x`; gradients of gamma and beta.
    """
    groups = rstd.shape[1]
    size = gamma.numel() // groups
    mean_c, rstd_c = (value.repeat_interleave(size, dim=1) for value in (centre, rstd))
    normal = (weighted - plain * mean_c) * rstd_c  # sum of gradient times normalised value
    through = gamma.double()
    count = voxels * size
    along = (normal * through).unflatten(1, (groups, size)).sum(dim=2) / count
    across = (plain * through).unflatten(1, (groups, size)).sum(dim=2) / count
    slope = -(rstd.square() * along)
    offset = -(rstd * across) - slope * centre
    slope, offset = (value.repeat_interleave(size, dim=1).to(gamma.dtype) for value in (slope, offset))
    return slope, offset, normal.sum(dim=0).to(gamma.dtype), plain.sum(dim=0).to(gamma.dtype)

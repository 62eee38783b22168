"""Group normalisation as one factor and offset per channel of each sample, and the way back through it."""

from __future__ import annotations

import torch
from torch import Tensor

from voxelry.nn.lean import rows

__all__ = ["fold_norm", "norm_gradients"]


def fold_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Group normalisation and the scale and shift after it as one factor and offset per channel.

    Returns:
        factor `(B, C)`, offset `(B, C)` in the dtype of `x`; mean and 1/deviation per group `(B, G)` in float64.
    """
    mean, variance = rows.sums(x)
    grouped = mean.unflatten(1, (groups, -1))
    centre = grouped.mean(dim=2)
    spread = variance.unflatten(1, (groups, -1)).mean(dim=2) + grouped.var(dim=2, correction=0)
    rstd = (spread + eps).rsqrt()
    size = gamma.numel() // groups
    factor = rstd.repeat_interleave(size, dim=1) * gamma.double()
    offset = beta.double() - centre.repeat_interleave(size, dim=1) * factor
    if scale is not None and shift is not None:
        factor, offset = factor * (1 + scale.double()), offset * (1 + scale.double()) + shift.double()
    return factor.to(x.dtype), offset.to(x.dtype), centre, rstd


def norm_gradients(
    plain: Tensor,
    weighted: Tensor,
    voxels: int,
    gamma: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    centre: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Chain rule through `fold_norm`, from the sums of the gradient and of the gradient times `x`.

    Returns:
        slope and offset `(B, C)` of what the statistics add to the gradient of `x`; gradients of gamma,
        beta, scale and shift.
    """
    groups = rstd.shape[1]
    size = gamma.numel() // groups
    mean_c, rstd_c = (value.repeat_interleave(size, dim=1) for value in (centre, rstd))
    gain = torch.ones_like(plain) if scale is None else 1 + scale.double()
    normal = (weighted - plain * mean_c) * rstd_c  # sum of gradient times normalised value
    d_gamma, d_beta = (normal * gain).sum(dim=0), (plain * gain).sum(dim=0)
    d_scale = None if scale is None else (normal * gamma.double() + plain * beta.double()).to(scale.dtype)
    d_shift = None if shift is None else plain.to(shift.dtype)
    through = gamma.double() * gain
    count = voxels * size
    along = (normal * through).unflatten(1, (groups, size)).sum(dim=2) / count
    across = (plain * through).unflatten(1, (groups, size)).sum(dim=2) / count
    slope = -(rstd.square() * along)
    offset = -(rstd * across) - slope * centre
    slope, offset = (value.repeat_interleave(size, dim=1).to(gamma.dtype) for value in (slope, offset))
    return slope, offset, (d_gamma.to(gamma.dtype), d_beta.to(beta.dtype), d_scale, d_shift)

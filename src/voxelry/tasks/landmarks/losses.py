"""Losses between heatmap logits and targets, each averaged over the landmarks that are present.

The names of the original are accepted: `CrossEntropyLoss`, `MSELoss`, `BCEWithLogitsLoss`, `BCELoss`.
In the original, `CrossEntropyLoss` is a softmax ACROSS the landmarks at each voxel. With targets
that are zero outside the discs, such a loss has no gradient at all for background voxels, and where
two discs do not meet it only learns which landmark is nearest. Here the name means what the
field means by it: a softmax over the voxels of each landmark's own map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.ops.heatmaps import expectation

__all__ = [
    "LOSSES",
    "activate",
    "coordinate_distance",
    "heatmap_loss",
    "label_loss",
    "loss_name",
    "presence_logits",
    "presence_loss",
    "spatial_softmax",
]

LOSSES = ("ce", "mse", "bce")

_ORIGINAL_NAMES = {
    "crossentropyloss": "ce",
    "mseloss": "mse",
    "bcewithlogitsloss": "bce",
    "bceloss": "bce",
    "binarycrossentropyloss": "bce",
}


def loss_name(name: str) -> str:
    """Our name of a loss, `ce`, `mse` or `bce`, from ours or the original's.

    Raises:
        SettingError: an unknown name.
    """
    ours = _ORIGINAL_NAMES.get(name.lower(), name.lower())
    if ours not in LOSSES:
        raise SettingError(
            f"loss: expected ce, mse, bce, CrossEntropyLoss, MSELoss, BCEWithLogitsLoss or BCELoss, got {name!r}"
        )
    return ours


def spatial_softmax(logits: Tensor) -> Tensor:
    """A distribution over the voxels of each map, `(B, N, *spatial)` in float32."""
    return logits.float().flatten(2).softmax(dim=-1).reshape(logits.shape)


def activate(logits: Tensor, loss: str) -> Tensor:
    """Logits to the non-negative heatmaps that the decoders read, by the loss they were trained with."""
    if loss == "ce":
        return spatial_softmax(logits)
    return logits.float().sigmoid() if loss == "bce" else logits.float().clamp(min=0)


def heatmap_loss(logits: Tensor, heatmaps: Tensor, counted: Tensor, loss: str) -> Tensor:
    """The scalar heatmap loss over the maps marked in `counted`; 0 when there is none.

    - `ce`: cross entropy between the softmax over voxels and a target that sums to 1, in nats.
    - `mse`, `bce`: per voxel, with the voxels of the blob weighted up to count as much in sum as all
      of the background; otherwise, in 3-D, an empty map is an excellent answer.

    Args:
        logits, heatmaps: `(B, N, *spatial)`.
        counted: `(B, N)` bool.
    """
    logits, target = logits.float().flatten(2), heatmaps.flatten(2)
    if loss == "ce":
        each = -(target * logits.log_softmax(dim=-1)).sum(dim=-1)
    else:
        mass = target.sum(dim=-1, keepdim=True)
        weight = 1 + target * torch.where(mass > 0, target.shape[-1] / mass.clamp(min=1e-6) - 1, 0.0).clamp(min=0)
        if loss == "mse":
            error = (logits - target).square()
        else:
            error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        each = (weight * error).sum(dim=-1) / weight.sum(dim=-1)
    return _mean_over(each, counted)


def coordinate_distance(logits: Tensor, points: Tensor, spacing: Tensor, counted: Tensor) -> Tensor:
    """Mean distance in mm between the soft-argmax and the truth (DSNT, Nibali et al. 2018, arXiv:1801.07372).

    Args:
        logits: `(B, N, *spatial)`; points: `(B, N, ndim)` index coordinates; spacing: `(B, ndim)` mm;
        counted: `(B, N)` bool.
    """
    offset = (expectation(spatial_softmax(logits)) - torch.where(counted[..., None], points, 0.0)) * spacing[:, None]
    # The constant under the root keeps the gradient finite at zero; it is (0.01 mm)².
    return _mean_over((offset.square().sum(dim=-1) + 1e-4).sqrt(), counted)


def presence_logits(logits: Tensor, loss: str) -> Tensor:
    """Log-odds that each landmark is in the image, `(B, N, *spatial) -> (B, N)`.

    For `ce` it is `log(sum(exp(logits)))`: the softmax over the voxels and one more outcome,
    "nowhere", whose logit is 0. The sum runs over voxels, so that tiles of an image and the whole
    image agree and no head of its own is needed. For `bce` it is the largest logit, for `mse` that
    of the largest value.
    """
    flat = logits.float().flatten(2)
    if loss == "ce":
        return flat.logsumexp(dim=-1)
    if loss == "bce":
        return flat.amax(dim=-1)
    return flat.amax(dim=-1).clamp(1e-4, 1 - 1e-4).logit()


def presence_loss(logits: Tensor, present: Tensor, loss: str) -> Tensor:
    """Binary cross entropy of `presence_logits` against `(B, N)` bool."""
    return F.binary_cross_entropy_with_logits(presence_logits(logits, loss), present.float())


def _mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the marked values, 0 (with a gradient of 0) when none is."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy per voxel, `(B, classes, *spatial)` against classes `(B, *spatial)`, in nats.

    Raises:
        SettingError: a label that is no class.
    """
    if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
        raise SettingError(f"label_classes: expected labels below {logits.shape[1]}, got {int(labels.max())}")
    return F.cross_entropy(logits.float(), labels)

"""Weights of one U-Net into another: what matches is taken, the rest is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from voxelry.models.inflate import inflate as inflate_weights
from voxelry.models.unet import UNet

__all__ = ["TransferReport", "transfer"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TransferReport:
    """What became of every tensor; `str(report)` is a short table.

    Attributes:
        matched: names taken over as they are.
        adapted: name → what was done to make it fit.
        new: name → shape; of the target, not in the weights or not fitting, left as initialised.
        skipped: name → shape; in the weights, of no use to the target.
    """

    matched: tuple[str, ...]
    adapted: dict[str, str] = field(default_factory=dict)
    new: dict[str, Shape] = field(default_factory=dict)
    skipped: dict[str, Shape] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} tensors matched, {len(self.adapted)} adapted, {len(self.new)} new, "
                 f"{len(self.skipped)} skipped"]  # fmt: skip
        lines += [f"  adapted  {name}: {how}" for name, how in self.adapted.items()]
        lines += [f"  new      {name} {shape}" for name, shape in self.new.items()]
        lines += [f"  skipped  {name} {shape}" for name, shape in self.skipped.items()]
        return "\n".join(lines)


@torch.no_grad()
def transfer(target: UNet, weights: Mapping[str, Tensor], *, inflate: bool = True) -> TransferReport:
    """Copy into `target` every tensor of `weights` (our names) that fits; return what happened to each.

    Two differences are bridged: kernels with one spatial axis less are lifted (`models.inflate`), and a
    stem trained with an estimate beside its input gives those channels up where the target has none,
    which is the same as an estimate of zeros.

    Args:
        target: network that receives the weights; changed in place.
        weights: state dict of a `UNet`.
        inflate: whether 2-D kernels may be lifted to 3-D.
    """
    own = target.state_dict()
    given = dict(weights)
    adapted: dict[str, str] = {}
    if inflate:
        lifted = inflate_weights(target, given)
        adapted.update({
            name: f"lifted {tuple(given[name].shape)} to {tuple(value.shape)}"
            for name, value in lifted.items()
            if value.shape != given[name].shape
        })  # fmt: skip
        given = lifted
    stem = given.get("stem.weight")
    if stem is not None and not target.condition_channels and stem.shape[1] > target.in_channels:
        kept = stem[:, stem.shape[1] - target.in_channels :]
        if kept.shape == own["stem.weight"].shape:
            given["stem.weight"] = kept
            adapted["stem.weight"] = f"{stem.shape[1] - target.in_channels} channels of the estimate left out"
    matched, new = [], {}
    for name, value in own.items():
        if name in given and given[name].shape == value.shape:
            value.copy_(given[name])
            matched.append(name)
        else:
            new[name] = tuple(value.shape)
    return TransferReport(
        matched=tuple(name for name in matched if name not in adapted),
        adapted={name: how for name, how in adapted.items() if name in matched},
        new=new,
        skipped={name: tuple(value.shape) for name, value in weights.items() if name not in matched},
    )

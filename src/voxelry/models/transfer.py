"""Weights of one network into another: what matches is taken, the rest is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from voxelry.models.inflate import inflate as inflate_weights
from voxelry.models.unet import UNet

__all__ = ["TransferReport", "best_transfer", "transfer"]

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
def transfer(target: nn.Module, weights: Mapping[str, Tensor], *, inflate: bool = True) -> TransferReport:
    """Copy into `target` every tensor of `weights` (our names) that fits; return what happened to each.

    Three differences are bridged: kernels with one spatial axis less are lifted (`models.inflate`); a
    stem trained with an estimate beside its input gives those channels up where the target has none,
    which is the same as an estimate of zeros; and where the target makes the same image of more inputs,
    the new ones start with no effect: they stand between the known ones and the image on its way, which
    comes last.

    Args:
        target: network that receives the weights; changed in place.
        weights: state dict of a network of the same parts, such as a `UNet` or a backbone.
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
    stem, head = given.get("stem.weight"), given.get("head.weight")
    if isinstance(target, UNet) and stem is not None and head is not None and not target.condition_channels:
        more = target.in_channels - stem.shape[1]
        if more < 0 and stem[:, -more:].shape == own["stem.weight"].shape:
            given["stem.weight"] = stem[:, -more:]
            adapted["stem.weight"] = f"{-more} channels of the estimate left out"
        elif more > 0 and head.shape == own["head.weight"].shape and stem.shape[2:] == own["stem.weight"].shape[2:]:
            known = max(stem.shape[1] - target.out_channels, 0)
            unseen = stem.new_zeros(len(stem), more, *stem.shape[2:])
            given["stem.weight"] = torch.cat([stem[:, :known], unseen, stem[:, known:]], dim=1)
            adapted["stem.weight"] = f"{more} new inputs, without effect at first"
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


def best_transfer(target: nn.Module, weights: Mapping[str, Tensor]) -> TransferReport:
    """`transfer` into whatever part of `target` the weights, or a part of them, fit best.

    A detector takes over another detector as a whole, its backbone that of an autoencoder or of another
    detector, and so on: every child module that is called the backbone, with every prefix of the weights, is
    compared, and the pair that shares most numbers is used.
    """
    parts = [target]
    inner: object = target
    while isinstance(inner := getattr(inner, "backbone", getattr(inner, "network", None)), nn.Module):
        parts.append(inner)
    prefixes = {""} | {
        name[: place + 1] for name in weights for place, letter in enumerate(name) if letter == "." and place < 40
    }
    best, most = (target, ""), -1
    for part in parts:
        own = {name: value.shape for name, value in part.state_dict().items()}
        for prefix in sorted(prefixes):
            shared = sum(
                own[name].numel()
                for name, value in _below(weights, prefix).items()
                if name in own and _alike(own[name], value.shape)
            )
            if shared > most:
                best, most = (part, prefix), shared
    part, prefix = best
    taken = _below(weights, prefix)
    report = transfer(part, taken)
    rest = {name: tuple(value.shape) for name, value in weights.items() if not name.startswith(prefix)}
    return replace(report, skipped={**report.skipped, **rest})


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def _alike(own: torch.Size, given: torch.Size) -> bool:
    """Whether a tensor fits, or would when it is lifted from rank 2 to 3."""
    return own == given or (len(own) == len(given) + 1 and own[:2] + own[3:] == given)

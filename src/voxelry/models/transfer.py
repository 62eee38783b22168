"""Weights of one network into another: what matches is taken, the rest is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

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
def transfer(
    target: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    inflate: bool = True,
    head: bool = True,
    image_channels: int | None = None,
    new_inputs: Literal["between", "after"] | None = "between",
) -> TransferReport:
    """Copy into `target` every tensor of `weights` (our names) that fits; return what happened to each.

    Three differences are bridged: kernels with one spatial axis less are lifted (`models.inflate`); a
    stem trained with an estimate beside its input gives those channels up where the target has none,
    which is the same as an estimate of zeros; and where the target is shown more, the new inputs start
    with no effect.

    Args:
        target: network that receives the weights; changed in place.
        weights: state dict of a network of the same parts, such as a `UNet` or a backbone.
        inflate: whether 2-D kernels may be lifted to 3-D.
        head: whether both networks answer the same, so that the last layer may be taken over where it fits.
        image_channels: inputs of the stem that are no estimate, which comes before them; None: as many of them as
            the target has.
        new_inputs: where a U-Net has inputs that the weights don't know: `between` the known ones and the image on
            its way, which comes last (of networks that make the same image), `after` them all; None: nowhere, so
            that a stem of other inputs is left as initialised.
    """
    own = target.state_dict()
    given = {name: value for name, value in weights.items() if head or not name.startswith("head.")}
    adapted: dict[str, str] = {}
    if inflate:
        lifted = inflate_weights(target, given)
        adapted.update({
            name: f"lifted {tuple(given[name].shape)} to {tuple(value.shape)}"
            for name, value in lifted.items()
            if value.shape != given[name].shape
        })  # fmt: skip
        given = lifted
    if isinstance(target, UNet) and "stem.weight" in given:
        heads = [state["head.weight"].shape for state in (given, own) if "head.weight" in state]
        same = len(heads) == 2 and heads[0] == heads[1]
        where = None if new_inputs == "between" and not same else new_inputs
        stem, how = _stem(target, given.pop("stem.weight"), image_channels, where)
        if stem is not None:
            given["stem.weight"] = stem
        if how:
            adapted["stem.weight"] = how
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


def _stem(
    target: UNet, stem: Tensor, image_channels: int | None, new_inputs: Literal["between", "after"] | None
) -> tuple[Tensor | None, str]:
    """The weights of a first layer as `target` needs them, None where they mean other inputs; and what was done."""
    known = min(stem.shape[1], target.in_channels) if image_channels is None else image_channels
    if target.condition_channels:
        alike = image_channels is None or known == target.in_channels
        return (stem if alike else None), ""
    estimate = stem.shape[1] - known
    image = stem[:, estimate:]
    left_out = f"{estimate} channels of the estimate left out" if estimate else ""
    more = target.in_channels - known
    if more == 0:
        return image, left_out
    if more < 0 or new_inputs is None:
        return None, ""
    before = known if new_inputs == "after" else max(known - target.out_channels, 0)
    unseen = stem.new_zeros(len(stem), more, *stem.shape[2:])
    added = f"{more} new inputs, without effect at first"
    return torch.cat([image[:, :before], unseen, image[:, before:]], dim=1), ", ".join(filter(None, (left_out, added)))


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

"""Weights of a 2-D network lifted to 3-D.

The lifted network, given a volume that is constant along its first axis, or one plane deep, gives in
every plane what the 2-D network gives for that plane: each kernel reads, at first, the middle plane of
its window only (centre initialisation, Tran et al. 2018 / Feichtenhofer et al. 2019, instead of the
mean of I3D, which is wrong at zero-padded borders). The other planes start at zero and learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from voxelry.nn.conv import WeightStandardisedConv

__all__ = ["inflate", "inflate_kernel"]


def inflate_kernel(kernel: Tensor, depth: int, mode: str = "centre") -> Tensor:
    """Give a kernel `(C_out, C_in, *K)` a new first spatial axis of that depth.

    "centre" puts it in the middle plane, "mean" spreads it evenly; both keep the response to a volume
    that is constant along the new axis. "repeat" does so for a transposed convolution whose planes don't
    overlap.
    """
    if mode != "centre":
        repeated = kernel.unsqueeze(2).repeat(1, 1, depth, *(1,) * (kernel.ndim - 2))
        return repeated / depth if mode == "mean" else repeated
    lifted = kernel.new_zeros(*kernel.shape[:2], depth, *kernel.shape[2:])
    lifted[:, :, depth // 2] = kernel
    return lifted


def inflate(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Lift every kernel of `weights` that has one spatial axis less than `network`'s; leave the rest.

    Standardised kernels lose the scale that their padding with zeros would take from them: they are
    centred and scaled by √depth, their bias too, and the group normalisation after them divides it out.
    Convolutions that read blocks (patches, space-to-depth) are averaged over the new axis, as no plane is
    their middle; transposed ones that write blocks repeat theirs.
    """
    lifted = dict(weights)
    for name, module in network.named_modules():
        dot = f"{name}." if name else ""
        own = getattr(module, "weight", None)
        given = weights.get(f"{dot}weight")
        if not isinstance(own, Tensor) or given is None or own.ndim != given.ndim + 1 or own.ndim < 5:
            continue
        depth = own.shape[2]
        if isinstance(module, WeightStandardisedConv):
            scale = depth**0.5
            centred = given - given.mean(dim=tuple(range(1, given.ndim)), keepdim=True)
            lifted[f"{dot}weight"] = inflate_kernel(scale * centred, depth)
            if f"{dot}bias" in weights:
                lifted[f"{dot}bias"] = scale * weights[f"{dot}bias"]
        else:
            lifted[f"{dot}weight"] = inflate_kernel(given, depth, inflation_mode(module, depth))
    return lifted


def inflation_mode(module: Any, depth: int) -> str:
    """How a kernel of that depth, whose layer is `module`, is lifted."""
    if getattr(module, "stride", (0,))[0] != depth or module.padding[0] != 0:
        return "centre"
    return "repeat" if module.transposed else "mean"

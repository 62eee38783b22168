"""Convolutions with a low-rank addition; PEFT, which takes seconds to import, is imported where they are made."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from voxelry.core.rank import RANKS
from voxelry.nn import nd
from voxelry.nn.nd import conv

__all__ = ["adapted_layers"]


class _Adapted:
    """What PEFT's convolutions lack: `weight` is the adapted one.

    Our fused blocks don't call a convolution, they read its weight; with PEFT's own classes they would read the
    base's, and the adapter would do nothing without a word. Such blocks have no place for the adapter's dropout.
    """

    def update_layer(self: Any, adapter_name: str, *args: Any, **settings: Any) -> None:
        """Make an adapter; PEFT views its kernels as matrices, so they stay contiguous, unlike those of our layers."""
        with nd.contiguous_kernels():
            super().update_layer(adapter_name, *args, **settings)  # type: ignore[misc]

    def get_delta_weight(self: Any, adapter: str) -> Tensor:
        """What an adapter adds to the weight, for kernels of any rank and width."""
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        return (b.flatten(1) @ a.flatten(1)).unflatten(1, a.shape[1:]) * self.scaling[adapter]

    @property
    def weight(self: Any) -> Tensor:
        """The base's weight with what the active adapters add."""
        base: Tensor = self.get_base_layer().weight
        if self.merged or self.disable_adapters:
            return base
        for name in self.active_adapters:
            if name in self.lora_variant:
                dora = self.lora_magnitude_vector[name]
                delta = self.get_delta_weight(name)
                norm = dora.get_weight_norm(base, delta.detach(), scaling=1).detach()
                base = (dora.weight / norm).view(-1, *(1,) * (base.ndim - 1)) * (base + delta)
            elif name in self.lora_A:
                base = base + self.get_delta_weight(name)
        return base

    def __getattr__(self, name: str) -> Any:
        """Sizes, strides and paddings of the base."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(super().__getattr__("base_layer"), name)  # type: ignore[misc]


@cache
def adapted_layers() -> dict[type[nn.Module], type[nn.Module]]:
    """Our convolution of each rank, and the layer that adapts it."""
    return {conv(ndim): _adapted(ndim) for ndim in RANKS}


def _adapted(ndim: int) -> Any:
    """PEFT's layer for our convolution of a rank, with what it lacks."""
    from peft.tuners.lora import layer

    name = next(kind.__name__ for kind in conv(ndim).__mro__ if hasattr(layer, kind.__name__))  # ours may be a child
    return type(f"Adapted{name}", (_Adapted, getattr(layer, name)), {"__doc__": "A convolution with adapters."})

"""Whether a training fits the memory of this machine, asked before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from voxelry.core import memory
from voxelry.models import footprint

__all__ = ["available_memory", "check_memory"]

_FEW = 1 << 16  # voxels, of which any machine has room for a step
_TYPES = {"16": torch.float16, "bf16": torch.bfloat16}


def available_memory(accelerator: str = "auto") -> int | None:
    """Bytes that a training may take: of the GPU where it will use one, else of the machine; None where unknown."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return memory.available_memory()


def check_memory(
    network: nn.Module,
    shape: Sequence[int],
    *,
    in_channels: int,
    batch: int = 1,
    copies: int = 1,
    accelerator: str = "auto",
    precision: str = "32-true",
    available: int | None = None,
) -> None:
    """Refuse a training whose steps can't fit.

    Args:
        network: that is trained.
        shape: spatial size of its input.
        in_channels: channels of its input.
        batch: samples of a step.
        copies: networks of that kind that are trained on each batch.
        accelerator, precision: as the trainer's.
        available: bytes; None asks the machine.

    Raises:
        SettingError: says what is needed, what there is, and what would fit; see `models.footprint.check_memory`.
    """
    if available is None:
        available = available_memory(accelerator) if batch * prod(shape) > _FEW else None
    if available is not None:
        dtype = _TYPES.get(precision.partition("-")[0], torch.float32)
        footprint.check_memory(
            network, shape, in_channels=in_channels, batch=batch, dtype=dtype, available=available // copies
        )

"""The number format that a device trains fastest in."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["fast_half", "resolve_precision"]


def fast_half(accelerator: str = "auto") -> bool:
    """Whether the device that a training will use multiplies matrices of bfloat16 in hardware.

    Args:
        accelerator: as the trainer's.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # processors that only convert (AVX-512 without AMX) are no faster in bfloat16
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer PyTorch tells
    return bool(capabilities.get("amx_bf16", False))


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """Lightning's name of a precision: `auto` becomes `bf16-mixed` where that is fast, else `32-true`."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if fast_half(accelerator) else "32-true"

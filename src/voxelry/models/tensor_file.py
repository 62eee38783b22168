"""Tensors of other projects' files, read without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxelry.core.errors import CheckpointError, FileError

__all__ = ["load_reference_file"]


def load_reference_file(path: str | Path, *, which: str = "model") -> dict[str, Tensor]:
    """Read a published checkpoint's tensors: `.safetensors`, or a PyTorch file (tensors only, no code runs).

    Understands a bare state dict, a dict with `model_state_dict`, `model_state`, `state_dict` or `model`, and
    the list `[model, optimiser, epoch, step, ema]` of Fast-DDPM (`which="ema"` takes the averaged weights, its last
    entry, where there are any).

    Raises:
        FileError: the file is not there.
        CheckpointError: it can't be read safely, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(path, "no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as fault:
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be read without running code: {reason}") from fault
    except Exception as fault:  # safetensors' own error class is no subclass of the above
        raise CheckpointError(f"{path}: {fault}") from fault
    if isinstance(content, list) and content:
        content = content[-1] if which == "ema" and isinstance(content[-1], Mapping) else content[0]
    for key in ("model_state_dict", "model_state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"{path}: expected a state dict of tensors or one under model_state_dict")
    return tensors

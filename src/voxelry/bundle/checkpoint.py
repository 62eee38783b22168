"""A checkpoint of a run, read without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from voxelry.core.errors import CheckpointError

__all__ = ["read_checkpoint"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors and plain values only.

    Raises:
        CheckpointError: missing, unreadable, or holding anything that would have to be executed.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # the unpickler has as many words for nonsense as there are exceptions
        raise CheckpointError(f"{path}: not a checkpoint of tensors and plain values") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(checkpoint).__name__}")
    return checkpoint

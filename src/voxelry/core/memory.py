"""How much memory there is, asked before more than that is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["available_memory", "memory_shortage"]


def available_memory() -> int | None:
    """Bytes that may be taken: what is free by Linux's word, elsewhere all that the machine has; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        known = hasattr(os, "sysconf")  # Windows doesn't tell so easily; there the allocation itself is refused
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None


def memory_shortage(shape: Sequence[int], bytes_per_voxel: int) -> str:
    """What an array would need and what there is, for messages; empty where it fits.

    Args:
        shape: voxels along each axis.
        bytes_per_voxel: of everything that is held for one of them.
    """
    needed, available = bytes_per_voxel, available_memory()
    for length in shape:  # Python's own numbers: such sizes overflow others
        needed *= int(length)
    if available is None or needed <= available:
        return ""
    size = " x ".join(str(int(length)) for length in shape)
    return f"{size} voxels need about {needed / 1e9:.1f} GB, and there are {available / 1e9:.1f} GB"

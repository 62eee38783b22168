"""voxelry: deep learning on biomedical images and volumes, in patient millimetres.

`voxelry.load(bundle)` gives a trained model; `voxelry.read_image` and `voxelry.read_landmarks` read files.
Everything heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "voxelry.bundle.model",
    "open_image": "voxelry.io",
    "read_image": "voxelry.io",
    "write_image": "voxelry.io",
    "read_landmarks": "voxelry.io",
    "write_landmarks": "voxelry.io",
    "errors": "voxelry.core",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'voxelry' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Packages that only some users need."""

from __future__ import annotations

import importlib
from types import ModuleType

from voxelry.core.errors import MissingDependencyError

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of voxelry installs it.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is not installed; install it with: pip install 'voxelry[{extra}]'"
        ) from error

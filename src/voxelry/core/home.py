"""Paths that begin with `~`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["at_home"]


def at_home(path: str) -> str:
    """A path as a shell has it where it begins with `~`, which it leaves alone behind an equals sign."""
    return str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path

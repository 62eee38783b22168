"""Places below a user's own folder."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["at_home", "state_folder"]


def at_home(path: str) -> str:
    """A path as a shell has it where it begins with `~`, which it leaves alone behind an equals sign."""
    return str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path


def state_folder() -> Path:
    """Where commands keep what they must remember and have no other place for: `VOXELRY_STATE`, else the system's."""
    own = os.environ.get("VOXELRY_STATE")
    return Path(own) if own else Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "voxelry"

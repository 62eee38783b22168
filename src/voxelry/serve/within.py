"""Links in a folder that was named, to what wasn't."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["is_within", "links_out"]


def links_out(images: Sequence[Path], given: Sequence[Path]) -> list[Path]:
    """Images of the named folders that are links to files or folders under none of the named paths.

    Args:
        images: as they were found; those of a list are named by it.
        given: paths of the command line.
    """
    folders = [path for path in given if path.is_dir()]
    roots = [path.resolve() for path in given]
    found = [path for path in images if any(path.is_relative_to(folder) for folder in folders)]
    return [path for path in found if not is_within(path, roots)]


def is_within(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path, whatever links are on the way, leads to one of these or below."""
    real = path.resolve()
    return any(real.is_relative_to(root) for root in roots)

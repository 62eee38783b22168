"""Turning a grid to an anatomical orientation by exchanging and reversing its axes."""

from __future__ import annotations

from voxelry.core.space import Space

__all__ = ["CANONICAL", "WORLD_AXES", "orientation_steps"]

CANONICAL = "SAR"
WORLD_AXES = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
"""The world axis (x, y, z) of each letter, and whether it grows or falls that way."""


def orientation_steps(space: Space, code: str = CANONICAL) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Axes and flips (for `Space.reorder`) that turn a grid to the nearest orientation `code`.

    Letters of world axes that the grid doesn't run along are passed over, so a slice stays in its plane.
    """
    found = {world: (axis, sign) for axis, (world, sign) in enumerate(space.closest_axes())}
    wanted = [WORLD_AXES[letter] for letter in code]
    steps = [(found[world][0], found[world][1] != sign) for world, sign in wanted if world in found]
    return tuple(axis for axis, _ in steps), tuple(flip for _, flip in steps)

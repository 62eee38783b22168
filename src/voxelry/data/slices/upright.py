"""The world turned until a volume's own axes lie along it: a shape looks the same however the patient lay."""

from __future__ import annotations

from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from voxelry.core.space import Space

__all__ = ["upright"]


def upright(space: Space) -> NDArray[np.float64]:
    """The rotation of the world that brings a volume's axes onto the nearest of (right, anterior, superior).

    Args:
        space: of rank 3. Mirrored axes stay mirrored; sheared ones end as near as a rotation brings them.

    Returns:
        `(4, 4)`, about the world's origin; exactly the identity where the axes lie along the world's.
    """
    left, _, right = np.linalg.svd(space.directions)
    own = left @ right  # the orthonormal axes nearest to the volume's
    handed = np.sign(np.linalg.det(own))
    near = max(_signed_axes(handed), key=lambda axes: float((axes * own).sum()))
    motion = np.eye(4)
    if np.abs(own - near).max() > 1e-6:
        motion[:3, :3] = near @ own.T
    return motion


@cache
def _signed_axes(handed: float) -> tuple[NDArray[np.float64], ...]:
    """The 24 matrices of the world's axes in any order and direction that are right-handed (1) or mirrored (-1)."""
    found = [
        np.eye(3)[list(order)] * signs for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
    ]
    return tuple(axes for axes in found if np.linalg.det(axes) * handed > 0)

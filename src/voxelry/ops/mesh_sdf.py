"""Signed distances of a closed mesh on a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voxelry.core.space import Space
from voxelry.ops.sdf import signed_distance
from voxelry.ops.surface import Mesh, distance_to_surface
from voxelry.ops.voxelise import voxelise_mesh

__all__ = ["mesh_distances"]

NEAR = 2.0  # voxels from the surface within which distances are exact


def mesh_distances(mesh: Mesh, space: Space, *, truncation: float) -> NDArray[np.float32]:
    """Signed distances at the centres of a grid's voxels, negative inside.

    Near the surface they are those to its triangles, further away those of the voxels inside, which are off by less
    than a voxel.

    Args:
        mesh: closed, world mm. Of one that isn't, as rough decoders make them, the nearest triangle says which side is
            inside.
        space: the grid, of rank 3, axes at right angles.
        truncation: mm at which distances are clipped.

    Returns:
        `space.shape` float32 mm; `truncation` everywhere where no voxel is inside.
    """
    closed = mesh.is_empty or mesh.is_watertight
    inside = voxelise_mesh(mesh, space) if closed else _behind(mesh, space)
    distances = signed_distance(inside, space.spacing, truncation=truncation)
    if distances is None:
        return np.full(space.shape, truncation, dtype=np.float32)
    near = np.argwhere(np.abs(distances) <= NEAR * max(space.spacing))
    exact, _ = distance_to_surface(space.to_world(near.astype(np.float64)), mesh)
    sides = np.where(inside[tuple(near.T)], -1.0, 1.0)
    distances[tuple(near.T)] = np.clip(sides * exact, -truncation, truncation)
    return distances


def _behind(mesh: Mesh, space: Space) -> NDArray[np.bool_]:
    """Voxels in a mesh's box that are on the inner side of the triangle nearest to them."""
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    points = np.asarray(space.to_world(index.astype(np.float64)))
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    within = ((points >= low) & (points <= high)).all(axis=-1)
    _, faces = distance_to_surface(points[within], mesh)
    away = points[within] - mesh.vertices[mesh.faces[faces]].mean(axis=1)
    inside = np.zeros(space.shape, dtype=bool)
    inside[within] = (away * mesh.face_normals[faces]).sum(axis=-1) < 0
    return inside

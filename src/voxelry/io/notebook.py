"""An image and what lies over it in a notebook: slices in three directions and a volume, as in `voxelry view`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxelry.core.optional import require
from voxelry.core.space import Space
from voxelry.io.images.image import write_image
from voxelry.io.meshes import write_mesh
from voxelry.ops.surface import Mesh

__all__ = ["notebook_view"]

MESH_COLOUR = (255, 170, 40, 255)
OPACITY = 0.5  # of labels over the image


def notebook_view(
    image: NDArray[Any],
    space: Space,
    *,
    labels: NDArray[Any] | None = None,
    mesh: Mesh | None = None,
    height: int = 480,
) -> Any:
    """A widget of ipyniivue, which a notebook shows where it is the last thing of a cell.

    Args:
        image: `(C, *space.shape)`, numbers of any kind.
        labels: `(*space.shape)` whole numbers, 0 for nothing, which lie over it.
        mesh: a surface in the same world.
        height: pixels.

    Raises:
        MissingDependencyError: ipyniivue isn't installed.
    """
    niivue = require("ipyniivue", "notebook")
    widget = niivue.NiiVue(
        height=height,
        multiplanar_layout=niivue.MultiplanarType.GRID,
        multiplanar_show_render=niivue.ShowRender.ALWAYS,
    )
    volumes: list[dict[str, Any]] = [
        {"data": _nifti(np.asarray(image, dtype=np.float32), space), "name": "image.nii", "colormap": "gray"}
    ]
    if labels is not None:
        over = _nifti(np.asarray(labels, dtype=np.int32)[None], space)
        volumes.append({"data": over, "name": "labels.nii", "colormap": "random", "opacity": OPACITY})
    widget.load_volumes(volumes)
    if mesh is not None:
        widget.load_meshes([{"data": _ply(mesh), "name": "mesh.ply", "rgba255": list(MESH_COLOUR)}])
    return widget


def _nifti(array: NDArray[Any], space: Space) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_image(Path(folder) / "image.nii", array, space).read_bytes()


def _ply(mesh: Mesh) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_mesh(Path(folder) / "mesh.ply", mesh).read_bytes()

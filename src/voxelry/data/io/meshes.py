"""Surface meshes in files: PLY, STL, GLB, OBJ, always world millimetres (RAS+).

None of these formats knows patient coordinates, so the numbers in the file are the numbers in the world and no
viewer has anything to undo. GLB, whose readers may take metres with y upwards, gets the same numbers.

| suffix | coordinates | vertices shared | values per vertex |
|---|---|---|---|
| `.ply` | float32 | yes | yes |
| `.obj` | decimal | yes | no |
| `.glb` | float32 | yes | no |
| `.stl` | float32 | no: joined where equal when read | no |
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError, SettingError
from voxelry.core.guard import guarded
from voxelry.ops.surface import Mesh

__all__ = ["MESH_SUFFIXES", "read_mesh", "write_mesh"]

MESH_SUFFIXES = (".ply", ".stl", ".glb", ".obj")

_COORDINATES = ("x", "y", "z")


def write_mesh(path: str | Path, mesh: Mesh) -> Path:
    """Write a mesh, whole or not at all; the suffix says the format.

    Args:
        path: ends in one of `MESH_SUFFIXES`.
        mesh: world mm. Its `values` go into a PLY file as properties of their names; other formats have no
            place for them.

    Returns:
        the path.

    Raises:
        FileError: another suffix, a folder that can't be written.
        SettingError: a mesh without faces, which no format holds; a value that can't be a PLY property's name.
    """
    path = Path(path)
    suffix = _suffix(path)
    if mesh.is_empty:
        raise SettingError(f"mesh: expected at least one face to write to {path}, got an empty surface")
    import trimesh

    solid = trimesh.Trimesh(np.array(mesh.vertices), np.array(mesh.faces), process=False, validate=False)
    options: dict[str, Any] = {}
    if suffix == ".ply":
        for name, numbers in mesh.values.items():
            if not name.isidentifier() or not name.isascii() or name in _COORDINATES:
                raise SettingError(f"values: expected names of letters, digits and underscores, got {name!r}")
            solid.vertex_attributes[name] = np.array(numbers, dtype=np.float32)
        options = {"vertex_normal": False, "include_attributes": True}
    with replacing(path) as place:
        content = solid.export(file_type=suffix[1:], **options)
        place.write_bytes(content.encode("ascii") if isinstance(content, str) else bytes(content))
    return path


def read_mesh(path: str | Path) -> Mesh:
    """Read a mesh as it is in the file: the same vertices and faces in the same order.

    The triangles of an STL file share no vertices; those at the same place are joined. Materials, textures and
    files that the mesh refers to are not opened.

    Raises:
        FileError: another suffix, a file that can't be read, that holds no triangle, or coordinates that aren't
            finite.
    """
    path = Path(path)
    suffix = _suffix(path)
    with guarded(path):
        import trimesh

        content = path.read_bytes()
        options: dict[str, Any] = {"skip_materials": True, "maintain_order": True} if suffix == ".obj" else {}
        solid = trimesh.load_mesh(io.BytesIO(content), file_type=suffix[1:], process=False, **options)
        vertices = np.asarray(getattr(solid, "vertices", np.zeros((0, 3))), dtype=np.float64).reshape(-1, 3)
        faces = np.asarray(getattr(solid, "faces", np.zeros((0, 3))), dtype=np.int64).reshape(-1, 3)
        if not len(faces):
            raise FileError(path, "holds no triangle")
        if suffix == ".stl":
            vertices, joined = np.unique(vertices, axis=0, return_inverse=True)
            faces = joined.reshape(-1)[faces]
        return Mesh(vertices, faces, _properties(solid, len(vertices)) if suffix == ".ply" else {})


def _properties(solid: Any, count: int) -> dict[str, np.ndarray]:
    """The numbers per vertex of a PLY file besides places, normals and colours."""
    known = {*_COORDINATES, "nx", "ny", "nz", "red", "green", "blue", "alpha", "s", "t", "u", "v"}
    table = solid.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    if isinstance(table, dict):  # an ASCII file
        columns = {name: np.asarray(column) for name, column in table.items()}
    elif table is not None and table.dtype.names:
        columns = {name: table[name] for name in table.dtype.names}
    else:
        return {}
    flat = {name: column.reshape(-1) for name, column in columns.items() if name not in known}
    return {name: column for name, column in flat.items() if column.dtype.kind in "fiu" and len(column) == count}


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise FileError(path, f"not a mesh file that voxelry knows, expected one of {', '.join(MESH_SUFFIXES)}")
    return suffix

"""Surface meshes in files: PLY, STL, GLB, OBJ, always world millimetres (RAS+) in memory and when written.

PLY, STL and OBJ have no place for patient coordinates, so the header says them in 3D Slicer's words, `SPACE=RAS` or
`SPACE=LPS`: PLY in a line `comment`, OBJ in a `#` line before the first vertex, STL within its first 80 bytes (a text
file in its first line). Slicer since 4.11 takes LPS where nothing is said, and so does `read_mesh`. GLB, which should
hold metres with y upwards, gets RAS millimetres, too, and says so in `asset.extras`; of others the numbers are taken as
they are.

| suffix | coordinates | vertices shared | values per vertex |
|---|---|---|---|
| `.ply` | float32 | yes | yes |
| `.obj` | decimal | yes | no |
| `.glb` | float32 | yes | no |
| `.stl` | float32 | no: joined where equal when read | no |

Other packages add formats through entry points `voxelry.mesh_formats` that are named by the suffix: a `MeshFormat`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from voxelry.core.atomic import replacing
from voxelry.core.errors import FileError, SettingError
from voxelry.core.guard import guarded
from voxelry.core.registry import Registry
from voxelry.core.remote import as_path
from voxelry.ops.surface import Mesh

__all__ = ["MESH_FORMATS", "MeshFormat", "is_mesh", "read_mesh", "write_mesh"]


@dataclass(frozen=True)
class MeshFormat:
    """One format of surfaces.

    Attributes:
        encode: a mesh in world mm, with at least one face, to the bytes of a file.
        decode: `(path, content)` of a file to a mesh in RAS mm; the path is for messages.
    """

    encode: Callable[[Mesh], bytes]
    decode: Callable[[Path, bytes], Mesh]


MESH_FORMATS: Registry[MeshFormat] = Registry(
    "mesh_formats",
    "mesh format",
    {f".{name.lower()}": f"{__name__}:{name}" for name in ("PLY", "STL", "GLB", "OBJ")},
)
"""Formats of surfaces by suffix."""

_COORDINATES = ("x", "y", "z")
_NOTE = "voxelry SPACE=RAS, mm"
_STL_HEADER = 80
_TO_RAS = {"RAS": (1.0, 1.0, 1.0), "LPS": (-1.0, -1.0, 1.0)}


def is_mesh(path: Path) -> bool:
    """Whether a file's suffix is that of a surface."""
    return path.suffix.lower() in MESH_FORMATS


def write_mesh(path: str | Path, mesh: Mesh) -> Path:
    """Write a mesh, whole or not at all; the suffix says the format.

    Args:
        path: ends in one of `MESH_FORMATS`.
        mesh: world mm. Its `values` go into a PLY file as properties of their names; other formats have no
            place for them.

    Returns:
        the path.

    Raises:
        FileError: another suffix, a folder that can't be written.
        SettingError: a mesh without faces, which no format holds; a value that can't be a PLY property's name.
    """
    path = as_path(path)
    chosen = _format_of(path)
    if mesh.is_empty:
        raise SettingError(f"mesh: expected at least one face to write to {path}, got an empty surface")
    content = chosen.encode(mesh)
    with replacing(path) as place:
        place.write_bytes(content)
    return path


def read_mesh(path: str | Path) -> Mesh:
    """Read a mesh: the vertices and faces of the file in the same order, in RAS mm.

    Coordinates are LPS where a PLY, STL or OBJ file says so or says nothing, as for 3D Slicer. The triangles of an STL
    file share no vertices; those at the same place are joined. Materials, textures and files that a mesh refers to are
    not opened.

    Raises:
        FileError: another suffix, a file that can't be read, that holds no triangle, that names another space than RAS
            and LPS, or coordinates that aren't finite.
    """
    path = as_path(path)
    chosen = _format_of(path)
    with guarded(path):
        mesh = chosen.decode(path, path.read_bytes())
        if mesh.is_empty:
            raise FileError(path, "holds no triangle")
        return mesh


def _format_of(path: Path) -> MeshFormat:
    suffix = path.suffix.lower()
    if suffix not in MESH_FORMATS:
        raise FileError(path, f"not a mesh file that voxelry knows, expected one of {', '.join(MESH_FORMATS)}")
    return MESH_FORMATS[suffix]


def _encode(suffix: str, mesh: Mesh) -> bytes:
    import trimesh

    solid = trimesh.Trimesh(np.array(mesh.vertices), np.array(mesh.faces), process=False, validate=False)
    options: dict[str, Any] = {}
    if suffix == ".ply":
        for name, numbers in mesh.values.items():
            if not name.isidentifier() or not name.isascii() or name in _COORDINATES:
                raise SettingError(f"values: expected names of letters, digits and underscores, got {name!r}")
            solid.vertex_attributes[name] = np.array(numbers, dtype=np.float32)
        options = {"vertex_normal": False, "include_attributes": True}
    elif suffix == ".glb":
        options = {"tree_postprocessor": _note_space}
    content = solid.export(file_type=suffix[1:], **options)
    return _noted(content.encode("ascii") if isinstance(content, str) else bytes(content), suffix)


def _decode(suffix: str, path: Path, content: bytes) -> Mesh:
    import trimesh

    options: dict[str, Any] = {"skip_materials": True, "maintain_order": True} if suffix == ".obj" else {}
    solid = trimesh.load_mesh(io.BytesIO(content), file_type=suffix[1:], process=False, **options)
    vertices = np.asarray(getattr(solid, "vertices", np.zeros((0, 3))), dtype=np.float64).reshape(-1, 3)
    faces = np.asarray(getattr(solid, "faces", np.zeros((0, 3))), dtype=np.int64).reshape(-1, 3)
    if not len(faces):
        return Mesh(vertices, faces)
    if suffix == ".stl":
        vertices, joined = np.unique(vertices, axis=0, return_inverse=True)
        faces = joined.reshape(-1)[faces]
    if suffix != ".glb":
        vertices = vertices * _TO_RAS[_told_space(path, content, suffix)]
    return Mesh(vertices, faces, _properties(solid, len(vertices)) if suffix == ".ply" else {})


PLY, STL, GLB, OBJ = (
    MeshFormat(partial(_encode, suffix), partial(_decode, suffix)) for suffix in (".ply", ".stl", ".glb", ".obj")
)


def _note_space(tree: dict[str, Any]) -> None:
    tree["asset"]["extras"] = {"space": "RAS", "unit": "mm"}


def _noted(content: bytes, suffix: str) -> bytes:
    """A file's content with the note of its space where readers look for it."""
    note = _NOTE.encode()
    if suffix == ".ply":
        start, form, rest = content.split(b"\n", 2)
        return b"\n".join([start, form, b"comment " + note, rest])
    if suffix == ".obj":
        return b"# " + note + b"\n" + content
    if suffix == ".stl":
        return note.ljust(_STL_HEADER) + content[_STL_HEADER:]
    return content


def _told_space(path: Path, content: bytes, suffix: str) -> str:
    """`RAS` or `LPS`, as a file's header says; `LPS` where it doesn't.

    Raises:
        FileError: it says another one.
    """
    if suffix == ".stl":
        line = content[: content.find(b"\n")] if content.lstrip()[:5] == b"solid" else b""
        notes = [content[:_STL_HEADER] if len(line) < _STL_HEADER else line]
    elif suffix == ".ply":
        header = content[: content.find(b"end_header")].splitlines()
        notes = [line for line in header if line.startswith(b"comment")]
    else:
        lines = (line.strip() for line in io.BytesIO(content))
        notes = list(takewhile(lambda line: not line or line.startswith(b"#"), lines))
    found = re.search(rb"SPACE\s*=\s*([A-Za-z]+)", b"\n".join(notes))
    told = found[1].decode().upper() if found else "LPS"
    if told not in _TO_RAS:
        raise FileError(path, f"SPACE={told} in its header: expected RAS or LPS")
    return told


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

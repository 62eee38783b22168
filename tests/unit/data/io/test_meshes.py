"""Mesh files: the same surface comes back, and nothing else gets in."""

import json
import re
from itertools import takewhile

import numpy as np
import pytest
import trimesh

from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io.meshes import MESH_FORMATS, read_mesh, write_mesh
from voxelry.ops.surface import Mesh, empty_mesh, extract_surface


@pytest.fixture(scope="module")
def organ():
    affine = np.array([[0.1, 0.2, -0.9, 123.4], [0.1, -0.8, -0.2, -56.7], [2.0, 0.1, 0.1, 789.1], [0, 0, 0, 1.0]])
    space = Space((12, 16, 16), affine)
    index = np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1)
    mesh = extract_surface(np.linalg.norm((index - (5.4, 7.7, 7.2)) * (2.0, 0.9, 0.9), axis=-1) - 5.5, space)
    return mesh.with_values(error_mm=mesh.vertices[:, 2] - 790)


@pytest.mark.parametrize("suffix", MESH_FORMATS)
def test_the_same_surface_comes_back(suffix, organ, tmp_path):
    path = write_mesh(tmp_path / "new" / f"organ{suffix}", organ)
    mesh = read_mesh(path)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(organ.volume, rel=1e-4)
    assert len(mesh.vertices) == len(organ.vertices)
    assert len(mesh.faces) == len(organ.faces)
    np.testing.assert_allclose(mesh.vertices.min(axis=0), organ.vertices.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), organ.vertices.max(axis=0), atol=1e-4)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [suffix for suffix in MESH_FORMATS if suffix != ".stl"])
def test_vertices_keep_their_order(suffix, organ, tmp_path):
    mesh = read_mesh(write_mesh(tmp_path / f"organ{suffix}", organ))
    np.testing.assert_allclose(mesh.vertices, organ.vertices, atol=1e-4)
    np.testing.assert_array_equal(mesh.faces, organ.faces)


def noted(path):
    """What the header of a file says where 3D Slicer looks for it."""
    content = path.read_bytes()
    if path.suffix == ".stl":
        return content[:80].decode("ascii")
    if path.suffix == ".ply":
        header = content[: content.index(b"end_header")].decode("ascii").splitlines()
        return " ".join(line.removeprefix("comment ") for line in header if line.startswith("comment "))
    return " ".join(takewhile(lambda line: line.startswith("#"), content.decode("ascii").splitlines()))


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".obj"])
def test_the_header_says_where_the_image_is(suffix, tmp_path):
    affine = np.array([[-0.4, 0.2, -0.8, 12.0], [0.3, -0.7, -0.2, -56.0], [2.0, 0.1, 0.1, 89.0], [0, 0, 0, 1.0]])
    space, mask = Space((9, 14, 15), affine), np.zeros((9, 14, 15), dtype=bool)
    mask[3:6, 4:11, 2:9] = True
    path = write_mesh(tmp_path / f"organ{suffix}", extract_surface(np.where(mask, -1.0, 1.0), space))
    raw = np.asarray(trimesh.load_mesh(path, process=False).vertices)
    told = re.search(r"SPACE=(RAS|LPS)", noted(path))[1]
    places = raw * {"RAS": (1, 1, 1), "LPS": (-1, -1, 1)}[told]
    low, high = np.array([3, 4, 2]), np.array([5, 10, 8])
    index = space.to_index(places)
    np.testing.assert_allclose(index.min(axis=0), low - 0.5, atol=1e-4)
    np.testing.assert_allclose(index.max(axis=0), high + 0.5, atol=1e-4)


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".obj"])
@pytest.mark.parametrize(("word", "sign"), [(b"SPACE=RAS", 1), (b"SPACE=LPS", -1), (b"", -1)])
def test_reading_honours_the_header(suffix, word, sign, organ, tmp_path):
    path = write_mesh(tmp_path / f"organ{suffix}", organ)
    path.write_bytes(path.read_bytes().replace(b"SPACE=RAS", word.ljust(9), 1))
    expected = organ.vertices * (sign, sign, 1)
    found = read_mesh(path)
    np.testing.assert_allclose(found.vertices.min(axis=0), expected.min(axis=0), atol=1e-4)
    assert found.volume == pytest.approx(organ.volume, rel=1e-4)


def test_a_text_stl_says_its_space_in_its_first_line(tmp_path):
    path = tmp_path / "a.stl"
    path.write_text(
        "solid organ of somebody with a long name, longer than the eighty bytes that a header has SPACE=RAS\n"
        "facet normal 0 0 1\nouter loop\nvertex 1 2 3\nvertex 4 2 3\nvertex 1 5 3\nendloop\nendfacet\nendsolid\n"
    )
    assert read_mesh(path).vertices.tolist() == [[1, 2, 3], [1, 5, 3], [4, 2, 3]]


def test_another_space_is_refused(organ, tmp_path):
    path = write_mesh(tmp_path / "a.ply", organ)
    path.write_bytes(path.read_bytes().replace(b"SPACE=RAS", b"SPACE=IJK", 1))
    with pytest.raises(FileError, match=r"a\.ply: SPACE=IJK in its header: expected RAS or LPS"):
        read_mesh(path)


def test_glb_says_that_its_numbers_are_ras_mm(organ, tmp_path):
    content = write_mesh(tmp_path / "a.glb", organ).read_bytes()
    length = int.from_bytes(content[12:16], "little")
    assert json.loads(content[20 : 20 + length])["asset"]["extras"] == {"space": "RAS", "unit": "mm"}


def test_ply_keeps_values(organ, tmp_path):
    mesh = read_mesh(write_mesh(tmp_path / "organ.PLY", organ))
    assert list(mesh.values) == ["error_mm"]
    np.testing.assert_allclose(mesh.values["error_mm"], organ.values["error_mm"], atol=1e-4)


def test_ply_in_ascii(tmp_path):
    path = tmp_path / "a.ply"
    path.write_text(
        "ply\nformat ascii 1.0\ncomment SPACE=RAS\nelement vertex 3\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property float spread_mm\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
        "0 0 0 0.5\n1 0 0 1.5\n0 1 0 2.5\n3 0 1 2\n"
    )
    mesh = read_mesh(path)
    np.testing.assert_allclose(mesh.values["spread_mm"], [0.5, 1.5, 2.5])
    assert mesh.area == pytest.approx(0.5)


def test_a_material_file_is_not_opened(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("mtllib /nowhere/else.mtl\nusemtl a\nv 0 0 0\nv 2 0 0\nv 0 2 0\nf 1 2 3\n")
    assert read_mesh(path).area == pytest.approx(2.0)


@pytest.mark.parametrize("suffix", MESH_FORMATS)
@pytest.mark.parametrize("content", [b"", b"not a mesh\n" * 40], ids=["empty", "junk"])
def test_what_is_no_mesh_is_one_line(suffix, content, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"a{suffix}") as fault:
        read_mesh(path)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".glb"])
def test_a_file_cut_short(suffix, organ, tmp_path):
    path = write_mesh(tmp_path / f"a{suffix}", organ)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(FileError, match=f"a{suffix}"):
        read_mesh(path)


def test_places_must_be_numbers(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("v 0 0 0\nv nan 0 0\nv 0 2 0\nf 1 2 3\n")
    with pytest.raises(FileError, match=r"a\.obj: vertices: expected finite"):
        read_mesh(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        read_mesh(tmp_path / "a.ply")


@pytest.mark.parametrize("act", [read_mesh, lambda path: write_mesh(path, empty_mesh())])
def test_other_suffixes(act, tmp_path):
    with pytest.raises(FileError, match=r"expected one of \.ply, \.stl, \.glb, \.obj"):
        act(tmp_path / "a.vtk")


def test_an_empty_surface_leaves_the_old_file(organ, tmp_path):
    path = write_mesh(tmp_path / "a.ply", organ)
    with pytest.raises(SettingError, match="empty surface"):
        write_mesh(path, empty_mesh())
    assert len(read_mesh(path).faces) == len(organ.faces)


@pytest.mark.parametrize("name", ["x", "two words", "größe"])
def test_names_that_ply_has_no_place_for(name, organ, tmp_path):
    with pytest.raises(SettingError, match="values"):
        write_mesh(tmp_path / "a.ply", Mesh(organ.vertices, organ.faces, {name: organ.values["error_mm"]}))
    assert not list(tmp_path.iterdir())

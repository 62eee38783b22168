"""Meshes of shapes known in closed form, on mirrored, oblique and anisotropic grids."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.ops.sdf import signed_distance, voxelise_sdf
from voxelry.ops.surface import Mesh, distance_to_surface, empty_mesh, extract_surface, sample_surface, smooth_mesh
from voxelry.ops.voxelise import voxelise_mesh

TURNED = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix()
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
TETRAHEDRON = Mesh(CORNERS, [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def grid(shape, spacing, mirror=1.0, shift=(12.0, -40.0, 70.0)):
    affine = np.eye(4)
    affine[:3, :3] = TURNED[:, ::-1] * np.asarray(spacing)
    affine[:3, 0] *= mirror
    affine[:3, 3] = shift
    return Space(shape, affine)


def ball(space, radius):
    index = np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1).astype(float)
    centre = space.to_world((np.asarray(space.shape) - 1) / 2 + 0.3)
    return np.linalg.norm(space.to_world(index) - centre, axis=-1) - radius, centre


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_sphere(mirror):
    space = grid((20, 46, 46), (2.0, 0.8, 0.8), mirror)
    distances, centre = ball(space, 14.0)
    mesh = extract_surface(distances, space)
    assert mesh.is_watertight
    assert mesh.volume_ml == pytest.approx(4 / 3 * np.pi * 14**3 / 1000, rel=0.01)
    assert mesh.area == pytest.approx(4 * np.pi * 14**2, rel=0.01)
    outwards = (mesh.vertices - centre) / 14
    assert np.abs(np.linalg.norm(outwards, axis=1) - 1).max() < 0.01
    assert np.einsum("va,va->v", outwards, mesh.vertex_normals).min() > 0.98


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_mask_keeps_its_volume(mirror):
    space = grid((21, 72, 72), (3.0, 0.8, 0.8), mirror)
    distances, _ = ball(space, 20.0)
    mask = distances < 0
    mesh = extract_surface(signed_distance(mask, space.spacing, truncation=6.0), space, smooth=10)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.01)
    inside = voxelise_mesh(mesh, space)
    assert 2 * np.count_nonzero(inside & mask) / (inside.sum() + mask.sum()) >= 0.98


def test_a_shape_at_the_edge_of_its_grid_is_closed_there():
    space = Space.from_spacing((4, 5, 6), (3.0, 2.0, 1.0))
    mesh = extract_surface(signed_distance(np.ones((4, 5, 6), dtype=bool), space.spacing), space)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.vertices.min(axis=0), [-0.5, -1.0, -1.5], atol=1e-5)
    np.testing.assert_allclose(mesh.vertices.max(axis=0), [5.5, 9.0, 10.5], atol=1e-5)


def test_values_of_exactly_zero_leave_no_hole():
    distances = np.full((5, 5, 5), 1.0)
    distances[1:4, 1:4, 1:4] = 0.0
    distances[2, 2, 2] = -1.0
    mesh = extract_surface(distances, Space.from_spacing((5, 5, 5)))
    assert mesh.is_watertight
    assert (np.linalg.norm(mesh.face_vectors, axis=1) > 0).all()


def test_nothing_below_the_level_is_an_empty_mesh():
    mesh = extract_surface(np.ones((4, 4, 4)), Space.from_spacing((4, 4, 4)))
    assert mesh.is_empty
    assert not mesh.is_watertight
    assert (mesh.volume, mesh.area) == (0.0, 0.0)
    assert smooth_mesh(mesh).is_empty
    assert not voxelise_mesh(mesh, Space.from_spacing((4, 4, 4))).any()


def test_a_level_moves_the_surface():
    space = grid((24, 24, 24), 1.0)
    distances, _ = ball(space, 6.0)
    mesh = extract_surface(distances, space, level=2.0)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.02)


def test_a_tetrahedron_by_hand():
    assert TETRAHEDRON.is_watertight
    assert TETRAHEDRON.volume == pytest.approx(1 / 6)
    assert TETRAHEDRON.area == pytest.approx(1.5 + np.sqrt(3) / 2)
    np.testing.assert_allclose(TETRAHEDRON.face_normals[0], [0, 0, -1])
    np.testing.assert_allclose(TETRAHEDRON.vertex_normals[0], -np.ones(3) / np.sqrt(3))
    assert Mesh(CORNERS, TETRAHEDRON.faces[:, ::-1]).volume == pytest.approx(-1 / 6)


@pytest.mark.parametrize(
    "faces",
    [
        TETRAHEDRON.faces[:3],
        np.concatenate([TETRAHEDRON.faces[:3], [[0, 2, 3]]]),
        TETRAHEDRON.faces[[0, 0, 1, 2, 3]],
    ],
    ids=["open", "one face turned", "one face twice"],
)
def test_what_is_not_watertight(faces):
    assert not Mesh(CORNERS, faces).is_watertight


def test_smoothing_takes_steps_away_but_no_volume():
    space = grid((14, 40, 40), (3.0, 0.9, 0.9))
    distances, _ = ball(space, 15.0)
    rough = extract_surface(signed_distance(distances < 0, space.spacing), space)
    smooth = smooth_mesh(rough, 20)
    assert smooth.is_watertight
    assert smooth.volume == pytest.approx(rough.volume, rel=1e-4)
    assert 4 * np.pi * 15**2 * 0.98 < smooth.area < 0.98 * rough.area


def test_smoothing_keeps_the_volume_of_every_part():
    space = grid((12, 30, 30), 1.0)
    mask = np.zeros(space.shape, dtype=bool)
    mask[2:9, 3:15, 4:12] = True
    mask[5, 22, 22] = True  # a single voxel, which smoothing alone would dissolve
    rough = extract_surface(signed_distance(mask, space.spacing), space)
    smooth = smooth_mesh(rough, 10)
    assert smooth.volume == pytest.approx(rough.volume)
    inside = voxelise_mesh(smooth, space)
    assert inside[5, 22, 22]
    assert np.count_nonzero(inside != mask) < 0.05 * np.count_nonzero(mask)


def test_samples_lie_on_the_mesh_in_proportion_to_area():
    points, normals = sample_surface(TETRAHEDRON, 4000, np.random.default_rng(3))
    assert distance_to_surface(points, TETRAHEDRON)[0].max() < 1e-12
    slanted = np.isclose(points.sum(axis=1), 1)
    assert slanted.mean() == pytest.approx(np.sqrt(3) / 2 / TETRAHEDRON.area, abs=0.01)
    np.testing.assert_allclose(points[slanted].mean(axis=0), [1 / 3] * 3, atol=0.02)
    np.testing.assert_allclose(normals[slanted], 1 / np.sqrt(3))
    again, _ = sample_surface(TETRAHEDRON, 4000, np.random.default_rng(3))
    np.testing.assert_array_equal(points, again)


@pytest.mark.parametrize(
    ("point", "distance", "face"),
    [
        ((0.2, 0.2, -2.0), 2.0, 0),
        ((3.0, 0.0, 0.0), 2.0, None),
        ((0.3, -3.0, -4.0), 5.0, None),
        ((1.0, 1.0, 1.0), 2 / np.sqrt(3), 2),
    ],
    ids=["above a face", "beyond a vertex", "beside an edge", "before the slanted face"],
)
def test_distance_to_a_tetrahedron(point, distance, face):
    found, faces = distance_to_surface(np.array([point]), TETRAHEDRON)
    assert found[0] == pytest.approx(distance)
    assert face in (None, faces[0])


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_mesh_and_its_distances_fill_the_same_voxels(mirror):
    source = Space.from_spacing((40, 40, 40), 1.0, (-20, -55, 60))
    distances, centre = ball(source, 14.0)
    target = grid((20, 50, 60), (2.1, 0.9, 0.7), mirror)
    start = target.to_index(centre) - (np.asarray(target.shape) - 1) / 2
    target = target.crop(start.tolist(), target.shape)
    mesh = extract_surface(distances, source)
    inside, expected = voxelise_mesh(mesh, target), voxelise_sdf(distances, source, target)
    assert 2 * np.count_nonzero(inside & expected) / (inside.sum() + expected.sum()) > 0.995
    assert inside.sum() * np.prod(target.spacing) == pytest.approx(mesh.volume, rel=0.01)


def test_voxel_lines_through_vertices_and_edges_do_not_leak():
    box = np.stack(np.meshgrid([1.0, 4.0], [1.0, 4.0], [0.5, 4.5], indexing="ij"), axis=-1).reshape(-1, 3)[:, ::-1]
    squares = [[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]]
    mesh = Mesh(box, [face for a, b, c, d in squares for face in ([a, b, c], [a, c, d])])
    assert mesh.is_watertight
    inside = voxelise_mesh(mesh, Space.from_spacing((7, 7, 7)))
    assert inside.sum() == 3 * 3 * 4  # half-open where a face lies on voxel centres
    np.testing.assert_array_equal(inside.any(axis=(0, 1)), [False, True, True, True, True, False, False])
    np.testing.assert_array_equal(np.unique(inside.sum(axis=2)), [0, 4])


def test_a_mesh_larger_than_the_grid_fills_it():
    big = Mesh(CORNERS * 300 - 50, TETRAHEDRON.faces)
    assert voxelise_mesh(big, Space.from_spacing((6, 7, 8))).all()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: Mesh(np.zeros((3, 2)), [[0, 1, 2]]), "vertices"),
        (lambda: Mesh(np.full((3, 3), np.nan), [[0, 1, 2]]), "vertices"),
        (lambda: Mesh(CORNERS, [[0, 1, 4]]), "faces"),
        (lambda: Mesh(CORNERS, [[0, 1]]), "faces"),
        (lambda: TETRAHEDRON.with_values(error_mm=np.zeros(3)), "error_mm"),
        (lambda: extract_surface(np.zeros((3, 3, 3)), Space.from_spacing((3, 3, 4))), "sdf"),
        (lambda: extract_surface(np.full((3, 3, 3), np.nan), Space.from_spacing((3, 3, 3))), "finite"),
        (lambda: sample_surface(empty_mesh(), 5, np.random.default_rng()), "mesh"),
        (lambda: distance_to_surface(np.zeros((1, 3)), empty_mesh()), "mesh"),
        (lambda: voxelise_mesh(Mesh(CORNERS, TETRAHEDRON.faces[:3]), Space.from_spacing((3, 3, 3))), "watertight"),
        (lambda: voxelise_mesh(TETRAHEDRON, Space.from_spacing((3, 3))), "space"),
    ],
)
def test_what_cannot_be_is_named(call, names):
    with pytest.raises(SettingError, match=names):
        call()

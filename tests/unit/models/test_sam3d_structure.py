"""Occupancies, the cells at their border, and surfaces of these."""

import logging

import pytest
import torch

from voxelry.core.errors import DataError, SettingError
from voxelry.core.settings import settle
from voxelry.models.sam3d.mesh_decoder import MeshDecoderSettings
from voxelry.models.sam3d.structure import occupancy, structure_of
from voxelry.models.sam3d.surface import decode_surface, surface_channels
from voxelry.models.sam3d.surface_coder import SurfaceCoder, frame_mesh
from voxelry.ops.mesh_sdf import mesh_distances
from voxelry.ops.prompt import frame_points
from voxelry.ops.sdf import canonical_space
from voxelry.ops.surface import Mesh


def ball(grid, radius=0.3, centre=(0.0, 0.0, 0.0)):
    """Signed distances in edges, `(1, 1, n, n, n)`."""
    return ((frame_points(grid, torch.zeros(())) - torch.tensor(centre)).norm(dim=-1) - radius)[None, None]


def told(structure, distances, grid):
    """Features of a decoder that says the true distances at every corner, `(N, 53)`, of cells of `grid`."""
    corners = torch.tensor([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
    places = (structure.cells.coords[:, None, 1:] + corners) / grid - 0.5
    features = torch.zeros(len(structure.cells), surface_channels(False))
    features[:, :8] = distances(places) + 1 / grid
    return features


def test_the_cells_of_a_filled_structure_lie_on_both_sides_of_the_surface():
    distances = ball(32)
    occupied = occupancy(distances, 16, "filled")
    assert torch.equal(occupied, torch.nn.functional.avg_pool3d(distances, 2) < 0)
    structure = structure_of(occupied, "filled")
    middles = (structure.cells.coords[:, 1:] + 0.5) / 16 - 0.5
    away = middles.norm(dim=-1) - 0.3
    assert away.abs().max() < 1.8 / 16
    assert (away < 0).any()
    assert (away > 0).any()
    shell = structure_of(occupancy(distances, 16, "shell"), "shell")
    assert len(shell.cells) < len(structure.cells)
    assert shell.inside is None
    solid = structure_of(torch.ones(1, 1, 4, 4, 4, dtype=torch.bool), "filled")
    assert len(solid.cells) == 4**3 - 2**3  # beyond the grid nothing is occupied


def test_surfaces_of_true_distances_are_closed_and_true():
    structure = structure_of(occupancy(ball(32), 16, "filled"), "filled")
    features = told(structure, lambda places: places.norm(dim=-1) - 0.3, 16)
    found = decode_surface(structure.cells.coords[:, 1:], features, 16, inside=structure.inside[0])
    vertices, faces = frame_mesh(found, structure, 0)
    mesh = Mesh(vertices.numpy(), faces.numpy())
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * torch.pi * 0.3**3, rel=0.07)
    hollow = decode_surface(structure.cells.coords[:, 1:], features, 16)
    assert len(hollow.vertices) > 1.2 * len(found.vertices)  # without `inside` there is a surface within, too


def test_a_surface_at_the_border_of_the_frame_is_closed():
    structure = structure_of(occupancy(ball(16, 0.3, (0.3, 0.0, 0.1)), 8, "filled"), "filled")
    centre = torch.tensor([0.1, 0.0, 0.3])
    features = told(structure, lambda places: (places - centre).norm(dim=-1) - 0.3, 8)
    found = decode_surface(structure.cells.coords[:, 1:], features, 8, inside=structure.inside[0])
    vertices, faces = frame_mesh(found, structure, 0)
    mesh = Mesh(vertices.numpy(), faces.numpy())
    assert mesh.is_watertight
    assert vertices[:, 0].max() > 0.35  # x is the last axis of the grid


def test_distances_of_a_mesh_are_those_it_came_from():
    structure = structure_of(occupancy(ball(32), 16, "filled"), "filled")
    features = told(structure, lambda places: places.norm(dim=-1) - 0.3, 16)
    found = decode_surface(structure.cells.coords[:, 1:], features, 16, inside=structure.inside[0])
    vertices, faces = frame_mesh(found, structure, 0)
    mesh = Mesh(vertices.numpy(), faces.numpy())
    distances = mesh_distances(mesh, canonical_space((0, 0, 0), 1.0, 24), truncation=0.2)
    truth = ball(24)[0, 0].clamp(-0.2, 0.2).numpy()
    near = abs(truth) < 0.06
    assert abs(distances - truth)[near].max() < 0.012
    assert abs(distances - truth).max() < 0.05
    assert ((distances < 0) == (truth < 0)).mean() > 0.99
    torn = Mesh(vertices.numpy(), faces[5:].numpy())  # nothing is inside an open one, but nearly
    again = mesh_distances(torn, canonical_space((0, 0, 0), 1.0, 24), truncation=0.2)
    assert ((again < 0) == (truth < 0)).mean() > 0.99
    empty = Mesh(vertices[:0].numpy(), faces[:0].numpy())
    assert (mesh_distances(empty, canonical_space((0, 0, 0), 1.0, 4), truncation=0.2) == 0.2).all()


def test_too_many_cells_are_pruned_and_halved_with_a_warning(caplog):
    occupied = occupancy(ball(32), 16, "filled")
    whole = structure_of(occupied, "filled")
    inner = int((whole.cells.coords[:, 1:].unbind(1) and occupied[0, 0][whole.cells.coords[:, 1:].unbind(1)]).sum())
    with caplog.at_level(logging.WARNING, logger="voxelry"):
        pruned = structure_of(occupied, "filled", most=inner)
        halved = structure_of(occupied, "filled", most=inner // 2)
        few = structure_of(occupied, "filled", most=10)
    assert len(pruned.cells) == inner
    assert torch.equal(pruned.scale, torch.ones(1, 3))
    assert len(halved.cells) <= inner // 2
    assert len(few.cells) == 10
    assert "more than 10; they are pruned" in caplog.text
    back = halved.scale[0] * halved.cells.coords[:, 1:] + halved.shift[0]
    places = pruned.cells.coords[:, 1:].float()
    torch.testing.assert_close(back.amin(dim=0), places.amin(dim=0), atol=1.5, rtol=0)
    torch.testing.assert_close(back.amax(dim=0), places.amax(dim=0), atol=1.5, rtol=0)


def test_an_item_without_cells_and_other_faults():
    occupied = torch.zeros(2, 1, 4, 4, 4, dtype=torch.bool)
    occupied[0, 0, 1, 1, 1] = True
    with pytest.raises(DataError, match="no cell of item 1 is above the threshold"):
        structure_of(occupied, "filled")
    with pytest.raises(SettingError, match="kind"):
        structure_of(occupied[:1], "solid")
    with pytest.raises(SettingError, match="multiple of the structure's 5 cells"):
        occupancy(ball(16), 5, "filled")


def test_a_surface_coder_learns_a_shape():
    torch.manual_seed(0)
    settings = settle(
        MeshDecoderSettings,
        {"grid": 8, "latent_channels": 4, "channels": 16, "depth": 1, "heads": 2, "widths": (16,), "groups": 4},
    )
    coder = SurfaceCoder(settings, width=16, fold=2)
    distances = ball(16, 0.25)
    structure = structure_of(occupancy(distances, 8, "filled"), "filled")
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
    errors = []
    for _ in range(12):
        mean, log_variance = coder.encode(distances, structure)
        assert mean.shape == log_variance.shape == (len(structure.cells), 4)
        (found,) = coder.decode(mean, structure)
        loss = (found.sdf - (found.points.norm(dim=-1) - 0.25)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0]
    with pytest.raises(SettingError, match="expected distances on 16 cells"):
        coder.encode(ball(8), structure)

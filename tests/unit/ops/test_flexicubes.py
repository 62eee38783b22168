"""Surfaces of known shapes."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.ops.flexicubes import CORNERS, EDGES, CubeWeights, _tables, flexicubes


def grid(side):
    """Points and cubes of a grid from -1 to 1."""
    points = torch.stack(torch.meshgrid(*[torch.arange(side + 1)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    places = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    steps = torch.tensor([(side + 1) ** 2, side + 1, 1])
    return points * 2 / side - 1, ((places[:, None] + CORNERS) * steps).sum(dim=-1), places


def signed_volume(vertices, faces):
    a, b, c = vertices[faces].unbind(1)
    return (torch.linalg.cross(a, b) * c).sum() / 6


def edge_uses(faces):
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return torch.unique(edges.sort(dim=1).values, dim=0, return_counts=True)[1]


@pytest.mark.parametrize("centred", [False, True])
def test_a_ball_is_closed_and_the_right_way_round(centred):
    points, cubes, places = grid(20)
    surface = flexicubes(points, points.norm(dim=1) - 0.7, cubes, places, centred=centred)
    assert (edge_uses(surface.faces) == 2).all()
    assert signed_volume(surface.vertices, surface.faces).item() == pytest.approx(4 / 3 * np.pi * 0.7**3, rel=0.03)
    assert (surface.vertices.norm(dim=1) - 0.7).abs().max() < 0.01
    assert surface.deviation.mean() < 0.02
    assert surface.colours is None


def test_order_of_cubes_and_far_cubes_do_not_matter():
    points, cubes, places = grid(8)
    sdf = points.norm(dim=1) - 0.6
    draw = torch.Generator().manual_seed(0)
    weights = CubeWeights(*(torch.randn(len(cubes), *n, generator=draw) for n in ((12,), (8,), ())))
    expected = flexicubes(points, sdf, cubes, places, weights)
    inside = sdf[cubes] < 0
    near = (inside.any(dim=1) & ~inside.all(dim=1)).nonzero()[:, 0]
    near = near[torch.randperm(len(near))]
    some = CubeWeights(weights.edges[near], weights.corners[near], weights.diagonal[near])
    found = flexicubes(points, sdf, cubes[near], places[near], some)

    def triangles(surface):
        rounded = surface.vertices[surface.faces].double().round(decimals=4)
        return sorted(sorted(map(tuple, corners)) for corners in rounded.tolist())

    assert triangles(found) == triangles(expected)


def test_every_case_has_its_patches():
    groups, counts, tangled, steps = _tables()
    assert counts[0] == counts[255] == 0
    assert counts.max() == 4  # inside corners apart: every second corner of the cube
    assert int(counts[0b01101001]) == 4
    assert int(counts[0b10010110]) == 4
    assert ((groups >= 0).sum(dim=1) > 0).sum() == 254
    assert int(tangled.sum()) == 36
    assert ((steps.abs().sum(dim=1) == 1) == tangled).all()
    crossing = torch.tensor([[(case >> a & 1) != (case >> b & 1) for a, b in EDGES.tolist()] for case in range(256)])
    assert torch.equal(crossing, groups >= 0)


def test_no_edge_of_a_rough_surface_has_more_than_two_faces():
    points, cubes, places = grid(10)
    sdf = torch.randn(len(points), generator=torch.Generator().manual_seed(1))
    outer = (points.abs() == 1).any(dim=1)
    surface = flexicubes(points, sdf.where(~outer, 1.0), cubes, places)
    assert (edge_uses(surface.faces) == 2).all()
    assert signed_volume(surface.vertices, surface.faces) > 0


def test_gradients_pull_a_ball_to_its_size():
    points, cubes, places = grid(8)
    sdf = (points.norm(dim=1) - 0.5).requires_grad_()
    surface = flexicubes(points, sdf, cubes, places)
    surface.vertices.norm(dim=1).sum().backward()
    touched = sdf.grad != 0
    assert touched.any()
    assert (sdf.grad[touched] <= 1e-6).float().mean() > 0.9  # larger distances shrink the ball


def test_nothing_and_faults():
    points, cubes, places = grid(3)
    for centred in (False, True):
        surface = flexicubes(points, torch.ones(len(points)), cubes, places, centred=centred)
        assert surface.vertices.shape == surface.faces.shape == (0, 3)
    with pytest.raises(SettingError, match="cubes: expected shape"):
        flexicubes(points, torch.ones(len(points)), cubes[1:], places)
    with pytest.raises(SettingError, match="points: expected shape"):
        flexicubes(points[1:], torch.ones(len(points)), cubes, places)

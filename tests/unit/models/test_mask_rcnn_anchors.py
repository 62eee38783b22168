"""Anchors against worked numbers and against all of them written out."""

import json

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.models.mask_rcnn.anchors import AnchorGrid, Anchors, AnchorShapes


def test_rounded_shapes_of_the_published_detector():
    shapes = AnchorShapes([[32]], (0.5, 1.0, 2.0), ndim=2, rounded=True)
    expected = [[-11, -23, 11, 23], [-16, -16, 16, 16], [-23, -11, 23, 11]]  # y, x lows, then highs
    assert shapes.boxes(0).tolist() == expected


def test_halves_are_rounded_to_even():
    shapes = AnchorShapes([[(3, 5)]], (1.0,), ndim=2, rounded=True)
    assert shapes.boxes(0).tolist() == [[-2, -2, 2, 2]]


def test_order_is_ratios_then_sizes_then_depths():
    shapes = AnchorShapes([[4, 8]], (1.0, 4.0), (0.5, 1.0), ndim=3)
    extent = shapes.boxes(0)[:, 3:] * 2
    assert shapes.num_anchors == 8
    assert extent[:4].tolist() == [[2, 4, 4], [4, 4, 4], [4, 8, 8], [8, 8, 8]]
    assert extent[4:].tolist() == [[2, 8, 2], [4, 8, 2], [4, 16, 4], [8, 16, 4]]


def test_sizes_may_differ_per_axis():
    shapes = AnchorShapes([[(3, 10, 20)]], (1.0,), (1.0, 2.0), ndim=3)
    assert (shapes.boxes(0)[:, 3:] * 2).tolist() == [[3, 10, 20], [6, 10, 20]]


def test_the_original_has_27_anchors():
    assert AnchorShapes([[16, 32, 64]], z_ratios=(0.5, 1.0, 2.0), ndim=3).num_anchors == 27
    assert AnchorShapes([[16, 32, 64]], z_ratios=(0.5, 1.0, 2.0), ndim=2).num_anchors == 9


def test_ratios_may_differ_per_level():
    shapes = AnchorShapes([[4], [8]], [[1.0], [4.0]], ndim=2)
    assert (shapes.boxes(0)[:, 2:] * 2).tolist() == [[4, 4]]
    assert (shapes.boxes(1)[:, 2:] * 2).tolist() == [[16, 4]]


@pytest.fixture
def anchors():
    shapes = AnchorShapes([[4], [9]], (0.5, 2.0), (1.0, 3.0), ndim=3)
    features = [torch.zeros(2, 5, 3, 4, 2), torch.zeros(2, 5, 2, 1, 1)]
    return Anchors.of(shapes, features, [(2, 4, 4), (4, 8, 8)])


def written_out(anchors):
    rows = []
    for grid in anchors.grids:
        axes = [torch.arange(size) * step for size, step in zip(grid.shape, grid.stride, strict=True)]
        for centre in torch.cartesian_prod(*axes):
            rows += [torch.cat((centre, centre)) + base for base in grid.base]
    return torch.stack(rows)


def test_boxes_by_number_equal_all_of_them_written_out(anchors):
    expected = written_out(anchors)
    assert len(anchors) == len(expected) == (24 + 2) * 4
    assert torch.equal(anchors.boxes(torch.arange(len(anchors))), expected)
    assert torch.equal(torch.cat(list(anchors.chunks(7))), expected)
    some = torch.tensor([100, 3, 96, 3])
    assert torch.equal(anchors.boxes(some), expected[some])
    assert anchors.boxes(torch.zeros(0, dtype=torch.int64)).shape == (0, 6)


def test_numbers_are_sorted_into_levels(anchors):
    found = [
        (level, places.tolist(), inside.tolist())
        for level, places, inside in anchors.per_level(torch.tensor([97, 5, 96]))
    ]
    assert found == [(0, [1], [5]), (1, [0, 2], [1, 0])]


def test_a_grid_of_billions_costs_nothing():
    base = AnchorShapes([[16, 32, 64]], z_ratios=(0.5, 1.0, 2.0), ndim=3).boxes(0)
    grid = AnchorGrid(base, (512, 512, 512), (4.0, 4.0, 4.0))
    assert len(grid) == 27 * 512**3
    last = grid.boxes(torch.tensor([len(grid) - 1]))
    assert torch.equal(last[0], base[-1] + 4.0 * 511)


@pytest.mark.parametrize(
    ("sizes", "ratios", "z_ratios", "named"),
    [
        ([[4], []], (1.0,), (1.0,), r"anchors\.sizes: expected a list of sizes for every level"),
        ([4, 8], (1.0,), (1.0,), r"anchors\.sizes: expected a list of sizes for every level"),
        ([[0]], (1.0,), (1.0,), r"anchors\.sizes: expected positive numbers"),
        ([[(4, 4)]], (1.0,), (1.0,), r"anchors\.sizes: expected 1 or 3 values"),
        ([[4], [4, 8]], (1.0,), (1.0,), "as many anchors on every level"),
        ([[4]], (), (1.0,), r"anchors\.ratios: expected positive numbers"),
        ([[4]], (-1.0,), (1.0,), r"anchors\.ratios: expected positive numbers"),
        ([[4]], [[1.0], [1.0]], (1.0,), r"anchors\.ratios: expected positive numbers, for all 1 levels"),
        ([[4]], (1.0,), (0.0,), r"anchors\.z_ratios: expected positive numbers"),
    ],
)
def test_bad_settings_are_named(sizes, ratios, z_ratios, named):
    with pytest.raises(SettingError, match=named):
        AnchorShapes(sizes, ratios, z_ratios, ndim=3)


def test_levels_of_features_and_of_sizes_must_agree():
    shapes = AnchorShapes(json.loads("[[4], [8]]"), ndim=2)
    with pytest.raises(SettingError, match="expected 1 levels, got 2"):
        Anchors.of(shapes, [torch.zeros(1, 1, 2, 2)], [(1, 1)])

"""Layers on occupied cells, against the same on whole grids."""

import pytest
import torch
import torch.nn.functional as F

from voxelry.core.errors import SettingError
from voxelry.nn import nd
from voxelry.nn.sparse import (
    Cells,
    Grouping,
    SparseGroupNorm,
    SparseTensor,
    SubmanifoldConv,
    subdivide,
    subdivided_convolve,
)
from voxelry.nn.transformer import CrossAttention, SelfAttention
from voxelry.ops import submanifold


def occupied(ndim, *, items=2, side=6, share=0.4, channels=5, dtype=torch.float32):
    """Random cells in random order."""
    chosen = (torch.rand(items, *(side,) * ndim) < share).nonzero()
    coords = chosen[torch.randperm(len(chosen))]
    return SparseTensor.of(torch.randn(len(coords), channels, dtype=dtype), coords)


def dense(x, side=6):
    grid = x.features.new_zeros(x.cells.items, *(side,) * x.cells.ndim, x.features.shape[1])
    grid[tuple(x.cells.coords.T)] = x.features
    return grid.movedim(-1, 1)


def at_cells(grid, cells):
    return grid.movedim(1, -1)[tuple(cells.coords.T)]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_convolution_is_the_dense_one_at_occupied_cells(ndim, block, monkeypatch):
    monkeypatch.setattr(submanifold, "BLOCK", block)
    x, layer = occupied(ndim), SubmanifoldConv(5, 4, ndim=ndim)
    torch.nn.init.normal_(layer.bias)
    kernel = layer.weight.unflatten(0, (3,) * ndim).permute(-1, -2, *range(ndim))
    expected = nd.convolve(dense(x), kernel, layer.bias, padding=(1,) * ndim)
    torch.testing.assert_close(layer(x).features, at_cells(expected, x.cells))


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_gradients_of_the_convolution(repeats, block, monkeypatch):
    monkeypatch.setattr(submanifold, "BLOCK", block)
    x = occupied(2, items=1, side=3, share=0.5, channels=2, dtype=torch.float64)
    cells = x.cells.finer if repeats > 1 else x.cells
    weight, bias = torch.randn(9, 2, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    inputs = [each.requires_grad_() for each in (x.features, weight, bias)]

    def convolve(features, weight, bias):
        return submanifold.submanifold_convolve(features, cells.neighbours, weight, bias, repeats=repeats)

    assert torch.autograd.gradcheck(convolve, inputs)


@pytest.mark.parametrize("ndim", [2, 3])
def test_children_know_their_neighbours(ndim, monkeypatch):
    monkeypatch.setattr("voxelry.nn.sparse.BLOCK", 11)
    x, layer = occupied(ndim), SubmanifoldConv(5, 4, ndim=ndim)
    finer = subdivide(subdivide(x))
    assert torch.equal(finer.cells.neighbours, Cells(finer.cells.coords).neighbours)
    assert finer.cells.coords[:2, -1].tolist() == [4 * x.cells.coords[0, -1], 4 * x.cells.coords[0, -1] + 1]
    torch.testing.assert_close(subdivided_convolve(x, layer).features, layer(subdivide(x)).features)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("shift", [0, 2])
def test_attention_in_windows_is_attention_under_a_mask(ndim, shift):
    x, layer = occupied(ndim, channels=8), SelfAttention(8, 2, normed=True)
    windows = x.cells.windows(4, shift)
    window = (x.cells.coords + torch.tensor([0, *[shift] * ndim])) // torch.tensor([1, *[4] * ndim])
    together = (window[:, None] == window).all(dim=-1)
    q, k, v = layer.qkv(x.features).unflatten(-1, (3, 2, -1)).unbind(1)
    each = [one.transpose(0, 1) for one in (layer.q_norm(q), layer.k_norm(k), v)]
    expected = layer.out(F.scaled_dot_product_attention(*each, attn_mask=together).transpose(0, 1).flatten(1))
    torch.testing.assert_close(layer(x.features, windows), expected)
    assert sum(bucket.numel() for bucket in windows.buckets) == len(x.cells)
    assert x.cells.windows(4, shift) is windows


def test_cells_look_at_their_own_items_condition():
    x, layer, condition = occupied(3, channels=8, items=3), CrossAttention(8, 6, 2), torch.randn(3, 4, 6)
    item = x.cells.coords[:, 0]
    expected = layer(x.features[:, None], condition[item])[:, 0]
    torch.testing.assert_close(layer.cells(x.features, condition, x.cells.by_item, item), expected)


@pytest.mark.parametrize("items", [1, 3])
def test_group_norm_is_of_each_item(items):
    x, layer = occupied(3, items=items, channels=6), SparseGroupNorm(3, 6)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    found = layer(x.with_features(2 + 3 * x.features)).features
    for item in range(items):
        rows = x.cells.coords[:, 0] == item
        own = (2 + 3 * x.features[rows]).T[None]
        expected = F.group_norm(own, 3, layer.weight, layer.bias)[0].T
        torch.testing.assert_close(found[rows], expected)


def test_coarser_cells_are_sorted_and_know_whose_they_are():
    x = occupied(3)
    coarser, parent = x.cells.coarser(2)
    assert coarser.coords.tolist() == sorted(coarser.coords.tolist())
    assert torch.equal(coarser.coords[parent][:, 1:], x.cells.coords[:, 1:] // 2)


def test_groups_keep_every_cell():
    groups = Grouping.of(torch.tensor([4, 0, 4, 2, 0, 4]))
    assert [bucket.tolist() for bucket in groups.buckets] == [[[3]], [[1, 4]], [[0, 2, 5]]]
    flat = torch.cat([bucket.flatten() for bucket in groups.buckets])
    assert flat[groups.restore].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_refused():
    with pytest.raises(SettingError, match="at least one occupied cell"):
        Cells(torch.zeros(0, 4, dtype=torch.int64))
    with pytest.raises(SettingError, match="expected integers"):
        Cells(torch.zeros(3, 4))
    with pytest.raises(SettingError, match="0 and more, got -1"):
        Cells(torch.tensor([[0, -1, 2, 3]]))
    with pytest.raises(SettingError, match="got one twice"):
        _ = Cells(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])).neighbours
    with pytest.raises(SettingError, match="expected 1 rows, got 2"):
        SparseTensor.of(torch.zeros(2, 4), torch.tensor([[0, 1, 2, 3]]))
    with pytest.raises(SettingError, match="evenly"):
        SparseGroupNorm(3, 4)

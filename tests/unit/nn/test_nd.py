"""Layers and operations by rank."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxelry.nn import nd


def test_layers_by_rank():
    assert [nd.transposed_conv(ndim) for ndim in (2, 3)] == [nn.ConvTranspose2d, nn.ConvTranspose3d]
    assert [nd.batch_norm(ndim) for ndim in (2, 3)] == [nn.BatchNorm2d, nn.BatchNorm3d]


@pytest.mark.parametrize("ndim", [2, 3])
def test_windows_over_the_end_count_with_ceil(ndim):
    x = torch.arange(5.0**ndim).reshape(1, 1, *[5] * ndim)
    corner = (0, 0, *[-1] * ndim)
    whole = nd.max_pool(x, [2] * ndim, stride=[2] * ndim, ceil=True)
    assert whole.shape[2:] == (3,) * ndim
    assert whole[corner] == x[corner]
    assert nd.max_pool(x, [2] * ndim, stride=[2] * ndim).shape[2:] == (2,) * ndim
    assert nd.max_pool(x, [3] * ndim, stride=[1] * ndim, padding=1).shape == x.shape


def test_tables_are_resized_smoothly():
    table = torch.randn(1, 3, 4, 5)
    flat = F.interpolate(table, size=(7, 3), mode="bicubic", align_corners=False)
    torch.testing.assert_close(nd.resize_smoothly(table, (7, 3)), flat)
    assert nd.resize_smoothly(table, (4, 5)) is table
    cube = torch.randn(1, 3, 4, 5, 2)
    expected = F.interpolate(cube, size=(7, 3, 3), mode="trilinear", align_corners=False)
    torch.testing.assert_close(nd.resize_smoothly(cube, (7, 3, 3)), expected)


def test_axes_of_one_entry_are_repeated():
    table = torch.randn(1, 3, 4, 5)
    lifted = nd.resize_smoothly(table.unsqueeze(2), (6, 7, 3))
    torch.testing.assert_close(lifted, nd.resize_smoothly(table, (7, 3)).unsqueeze(2).expand(1, 3, 6, 7, 3))
    line = torch.randn(1, 3, 1, 4, 1)
    plane = line[..., 0, :, :].expand(1, 3, 4, 5)
    expected = nd.resize_smoothly(plane, (8, 2)).unsqueeze(2).expand(1, 3, 2, 8, 2)
    torch.testing.assert_close(nd.resize_smoothly(line, (2, 8, 2)), expected)
    assert nd.resize_smoothly(torch.ones(1, 2, 1, 1), (3, 2)).shape == (1, 2, 3, 2)

"""Layers and operations by rank."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxelry.nn import nd, onednn


def test_layers_by_rank():
    for ndim, kind in ((2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d)):
        assert issubclass(nd.transposed_conv(ndim), kind)
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


@pytest.mark.parametrize("ndim", [2, 3])
def test_nearest_takes_the_voxels_that_pytorch_takes(ndim):
    small = (3, 4, 5)[-ndim:]
    x = torch.randn(2, 3, *small, requires_grad=True)
    for size in ((7, 12, 9), (20, 5, 11), (3, 4, 13)):
        found, expected = nd.nearest(x, size[-ndim:]), F.interpolate(x, size=size[-ndim:], mode="nearest")
        assert torch.equal(found, expected)
        grad = torch.randn(expected.shape)
        torch.testing.assert_close(*(torch.autograd.grad(each, x, grad)[0] for each in (found, expected)))


def test_axes_of_one_entry_are_repeated():
    table = torch.randn(1, 3, 4, 5)
    lifted = nd.resize_smoothly(table.unsqueeze(2), (6, 7, 3))
    torch.testing.assert_close(lifted, nd.resize_smoothly(table, (7, 3)).unsqueeze(2).expand(1, 3, 6, 7, 3))
    line = torch.randn(1, 3, 1, 4, 1)
    plane = line[..., 0, :, :].expand(1, 3, 4, 5)
    expected = nd.resize_smoothly(plane, (8, 2)).unsqueeze(2).expand(1, 3, 2, 8, 2)
    torch.testing.assert_close(nd.resize_smoothly(line, (2, 8, 2)), expected)
    assert nd.resize_smoothly(torch.ones(1, 2, 1, 1), (3, 2)).shape == (1, 2, 3, 2)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), ((1, 3, 2), (1, 2, 1), (0, 1, 0)), (2, 2, 0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_single_volume_is_convolved_like_any(kernel, stride, padding, layout):
    ours = nd.conv(3)(8, 12, kernel, stride, padding)
    plain = nn.Conv3d(8, 12, kernel, stride, padding).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 8, 9, 10, 12).contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    assert onednn.is_skipped(x, ours.weight)
    found, expected = ours(x), plain(exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(found)
    found.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    for name in ("weight", "bias"):
        here, there = getattr(ours, name).grad.double(), getattr(plain, name).grad
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_a_single_volume_has_second_derivatives():
    found, plain = [], nn.Conv3d(8, 8, 3, padding=1)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    for layer in (nd.conv(3)(8, 8, 3, padding=1), plain):
        layer.load_state_dict(plain.state_dict())
        torch.manual_seed(1)
        x = torch.randn(1, 8, 8, 8, 10, requires_grad=True)
        (slope,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append((x.grad, layer.weight.grad))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


ALONG_FIRST = {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)}


@pytest.mark.parametrize(
    "settings",
    [
        {"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding_mode": "reflect"}, ALONG_FIRST,
        {**ALONG_FIRST, "groups": 4, "dilation": (2, 1, 1)}, {**ALONG_FIRST, "stride": (2, 1, 1)},
    ],
)  # fmt: skip
def test_other_convolutions_of_volumes_are_pytorchs(settings):
    ours, plain = (kind(4, 4, **{"kernel_size": 3, "padding": 1, **settings}) for kind in (nd.conv(3), nn.Conv3d))
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 10, 10, 12)
    torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("settings", [{}, {"groups": 2}, {"padding": (1, 0, 0)}, {"stride": 2}, {"dilation": 2}])
@pytest.mark.parametrize("kernel", [1, (3, 1, 1), (1, 3, 1)])
def test_kernels_of_width_1_are_convolved_whatever_goes_with_them(device, settings, kernel):
    layer = nd.conv(3)(4, 6, kernel, **settings)
    x = torch.randn(2, 4, 5, 6, 7)
    keywords = {name: value for name, value in settings.items() if name != "groups"}
    expected = F.conv3d(x, layer.weight, layer.bias, groups=settings.get("groups", 1), **keywords)
    found = layer.to(device)(x.to(device))
    assert found.shape == expected.shape
    if device == "cpu":
        torch.testing.assert_close(found, expected)

"""Winograd's convolution against PyTorch's in double precision."""

import pytest
import torch

from voxelry.nn import nd
from voxelry.ops import winograd


def given(shape=(7, 4, 9), *, batch=3, inner=5, outer=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inner, *shape, generator=generator)
    weight = torch.randn(outer, inner, 3, 3, 3, generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(outer, generator=generator).requires_grad_()


def plain(x, weight, bias, padding):
    return torch.nn.functional.conv3d(x.double(), weight.double(), None if bias is None else bias.double(), 1, padding)


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.parametrize("part", [1, 1 << 14, 1 << 19])  # a layer of tiles at a time, a few, all
@pytest.mark.parametrize("padding", [(1, 1, 1), (0, 1, 2), (2, 0, 0)])
@pytest.mark.parametrize("shape", [(7, 4, 9), (3, 6, 5), (8, 8, 4)])
def test_answer_and_gradients(shape, padding, part, monkeypatch):
    monkeypatch.setattr(winograd, "PART", part)
    inputs = given(shape)
    answer, expected = winograd.convolve(*inputs, padding=padding), plain(*inputs, padding)
    assert_near(answer, expected)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(answer, inputs, grad)
    for one, other in zip(found, torch.autograd.grad(expected, inputs, grad.double()), strict=True):
        assert_near(one, other)


def test_only_what_is_wanted():
    x, weight, bias = given()
    fixed = winograd.convolve(x.detach(), weight, None, padding=(1, 1, 1)).square().sum()
    assert_near(
        torch.autograd.grad(fixed, weight)[0], torch.autograd.grad(plain(x, weight, None, 1).square().sum(), weight)[0]
    )
    frozen = winograd.convolve(x, weight.detach(), bias.detach(), padding=(1, 1, 1)).square().sum()
    assert_near(torch.autograd.grad(frozen, x)[0], torch.autograd.grad(plain(x, weight, bias, 1).square().sum(), x)[0])


def test_gradients_of_gradients():
    x, weight, _ = given()

    def second(answer):
        (first,) = torch.autograd.grad(answer.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    assert_near(second(winograd.convolve(x, weight, None, padding=(1, 1, 1))), second(plain(x, weight, None, 1)))


def test_it_is_taken_where_it_pays(monkeypatch):
    x, weight, bias = given((16, 16, 16), batch=1, inner=64, outer=64)
    assert winograd.pays(x, weight)
    assert not winograd.pays(x[:, :, :8, :8, :8], weight)
    assert not winograd.pays(x[:, :32], weight[:, :32])
    assert not winograd.pays(x.bfloat16(), weight.bfloat16())
    assert not winograd.pays(x, weight[..., :1])
    asked = []
    monkeypatch.setattr(winograd, "convolve", lambda *args, **keywords: asked.append(args) or args[0])
    nd.convolve(x, weight, bias, padding=[1, 1, 1])
    assert len(asked) == 1
    nd.convolve(x, weight, bias, padding=[1, 1, 1], stride=[2, 2, 2])
    assert len(asked) == 1

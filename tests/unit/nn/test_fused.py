"""The memory-saving forms mean what the written-out forms mean, in value and in gradient."""

import pytest
import torch
from torch import nn

from voxelry.nn import recipes
from voxelry.nn.attention import LinearAttention
from voxelry.nn.blocks import PreNormBlock, WeightStandardisedBlock
from voxelry.nn.lean import fused, rows

SIZES = {2: (5, 7), 3: (3, 4, 5)}


def gradients(result, leaves):
    return [result, *torch.autograd.grad(result.sin().sum(), leaves, allow_unused=True)]


def assert_same(plain, other):
    for expected, found in zip(plain, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.fixture(params=[2, 3])
def ndim(request):
    return request.param


@pytest.fixture(params=["rows", "small chunks", "recipes", "any device"])
def form(request, monkeypatch):
    if request.param == "small chunks":
        monkeypatch.setattr(rows, "CHUNK_ELEMENTS", 50)
    if request.param == "any device":
        monkeypatch.setattr("voxelry.nn.attention.in_rows", lambda x: False)
    if request.param == "recipes":
        monkeypatch.setattr(recipes, "MINIMUM_BYTES", 0)
    return request.param


@pytest.mark.parametrize("with_time", [True, False])
@pytest.mark.parametrize("standard", [None, 1e-5])
def test_norm_silu_conv_saves_only_its_input(ndim, form, with_time, standard):
    x = (3 + 2 * torch.randn(2, 6, *SIZES[ndim], dtype=torch.double)).requires_grad_()
    norm = nn.GroupNorm(3, 6).double()
    nn.init.normal_(norm.weight)
    scale, shift = torch.randn(2, 2, 6, dtype=torch.double, requires_grad=True)
    weight = torch.randn(5, 6, *[3] * ndim, dtype=torch.double, requires_grad=True)
    bias = torch.randn(5, dtype=torch.double, requires_grad=True)
    leaves = [x, norm.weight, norm.bias, weight, bias, *([scale, shift] if with_time else [])]
    found = []
    for recompute in (False, True):
        result = fused.norm_silu_conv(
            x,
            norm,
            weight,
            bias,
            *((scale, shift) if with_time else ()),
            padding=(1,) * ndim,
            standard=standard,
            recompute=recompute,
        )
        found.append(gradients(result, leaves))
    assert_same(*found)


def test_norm_silu_with_residual(ndim, form):
    x = torch.randn(2, 4, *SIZES[ndim], dtype=torch.double, requires_grad=True)
    residual = torch.randn_like(x).requires_grad_()
    norm = nn.GroupNorm(2, 4).double()
    leaves = [x, residual, norm.weight, norm.bias]
    plain, other = (
        gradients(fused.norm_silu(x, norm, residual=residual, recompute=again), leaves) for again in (False, True)
    )
    assert_same(plain, other)


def test_gradcheck_of_every_function():
    x = torch.randn(1, 4, 2, 3, dtype=torch.double, requires_grad=True)
    norm = nn.GroupNorm(2, 4).double()
    weight = torch.randn(2, 4, 3, 3, dtype=torch.double, requires_grad=True)

    def run(x, gamma, beta, weight):
        norm_like = nn.GroupNorm(2, 4).double()
        del norm_like.weight, norm_like.bias
        norm_like.weight, norm_like.bias = gamma, beta
        h = fused.norm_silu(x, norm_like, residual=x, recompute=True)
        h = fused.norm_silu_conv(h, norm_like, weight, None, padding=(1, 1), standard=1e-5, recompute=True)
        both = torch.cat((weight, weight[:, :2]), dim=1)
        return fused.conv_of(x, h, both, None, padding=(1, 1), standard=1e-5, recompute=True)

    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias, weight))


@pytest.mark.parametrize(("groups", "bias"), [(1, False), (2, True)])
def test_linear_attention_in_passes(ndim, form, groups, bias):
    layer = LinearAttention(6, ndim=ndim, heads=2, head_dim=4, groups=groups, bias=bias).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = (2 * torch.randn(2, 6, *SIZES[ndim], dtype=torch.double)).requires_grad_()
    leaves = [x, *layer.parameters()]
    assert_same(gradients(layer(x), leaves), gradients(layer(x, recompute=True), leaves))


@pytest.mark.parametrize("kind", [WeightStandardisedBlock, PreNormBlock])
def test_block_with_skip_and_time(ndim, form, kind):
    block = kind(6, 8, ndim=ndim, embedding=5, groups=2).double()
    x, skip = torch.randn(2, 2, 3, *SIZES[ndim], dtype=torch.double, requires_grad=True)
    embedding = torch.randn(2, 5, dtype=torch.double, requires_grad=True)
    leaves = [x, skip, embedding, *block.parameters()]
    assert_same(
        gradients(block(x, embedding, skip), leaves), gradients(block(x, embedding, skip, recompute=True), leaves)
    )


def test_blocks_keep_one_tensor_per_convolution():
    block = WeightStandardisedBlock(8, 8, ndim=3, embedding=4)
    x = torch.randn(1, 8, 16, 16, 16, requires_grad=True)

    def kept(recompute):
        storages = {}

        def note(tensor):
            if tensor.numel() >= x.numel():
                storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = block(x, recompute=recompute)
        del result
        return len(storages)

    assert kept(True) == 3  # the input and the output of both convolutions
    assert kept(False) > 5


def test_large_offset_costs_no_digits():
    x = 1000 + torch.randn(1, 4, 30, 40)
    mean, variance = rows.sums(rows.dense(x))
    torch.testing.assert_close(mean, x.double().mean(dim=(2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance, x.double().var(dim=(2, 3), correction=0), rtol=1e-4, atol=0)


def test_frozen_weights_still_pass_the_gradient_on():
    block = WeightStandardisedBlock(4, 4, ndim=2, embedding=4, groups=2).requires_grad_(False)
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    expected, found = (torch.autograd.grad(block(x, recompute=again).sum(), x)[0] for again in (False, True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sums_of_blocks_are_made_again(monkeypatch):
    monkeypatch.setattr(recipes, "MINIMUM_BYTES", 0)
    blocks = torch.nn.ModuleList(WeightStandardisedBlock(8, 8, ndim=3, embedding=4) for _ in range(3))
    x = torch.randn(1, 8, 8, 8, 8, requires_grad=True)
    storages = {}

    def note(tensor):
        if tensor.numel() >= x.numel():
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = x
        for block in blocks:
            result = block(result, recompute=True)
    assert len(storages) == 1 + 2 * len(blocks)  # the input, and both convolutions of each block: no sum
    assert all(
        tensor.untyped_storage().data_ptr() != result.untyped_storage().data_ptr() for tensor in storages.values()
    )

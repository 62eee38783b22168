"""Hiera: the order of tokens, who attends to whom, masks, sizes of any kind."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxelry.backbones.base import Backbone
from voxelry.backbones.build import build_backbone
from voxelry.backbones.hiera import Hiera, pad_to
from voxelry.backbones.hiera_units import MaskUnitAttention, from_units, pool, reroll, unroll
from voxelry.core.errors import DataError, SettingError
from voxelry.nn.drop_path import DropPath

TINY = {
    "embed_dim": 8,
    "stages": (1, 2, 1),
    "q_pool": 2,
    "mask_unit_size": 4,
    "mask_unit_attention": (True, True, False),
    "patch_kernel": 3,
    "patch_stride": 2,
    "patch_padding": 1,
}


def hiera(ndim=2, **changes):
    return Hiera(**{"ndim": ndim, "input_size": 32, **TINY, **changes}).eval()


def spread_positions(network):
    for name, parameter in network.named_parameters():
        if name.startswith("pos_embed"):
            nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize("schedule", [[(2, 2), (2, 2)], [(1, 2), (3, 1)], [(1, 2, 2), (2, 2, 1), (1, 1, 3)]])
def test_pooling_a_view_is_pooling_the_grid(schedule):
    ndim = len(schedule[0])
    grid = [2 * math.prod(sizes) for sizes in zip(*schedule, strict=True)]
    x = torch.randn(2, *grid, 5)
    tokens, dense = unroll(x, schedule), x.movedim(-1, 1)
    largest = F.max_pool3d if ndim == 3 else F.max_pool2d
    for level, stride in enumerate(schedule):
        tokens, dense = pool(tokens, math.prod(stride)), largest(dense, stride)
        left = schedule[level + 1 :]
        rest = [2] * ndim
        back = from_units(reroll(tokens, left, ndim), rest)
        assert torch.equal(back, dense.movedim(1, -1))


@pytest.mark.parametrize("unit", [(4, 4, 4), (8, 4, 8)])
def test_mask_units_are_boxes_of_the_image(unit):
    network = hiera(3, mask_unit_size=unit)
    counts = (1, 2, 2)
    grid = [count * size for count, size in zip(counts, unit, strict=True)]
    which = torch.arange(4).reshape(counts)
    for axis, size in enumerate(unit):
        which = which.repeat_interleave(size, dim=axis)
    tokens = unroll(which.reshape(1, *grid, 1), network.schedule).reshape(-1, 4)
    assert torch.equal(tokens, torch.arange(4).expand_as(tokens))


def test_strided_units_interleave_where_the_original_does():
    boxes, strided = (hiera(mask_unit_size=8, unit_order=order) for order in ("boxes", "strided"))
    assert boxes.tile == (8, 8)
    assert strided.tile == (4, 4)
    strided.load_state_dict(spread_positions(boxes).state_dict())
    x = torch.randn(1, 1, 32, 32)
    assert not torch.allclose(boxes(x)["p1"], strided(x)["p1"], atol=1e-3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_attention_stays_in_its_mask_unit_until_the_last_stage(ndim):
    network = hiera(ndim, patch_kernel=2, patch_padding=0, stages=(1, 2, 2))
    x = torch.randn(1, 1, *(16,) * ndim)
    other = x.clone()
    other[(..., *(slice(0, 8),) * ndim)] += 1
    before, after = network(x), network(other)
    for name, extent in (("p1", 4), ("p2", 2)):
        changed = (before[name] != after[name]).any(dim=1)[0]
        inside = torch.zeros_like(changed)
        inside[(slice(0, extent),) * ndim] = True
        assert changed[inside].all()
        assert not changed[~inside].any()
    assert (before["p3"] != after["p3"]).any(dim=1).all()


def test_the_block_that_pools_attends_as_the_stage_before_it():
    network = hiera(mask_unit_attention=(True, False, True))
    assert [block.attn.window for block in network.blocks] == [16, 4, None, None]
    lone = hiera(stages=(1, 1, 2), mask_unit_attention=(False, True, True))
    assert [block.attn.window for block in lone.blocks] == [None, None, 1, 1]


def test_attention_is_softmax_attention_with_pooled_queries():
    layer = MaskUnitAttention(6, 8, 2, stride=4, window=2)
    x = torch.randn(3, 24, 6)  # 3 windows of 8 tokens, 2 after pooling
    found = layer(x).reshape(3, 2, 3, 8)
    for window in range(3):
        q, k, v = layer.qkv(x.reshape(3, 8, 3, 6)[:, :, window]).reshape(3, 8, 3, 2, 4).unbind(2)
        q = q.reshape(3, 4, 2, 2, 4).amax(1)
        weights = (torch.einsum("bqhc,bkhc->bhqk", q, k) / 2).softmax(-1)
        expected = layer.proj(torch.einsum("bhqk,bkhc->bqhc", weights, v).flatten(2))
        torch.testing.assert_close(found[:, :, window], expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_attention_kernel_is_given_contiguous_tensors_of_rank_4(ndim, monkeypatch):
    seen = []
    plain = F.scaled_dot_product_attention

    def spy(q, k, v):
        seen.extend([q, k, v])
        return plain(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    hiera(ndim)(torch.randn(2, 1, *(16,) * ndim))
    assert len(seen) == 12
    assert all(tensor.ndim == 4 and tensor.is_contiguous() for tensor in seen)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("sep", [True, False])
def test_any_size_gives_levels_of_its_size(ndim, sep):
    network = hiera(ndim, sep_pos_embed=sep, in_channels=2)
    assert isinstance(network, Backbone)
    assert network.strides == {"p1": (2,) * ndim, "p2": (4,) * ndim, "p3": (8,) * ndim}
    assert network.out_channels == {"p1": 8, "p2": 16, "p3": 32}
    for size in ((32, 32, 32), (1, 17, 40), (9, 24, 5)):
        shape = size[-ndim:]
        levels = network(torch.randn(2, 2, *shape))
        assert list(levels) == ["p1", "p2", "p3"]
        for name, features in levels.items():
            expected = [-(-length // step) for length, step in zip(shape, network.strides[name], strict=True)]
            assert features.shape == (2, network.out_channels[name], *expected)
            assert features.is_contiguous()
            assert features.isfinite().all()


def test_strides_and_units_per_axis():
    network = hiera(3, q_stride=(1, 2, 2), mask_unit_size=(2, 4, 4), patch_stride=(1, 2, 4), patch_kernel=(1, 3, 5),
                    patch_padding=(0, 1, 1))  # fmt: skip
    assert network.strides == {"p2": (1, 2, 4), "p3": (1, 4, 8), "p4": (1, 8, 16)}
    levels = network(torch.randn(1, 1, 3, 20, 40))
    assert [tuple(level.shape[2:]) for level in levels.values()] == [(3, 10, 10), (3, 5, 5), (3, 3, 3)]


def test_stages_after_the_last_pooling_share_its_level():
    network = hiera(stages=(1, 1, 1, 2), q_pool=1)
    assert list(network.strides) == ["p1", "p2"]
    assert network.out_channels == {"p1": 8, "p2": 64}
    x = torch.randn(1, 1, 32, 32)
    maps = network.intermediates(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 16, 8), (8, 8, 16), (8, 8, 32), (8, 8, 64)]
    assert torch.equal(network(x)["p2"], maps[-1].movedim(-1, 1))


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_permuted_axes_permute_the_levels(order):
    sizes = {
        "q_stride": (1, 2, 2),
        "mask_unit_size": (1, 4, 4),
        "patch_kernel": (3, 5, 3),
        "patch_stride": (2, 4, 2),
        "patch_padding": (1, 2, 1),
        "input_size": (8, 32, 16),
    }
    network = spread_positions(hiera(3, **sizes))
    turned = hiera(3, **{name: [values[axis] for axis in order] for name, values in sizes.items()})
    state = network.state_dict()
    kernel, table = "patch_embed.proj.weight", state["pos_embed"].unflatten(1, network.grid)
    state[kernel] = state[kernel].permute(0, 1, *(2 + axis for axis in order))
    state["pos_embed"] = table.permute(0, *(1 + axis for axis in order), 4).flatten(1, 3)
    turned.load_state_dict(state)
    axes = 0, 1, *(2 + axis for axis in order)
    x = torch.randn(1, 1, 8, 30, 16)
    found = turned(x.permute(axes))
    for name, expected in network(x).items():
        torch.testing.assert_close(found[name], expected.permute(axes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_hidden_units_do_not_leak(ndim):
    network = hiera(ndim)
    x = torch.randn(2, 1, *(16,) * ndim)
    mask = torch.zeros(2, 2**ndim, dtype=torch.bool)
    mask[0, :2], mask[1, 1:3] = True, True
    maps = network.intermediates(x, mask)
    assert [tuple(m.shape[:2]) for m in maps] == [(2, 2)] * 3
    assert [tuple(m.shape[2:-1]) for m in maps] == [(4,) * ndim, (2,) * ndim, (1,) * ndim]
    hidden = ~mask.reshape(2, 1, *(2,) * ndim)
    for axis in range(2, 2 + ndim):
        hidden = hidden.repeat_interleave(8, dim=axis)
    other = network.intermediates(torch.where(hidden, torch.randn_like(x), x), mask)
    assert all(torch.equal(a, b) for a, b in zip(maps, other, strict=True))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_mask_that_keeps_everything_changes_nothing(ndim):
    network = spread_positions(hiera(ndim, mask_unit_size=8))
    x = torch.randn(1, 1, *(32,) * ndim)
    masked = network.intermediates(x, torch.ones(1, 2**ndim, dtype=torch.bool))
    for found, expected in zip(masked, network.intermediates(x), strict=True):
        torch.testing.assert_close(from_units(found, (2,) * ndim), expected)


def test_a_mask_that_does_not_fit_is_told():
    network = hiera()
    x = torch.zeros(2, 1, 16, 16)
    with pytest.raises(DataError, match=r"mask: expected shape \(2, 4\), got \(2, 5\)"):
        network.intermediates(x, torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(DataError, match=r"every sample must keep as many units, got \[1, 4\]"):
        network.intermediates(x, torch.tensor([[True] * 4, [True, False, False, False]]))


def test_positions_are_those_of_the_table_and_interpolated_elsewhere():
    network = spread_positions(hiera(3))
    table = network.pos_embed.unflatten(1, (16, 16, 16))
    assert torch.equal(network.positions((16, 16, 16)), table)
    assert network.positions((16, 8, 20)).shape == (1, 16, 8, 20, 8)
    separate = spread_positions(hiera(3, sep_pos_embed=True, input_size=(16, 32, 32)))
    found = separate.positions((8, 16, 16))[0]
    first, others = separate.pos_embed_temporal[0], separate.pos_embed_spatial[0].unflatten(0, (16, 16))
    torch.testing.assert_close(found[3, 5, 7], first[3] + others[5, 7])


def test_an_image_between_units_is_padded_by_its_border():
    x = torch.arange(3.0).reshape(1, 1, 1, 3)
    assert pad_to(x, (2, 5)).tolist() == [[[[0, 1, 2, 2, 2], [0, 1, 2, 2, 2]]]]
    assert pad_to(x, (1, 3)) is x


@pytest.mark.parametrize("ndim", [2, 3])
def test_settings_build_the_same_network(ndim):
    network = hiera(ndim, num_classes=3, drop_path=0.1, sep_pos_embed=True, head_activation="softmax")
    description = json.loads(json.dumps(network.describe()))
    again = build_backbone(description).eval()
    assert again.describe() == network.describe()
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, *(16,) * ndim)
    assert torch.equal(again.logits(x), network.logits(x))


def test_the_classifier():
    with pytest.raises(SettingError, match="num_classes: this Hiera has no classifier"):
        hiera().logits(torch.zeros(1, 1, 16, 16))
    assert not any(name.startswith(("norm", "head")) for name in hiera().state_dict())
    x = torch.randn(3, 1, 16, 16)
    plain = hiera(num_classes=4, head_init_scale=1.0)
    soft = hiera(num_classes=4, head_activation="softmax")
    soft.load_state_dict(plain.state_dict())
    torch.testing.assert_close(soft.logits(x), plain.logits(x).softmax(-1))
    assert torch.equal(soft.train().logits(x), plain.logits(x))


def test_initial_weights():
    network = hiera(num_classes=4, head_init_scale=0.5)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            assert (module.bias == 0.02).all()
            assert (module.weight == 1).all()
        elif isinstance(module, nn.Linear) and module is not network.head.projection:
            assert (module.bias == 0.02).all()
            assert 0.01 < module.weight.std() < 0.03
    assert (network.head.projection.bias == 0.01).all()
    assert 0.01 < network.patch_embed.proj.weight.std() < 0.03
    assert 0.015 < network.pos_embed.std() < 0.025


@pytest.mark.parametrize("ndim", [2, 3])
def test_every_weight_learns_in_half_precision_too(ndim):
    network = hiera(ndim, sep_pos_embed=True, drop_path=0.2).train()
    with torch.autocast("cpu", torch.bfloat16):
        levels = network(torch.randn(2, 1, *(20,) * ndim))
    sum(level.float().square().sum() for level in levels.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_drop_path_keeps_the_mean_and_rests_in_eval_mode():
    layer = DropPath(0.25)
    x = torch.ones(4000, 3)
    dropped = layer(x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1]).all()
    assert abs(dropped.mean() - 1) < 0.05
    assert layer.eval()(x) is x
    rates = [block.drop_path.rate for block in hiera(drop_path=0.3).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_pool": 3}, "q_pool: expected 0 to 2, fewer than stages, got 3"),
        ({"mask_unit_size": 6}, r"mask_unit_size: expected a multiple of 4 \(q_stride \*\* q_pool\)"),
        ({"patch_padding": 2}, "patch_padding: a kernel of 3 padded by 2"),
        ({"patch_kernel": 7}, "patch_padding: a kernel of 7 padded by 1 with stride 2"),
        ({"q_stride": 1, "mask_unit_size": 4}, "q_stride: pooling by"),
        ({"heads": 3}, "heads: 3 heads can't share 8 channels evenly"),
        ({"unit_order": "spiral"}, "unit_order: expected one of boxes, strided"),
        ({"drop_path": 1.0}, "drop_path: expected a probability"),
        ({"num_classes": 2, "head_activation": "relu"}, "head_activation: expected one of None, softmax"),
        ({"mask_unit_size": (4, 4, 4)}, "mask_unit_size: expected 1 or 2 values"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(SettingError, match=message):
        hiera(**changes)


def test_an_image_of_another_rank_is_refused():
    with pytest.raises(SettingError, match="x: expected shape"):
        hiera(3)(torch.zeros(1, 1, 16, 16))

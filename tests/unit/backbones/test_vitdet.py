"""The plain transformer and its pyramid: who sees whom, and which levels there are."""

import copy

import pytest
import torch

from voxelry.backbones import ViT, ViTDet
from voxelry.backbones.vit import Attention, ResidualConv, TransformerBlock
from voxelry.core.errors import SettingError

TINY = {"image_size": 16, "patch_size": 4, "dim": 8, "depth": 2, "heads": 2}


def stirred(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module.eval()


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
@torch.no_grad()
def test_attention_is_that_of_its_definition(size):
    layer = stirred(Attention(8, 2, grid=size))
    x = torch.randn(2, *size, 8)
    q, k, v = layer.qkv(x).flatten(1, -2).chunk(3, dim=-1)
    places = torch.cartesian_prod(*[torch.arange(length) for length in size])
    answers = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5
        for axis, table in enumerate(layer.positions.tables):
            apart = places[:, None, axis] - places[None, :, axis]
            scores += torch.einsum("bic,ijc->bij", q[..., part], table[apart + size[axis] - 1])
        answers.append(scores.softmax(-1) @ v[..., part])
    expected = layer.out(torch.cat(answers, -1)).unflatten(1, size)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
@torch.no_grad()
def test_a_window_as_large_as_the_grid_sees_all(size):
    everything = stirred(TransformerBlock(8, 2, ndim=len(size), grid=size))
    windowed = TransformerBlock(8, 2, ndim=len(size), grid=size, window=size).eval()
    windowed.load_state_dict(everything.state_dict())
    x = torch.randn(2, *size, 8)
    torch.testing.assert_close(windowed(x), everything(x))


@torch.no_grad()
def test_windows_see_nothing_outside():
    block = stirred(TransformerBlock(8, 2, ndim=3, grid=(1, 2, 2), window=(1, 2, 2)))
    x = torch.randn(1, 2, 4, 4, 8)
    changed = x.clone()
    changed[:, 0, 1, 2] += 1.0
    differs = (block(x) != block(changed)).any(-1)[0]
    assert differs[0, :2, 2:].all()
    differs[0, :2, 2:] = False
    assert not differs.any()


def test_residual_convolutions_start_as_the_identity():
    plain = TransformerBlock(8, 2, ndim=2).eval()
    convolved = TransformerBlock(8, 2, ndim=2, residual=True).eval()
    convolved.load_state_dict({**convolved.state_dict(), **plain.state_dict()})
    x = torch.randn(1, 5, 6, 8)
    assert torch.equal(plain(x), convolved(x))


@pytest.mark.parametrize("ndim", [2, 3])
def test_checkpointing_gives_the_same_gradients(ndim):
    network = stirred(ViT(ndim=ndim, window_size=2, window_blocks=[0], residual_blocks=[1], **TINY))
    again = copy.deepcopy(network)
    again.checkpointing = True
    x = torch.randn(1, 1, *[14] * ndim)
    network.features(x).square().sum().backward()
    again.features(x).square().sum().backward()
    for (name, one), other in zip(network.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_drop_path_grows_with_depth_and_ends_with_training():
    network = ViT(ndim=2, drop_path=0.6, **{**TINY, "depth": 4})
    assert [block.drop_path.rate for block in network.blocks] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(network.eval().features(x), network.features(x))


@torch.no_grad()
def test_sizes_between_patches_are_filled_with_the_border():
    network = stirred(ViT(ndim=2, **TINY))
    x = torch.randn(1, 1, 13, 16)
    filled = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1)], dim=2)
    assert torch.equal(network.features(x), network.features(filled))


def test_levels_per_axis():
    network = ViTDet(
        ndim=3,
        out_channels=4,
        scale_factors=[0.5, (1, 2, 2), (2, 4, 4), 1],
        extra="maxpool",
        **{**TINY, "patch_size": (4, 16, 16)},
    )
    expected = {"p2": (2, 4, 4), "p3": (4, 8, 8), "p4": (4, 16, 16), "p5": (8, 32, 32), "p6": (16, 64, 64)}
    assert network.strides == expected
    kernels = [layer.kernel_size for layer in network.pyramid["p2"].resample if hasattr(layer, "kernel_size")]
    assert kernels == [(2, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize(
    ("settings", "windowed", "followed"),
    [
        ({}, [], []),
        ({"window_blocks": "all", "residual_blocks": 2}, [0, 1, 2, 3, 4, 5], [2, 5]),
        ({"window_blocks": "all", "window_size": 0, "residual_blocks": 4}, [], [0, 2, 3, 5]),
        ({"window_blocks": [0, 4], "residual_blocks": [1]}, [0, 4], [1]),
    ],
)
def test_blocks_are_chosen_by_number_word_or_count(settings, windowed, followed):
    network = ViT(ndim=2, **{**TINY, "depth": 6, "window_size": 2, **settings})
    blocks = list(network.blocks)
    assert [index for index, block in enumerate(blocks) if block.window is not None] == windowed
    assert [index for index, block in enumerate(blocks) if isinstance(block.residual, ResidualConv)] == followed


@torch.no_grad()
def test_what_hangs_over_is_kept_or_dropped():
    kept = ViTDet(ndim=2, out_channels=4, scale_factors=[1, 0.5], **TINY).eval()
    left = ViTDet(ndim=2, out_channels=4, scale_factors=[1, 0.5], partial="drop", **TINY).eval()
    left.load_state_dict(kept.state_dict())
    x = torch.randn(1, 1, 23, 3)
    assert [tuple(level.shape[2:]) for level in kept(x).values()] == [(6, 1), (3, 1)]
    assert [tuple(level.shape[2:]) for level in left(x).values()] == [(5, 1), (2, 1)]
    torch.testing.assert_close(left(x)["p2"], kept(x[:, :, :20])["p2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads: 3 heads can't share 8 channels"),
        ({"window_blocks": [2]}, "window_blocks: expected indices from 0 to 1"),
        ({"window_blocks": ["a"]}, "window_blocks: expected indices from 0 to 1"),
        ({"residual_blocks": [-1]}, "residual_blocks: expected indices from 0 to 1"),
        ({"window_blocks": [0], "window_size": 0}, "window_size: expected at least 1 token"),
        ({"window_blocks": "some"}, "window_blocks: expected indices or all, got 'some'"),
        ({"residual_blocks": 3}, "residual_blocks: expected up to 2 blocks, got 3"),
        ({"patch_size": (4, 4, 4)}, "patch_size: expected 1 or 2 values"),
        ({"scale_factors": [8]}, "scale_factors: expected powers of two up to the patch size"),
        ({"scale_factors": [3]}, "scale_factors: expected powers of two"),
        ({"scale_factors": [0]}, "scale_factors: expected powers of two"),
        ({"scale_factors": [1, (2, 1)]}, "scale_factors: two levels are called p2"),
        ({"extra": "p6"}, "extra: expected one of maxpool, None"),
        ({"partial": "same"}, "partial: expected one of keep, drop"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(SettingError, match=message):
        ViTDet(**{"ndim": 2, **TINY, **settings})

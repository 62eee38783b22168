"""Shapes, settings, errors, memory policies and transfer of the U-Net."""

import json

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.models.inflate import inflate_kernel
from voxelry.models.transfer import transfer
from voxelry.models.unet import UNet
from voxelry.models.unet.parts import checkpointing_for

SIZES = {2: (9, 18), 3: (7, 10, 6)}
DDPM = {
    "block": "pre_norm",
    "attention": ["none", "full", "none"],
    "attention_groups": None,
    "attention_bias": True,
    "heads": 1,
    "head_dim": None,
    "down": "strided",
    "wiring": "dense",
    "time_activation": "silu",
    "stem_kernel": 3,
    "head_kernel": 3,
}
KINDS = {
    "seed": {},
    "ddpm": DDPM,
    "plain resampling": {**DDPM, "down": "average", "up": "nearest", "attention": "none", "shortcut_kernel": 3},
    "thick slices": {"strides": [[1, 2], 2], "blocks_per_level": 1},
    "light": {"block": "separable", "attention": "window", "middle_attention": "window", "window": 3},
}


def small(ndim, **settings):
    if "strides" in settings:
        settings = {**settings, "strides": [[1] + [2] * (ndim - 1), 2]}
    return UNet(ndim=ndim, width=8, groups=4, **settings)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_in_any_rank(ndim, kind):
    network = small(ndim, in_channels=2, out_channels=3, **KINDS[kind])
    x = torch.randn(2, 2, *SIZES[ndim])
    assert network(x, torch.tensor([3, 7])).shape == (2, 3, *SIZES[ndim])
    features = network.features(x)
    assert features.shape == (2, network.feature_channels, *SIZES[ndim])
    torch.testing.assert_close(network.head(features), network(x))


@pytest.mark.parametrize("kind", KINDS)
def test_settings_build_the_same_network(kind):
    network = small(3, self_condition=True, **KINDS[kind])
    settings = json.loads(json.dumps(network.settings()))
    again = UNet(**settings)
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(again.eval()(x), network.eval()(x))
    assert again.settings() == network.settings()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["seed", "ddpm", "light"])
@pytest.mark.parametrize("kept_from", [0, 1 << 30])
def test_memory_policies_agree(ndim, kind, kept_from, monkeypatch):
    monkeypatch.setattr("voxelry.nn.recipes.MINIMUM_BYTES", kept_from)
    network = small(ndim, in_channels=1, self_condition=True, **KINDS[kind]).double()
    x = torch.randn(2, 1, *SIZES[ndim], dtype=torch.double)
    found = {}
    for policy in ("none", "norms", "blocks"):
        network.checkpointing = policy
        network.zero_grad()
        result = network(x, torch.tensor([1, 40]), x.cos())
        result.sin().sum().backward()
        found[policy] = [result.detach(), *(p.grad.clone() for p in network.parameters())]
    for policy in ("norms", "blocks"):
        for expected, value in zip(found["none"], found[policy], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)


def test_dropout_is_used_in_training_only():
    for block in ("weight_standardised", "pre_norm", "separable"):
        for policy in ("none", "norms", "blocks"):
            network = UNet(ndim=2, width=8, dropout=0.5, block=block, checkpointing=policy)
            x = torch.randn(1, 1, 8, 8)
            assert not torch.equal(network(x), network(x))
            network.eval()
            torch.testing.assert_close(network(x), network(x))


@pytest.mark.parametrize("policy", ["none", "norms", "blocks"])
@pytest.mark.parametrize("kind", ["seed", "ddpm", "light"])
def test_bfloat16_autocast_stays_close(policy, kind):
    network = small(3, checkpointing=policy, **KINDS[kind])
    x = torch.randn(1, 1, 8, 8, 8)
    exact = network(x, torch.tensor([5]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x, torch.tensor([5]))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
    rough.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == p.dtype for p in network.parameters())


def test_a_zero_head_answers_zero_at_first():
    network = UNet(ndim=2, width=8, zero_head=True)
    x = torch.randn(1, 1, 8, 8)
    assert network(x, torch.tensor([4])).abs().max() == 0
    assert network.features(x).abs().max() > 0


def test_time_and_estimate_matter_and_may_be_left_out():
    network = UNet(ndim=2, width=8, in_channels=3, out_channels=3, self_condition=True)
    x, estimate = torch.randn(2, 2, 3, 8, 8)
    without = network(x)
    torch.testing.assert_close(network(x, None, torch.zeros_like(x)), without)
    assert not torch.allclose(network(x, None, estimate), without)
    assert not torch.allclose(network(x, torch.tensor([4, 9])), without)
    torch.testing.assert_close(network(x, torch.tensor(4)), network(x, torch.tensor([4, 4])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ndim": 4}, "ndim: expected 2 or 3"),
        ({"block": "resnet"}, "block: expected one of weight_standardised, pre_norm, separable, got 'resnet'"),
        ({"attention": "flash"}, "attention: expected one of linear, full, window, none"),
        ({"attention": ["none"]}, "attention: expected 1 or 3 names"),
        ({"attention": "window", "window": [4]}, r"window: expected 1 or 2 values"),
        ({"attention": "window", "window": 0}, "window: expected at least 1 voxel"),
        ({"down": "max"}, "down: expected one of"),
        ({"down": "average"}, "down: average keeps the channels"),
        ({"up": "bilinear"}, "up: expected one of"),
        ({"wiring": "sparse"}, "wiring: expected one of paired, dense"),
        ({"groups": 7}, "groups: 7 groups can't share 16 channels"),
        ({"strides": [2]}, "strides: expected 1 or 2 entries"),
        ({"strides": [[2, 2, 2], 2]}, "strides: expected 1 or 2 values"),
        ({"strides": 0}, "strides: expected at least 1"),
        ({"blocks_per_level": 0}, "blocks_per_level: expected at least 1"),
        ({"checkpointing": "some"}, "checkpointing: expected one of"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(SettingError, match=message) as caught:
        UNet(**{"ndim": 2, "width": 16, **settings})
    assert "\n" not in str(caught.value)


def test_bad_inputs_are_named():
    network = UNet(ndim=2, width=8, pad=False)
    with pytest.raises(SettingError, match=r"x: expected shape \(B, 1, D, H\)|x: expected shape"):
        network(torch.zeros(1, 2, 8, 8))
    with pytest.raises(SettingError, match="no multiple of the stride"):
        network(torch.zeros(1, 1, 9, 8))
    with pytest.raises(SettingError, match="condition: expected none"):
        network(torch.zeros(1, 1, 8, 8), None, torch.zeros(1, 1, 8, 8))
    conditioned = UNet(ndim=2, width=8, self_condition=True, out_channels=2)
    with pytest.raises(SettingError, match=r"condition: expected \(1, 2, 8, 8\)"):
        conditioned(torch.zeros(1, 1, 8, 8), None, torch.zeros(1, 1, 8, 8))


def test_auto_policy_follows_the_size():
    assert checkpointing_for("auto", 4 * 64 * 16**3) == "none"
    assert checkpointing_for("auto", 4 * 64 * 64**3) == "norms"
    assert checkpointing_for("auto", 4 * 64 * 4096**2) == "blocks"
    assert checkpointing_for("blocks", 4 * 8 * 2**2) == "blocks"


def test_transfer_to_other_outputs_and_without_the_estimate():
    source = UNet(ndim=2, width=8, self_condition=True).eval()
    target = UNet(ndim=2, width=8, out_channels=5).eval()
    report = transfer(target, source.state_dict())
    assert set(report.new) == {"head.weight", "head.bias"}
    assert set(report.adapted) == {"stem.weight"}
    assert set(report.skipped) == {"head.weight", "head.bias"}
    assert "new      head.weight (5, 8, 1, 1)" in str(report)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(target.features(x), source.features(x))


def test_transfer_lifts_kernels_only_if_told():
    source, target = UNet(ndim=2, width=8), UNet(ndim=3, width=8)
    assert transfer(target, source.state_dict(), inflate=False).new["stem.weight"] == (8, 1, 1, 1, 1)
    report = transfer(target, source.state_dict())
    assert not report.new
    assert not report.skipped
    assert report.adapted["down.0.blocks.0.conv1.weight"] == "lifted (8, 8, 3, 3) to (8, 8, 3, 3, 3)"


def test_transfer_from_another_architecture_takes_what_fits():
    source, target = UNet(ndim=2, width=8, multipliers=(1, 2)), UNet(ndim=2, width=8, multipliers=(1, 2, 4))
    report = transfer(target, source.state_dict())
    assert "stem.weight" in report.matched
    assert report.new
    assert "up.0.blocks.0.conv1.weight" in report.skipped


@pytest.mark.parametrize("mode", ["centre", "mean"])
def test_lifted_kernels_keep_the_response_to_constant_depth(mode):
    kernel = torch.randn(2, 3, 3, 3)
    lifted = inflate_kernel(kernel, 3, mode)
    assert lifted.shape == (2, 3, 3, 3, 3)
    torch.testing.assert_close(lifted.sum(dim=2), kernel)

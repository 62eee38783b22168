"""The memory of a training step, known before it is taken."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from voxelry.core.errors import SettingError
from voxelry.models.footprint import check_memory, estimate, kept
from voxelry.models.unet import UNet
from voxelry.models.unet.haar import HaarUNet

PLAIN = {"width": 16, "multipliers": (1, 2), "block": "pre_norm", "attention": "none", "middle_attention": "none"}
NOTHING_BESIDE = {"optimiser_states": 0, "average": False}


class Twice(nn.Module):
    """Keeps its input, of 8 channels, and its square."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, time):
        return (x * self.scale).square()


def test_a_network_whose_memory_can_be_counted():
    image = 4 * 8 * 10 * 10
    needed = estimate(Twice(), (10, 10), in_channels=8, **NOTHING_BESIDE)
    # the input, its multiple, the square (and its square, for the loss); on the way back three more
    assert 6 * image < needed < 8 * image
    assert 3 * image <= kept(Twice(), (10, 10), in_channels=8) < 3.1 * image
    assert estimate(Twice(), (10, 10), in_channels=8, batch=3, **NOTHING_BESIDE) == pytest.approx(3 * needed, rel=0.01)
    half = estimate(Twice(), (10, 10), in_channels=8, dtype=torch.bfloat16, **NOTHING_BESIDE)
    assert half == pytest.approx(needed / 2, rel=0.01)


@pytest.mark.filterwarnings("ignore:.*profiler.*")
@pytest.mark.parametrize("kind", [UNet, HaarUNet])
def test_what_a_real_step_allocates(kind):
    network = kind(ndim=3, checkpointing="none", **PLAIN)
    shape = (24, 20, 28)
    x = torch.randn(2, 1, *shape)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        network(x, torch.tensor([3, 4])).square().mean().backward()
    now = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    expected = estimate(network, shape, in_channels=1, batch=2, **NOTHING_BESIDE) - weights
    assert peak == pytest.approx(expected, rel=0.25)


def test_no_values_are_made_or_changed():
    network = UNet(ndim=3, **PLAIN)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert estimate(network, (512, 512, 512), in_channels=1) > 1e11
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in network.parameters())


@pytest.mark.parametrize("block", ["weight_standardised", "pre_norm", "separable"])
def test_recomputing_saves_memory(block):
    network = UNet(ndim=3, width=16, multipliers=(1, 2), block=block, middle_attention="full")
    needed = [
        estimate(network, (48, 48, 48), in_channels=1, checkpointing=policy, **NOTHING_BESIDE)
        for policy in ("none", "norms", "blocks")
    ]
    assert needed[1] < 0.8 * needed[0]
    assert needed[2] <= 1.05 * needed[1]
    assert network.checkpointing == "auto"


def test_dense_attention_is_counted_without_its_matrix():
    network = UNet(ndim=3, width=16, multipliers=(1,), block="pre_norm", attention="none", middle_attention="full")
    matrix = 4 * (32**3) ** 2
    assert estimate(network, (32, 32, 32), in_channels=1) < 0.2 * matrix


def test_what_is_kept_beside_the_weights():
    network = UNet(ndim=2, **PLAIN)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    step = estimate(network, (16, 16), in_channels=1, **NOTHING_BESIDE)
    assert estimate(network, (16, 16), in_channels=1) == step + 3 * weights


def test_a_step_that_does_not_fit_is_refused_with_what_would():
    network = UNet(ndim=3, checkpointing="none", **PLAIN)
    check_memory(network, (64, 128, 128), in_channels=1, available=24 * 10**9)
    with pytest.raises(SettingError) as caught:
        check_memory(network, (64, 128, 128), in_channels=1, available=10**9)
    message = str(caught.value)
    assert "a training step on 64×128×128 needs about" in message
    assert "and there are 1.0 GB; it would fit with" in message
    assert "both (" in message
    assert "patches of 32×64×64" in message
    with pytest.raises(SettingError, match="take a smaller network"):
        check_memory(network, (8, 8, 8), in_channels=1, available=10)

"""Weights of a network that saw fewer inputs, in one that sees more."""

import pytest
import torch

from voxelry.models.transfer import transfer
from voxelry.models.unet import UNet
from voxelry.models.unet.folded import FoldedUNet


def network(inputs, *, ndim=2, outputs=1, cls=UNet):
    return cls(ndim=ndim, in_channels=inputs, out_channels=outputs, width=8, multipliers=(1, 2), groups=4).eval()


@pytest.mark.parametrize("cls", [UNet, FoldedUNet])
@pytest.mark.parametrize(("known", "wanted"), [(1, 3), (2, 5), (3, 5)])
def test_new_inputs_have_no_effect_at_first(cls, known, wanted):
    source, target = network(known, cls=cls), network(wanted, cls=cls)
    report = transfer(target, source.state_dict())
    assert "new inputs, without effect at first" in report.adapted["stem.weight"]
    assert not report.new
    x, time = torch.randn(2, wanted, 8, 12), torch.tensor([3, 70])
    # what was known comes first, the image on its way last
    seen = torch.cat([x[:, : known - 1], x[:, -1:]], dim=1)
    torch.testing.assert_close(target(x, time), source(seen, time))


def test_new_inputs_of_a_lifted_network():
    source, target = network(2), network(4, ndim=3)
    assert not transfer(target, source.state_dict()).new
    x, time = torch.randn(1, 4, 1, 8, 8), torch.tensor([5])
    torch.testing.assert_close(target(x, time)[:, :, 0], source(x[:, [0, 3], 0], time))


def test_a_network_of_other_outputs_learns_its_stem_anew():
    source, target = network(1, outputs=1), network(3, outputs=2)
    assert "stem.weight" in transfer(target, source.state_dict()).new


def test_an_estimate_is_not_taken_for_a_channel_of_the_image():
    # both stems have two inputs: an estimate and the image, or an image of two channels
    source = UNet(ndim=2, in_channels=1, self_condition=True, width=8, multipliers=(1, 2), groups=4)
    target = network(2, outputs=5)
    report = transfer(target, source.state_dict(), head=False, image_channels=1, new_inputs=None)
    assert set(report.new) == {"stem.weight", "head.weight", "head.bias"}


def test_a_head_that_fits_by_chance_is_left_and_the_stem_kept():
    source = UNet(ndim=2, in_channels=1, self_condition=True, width=8, multipliers=(1, 2), groups=4).eval()
    target = network(1)
    head = target.head.weight.clone()
    report = transfer(target, source.state_dict(), head=False, image_channels=1, new_inputs="after")
    assert set(report.new) == {"head.weight", "head.bias"}
    assert torch.equal(target.head.weight, head)
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(target.features(x), source.features(x))


@pytest.mark.parametrize(("known", "wanted"), [(1, 5), (3, 7)])
def test_inputs_that_follow_the_image_have_no_effect_at_first(known, wanted):
    source, target = network(known, outputs=known), network(wanted, outputs=4)
    report = transfer(target, source.state_dict(), head=False, image_channels=known, new_inputs="after")
    assert set(report.new) == {"head.weight", "head.bias"}
    x = torch.randn(1, wanted, 8, 8)
    torch.testing.assert_close(target.features(x), source.features(x[:, :known]))


def test_fewer_channels_than_the_weights_have_are_no_estimate():
    source, target = network(3, outputs=3), network(1, outputs=5)
    report = transfer(target, source.state_dict(), head=False, image_channels=3, new_inputs=None)
    assert "stem.weight" in report.new

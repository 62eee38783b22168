"""Any backbone as a dense network."""

import json

import pytest
import torch

from voxelry.backbones import build_backbone
from voxelry.core.errors import SettingError
from voxelry.models.backbone_heatmaps import BackboneHeatmaps, enlarge

BACKBONES = {
    "resnet": {"name": "resnet", "width": 4, "layers": [1, 1, 1, 1]},
    "fpn": {"name": "fpn", "backbone": {"name": "resnet", "width": 4, "layers": [1, 1, 1, 1]}, "out_channels": 4},
    "vitdet": {"name": "vitdet", "image_size": 32, "patch_size": 8, "dim": 8, "depth": 1, "heads": 2,
               "out_channels": 4},
    "hiera": {"name": "hiera", "input_size": 32, "embed_dim": 8, "stages": [1, 1], "q_pool": 1, "mask_unit_size": 2},
}  # fmt: skip


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_size_of_the_image(name, ndim):
    network = BackboneHeatmaps(BACKBONES[name], out_channels=3, width=6, ndim=ndim, in_channels=2)
    assert (network.ndim, network.in_channels, network.out_channels) == (ndim, 2, 3)
    size = (9, 35, 20)[3 - ndim :]
    maps = network(torch.randn(2, 2, *size))
    assert maps.shape == (2, 3, *size)
    maps.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@torch.no_grad()
def test_settings_build_it_again():
    network = BackboneHeatmaps(build_backbone(BACKBONES["fpn"], ndim=2, in_channels=1), out_channels=2, width=4).eval()
    again = BackboneHeatmaps(**json.loads(json.dumps(network.settings()))).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 33, 20)
    assert torch.equal(again(x), network(x))


def test_rank_and_channels_are_the_backbones():
    backbone = build_backbone(BACKBONES["resnet"], ndim=2, in_channels=1)
    with pytest.raises(SettingError, match="ndim: the backbone has 2, got 3"):
        BackboneHeatmaps(backbone, ndim=3)
    with pytest.raises(SettingError, match="in_channels: the backbone has 1, got 4"):
        BackboneHeatmaps({**BACKBONES["resnet"], "in_channels": 1}, ndim=2, in_channels=4)


def test_enlarging_does_not_drift_where_sizes_are_no_multiples():
    ramp = torch.arange(5.0).reshape(1, 1, 5, 1)
    found = enlarge(ramp, (4, 1), (18, 1))[0, 0, :, 0]
    torch.testing.assert_close(found[2:18], torch.arange(16) / 4 + 0.125)
    assert enlarge(ramp, (1, 1), (7, 1))[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4, 4, 4]


def test_it_learns_to_draw_a_map():
    network = BackboneHeatmaps(BACKBONES["resnet"], out_channels=1, width=8, ndim=2)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    image = torch.zeros(4, 1, 32, 32)
    for index in range(4):
        image[index, 0, 4 + 6 * index, 25 - 5 * index] = 3.0
    losses = []
    for _ in range(40):
        loss = (network(image) - image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]

"""Networks that learn beside each other and answer by their mean."""

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.models.members import Members, members_of
from voxelry.models.networks import build_network, describe_network, image_rank, input_channels
from voxelry.models.unet.folded import FoldedUNet

SMALL = {
    "ndim": 2, "in_channels": 3, "out_channels": 2, "width": 8, "multipliers": [1, 2], "blocks_per_level": 1,
    "attention": "none", "middle_attention": "none",
}  # fmt: skip


def make(count: int) -> Members:
    torch.manual_seed(0)
    networks = [FoldedUNet(**SMALL) for _ in range(count)]
    with torch.no_grad():
        for network in networks:
            network.head.weight.normal_()
    return Members.of(networks)


def test_they_answer_by_their_mean_and_are_built_again():
    members, x = make(3).eval(), torch.randn(2, 3, 12, 10)
    each = [one(x) for one in members_of(members)]
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(members(x), sum(each) / 3)
    described = describe_network(members)
    again = build_network(described.pop("name"), described).eval()
    again.load_state_dict(members.state_dict())
    torch.testing.assert_close(again(x), members(x))
    assert (image_rank(members), input_channels(members)) == (2, 3)


def test_there_is_one_at_least():
    with pytest.raises(SettingError, match="members: expected at least 1, got 0"):
        Members(count=0, network={"name": "folded_unet", **SMALL})

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.ops.masks import mask_boxes


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_boxes_reach_from_edge_to_edge(ndim, dtype):
    masks = torch.zeros((6,) * ndim, dtype=dtype)
    masks[(slice(1, 4),) * ndim] = 1
    masks[(5,) * ndim] = 3
    boxes = mask_boxes(masks, 4)
    assert boxes[0].tolist() == [0.5] * ndim + [3.5] * ndim
    assert boxes[1].isnan().all()
    assert boxes[2].tolist() == [4.5] * ndim + [5.5] * ndim
    assert boxes[3].isnan().all()


def test_no_instances_give_no_boxes():
    assert mask_boxes(torch.zeros(4, 5, dtype=torch.int64), 0).shape == (0, 4)
    with pytest.raises(SettingError, match="masks: expected integer"):
        mask_boxes(torch.zeros(4, 5), 0)

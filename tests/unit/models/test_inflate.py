"""2-D weights in a 3-D network: constant volumes give the 2-D result in every plane."""

import pytest
import torch
from torch import nn

from voxelry.models.inflate import inflate, inflate_kernel
from voxelry.nn import nd

LAYERS = {
    "padded": lambda n, depth: nd.conv(n)(2, 3, (depth, 3, 3)[3 - n :], padding=(depth // 2, 1, 1)[3 - n :]),
    "patches": lambda n, depth: nd.conv(n)(2, 3, (depth, 2, 2)[3 - n :], stride=(depth, 2, 2)[3 - n :]),
    "blocks": lambda n, depth: nd.transposed_conv(n)(2, 3, (depth, 2, 2)[3 - n :], stride=(depth, 2, 2)[3 - n :]),
}


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_lifted_layers(kind, depth):
    flat, deep = nn.Sequential(LAYERS[kind](2, depth)), nn.Sequential(LAYERS[kind](3, depth))
    deep.load_state_dict(inflate(deep, flat.state_dict()))
    x = torch.randn(1, 2, 4, 6)
    found, expected = deep(x.unsqueeze(2).repeat(1, 1, 6, 1, 1)), flat(x)
    torch.testing.assert_close(found, expected.unsqueeze(2).expand_as(found))


def test_modes():
    kernel = torch.ones(1, 1, 1, 1)
    assert inflate_kernel(kernel, 3).flatten().tolist() == [0, 1, 0]
    assert inflate_kernel(kernel, 4, "mean").flatten().tolist() == [0.25] * 4
    assert inflate_kernel(kernel, 2, "repeat").flatten().tolist() == [1, 1]

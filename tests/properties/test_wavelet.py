"""The Haar transform loses nothing, in any rank, at any size."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from voxelry.ops.wavelet import haar, inverse_haar

SHAPES = st.integers(2, 3).flatmap(lambda ndim: st.tuples(*[st.integers(1, 9)] * ndim))
AXES = st.sets(st.integers(0, 2), min_size=1)


def image(shape, channels=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand((2, channels, *shape), generator=generator, dtype=dtype) * 2 - 1


def within(axes, shape):
    """The axes that the rank has; all of them where it has none."""
    return sorted(axis for axis in axes if axis < len(shape)) or None


@given(shape=SHAPES, axes=AXES)
def test_the_inverse_gives_the_image_back(shape, axes):
    x, axes = image(shape), within(axes, shape)
    bands = haar(x, axes)
    count = len(axes or shape)
    halved = [-(-n // 2) if axes is None or axis in axes else n for axis, n in enumerate(shape)]
    assert bands.shape == (2, 2 * 2**count, *halved)
    assert (inverse_haar(bands, shape, axes) - x).abs().max() <= 1e-6


@given(shape=SHAPES, axes=AXES)
def test_even_sizes_keep_their_length(shape, axes):
    x = image([2 * n for n in shape], dtype=torch.float64)
    assert_close(haar(x, within(axes, shape)).square().sum(), x.square().sum())


@given(shape=SHAPES, data=st.data())
def test_permuting_the_axes_permutes_the_bands(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = image(shape)
    turned = x.permute(0, 1, *(2 + old for old in order))
    assert_close(
        haar(turned, [order.index(axis)]), haar(x, [axis]).permute(0, 1, *(2 + old for old in order)), rtol=0, atol=0
    )


@given(shape=SHAPES)
def test_the_axes_can_be_done_one_after_another(shape):
    x = image(shape)
    once = x
    for axis in range(len(shape)):
        once = haar(once, [axis])
    assert_close(once, haar(x), rtol=0, atol=0)

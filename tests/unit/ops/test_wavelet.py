"""Worked numbers of the Haar transform, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.ops.wavelet import haar, inverse_haar


def test_sums_and_differences_of_neighbours():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert haar(x)[0, :, 0, 0].tolist() == pytest.approx([6.0, -3.0, -2.0, 1.0])  # mean * 2, rows, columns, both
    assert haar(x, [1])[0, 0, :, 0].tolist() == pytest.approx([3 / 2**0.5, 9 / 2**0.5])


def test_an_odd_end_is_repeated():
    x = torch.tensor([[[[1.0, 2.0, 5.0]]]])
    assert haar(x, [1])[0, :, 0, 1].tolist() == pytest.approx([10 / 2**0.5, 0.0])


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_first_bands_are_the_smooth_ones(ndim):
    x = torch.ones(1, 3, *[6] * ndim) * torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, *[1] * ndim)
    bands = haar(x)
    assert_close(bands[:, :3], 2 ** (ndim / 2) * x[(..., *[slice(3)] * ndim)])
    assert bands[:, 3:].abs().max() == 0


def test_white_noise_stays_white():
    bands = haar(torch.randn(4, 1, 32, 32, 32)).movedim(1, 0).flatten(1)
    assert_close(torch.cov(bands), torch.eye(8), rtol=0, atol=0.03)


def test_half_precision_stays_half():
    x = torch.randn(1, 1, 4, 6).bfloat16()
    assert haar(x).dtype == inverse_haar(haar(x), (4, 6)).dtype == torch.bfloat16


def test_gradients_pass_both_ways():
    x = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: inverse_haar(haar(image).sin(), (3, 4)), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: haar(x, []), "axes: expected different numbers from 0 to 1"),
        (lambda x: haar(x, [2]), "axes: expected"),
        (lambda x: haar(x, [0, 0]), "axes: expected"),
        (lambda x: inverse_haar(x, (4, 4)), r"bands: expected a multiple of 4 channels of size \(2, 2\)"),
        (lambda x: inverse_haar(x[:, :3], (6, 6)), "bands: expected a multiple of 4"),
    ],
)
def test_what_is_refused_names_the_setting(call, message):
    with pytest.raises(SettingError, match=message):
        call(torch.zeros(1, 4, 3, 3))

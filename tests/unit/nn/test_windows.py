"""Windows of grids, cut and put together."""

import pytest
import torch

from voxelry.nn.windows import merge_windows, split_windows


@pytest.mark.parametrize(
    ("size", "window"), [((4, 6), (2, 3)), ((5, 7), (3, 3)), ((2, 2), (5, 4)), ((3, 5, 4), (1, 2, 3))]
)
def test_merging_undoes_splitting(size, window):
    x = torch.randn(2, *size, 3)
    windows = split_windows(x, window)
    count = 2
    for length, side in zip(size, window, strict=True):
        count *= -(-length // side)
    assert windows.shape == (count, *window, 3)
    assert torch.equal(merge_windows(windows, size), x)


def test_windows_run_row_by_row_and_end_in_zeros():
    x = torch.arange(1.0, 16.0).reshape(1, 3, 5, 1)
    windows = split_windows(x, (2, 3))[..., 0]
    assert windows.tolist() == [
        [[1, 2, 3], [6, 7, 8]],
        [[4, 5, 0], [9, 10, 0]],
        [[11, 12, 13], [0, 0, 0]],
        [[14, 15, 0], [0, 0, 0]],
    ]

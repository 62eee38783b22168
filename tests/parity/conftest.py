"""Reference files, and how near ours must be."""

import json

import pytest
import torch
from safetensors import safe_open


@pytest.fixture
def reference(golden):
    """A reference file by name: its case, its weights, everything in it."""

    def read(name):
        with safe_open(golden / f"{name}.safetensors", "pt") as file:
            case = json.loads(file.metadata()["case"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        weights = {key.removeprefix("weight."): value for key, value in tensors.items() if key.startswith("weight.")}
        return case, weights, tensors

    return read


@pytest.fixture
def assert_close():
    """Compares two tensors to 1e-4 of the largest expected value; NaN where NaN is expected."""

    def compare(found, expected, tolerance=1e-4):
        assert found.shape == expected.shape
        unknown = expected.isnan()
        assert torch.equal(found.isnan(), unknown)
        gap = (found.double() - expected.double())[~unknown].abs()
        assert gap.max() <= tolerance * expected[~unknown].abs().max().clamp(min=1e-12)

    return compare


@pytest.fixture
def scrambled():
    """Gives a network small random weights everywhere, also where it starts at zero."""

    def fill(network, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return network.eval()

    return fill


@pytest.fixture(scope="session")
def torchvision_paste():
    """torchvision's own way to paste masks, see `_paste`."""
    return _paste


def _paste(masks, boxes, shape):
    """torchvision's own paste, `(N, 1, *M), (N, 2 * ndim) -> (N, 1, *shape)`.

    It rounds the box to voxels (towards zero, with one voxel more than it holds) and keeps a whole image for each
    mask. `ops.masks.paste_mask` does neither.
    """
    ndim = masks.ndim - 2
    result = masks.new_zeros(len(masks), 1, *shape)
    cells = boxes.new_tensor(masks.shape[2:])
    half = (boxes[:, ndim:] - boxes[:, :ndim]) * 0.5 * ((cells + 2) / cells)
    middle = (boxes[:, ndim:] + boxes[:, :ndim]) * 0.5
    low, high = (middle - half).to(torch.int64), (middle + half).to(torch.int64)
    padded = torch.nn.functional.pad(masks, (1, 1) * ndim)
    for index in range(len(masks)):
        source = []
        target = []
        crop = padded[index, 0]
        for axis, size in enumerate(shape):
            start, stop = int(low[index, axis]), int(high[index, axis]) + 1
            crop = _stretch(crop, max(stop - start, 1), axis)
            first, last = max(start, 0), min(stop, size)
            target.append(slice(first, max(last, first)))
            source.append(slice(first - start, max(last, first) - start))
        result[index, 0][tuple(target)] = crop[tuple(source)]
    return result


def _stretch(values, length, axis):
    """Linear interpolation of one axis to another length, with the ends of both at the same place."""
    size = values.shape[axis]
    position = (torch.arange(length, dtype=values.dtype, device=values.device) + 0.5) * (size / length) - 0.5
    position = position.clamp(min=0)
    before = position.long().clamp(max=size - 1)
    part = (position - before).reshape(-1, *(1,) * (values.ndim - axis - 1))
    after = (before + 1).clamp(max=size - 1)
    return values.index_select(axis, before) * (1 - part) + values.index_select(axis, after) * part

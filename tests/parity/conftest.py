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

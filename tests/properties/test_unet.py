"""Laws of the U-Net that hold in every rank."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import voxelry
from voxelry.models.inflate import inflate
from voxelry.models.unet import UNet

DDPM = {"block": "pre_norm", "down": "strided", "wiring": "dense", "attention": ["none", "full"], "stem_kernel": 3}
WINDOWS = {"attention": "window", "middle_attention": "window", "window": 2}
KINDS = st.sampled_from([{}, DDPM, WINDOWS, {"attention": "none", "middle_attention": "linear", "head_kernel": 3}])
SEPARABLE = {**WINDOWS, "block": "separable"}


def build(ndim, kind, strides, **settings):
    torch.manual_seed(0)
    return UNet(ndim=ndim, width=8, multipliers=(1, 2), groups=4, strides=[strides], **kind, **settings).double().eval()


def permuted(tensor, order, lead=2):
    return tensor.permute(*range(lead), *(lead + axis for axis in order))


@given(kind=KINDS, ndim=st.sampled_from([2, 3]), data=st.data())
def test_permuting_the_axes_of_input_weights_and_strides_permutes_the_output(kind, ndim, data):
    order = data.draw(st.permutations(range(ndim)))
    strides = data.draw(st.tuples(*[st.integers(1, 3)] * ndim))
    size = data.draw(st.tuples(*[st.integers(2, 6)] * ndim))
    network = build(ndim, kind, strides)
    turned = build(ndim, kind, [strides[axis] for axis in order])
    turned.load_state_dict({
        name: permuted(value, order) if value.ndim == ndim + 2 else value
        for name, value in network.state_dict().items()
    })  # fmt: skip
    x = torch.randn(1, 1, *size, dtype=torch.double)
    missing = [-length % step for length, step in zip(size, strides, strict=True)]
    assert network.stride == tuple(strides)
    assert all(gap < step for gap, step in zip(missing, strides, strict=True))
    with torch.no_grad():
        expected, found = network(x, torch.tensor([3])), turned(permuted(x, order), torch.tensor([3]))
    torch.testing.assert_close(found, permuted(expected, order), rtol=1e-7, atol=1e-8)


@given(kind=KINDS, size=st.tuples(st.integers(3, 7), st.integers(3, 7)), depth=st.sampled_from([1, 2, 3]))
@pytest.mark.parametrize("step", [1, 2])
def test_lifted_network_repeats_the_plane(kind, size, depth, step):
    flat, lifted = build(2, kind, (2, 2)), build(3, kind, (step, 2, 2))
    lifted.load_state_dict(inflate(lifted, flat.state_dict()))
    x = torch.randn(2, 1, *size, dtype=torch.double)
    with torch.no_grad():
        expected = flat(x, torch.tensor([1, 30]))
        found = lifted(x.unsqueeze(2).repeat(1, 1, depth, 1, 1), torch.tensor([1, 30]))
    torch.testing.assert_close(found, expected.unsqueeze(2).expand_as(found), rtol=1e-4, atol=1e-5)


@given(kind=KINDS | st.just(SEPARABLE), ndim=st.sampled_from([2, 3]), policy=st.sampled_from(["none", "norms"]))
def test_a_batch_is_its_samples(kind, ndim, policy):
    network = build(ndim, kind, (2,) * ndim, checkpointing=policy)
    x, time = torch.randn(3, 1, *(4, 6, 5)[:ndim], dtype=torch.double), torch.tensor([0, 7, 499])
    with torch.no_grad():
        whole = network(x, time)
        singles = torch.cat([network(x[i : i + 1], time[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, singles, rtol=1e-9, atol=1e-10)


def test_only_nd_names_layers_of_a_rank():
    root = Path(voxelry.__file__).parent
    named = re.compile(r"(Conv|ConvTranspose|AvgPool|MaxPool|BatchNorm|InstanceNorm)[123]d|(conv|pool)[123]d\b")
    files = [*(root / "nn").glob("*.py"), *(root / "models").rglob("*.py")]
    assert len(files) > 8
    assert [path.name for path in files if named.search(path.read_text())] == ["nd.py"]

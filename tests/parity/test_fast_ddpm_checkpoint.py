"""A published checkpoint of Fast-DDPM starts a translation, in 2-D as it is and lifted to 3-D."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from voxelry.bundle.pretrained import read_pretrained
from voxelry.interop import load_reference_file
from voxelry.models.transfer import transfer


@pytest.fixture
def published(golden, tmp_path):
    """The file of the reference, in the layout that the original saves: averaged weights are the last entry."""
    with safe_open(golden / "fast_ddpm_unet_2d.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        case = json.loads(file.metadata()["case"])
    weights = {key.removeprefix("weight."): value for key, value in tensors.items() if key.startswith("weight.")}
    raw = {f"module.{key}": value + 1 for key, value in weights.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-5, "params": [0]}]}
    path = tmp_path / "ckpt_100000.pth"
    torch.save([raw, optimizer, 4, 100000, weights], path)
    return path, case, tensors


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_published_checkpoint_is_built_and_lifted(published, ndim):
    path, case, tensors = published
    pretrained = read_pretrained(path)
    assert pretrained.settings["in_channels"] == case["in_channels"]
    network = pretrained.build(
        OmegaConf.create({}), ndim=ndim, in_channels=case["in_channels"], out_channels=case["out_ch"]
    )
    assert not transfer(network, pretrained.weights).new
    x, expected = tensors["input.x"], tensors["output"]
    if ndim == 3:
        x, expected = (image.unsqueeze(2).repeat(1, 1, 3, 1, 1) for image in (x, expected))
    with torch.no_grad():
        found = network.eval()(x, tensors["input.time"])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_checkpoint_without_averaged_weights_has_the_others(tmp_path):
    torch.save([{"a": torch.ones(1)}, {}, 1, 10], tmp_path / "ckpt.pth")
    assert load_reference_file(tmp_path / "ckpt.pth", which="ema")["a"].tolist() == [1.0]

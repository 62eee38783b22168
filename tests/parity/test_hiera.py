"""The original Hiera, rebuilt from its weights, gives the original's outputs to 1e-5."""

import pytest
import torch

from voxelry.backbones.hiera import Hiera
from voxelry.core.errors import CheckpointError
from voxelry.interop import from_reference, infer_case, load_reference_file
from voxelry.interop.weights.hiera import rebuild_autoencoder
from voxelry.interop.weights.reference import source_of
from voxelry.models.mae import MaskedAutoencoder

FILES = ["hiera_2d", "hiera_3d"]


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", FILES)
def test_outputs(reference, name):
    case, weights, tensors = reference(name)
    network = from_reference("hiera", case, weights)
    assert not network.training
    x = tensors["input.x"]
    with torch.no_grad():
        assert_close(network.logits(x), tensors["output.logits"])
        whole, masked = network.intermediates(x), network.intermediates(x, tensors["input.mask"])
        levels = list(network(x).values())
    assert len(whole) == len(masked) == 4
    for index in range(4):
        assert_close(whole[index], tensors[f"output.intermediate.{index}"])
        assert_close(masked[index], tensors[f"output.masked.{index}"])
    for level, index in zip(levels, (0, 1, 3), strict=True):  # the last two stages share their grid
        assert_close(level.movedim(1, -1), tensors[f"output.intermediate.{index}"])


@pytest.mark.parametrize("name", FILES)
def test_the_network_is_made_from_plain_settings(reference, name):
    case, weights, tensors = reference(name)
    network = from_reference("hiera", case, weights)
    again = Hiera(**network.settings()).eval()
    again.load_state_dict(weights)
    assert_close(again.logits(tensors["input.x"]), tensors["output.logits"])


@pytest.mark.parametrize("name", FILES)
def test_architecture_is_read_from_the_tensors(reference, name):
    case, weights, _ = reference(name)
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    assert source_of(prefixed) == "hiera"
    found = infer_case("hiera", prefixed)
    shown = {key: value for key, value in found.items() if key in case and key != "q_pool"}
    assert len(shown) >= 6
    assert shown == {key: case[key] for key in shown}
    network = from_reference("hiera", {"q_pool": 2}, prefixed)
    assert network.strides == from_reference("hiera", case, weights).strides


def test_published_checkpoints_load(reference, tmp_path):
    case, weights, tensors = reference("hiera_2d")
    path = tmp_path / "hiera.pth"
    torch.save({"model_state": weights, "epoch": 3}, path)
    network = from_reference("hiera", case, torch.load(path, weights_only=True))
    assert_close(network.logits(tensors["input.x"]), tensors["output.logits"])
    network = from_reference("hiera", case, load_reference_file(path))
    assert_close(network.logits(tensors["input.x"]), tensors["output.logits"])


@pytest.mark.parametrize("depth", [1, 32, 40])
def test_lifted_weights_give_the_2d_result_in_every_plane(reference, depth):
    case, weights, tensors = reference("hiera_2d")
    flat, lifted = (from_reference("hiera", case, weights, ndim=ndim) for ndim in (2, 3))
    volume = tensors["input.x"].unsqueeze(2).repeat(1, 1, depth, 1, 1)
    with torch.no_grad():
        assert_close(lifted.logits(volume), tensors["output.logits"])
        planes, volumes = flat(tensors["input.x"]), lifted(volume)
    for name, expected in planes.items():
        assert lifted.strides[name] == (flat.strides[name][0], *flat.strides[name])
        assert_close(volumes[name], expected.unsqueeze(2).expand_as(volumes[name]))


def test_the_case_may_set_the_lifted_axis(reference):
    case, weights, tensors = reference("hiera_2d")
    own = {"patch_stride": [1, 4, 4], "patch_kernel": [1, 7, 7], "patch_padding": [0, 3, 3], "q_stride": [1, 2, 2],
           "mask_unit_size": [1, 8, 8], "input_size": [5, 64, 64]}  # fmt: skip
    lifted = from_reference("hiera", {**case, **own}, weights, ndim=3)
    volume = tensors["input.x"].unsqueeze(2).repeat(1, 1, 5, 1, 1)
    with torch.no_grad():
        levels = lifted(volume)
    assert [level.shape[2] for level in levels.values()] == [5, 5, 5]
    expected = tensors["output.intermediate.3"].movedim(-1, 1).unsqueeze(2)
    assert_close(levels["p4"], expected.expand_as(levels["p4"]))


def test_a_decoder_is_left_out_or_kept(reference):
    case, weights, tensors = reference("hiera_2d")
    bare = {**case, "num_classes": None}
    encoder = Hiera(**{**from_reference("hiera", case, weights).settings(), "num_classes": None})
    settings = {**encoder.describe(), "mask_unit_size": [8, 8]}
    network = MaskedAutoencoder(ndim=2, encoder=settings, decoder_dim=16, decoder_depth=2, decoder_heads=2).eval()
    published = {name.removeprefix("encoder."): value for name, value in network.state_dict().items()}
    again = rebuild_autoencoder({**bare, "decoder_num_heads": 2}, {"model_state": published})
    x, mask = tensors["input.x"], tensors["input.mask"]
    assert torch.equal(again(x, mask), network(x, mask))
    backbone = from_reference("hiera", bare, published)
    assert torch.equal(backbone(x)["p2"], network.encoder(x)["p2"])
    with pytest.raises(CheckpointError, match=r"with decoder_embed\.weight"):
        rebuild_autoencoder(case, weights)


def test_weights_of_another_architecture(reference):
    case, weights, _ = reference("hiera_2d")
    with pytest.raises(CheckpointError, match="don't fit the case"):
        from_reference("hiera", {**case, "stages": [1, 1, 1, 2]}, weights)
    with pytest.raises(CheckpointError, match=r"expected a tensor named patch_embed\.proj\.weight"):
        from_reference("hiera", case, {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc1\.weight"):
        from_reference("hiera", case, {"patch_embed.proj.weight": torch.zeros(4, 1, 7, 7)})
    with pytest.raises(CheckpointError, match="3-D and can't make a 2-D"):
        from_reference("hiera", *reference("hiera_3d")[:2], ndim=2)

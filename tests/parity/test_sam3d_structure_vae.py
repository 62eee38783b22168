"""The original's autoencoder of occupancies, rebuilt from its weights, gives the original's outputs."""

import pytest
import torch

from voxelry.core.errors import CheckpointError
from voxelry.interop import from_reference
from voxelry.interop.weights.sam3d.structure_vae import DECODER, ENCODER
from voxelry.models.sam3d.structure_vae import StructureDecoder, StructureEncoder

TINY = {"widths": (4, 8, 16), "blocks": 2, "middle_blocks": 1, "latent_channels": 3}


def test_encoder(reference, assert_close):
    case, weights, tensors = reference("sam3d_ss_encoder")
    network = from_reference("sam3d-ss-encoder", case, weights)
    with torch.no_grad():
        mean, log_variance = network(tensors["input.x"])
    assert_close(mean, tensors["output.mean"])
    assert_close(log_variance, tensors["output.logvar"])


def test_decoder(reference, assert_close):
    case, weights, tensors = reference("sam3d_ss_decoder")
    network = from_reference("sam3d-ss-decoder", case, weights)
    with torch.no_grad():
        assert_close(network(tensors["input.z"]), tensors["output.logits"])


@pytest.mark.parametrize(("part", "make"), [(ENCODER, StructureEncoder), (DECODER, StructureDecoder)])
def test_weights_go_out_and_come_back(part, make, scrambled):
    network = scrambled(make(**TINY))
    exported = part.export(network)
    assert {"input_layer.weight", "middle_block.0.conv1.weight", "out_layer.2.bias"} <= set(exported)
    again = from_reference(part.source, {}, {f"module.{name}": value for name, value in exported.items()})
    assert again.settings() == network.settings()
    x = torch.randn(1, 1 if make is StructureEncoder else 3, 8, 8, 8)
    for found, expected in zip(again(x), network(x), strict=True):
        assert torch.equal(found, expected)


def test_one_level_halves_nothing_and_rank_is_free(scrambled):
    for ndim in (2, 3):
        encoder = scrambled(StructureEncoder(ndim=ndim, widths=(4, 8), blocks=1, middle_blocks=1, latent_channels=3))
        decoder = scrambled(StructureDecoder(ndim=ndim, widths=(4, 8), blocks=1, middle_blocks=1, latent_channels=3))
        mean, _ = encoder(torch.rand(1, 1, *(8,) * ndim))
        assert mean.shape == (1, 3, *(4,) * ndim)
        assert decoder(mean).shape == (1, 1, *(8,) * ndim)
    assert StructureEncoder(widths=(4,), blocks=1)(torch.rand(1, 1, 4, 4, 4))[0].shape == (1, 8, 4, 4, 4)


def test_a_draw_is_around_the_mean(scrambled):
    encoder = scrambled(StructureEncoder(**TINY))
    x = torch.rand(1, 1, 8, 8, 8)
    mean, log_variance = encoder(x)
    first, second = (encoder.sample(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    spread = (first - mean) / (0.5 * log_variance).exp()
    assert 0.5 < spread.std() < 1.5


def test_weights_of_another_module(scrambled):
    exported = DECODER.export(scrambled(StructureDecoder(**TINY)))
    with pytest.raises(CheckpointError, match="don't fit"):
        from_reference("sam3d-ss-decoder", {"channels": [16, 8, 8]}, exported)
    with pytest.raises(CheckpointError, match="can't make a 2-D"):
        from_reference("sam3d-ss-decoder", {}, exported, ndim=2)

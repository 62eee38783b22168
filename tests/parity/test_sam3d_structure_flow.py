"""The original's multi-latent transformer, rebuilt from its weights, gives the original's outputs and gradients."""

import pytest
import torch

from voxelry.core.errors import CheckpointError, SettingError
from voxelry.interop import from_reference
from voxelry.interop.weights.reference import source_of
from voxelry.interop.weights.sam3d.structure_flow import FLOW
from voxelry.models.sam3d.structure_flow import POSE_LATENTS, StructureFlow

TINY = {"grid": 2, "latent_channels": 3, "channels": 16, "condition_channels": 12, "depth": 2, "heads": 2}


def latents_of(network, batch=2, grad=False):
    own = network.settings()
    found = {"shape": torch.randn(batch, own["grid"] ** 3, own["latent_channels"])}
    found |= {name: torch.randn(batch, 1, numbers) for name, numbers in own["pose"].items()}
    return {name: each.requires_grad_(grad) for name, each in found.items()}


def test_outputs_and_gradients(reference, assert_close):
    case, weights, tensors = reference("sam3d_ss_flow")
    network = from_reference("sam3d-ss-flow", case, weights)
    x = {name: tensors[f"input.{name}"].requires_grad_() for name in case["latents"]}
    found = network(x, tensors["input.t"], tensors["input.cond"], tensors["input.d"])
    sum(each.square().sum() for each in found.values()).backward()
    without = network(x, tensors["input.t"], tensors["input.cond"])
    assert set(found) == set(case["latents"])
    for name in found:
        assert_close(found[name], tensors[f"output.{name}"])
        assert_close(x[name].grad, tensors[f"output.grad.{name}"])
        assert_close(without[name], tensors[f"output.no_d.{name}"])


def test_the_shape_alone_is_the_same_shape(reference, assert_close):
    case, weights, tensors = reference("sam3d_ss_flow")
    network = from_reference("sam3d-ss-flow", {**case, "include_pose": False}, weights)
    found = network({"shape": tensors["input.shape"]}, tensors["input.t"], tensors["input.cond"], tensors["input.d"])
    assert list(found) == ["shape"]
    assert_close(found["shape"], tensors["output.shape"])


def test_the_shape_never_looks_at_the_pose(scrambled):
    network = scrambled(StructureFlow(**TINY))
    alone = StructureFlow(**{**network.settings(), "include_pose": False}).eval()
    own = {name: each for name, each in network.state_dict().items() if name in alone.state_dict()}
    alone.load_state_dict(own)
    x, condition, ticks = latents_of(network), torch.randn(2, 5, 12), torch.tensor([0.0, 700.0])
    other = {**latents_of(network), "shape": x["shape"]}
    expected = network(x, ticks, condition, ticks)["shape"]
    assert torch.equal(network(other, ticks, condition, ticks)["shape"], expected)
    assert torch.equal(alone(x, ticks, condition, ticks)["shape"], expected)
    dropped = sum(each.numel() for name, each in network.state_dict().items() if name not in own)
    assert dropped == sum(each.numel() for each in network.parameters()) - sum(e.numel() for e in alone.parameters())
    assert dropped > 0.3 * sum(each.numel() for each in network.parameters())


def test_the_pose_sends_no_gradient_into_the_shape(scrambled):
    network = scrambled(StructureFlow(**{**TINY, "depth": 1}))
    x = latents_of(network, grad=True)
    found = network(x, torch.tensor([10.0, 500.0]), torch.randn(2, 5, 12))
    found["translation"].sum().backward()
    assert x["shape"].grad is None
    assert x["scale"].grad.abs().max() > 0  # they are one stream


def test_weights_go_out_and_come_back(scrambled):
    network = scrambled(StructureFlow(**TINY))
    exported = FLOW.export(network)
    assert "blocks.1.self_attn.to_qkv.6drotation_normalized.weight" in exported
    assert "latent_mapping.translation_scale.out_layer.bias" in exported
    assert source_of(exported) == "sam3d-ss-flow"
    again = from_reference("sam3d-ss-flow", {}, {f"reverse_fn.backbone.{k}": v for k, v in exported.items()})
    assert again.settings() == network.settings()
    x, condition, ticks = latents_of(network), torch.randn(2, 5, 12), torch.tensor([0.0, 700.0])
    for name, found in again(x, ticks, condition).items():
        assert torch.equal(found, network(x, ticks, condition)[name])


def test_checkpointing_changes_no_gradient(scrambled):
    grads = []
    for again in (False, True):
        torch.manual_seed(1)
        network = scrambled(StructureFlow(**TINY, checkpointing=again))
        found = network(latents_of(network), torch.tensor([0.0, 700.0]), torch.randn(2, 5, 12))
        sum(each.square().sum() for each in found.values()).backward()
        grads.append(network.latents["shape"].enter.weight.grad)
    torch.testing.assert_close(*grads)


def test_faults(scrambled):
    network = scrambled(StructureFlow(**TINY))
    with pytest.raises(SettingError, match="got no translation"):
        network(
            {k: v for k, v in latents_of(network).items() if k != "translation"}, torch.ones(2), torch.ones(2, 5, 12)
        )
    with pytest.raises(SettingError, match="at most once, got scale"):
        StructureFlow(**TINY, streams={"a": ["scale"], "b": ["scale"]})
    with pytest.raises(SettingError, match="evenly"):
        StructureFlow(**{**TINY, "heads": 3})
    exported = FLOW.export(network)
    for case, words in (({"share_mod": True}, "share_mod"), ({"pe_mode": "rope"}, "expected ape")):
        with pytest.raises(CheckpointError, match=words):
            from_reference("sam3d-ss-flow", case, exported)
    assert list(POSE_LATENTS.values()) == [6, 3, 3, 1]

"""The original's flow of structured latents, rebuilt from its weights, gives the original's outputs."""

import pytest
import torch

from voxelry.core.errors import CheckpointError, SettingError
from voxelry.interop import from_reference
from voxelry.interop.weights.reference import source_of
from voxelry.interop.weights.sam3d.latent_flow import FLOW
from voxelry.models.sam3d.latent_flow import LatentFlow, pooled
from voxelry.nn.sparse import SparseTensor

TINY = {"latent_channels": 3, "widths": (4, 8), "channels": 16, "condition_channels": 12, "depth": 2, "heads": 2}


def cells(items=2):
    chosen = (torch.rand(items, 6, 6, 6) < 0.2).nonzero()
    return SparseTensor.of(torch.randn(len(chosen), 3), chosen[torch.randperm(len(chosen))])


def test_outputs(reference, assert_close):
    case, weights, tensors = reference("sam3d_slat_flow")
    network = from_reference("sam3d-slat-flow", case, weights)
    x = SparseTensor.of(tensors["input.feats"], tensors["input.coords"])
    with torch.no_grad():
        found = network(x, tensors["input.t"], tensors["input.cond"])
    assert found.cells is x.cells
    assert_close(found.features, tensors["output.feats"])
    coarser = pooled(x)
    assert torch.equal(coarser.cells.coords, tensors["output.down2.coords"].long())
    assert_close(coarser.features, tensors["output.down2.feats"])


@pytest.mark.parametrize("change", [{}, {"skips": False}, {"widths": None}, {"shortcut": True}, {"blocks": 1}])
def test_weights_go_out_and_come_back(scrambled, change):
    network = scrambled(LatentFlow(**{**TINY, **change}))
    exported = FLOW.export(network)
    if network.settings()["widths"]:
        assert exported["input_blocks.0.conv1.conv.weight"].shape[1:4] == (3, 3, 3)
        assert source_of(exported) == "sam3d-slat-flow"
    again = from_reference("sam3d-slat-flow", {}, {f"backbone.{k}": v for k, v in exported.items()})
    x, condition, ticks = cells(), torch.randn(2, 5, 12), torch.tensor([0.0, 700.0])
    assert torch.equal(again(x, ticks, condition, ticks).features, network(x, ticks, condition, ticks).features)
    older = {k: v.permute(1, 2, 3, 4, 0) if v.ndim == 5 else v for k, v in exported.items()}
    again = from_reference("sam3d-slat-flow", {}, older)
    assert torch.equal(again(x, ticks, condition, ticks).features, network(x, ticks, condition, ticks).features)


def test_items_do_not_mix_and_order_does_not_matter(scrambled):
    network = scrambled(LatentFlow(**TINY))
    x, condition, ticks = cells(), torch.randn(2, 5, 12), torch.tensor([100.0, 700.0])
    whole = network(x, ticks, condition).features
    second = x.cells.coords[:, 0] == 1
    coords = x.cells.coords[second].clone()
    coords[:, 0] = 0
    alone = network(SparseTensor.of(x.features[second], coords), ticks[1:], condition[1:])
    torch.testing.assert_close(alone.features, whole[second], atol=1e-5, rtol=1e-4)
    order = torch.randperm(len(x.cells))
    mixed = network(SparseTensor.of(x.features[order], x.cells.coords[order]), ticks, condition)
    torch.testing.assert_close(mixed.features, whole[order], atol=1e-5, rtol=1e-4)


def test_checkpointing_changes_no_gradient(scrambled):
    grads = []
    for again in (False, True):
        torch.manual_seed(1)
        network = scrambled(LatentFlow(**TINY, checkpointing=again))
        network(cells(), torch.tensor([0.0, 700.0]), torch.randn(2, 5, 12)).features.square().sum().backward()
        grads.append(network.enter.weight.grad)
    torch.testing.assert_close(*grads)


def test_faults(scrambled):
    exported = FLOW.export(scrambled(LatentFlow(**TINY)))
    name = "input_blocks.0.conv1.conv.weight"
    with pytest.raises(
        CheckpointError, match=r"\[O, k, k, k, I\] or \[k, k, k, I, O\] with k 1 or 3, got \[27, 4, 4\]"
    ):
        from_reference("sam3d-slat-flow", {}, {**exported, name: torch.zeros(27, 4, 4)})
    with pytest.raises(SettingError, match="blocks"):
        LatentFlow(**TINY, blocks=0)

"""Adapters change what they should, keep the base as it was, and fit no other."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from voxelry.backbones.build import build_backbone
from voxelry.core.errors import CheckpointError, FileError, SettingError
from voxelry.models.adapters.adapters import Adapters, AdapterSettings, base_hash
from voxelry.models.shape import Prompt, ShapeNet
from voxelry.models.unet import UNet
from voxelry.nn import nd

KINDS = [
    AdapterSettings(),
    AdapterSettings(kind="dora"),
    AdapterSettings(rank_stabilised=True, targets="all"),
    AdapterSettings(kind="dora", targets="all"),
]


def shape_net() -> ShapeNet:
    network = ShapeNet(
        decoder="transformer", grid=8, patch=4, dim=16, depth=1, decoder_depth=1, heads=2, tokens=2, volume_width=8,
        context=16, prior_grid=8,
    )  # fmt: skip
    torch.nn.init.normal_(network.decoder.head.weight, std=0.1)
    return network.eval()


def unet(checkpointing: str = "none") -> UNet:
    settings = {"width": 8, "multipliers": (1, 2), "groups": 4, "heads": 2, "head_dim": 4, "block": "pre_norm"}
    return UNet(ndim=3, attention="linear", checkpointing=checkpointing, **settings).eval()


def hiera():
    return build_backbone({
        "name": "hiera", "ndim": 3, "input_size": 16, "embed_dim": 8, "heads": 1, "stages": [1, 1], "q_pool": 1,
        "q_stride": 2, "mask_unit_size": 2, "mask_unit_attention": [True, False], "patch_kernel": 3, "patch_stride": 2,
        "patch_padding": 1, "mlp_ratio": 2.0, "drop_path": 0.0, "sep_pos_embed": True,
    }).eval()  # fmt: skip


def vitdet():
    return build_backbone({
        "name": "vitdet", "ndim": 2, "image_size": 16, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2,
        "window_size": 2, "window_blocks": [0],
    }).eval()  # fmt: skip


def inputs(network) -> torch.Tensor | Prompt:
    if isinstance(network, ShapeNet):
        plane = torch.tensor([[0.0, 0.1, -0.4], [0.1, 0.0, -0.4], [0.0, 0.0, 0.1]])
        return Prompt.build(torch.randn(2, 1, 1, 8, 8), plane.expand(2, 1, 3, 3))
    return torch.randn(2, 1, *(16,) * network.ndim)


@torch.no_grad()
def run(network, x) -> torch.Tensor:
    answer = network(x)
    if isinstance(answer, dict):
        return torch.cat([level.flatten() for level in answer.values()])
    return answer if isinstance(answer, torch.Tensor) else answer.sdf


@torch.no_grad()
def disturb(adapters: Adapters) -> None:
    """What training would have done."""
    for group in adapters.parameter_groups(1.0):
        for parameter in group["params"]:
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("build", [shape_net, unet, hiera, vitdet])
@pytest.mark.parametrize("settings", KINDS, ids=["lora", "dora", "rslora_all", "dora_all"])
def test_merging_is_exact_and_taken_back_bit_by_bit(build, settings):
    network = build()
    x, weights = inputs(network), {name: value.clone() for name, value in network.state_dict().items()}
    before, adapters = run(network, x), Adapters(network)
    adapters.add("organ", settings)
    assert_close(run(network, x), before, atol=1e-5, rtol=1e-5)
    disturb(adapters)
    adapted = run(network, x)
    assert (adapted - before).abs().max() > 1e-3
    adapters.merge()
    assert_close(run(network, x), adapted, atol=1e-4, rtol=1e-4)
    state = adapters.merged_state()
    adapters.unmerge()
    assert torch.equal(run(network, x), adapted)
    alone = build()
    alone.load_state_dict(state)
    assert_close(run(alone, x), adapted, atol=1e-4, rtol=1e-4)
    with adapters.using(None):
        assert torch.equal(run(network, x), before)
        assert base_hash(network) == adapters.base
    alone.load_state_dict(weights)
    assert base_hash(alone) == adapters.base


def test_layers_that_are_read_and_not_called_are_adapted_too():
    plain, fused = unet(), unet("norms")
    fused.load_state_dict(plain.state_dict())
    x = inputs(plain).contiguous(memory_format=torch.channels_last_3d)
    answers = []
    for network in (plain, fused):
        adapters = Adapters(network)
        torch.manual_seed(1)
        adapters.add("organ", AdapterSettings(targets=r".*(conv1|conv2|shortcut|qkv|out)"))
        disturb(adapters)
        answer = network(x)
        answer.square().sum().backward()
        still = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
        assert not still
        answers.append(answer.detach())
    assert_close(answers[0], answers[1], atol=1e-4, rtol=1e-4)


def test_only_the_adapter_and_the_heads_are_trained_each_at_its_rate():
    network = shape_net().train()
    adapters = Adapters(network)
    adapters.add("organ")
    groups = adapters.parameter_groups(1e-2, heads=1e-3)
    assert [(group["name"], group["lr"]) for group in groups] == [("adapter", 1e-2), ("heads", 1e-3)]
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    optimizer, x = torch.optim.SGD(groups), inputs(network)
    for _ in range(2):
        optimizer.zero_grad()
        answer = network(x)
        (answer.sdf.square().sum() + answer.mask_logits.square().sum()).backward()
        optimizer.step()
    moved = [parameter for group in groups for parameter in group["params"] if parameter.grad.abs().max() > 0]
    assert len(moved) > 20
    assert base_hash(network) == adapters.base
    assert adapters.trainable()[0] == sum(parameter.numel() for group in groups for parameter in group["params"])


def test_several_on_one_base_by_name_and_from_disk(tmp_path):
    network = shape_net()
    adapters, x = Adapters(network), inputs(network)
    answers = {}
    for name, settings in (("liver", AdapterSettings()), ("spleen", AdapterSettings(rank=2, kind="dora"))):
        adapters.add(name, settings)
        disturb(adapters)
        network.set_mean_shape(torch.full((4, 4, 4), -0.1 if name == "liver" else -0.05))
        answers[name] = run(network, x)
        adapters.save(tmp_path / name)
    adapters.switch("liver")
    assert torch.equal(run(network, x), answers["liver"])

    fresh = shape_net()
    fresh.load_state_dict(adapters.merged_state())
    with pytest.raises(CheckpointError, match="another base"):
        Adapters(fresh).load(tmp_path / "liver")
    adapters.switch(None)
    fresh.load_state_dict(adapters.merged_state())
    again = Adapters(fresh)
    assert again.load(tmp_path / "spleen") == "spleen"
    assert again.load(tmp_path / "liver", "left") == "left"
    assert again.names == ("spleen", "left")
    assert again.settings("spleen").rank == 2
    assert torch.equal(run(fresh, x), answers["liver"])
    again.switch("spleen")
    assert torch.equal(run(fresh, x), answers["spleen"])
    again.remove("spleen")
    assert again.names == ("left",)
    assert again.active is None
    assert torch.equal(run(fresh, x), run(adapters.network, x))
    again.remove("left")
    again.add("organ")
    disturb(again)
    assert again.names == ("organ",)
    assert not torch.equal(run(fresh, x), run(adapters.network, x))


def test_what_was_changed_on_disk_is_refused(tmp_path):
    adapters = Adapters(shape_net())
    adapters.add("organ")
    folder = adapters.save(tmp_path / "organ")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.safetensors", "adapter.yaml"]
    assert adapters.save(folder) == folder
    text = (folder / "adapter.yaml").read_text()
    (folder / "adapter.yaml").write_text(text.replace("rank: 4", "rank: 8"))
    with pytest.raises(CheckpointError, match="changed since"):
        adapters.load(folder, "again")
    (folder / "adapter.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        adapters.load(folder, "again")
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        adapters.load(folder, "again")
    assert adapters.names == ("organ",)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="no part of an adapter"):
        adapters.save(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_running_statistics_of_the_base_stay():
    network = torch.nn.Sequential(nd.conv(2)(1, 4, 3), torch.nn.BatchNorm2d(4)).train()
    adapters = Adapters(network)
    adapters.add("organ", AdapterSettings(targets="0", heads=()))
    network.train()
    network(torch.randn(2, 1, 8, 8))
    assert base_hash(network) == adapters.base


def test_what_does_not_fit_is_refused():
    network = unet()
    adapters = Adapters(network)
    for settings, match in (
        ({"targets": "nothing"}, "no layer of UNet"),
        ({"targets": "(", "heads": ()}, "regular expression"),
        ({"heads": ("tail",)}, "no such module"),
        ({"heads": ("conv1",)}, "no such module"),
        ({"heads": ("middle1",), "targets": "middle1.*"}, "no layer"),
        ({"rank": 0}, "rank"),
        ({"kind": "other"}, "kind"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(SettingError, match=match):
            adapters.add("organ", AdapterSettings(**settings))
    with pytest.raises(SettingError, match="expected letters"):
        adapters.add("my.organ")
    with pytest.raises(SettingError, match="expected one of none"):
        adapters.switch("organ")
    adapters.add("organ", AdapterSettings(heads=("head",)))
    with pytest.raises(SettingError, match="already"):
        adapters.add("organ")
    with pytest.raises(SettingError, match="has adapters already"):
        Adapters(network)


def test_the_adapter_of_the_small_preset_is_small():
    from importlib.resources import files

    import yaml

    settings = yaml.safe_load((files("voxelry.configs") / "model" / "shape_small.yaml").read_text())
    settings.pop("_target_")
    with torch.device("meta"):
        network = ShapeNet(**settings)
    network.to_empty(device="cpu")
    adapters = Adapters(network)
    adapters.add("organ")
    trained, base = adapters.trainable()
    assert 0.005 < trained / base < 0.05
    stored = sum(value.numel() for value in adapters._tensors("organ").values())
    assert stored / base < 0.05

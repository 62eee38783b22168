"""The network of two stages: what leads it, adapters, what it refuses."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from voxelry.core.errors import CheckpointError, FileError, SettingError
from voxelry.core.settings import keywords
from voxelry.data.slices.case import SliceBatch
from voxelry.engine.compose import compose_training
from voxelry.models.adapters.adapters import Adapters, AdapterSettings
from voxelry.models.sam3d.generate import Generation
from voxelry.models.sam3d.image_encoder import read_encoder
from voxelry.models.sam3d.image_tokens import ImageTokens
from voxelry.models.sam3d.memory import Step, memory_plan
from voxelry.models.sam3d.net import TwoStageNet
from voxelry.nn.moments import RunningMoments, divergence
from voxelry.ops.prompt import Prompt, frame_points
from voxelry.tasks.reconstruct import ReconstructTwoStageTask

FLOW = {"latent_channels": 4, "channels": 24, "condition_channels": 24, "depth": 1, "heads": 2}
SMALL = {
    "image_size": 16, "grid": 16, "prior_grid": 16, "width": 8, "multipliers": (1, 2), "volume_width": 8,
    "volume_multipliers": (1, 2), "context": 16, "encoder_width": 8,
    "structure": {"latent_channels": 4, "widths": (4, 8), "blocks": 1, "middle_blocks": 1},
    "structure_flow": {"grid": 4, "include_pose": False, "shortcut": False, **FLOW},
    "latent_flow": {"widths": (8,), "blocks": 1, **FLOW},
    "mesh_decoder": {
        "grid": 8, "latent_channels": 4, "channels": 16, "depth": 1, "heads": 2, "widths": (8,), "groups": 2,
    },
}  # fmt: skip
PLANE = torch.tensor([[0.0, 0.05, -0.4], [0.05, 0.0, -0.4], [0.0, 0.0, 0.0]])
POSE = {"include_pose": True, "shortcut": True}


def prompt(batch=2, slices=1):
    torch.manual_seed(1)
    image = torch.rand(batch, slices, 1, 16, 16)
    return Prompt.build(image, PLANE.expand(batch, slices, 3, 3), click=torch.full((batch, slices, 2), 8.0))


def batch_of(radii):
    """Prompts with balls as truth."""
    given, cells = prompt(len(radii)), frame_points(16, torch.zeros(()))
    sdf = torch.stack([(cells.norm(dim=-1) - radius)[None] for radius in radii]) * 48.0
    inside = (given.pointmap.norm(dim=2) < torch.tensor(radii).view(-1, 1, 1, 1)).float()
    fields = {name: getattr(given, name) for name in vars(given) if name not in ("label", "field_of_view")}
    count = len(radii)
    return SliceBatch(
        **fields,
        label=torch.ones(count, dtype=torch.long),
        field_of_view=torch.full((count, 3, 4), torch.nan),
        centre=torch.zeros(count, 3),
        edge=torch.full((count, 1), 48.0),
        mask_target=inside,
        has_target=torch.ones(count, 1, dtype=torch.bool),
        sdf=sdf,
        centroid=torch.zeros(count, 3),
        spaces=[],
        names=["ball"] * count,
        sources=["ball"] * count,
        truths=[],
        slices=[],
        views=[],
    )


def task_of(network, **settings):
    defaults = {"edges": [48.0], "baseline_shapes": 1, "contour": 0.0, "samples": 1, "steps": 2, "draws": 1}
    return ReconstructTwoStageTask(network, **{**defaults, **settings})


def scrambled(network):
    """Small random weights everywhere, also where it starts at zero."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return network


def grown(module):
    return {name for name, value in module.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_parts_learn_in_turn(precision):
    torch.manual_seed(0)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    task = task_of(TwoStageNet(**SMALL), autoencoder_share=0.5, surface_items=2).train()
    network, batch = task.network, batch_of([0.2, 0.3])
    task.on_progress(0.0)
    with half:
        found = task.training_loss(batch)
    found["loss"].backward()
    assert {"coded", "divergence", "surface_distance", "surface_regulariser", "overlap"} <= set(found)
    assert not grown(network.structure_flow) | grown(network.latent_flow)
    assert grown(network.structure.encoder)
    assert grown(network.surface.encoder)
    task.zero_grad()
    task.on_progress(0.6)
    with half:
        found = task.training_loss(batch)
    found["loss"].backward()
    assert {"flow", "surface_flow", "coded", "surface_distance"} <= set(found)
    assert not grown(network.structure.encoder) | grown(network.surface.encoder)
    for part in (network.structure_flow, network.latent_flow, network.surface.decoder, network.decoder):
        assert grown(part)
    assert network.seen.tolist() == [1, 1]
    with half, torch.no_grad():
        sampled = network.eval().sample(network.read(prompt()), network.noise(1), Generation(steps=1))
    assert torch.isfinite(sampled.distances).all()


def test_stages_learn_alone():
    task = task_of(scrambled(TwoStageNet(**SMALL)), autoencoder_share=0.0, stages=["structure"]).train()
    first, second = (task.training_loss(batch_of([0.25])) for _ in range(2))
    assert set(first) == {"loss", "coded", "divergence"}
    assert set(second) == {"loss", "coded", "flow"}
    second["loss"].backward()
    assert not grown(task.network.encoder) | grown(task.network.decoder)
    assert grown(task.network.condition)


def test_a_pose_is_learned_and_said_as_asked():
    network = TwoStageNet(**{**SMALL, "structure_flow": {**SMALL["structure_flow"], **POSE}})
    task = task_of(network, autoencoder_share=0.0, pose_weight=1.0, stages=["structure"]).train()
    task.training_loss(batch_of([0.2, 0.3]))
    task.training_loss(batch_of([0.2, 0.3]))["loss"].backward()
    assert grown(network.structure_flow.latents["translation"])
    condition = network.eval().read(prompt())
    for decoder, said in (("none", set()), ("default", set()), ("zero", {"scale", "rotation", "translation"}),
                          ("ScaleShiftInvariant", {"scale", "rotation", "translation"})):  # fmt: skip
        asked = task_of(network, pose_decoder=decoder)
        asked._noise = torch.Generator().manual_seed(0)
        asked._sampled(condition, 1)
        assert set(asked._pose) == said
    shape, alone = (
        network.sample(condition, network.noise(1, torch.Generator().manual_seed(0)), Generation(steps=2), pose=pose)
        for pose in (True, False)
    )
    assert torch.equal(shape.distances, alone.distances)
    assert set(shape.pose) == {"6drotation_normalized", "translation", "scale", "translation_scale"}
    assert not alone.pose


def test_adapters_change_both_stages_and_nothing_at_first():
    torch.manual_seed(0)
    network = scrambled(TwoStageNet(**{**SMALL, "surface_points": True}))
    network.structure.batches.fill_(1)
    network.surface.batches.fill_(1)
    task = task_of(network, surface_items=2)
    given = prompt()
    before = network.eval().read(given)
    expected = network.structure_flow({"shape": torch.ones(2, 64, 4)}, torch.tensor([500.0] * 2), before.tokens)
    task.adapt("spleen", {"rank": 4, "alpha": 8.0}, head_rate=1e-5)
    found = network.structure_flow({"shape": torch.ones(2, 64, 4)}, torch.tensor([500.0] * 2), before.tokens)
    assert torch.equal(found["shape"], expected["shape"])
    groups = {group["name"]: group for group in task.parameter_groups()}
    assert groups["heads"]["lr"] == 1e-5
    task.train()
    task.on_progress(0.5)
    task.training_loss(batch_of([0.2, 0.3]))["loss"].backward()
    learned = grown(network)
    for layer in (
        "attention.qkv.shape",
        "attention.out.shape",
        "cross.shape.q",
        "cross.shape.kv",
        "mlp.shape.layers.0",
    ):
        assert any(name.startswith(f"structure_flow.blocks.0.{layer}.lora") for name in learned), layer
    for layer in ("attention.qkv", "attention.out", "cross.q", "cross.kv", "mlp.layers.2"):
        assert any(name.startswith(f"latent_flow.blocks.0.{layer}.lora") for name in learned), layer
    assert all(".lora_" in name or ".modules_to_save." in name for name in learned)
    assert any(".points.lora" in name for name, _ in network.named_parameters())


def test_adapters_are_kept_apart_on_one_base(tmp_path):
    network = TwoStageNet(**SMALL)
    adapters = Adapters(network)
    for name in ("liver", "spleen"):
        adapters.add(name, AdapterSettings())
        adapters.save(tmp_path / name)
    again = TwoStageNet(**SMALL)
    again.load_state_dict(TwoStageNet(**SMALL).state_dict())
    with pytest.raises(CheckpointError, match="another base"):
        Adapters(again).load(tmp_path / "liver")
    own, whole = adapters.trainable()
    assert own < whole


def test_pointmaps_say_nothing_at_first_and_may_be_unknown():
    torch.manual_seed(0)
    network = TwoStageNet(**{**SMALL, "surface_points": True})
    given = prompt()
    condition = network.read(given)
    structure = network.structure_of(network.occupancy(batch_of([0.2, 0.3]).sdf / 48))
    added = network.added(condition, torch.arange(2), structure)
    assert added.shape == (len(structure.cells), 8)
    assert not added.any()
    torch.nn.init.ones_(network.points.leave.weight)
    known, unknown = (
        network.points.cells(network.points(given, torch.full((2, 1, 16, 16), logit)), structure.cells)
        for logit in (1.0, -1.0)
    )
    assert torch.isfinite(unknown).all()  # a pointmap of NaN alone
    assert not torch.allclose(known, unknown)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny image encoder in a folder, with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_tokens_of_an_image_encoder(encoder, tmp_path):
    settings = {"image_encoder": str(encoder), "image_encoder_width": 16, "image_encoder_size": 28}
    network = TwoStageNet(**{**SMALL, **settings})
    plain = TwoStageNet(**SMALL).read(prompt()).tokens
    tokens = network.read(prompt()).tokens
    assert tokens.shape[1] == plain.shape[1] + 2 * 5  # a class token and four patches, of image and mask
    assert not any("_encoder" in name for name in network.state_dict())
    tokens.sum().backward()
    assert network.images.project.weight.grad.abs().sum() > 0
    for change, words in (
        ({"width": 24}, "has tokens of 16 channels, expected 24"),
        ({"image_size": 30}, "multiple of 14"),
    ):
        with pytest.raises(SettingError, match=words):
            ImageTokens(encoder, **{"width": 16, "channels": 8, "image_size": 28, **change})
    with pytest.raises(FileError, match="no such encoder"):
        ImageTokens(tmp_path, width=16, channels=8, image_size=28)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match="without running code"):
        ImageTokens(tmp_path, width=16, channels=8, image_size=28)


def as_timm(tensors, *, apart):
    """A file of `transformers` as `timm` or, with the positions of all tokens, the original names it."""
    names = {"layernorm": "norm", "attention.output.dense": "attn.proj", "layer_scale": "ls", "lambda1": "gamma",
             "embeddings.patch_embeddings.projection": "patch_embed.proj", "encoder.layer": "blocks"}  # fmt: skip
    own = {name.partition("embeddings.")[2]: each for name, each in tensors.items() if name.startswith("embeddings.")}
    token, positions = own["cls_token"], own["position_embeddings"]
    found = {"cls_token": token, "pos_embed": positions, "mask_token": own["mask_token"]}
    if apart:
        found = {"cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:].contiguous()}
    if "register_tokens" in own:
        found["reg_token" if apart else "register_tokens"] = own["register_tokens"]
    for name, tensor in tensors.items():
        if "attention.attention.query" in name:
            each = [tensors[name.replace("query", part)] for part in ("query", "key", "value")]
            found[name.replace("encoder.layer", "blocks").replace("attention.attention.query", "attn.qkv")] = torch.cat(
                each
            )
        elif "attention.attention" not in name and (
            name not in {f"embeddings.{one}" for one in own} or "patch" in name
        ):
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            found[name] = tensor
    return found


@pytest.mark.parametrize(("registers", "apart"), [(0, False), (4, True), (4, False)])
def test_an_image_encoder_in_another_layout_is_the_same(tmp_path, registers, apart):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, num_register_tokens=registers
    )
    network = scrambled(Dinov2WithRegistersModel(config)).eval()
    network.save_pretrained(tmp_path / "whole")
    tensors = as_timm(load_file(tmp_path / "whole" / "model.safetensors"), apart=apart)
    if not registers:
        del tensors["register_tokens"]
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "vit_small_patch14_dinov2"}')
    save_file(tensors, tmp_path / "timm" / "model.safetensors")
    torch.save(tensors, tmp_path / "dino.pth")
    image = torch.randn(1, 3, 28, 28)
    expected = network(image).last_hidden_state
    for place in (tmp_path / "whole", tmp_path / "timm", tmp_path / "dino.pth"):
        found = read_encoder(place)
        torch.testing.assert_close(found(image).last_hidden_state, expected)
        assert not any(parameter.requires_grad for parameter in found.parameters())
    with pytest.raises(SettingError, match=r"dino\.pth has tokens of 128 channels, expected 1024"):
        ImageTokens(tmp_path / "dino.pth", width=1024, channels=8, image_size=28)


def test_what_is_no_image_encoder(encoder, tmp_path):
    tensors = as_timm(load_file(encoder / "model.safetensors"), apart=False)
    file = tmp_path / "dino.safetensors"
    twice = torch.cat([tensors["blocks.0.mlp.fc1.weight"]] * 2)
    for change, words in (
        ({"pos_embed": None}, r"dino\.safetensors: expected DINOv2's tensors, got no pos_embed"),
        ({"blocks.0.mlp.fc1.weight": twice}, "size small, base or large"),
        ({"norm.bias": None}, "missing: layernorm.bias"),
        ({"norm.bias": torch.zeros(3)}, "no encoder|odd: layernorm.bias"),
    ):
        save_file({name: each for name, each in (tensors | change).items() if each is not None}, file)
        with pytest.raises(CheckpointError, match=words):
            read_encoder(file)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").symlink_to(file)
    (tmp_path / "folder" / "config.json").write_text("none")
    with pytest.raises(CheckpointError, match="expected JSON"):
        read_encoder(tmp_path / "folder")


def test_what_published_sizes_take_is_said_before():
    settings = compose_training(["experiment=reconstruct_sam3d_3d", "data.root=.", "model=sam3d"]).model
    described = {name: value for name, value in keywords(settings).items() if not name.startswith("_")}
    with torch.device("meta"):
        network = TwoStageNet(**described)
        pose = TwoStageNet(**{**described, "structure_flow": {**described["structure_flow"], "include_pose": True}})
    lines = memory_plan(network, Step(batch=4))
    assert "556.9 million parameters, 556.9 trained: 2.23, 8.91" in lines[3]
    assert "600.4 million parameters" in lines[4]
    saved = sum(value.numel() for value in pose.parameters()) - sum(value.numel() for value in network.parameters())
    assert round(saved / 1e6) == 403
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    frozen = memory_plan(network, Step(batch=4))
    assert "0.0 trained: 2.23, 0.00" in frozen[3]
    network.latent_flow.checkpointing = False
    assert memory_plan(network, Step(batch=4))[4] != frozen[4]
    network.latent_flow.checkpointing = True
    half = memory_plan(network, Step(batch=4, half=True))
    assert "bf16" in frozen[-1]
    assert "bf16" not in half[-1]


def test_given_tokens_and_faults():
    network = TwoStageNet(**SMALL)
    tokens = torch.randn(2, 5, 24)
    assert torch.equal(network.read(prompt(), tokens).tokens, tokens)
    with pytest.raises(SettingError, match="tokens: expected 24 channels, got 8"):
        network.read(prompt(), torch.randn(2, 5, 8))
    for change, words in (
        ({"grid": 12}, "grid: expected structure_flow.grid times 2"),
        ({"latent_flow": {**SMALL["latent_flow"], "latent_channels": 8}}, "latent_flow.latent_channels: expected 4"),
        ({"latent_flow": {**SMALL["latent_flow"], "condition_channels": 8}}, "condition_channels: expected 24"),
        ({"kind": "solid"}, "kind"),
        ({"begin": "zero"}, "begin"),
    ):
        with pytest.raises(SettingError, match=words):
            TwoStageNet(**{**SMALL, **change})
    for change in ({"stages": ["all"]}, {"stages": []}, {"condition_drop": 1.0}, {"pose_decoder": "mean"},
                   {"guidance": -1.0}, {"surface_items": 0}):  # fmt: skip
        with pytest.raises(SettingError, match=next(iter(change))):
            task_of(network, **change)


def test_what_is_new_learns_around_networks_that_stand_still():
    torch.manual_seed(0)
    network = scrambled(TwoStageNet(**{**SMALL, "begin": "noise"}))
    task = task_of(network, frozen=True, autoencoder_share=0.5).train()
    with pytest.raises(SettingError, match="frozen: expected pretrained=BUNDLE"):
        task.training_loss(batch_of([0.25]))
    for coder in (network.structure, network.surface):
        coder.batches.fill_(1)
        coder.latent_std.fill_(2.0)
    task.on_progress(0.0)
    found = task.training_loss(batch_of([0.2, 0.3]))
    found["loss"].backward()
    assert {"coded", "divergence", "surface_distance", "surface_divergence", "overlap"} <= set(found)
    still = (network.structure.decoder, network.surface.decoder, network.structure_flow, network.latent_flow)
    assert not any(grown(part) for part in still)
    assert all(grown(part) for part in (network.structure.encoder, network.surface.encoder, network.encoder))
    task.zero_grad()
    task.on_progress(0.6)
    found = task.training_loss(batch_of([0.2, 0.3]))
    found["loss"].backward()
    assert {"flow", "surface_flow", "overlap"} <= set(found)
    assert not {"coded", "surface_distance"} & set(found)
    assert not any(grown(part) for part in (*still, network.structure.encoder, network.surface.encoder))
    assert grown(network.condition)
    for coder in (network.structure, network.surface):
        assert int(coder.batches) == 1
        assert torch.equal(coder.latent_std, torch.full((4,), 2.0))
    with pytest.raises(SettingError, match="frozen: expected without an adapter"):
        task.adapt("liver", {})


def test_a_divergence_is_that_of_standardised_latents():
    moments = RunningMoments(3)
    moments.latent_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    moments.latent_std.copy_(torch.tensor([0.5, 2.0, 4.0]))
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    found = moments.divergence(moments.restored(mean), log_variance + 2 * moments.latent_std.log())
    torch.testing.assert_close(found, divergence(mean, log_variance))


def test_a_transformer_may_read_the_prompt():
    reader = {"decoder": "transformer", "patch": 8, "dim": 24, "depth": 1, "decoder_depth": 1, "heads": 2, "tokens": 4}
    task = task_of(scrambled(TwoStageNet(**{**SMALL, **reader})), autoencoder_share=0.0).train()
    network = task.network
    for batches in (network.structure.batches, network.surface.batches):
        batches.fill_(1)
    task.adapt("liver", {"rank": 4, "alpha": 8.0})
    task.on_progress(0.5)
    task.training_loss(batch_of([0.2, 0.3]))["loss"].backward()
    learned = grown(network)
    for layer in ("structure_flow.blocks.0.attention.qkv.shape.lora_B", "latent_flow.blocks.0.cross.kv.lora_B"):
        assert any(name.startswith(layer) for name in learned), layer
    for head in ("decoder.head", "structure_flow.latents.shape.leave", "latent_flow.leave", "surface.decoder.leave"):
        assert any(name.startswith(f"{head}.modules_to_save") for name in learned), head
    assert any(name.startswith("encoder.") and ".lora_B." in name for name in learned)
    assert not any(name.startswith("structure.") for name in learned)


def test_shortcuts_are_euler_steps_whatever_the_sampler():
    network = scrambled(TwoStageNet(**{**SMALL, "structure_flow": {**SMALL["structure_flow"], "shortcut": True}}))
    network.structure.batches.fill_(1)
    condition, draw = network.eval().read(prompt()), torch.Generator
    found = [
        network.sample(
            condition, network.noise(1, draw().manual_seed(0)), Generation(steps=2, sampler=name, shortcut=shortcut)
        ).distances
        for name, shortcut in (("euler", "step"), ("heun", "step"), ("euler", "none"), ("heun", "none"))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[2], found[3])

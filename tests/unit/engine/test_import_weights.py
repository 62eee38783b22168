"""Checkpoint folders of SAM 3D Objects become bundles that predict, and go back byte for byte."""

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import voxelry
from voxelry.cli import app
from voxelry.core.errors import CheckpointError, ConfigError, SettingError
from voxelry.core.settings import keywords
from voxelry.engine.compose import compose_training
from voxelry.engine.import_weights import import_weights, reader_settings
from voxelry.engine.train import train
from voxelry.interop import sam3d
from voxelry.interop.sam3d_organ import modules_of, organ_network
from voxelry.io import read_image
from voxelry.io.meshes import read_mesh
from voxelry.models.sam3d.latent_flow import LatentFlow
from voxelry.models.sam3d.mesh_decoder import MeshDecoder
from voxelry.models.sam3d.structure_flow import StructureFlow
from voxelry.models.sam3d.structure_vae import StructureDecoder, StructureEncoder
from voxelry.tasks.reconstruct.sam3d_recipe import ReconstructTwoStageRecipe

GENERATOR = "_base_models.generator.reverse_fn.backbone."
FLOW = {"channels": 24, "condition_channels": 24, "depth": 1, "heads": 2}
MESH_CASE = {"model_channels": 16, "num_heads": 2, "window_size": 4, "resolution": 8, "num_groups": 2}


def scrambled(network):
    """Small random weights everywhere, also where it starts at zero."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return network


def inputs_last(tensors):
    """Sparse kernels as older files have them, [k, k, k, I, O]."""
    return {name: each.permute(1, 2, 3, 4, 0) if each.ndim == 5 else each for name, each in tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all modules, each in a file of its own, kernels of the second stage in either layout."""
    place = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    structure = {"widths": (4, 8), "blocks": 1, "middle_blocks": 1}
    networks = {
        "ss_generator": StructureFlow(grid=4, **FLOW),
        "ss_encoder": StructureEncoder(**structure),
        "ss_decoder": StructureDecoder(**structure),
        "slat_generator": LatentFlow(widths=(8,), blocks=1, **FLOW),
        "slat_decoder_mesh": MeshDecoder(grid=8, channels=16, depth=1, heads=2, window=4, widths=(8,), groups=2),
    }
    pipeline = {"slat_mean": [0.1] * 8, "slat_std": [2.0] * 8}
    for name, network in networks.items():
        tensors = sam3d.MODULES[name].export(scrambled(network))
        if name == "slat_generator":
            tensors = inputs_last(tensors)
        if name.endswith("generator"):
            tensors = {GENERATOR + key: each.half() for key, each in tensors.items()}
            tensors["_base_models.condition_embedder.idx_emb"] = torch.randn(2, 8)
        torch.save({"state_dict": {key: each.contiguous() for key, each in tensors.items()}}, place / f"{name}.ckpt")
        pipeline[f"{name}_ckpt_path"] = f"{name}.ckpt"
    (place / "mesh.yaml").write_text(yaml.safe_dump({"decoder": MESH_CASE}))
    pipeline["slat_decoder_mesh_config_path"] = "mesh.yaml"
    (place / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    return place


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "bundle"
    found = CliRunner().invoke(
        app,
        ["import-weights", "--from", "sam3d", str(folder), "--out", str(out), "--edge", "60", "--reader", "shape_tiny"],
    )
    assert found.exit_code == 0, found.output
    return out, found.output


def test_a_command_says_what_it_imports(bundle):
    _, output = bundle
    assert "slat_generator: " in output
    assert "sparse kernels [k, k, k, I, O]" in output
    assert "sparse kernels [O, k, k, k, I]" in output
    assert output.splitlines()[-1].startswith("bundle: ")


def test_a_bundle_of_a_checkpoint_predicts(bundle, phantoms):
    out, _ = bundle
    model = voxelry.load(out)
    network = model.task.network
    assert (network.kind, network.begin, network.grid) == ("shell", "noise", 16)
    assert not network.structure_flow.settings()["include_pose"]
    torch.testing.assert_close(network.surface.latent_mean, torch.full((8,), 0.1))
    image = sorted((phantoms / "volumes").iterdir())[0]
    space = read_image(image).space
    middle = np.asarray(space.to_world([size / 2 for size in space.shape]))
    shape = model.reconstruct(image, click=tuple(middle))
    assert shape.sdf.shape == (16, 16, 16)
    assert np.isfinite(shape.sdf).all()
    assert shape.mesh.is_watertight


def test_what_reads_prompts_is_that_of_the_published_size():
    model = keywords(compose_training(["experiment=reconstruct_sam3d_3d", "model=sam3d", "data.root=."]).model)
    found = reader_settings("shape_small")
    assert found == {name: model[name] for name in found}
    assert {"decoder", "image_size", "dim"} <= set(found)


@pytest.mark.usefixtures("undrawn")
def test_what_is_new_learns_and_an_adapter_after_it(bundle, phantoms, quick_training, scan, tmp_path, monkeypatch):
    """The way that docs/reconstruct_sam3d.md shows."""
    imported, _ = bundle
    again, prepare = [], ReconstructTwoStageRecipe.prepare

    def watched(self, task, *rest):
        again.append(task.network.latent_flow.checkpointing)
        prepare(self, task, *rest)

    monkeypatch.setattr(ReconstructTwoStageRecipe, "prepare", watched)
    overrides = [
        *(each for each in quick_training if not each.startswith(("model", "data.split"))),
        "experiment=reconstruct_sam3d_3d", f"data.root={phantoms}", "data.slices.organs=[6]", "model.grid=16",
        "data.split.fractions=[0.75,0.25,0.0]", "data.slices.evaluation={slices: 1, clicks: 1}", "task.samples=1",
        "task.steps=1", "task.baseline_shapes=1", "task.recentre=false", "model.latent_flow.checkpointing=true",
    ]  # fmt: skip
    base, liver = tmp_path / "base", tmp_path / "liver"
    with pytest.raises(ConfigError, match=r"model\.grid: expected 16, as .* has it, got 64"):
        train(compose_training([*overrides, "model.grid=64", f"pretrained={imported}", f"output_dir={tmp_path}/no"]))
    train(compose_training([*overrides, f"pretrained={imported}", "task.frozen=true", f"output_dir={base}"]))
    before, after = (
        voxelry.load(place / "bundle" if place == base else place).task.network for place in (imported, base)
    )
    for name, value in before.structure_flow.state_dict().items():
        assert torch.equal(after.structure_flow.state_dict()[name], value)
    assert after.surface.decoder.settings() == before.surface.decoder.settings()
    assert torch.equal(after.surface.latent_mean, before.surface.latent_mean)
    assert not torch.equal(after.surface.encoder.enter.weight, before.surface.encoder.enter.weight)
    adapter = "adapter={name: liver, rank: 4, alpha: 8, head_rate: 1e-5}"
    train(compose_training([*overrides, f"pretrained={base}", adapter, f"output_dir={liver}"]))
    assert again == [True, True]
    image, click = scan
    arguments = ["predict", "--model", str(base), "--adapter", str(liver), str(image), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*arguments, "--click", ",".join(map(str, click))])
    assert found.exit_code == 0, found.output
    assert read_mesh(next((tmp_path / "out").glob("*.ply"))).is_watertight


def test_trained_networks_go_back_into_the_checkpoint(folder, tmp_path):
    checkpoint = sam3d.load(folder)
    network = organ_network(checkpoint, grid=16)
    for name in checkpoint.modules:
        file = torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]
        back = checkpoint.with_networks(modules_of(network)).tensors(name)
        assert set(back) == set(file)
        for key, each in file.items():
            assert back[key].dtype == each.dtype
            assert torch.equal(back[key], each)
    with torch.no_grad():
        network.latent_flow.leave.bias.add_(1.0)
    checkpoint.with_networks({"slat_generator": network.latent_flow}).save(tmp_path / "trained")
    written = load_file(tmp_path / "trained" / "slat_generator.safetensors")
    known = torch.load(folder / "slat_generator.ckpt", weights_only=True)["state_dict"]
    changed = [name for name, each in known.items() if not torch.equal(written[name], each)]
    assert changed == [f"{GENERATOR}out_layer.bias"]
    with pytest.raises(CheckpointError, match="isn't of the checkpoint's architecture"):
        checkpoint.with_networks({"ss_decoder": StructureDecoder(widths=(4, 8, 8))})
    with pytest.raises(CheckpointError, match="got other"):
        checkpoint.with_networks({"other": network.latent_flow})


def test_one_block_of_the_published_width_comes_back(tmp_path):
    flow = StructureFlow(grid=2, depth=1)
    mesh = MeshDecoder(depth=1)
    for name, network in (("ss_generator", flow), ("slat_decoder_mesh", mesh)):
        torch.save(sam3d.MODULES[name].export(network), tmp_path / f"{name}.pt")
    pipeline = {f"{name}_ckpt_path": f"{name}.pt" for name in ("ss_generator", "slat_decoder_mesh")}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    checkpoint = sam3d.load(tmp_path)
    assert checkpoint.networks["slat_decoder_mesh"].settings() == mesh.settings()
    assert checkpoint.networks["ss_generator"].settings() == flow.settings()
    for name in checkpoint.modules:
        file = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        back = checkpoint.tensors(name)
        assert all(torch.equal(back[key], each) for key, each in file.items())
        assert set(back) == set(file)


def test_faults(folder, tmp_path):
    with pytest.raises(SettingError, match="from"):
        import_weights("other", folder, tmp_path / "out")
    with pytest.raises(SettingError, match="reader"):
        import_weights("sam3d", folder, tmp_path / "out", reader="unet")
    pipeline = yaml.safe_load((folder / "pipeline.yaml").read_text())
    for change, words in (
        ({"ss_decoder_ckpt_path": None}, "got no ss_decoder"),
        ({"slat_mean": [0.0] * 3}, "slat_mean: expected 8 numbers, got 3"),
    ):
        place = tmp_path / words[:8]
        place.mkdir()
        for file in folder.iterdir():
            (place / file.name).symlink_to(file)
        (place / "pipeline.yaml").unlink()
        (place / "pipeline.yaml").write_text(yaml.safe_dump(pipeline | change))
        with pytest.raises(CheckpointError, match=words):
            import_weights("sam3d", place, tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Checkpoint folders in the original's layout."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from voxelry.core.errors import CheckpointError, FileError
from voxelry.interop import sam3d
from voxelry.models.sam3d.mesh_decoder import MeshDecoder
from voxelry.models.sam3d.structure_flow import StructureFlow
from voxelry.models.sam3d.structure_vae import StructureDecoder

PREFIX = "_base_models.generator.reverse_fn.backbone."


@pytest.fixture
def folder(tmp_path):
    """A folder with two stages' modules, in half precision, and another module's tensors beside one of them."""
    flow = StructureFlow(grid=2, channels=16, condition_channels=12, depth=3, heads=2)
    decoder = StructureDecoder(widths=(4, 8), blocks=1, middle_blocks=1)
    mesh = MeshDecoder(channels=16, depth=2, heads=2, window=4, widths=(8, 4), groups=2)
    tensors = {PREFIX + name: each.half() for name, each in sam3d.MODULES["ss_generator"].export(flow).items()}
    tensors["_base_models.condition_embedder.module_list.0.backbone.patch.weight"] = torch.randn(3, 4)
    torch.save({"state_dict": tensors, "step": 7}, tmp_path / "ss.ckpt")
    torch.save(sam3d.MODULES["ss_decoder"].export(decoder), tmp_path / "decoder.pt")
    torch.save(sam3d.MODULES["slat_decoder_mesh"].export(mesh), tmp_path / "mesh.pt")
    arguments = {"_target_": "a.b.SLatMeshDecoder", "model_channels": 16, "num_heads": 2, "window_size": 4,
                 "resolution": 16, "num_groups": 2}  # fmt: skip
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump({"module": {"decoder": arguments}}))
    pipeline = {"ss_generator_ckpt_path": "ss.ckpt", "ss_decoder_ckpt_path": "decoder.pt", "dtype": "float16",
                "slat_decoder_mesh_ckpt_path": "mesh.pt", "slat_decoder_mesh_config_path": "mesh.yaml"}  # fmt: skip
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    return tmp_path


def test_a_folder_comes_back_byte_for_byte(folder, tmp_path_factory):
    checkpoint = sam3d.load(folder)
    assert set(checkpoint.networks) == {"ss_generator", "ss_decoder", "slat_decoder_mesh"}
    assert checkpoint.networks["slat_decoder_mesh"].settings()["grid"] == 16
    out = tmp_path_factory.mktemp("out") / "written"
    checkpoint.save(out)
    written = load_file(out / "ss_generator.safetensors")
    known = torch.load(folder / "ss.ckpt", weights_only=True)["state_dict"]
    assert set(written) == set(known)
    assert all(written[name].dtype == each.dtype and torch.equal(written[name], each) for name, each in known.items())
    again = sam3d.load(out)
    assert again.pipeline["dtype"] == "float16"
    for name in ("ss_decoder", "slat_decoder_mesh"):
        file = {"ss_decoder": "decoder.pt", "slat_decoder_mesh": "mesh.pt"}[name]
        known = torch.load(folder / file, weights_only=True)
        written = load_file(out / f"{name}.safetensors")
        assert set(written) == set(known)
        assert all(torch.equal(written[key], each) for key, each in known.items())


def test_without_the_pose(folder):
    whole, alone = sam3d.load(folder), sam3d.load(folder, include_pose=False)
    network = alone.networks["ss_generator"]
    x = {"shape": torch.randn(1, 8, 8)}
    pose = {
        name: torch.randn(1, 1, numbers) for name, numbers in whole.networks["ss_generator"].settings()["pose"].items()
    }
    ticks, condition = torch.tensor([300.0]), torch.randn(1, 4, 12)
    expected = whole.networks["ss_generator"]({**x, **pose}, ticks, condition)["shape"]
    assert torch.equal(network(x, ticks, condition)["shape"], expected)
    assert set(alone.tensors("ss_generator")) == set(whole.tensors("ss_generator"))  # what was left out is written back


def test_missing_and_foreign_tensors_are_named_by_group(folder):
    saved = torch.load(folder / "ss.ckpt", weights_only=True)
    tensors = saved["state_dict"]
    for block in range(3):
        del tensors[f"{PREFIX}blocks.{block}.norm2.shape.weight"]
        tensors[f"{PREFIX}blocks.{block}.extra.weight"] = torch.zeros(1)
    torch.save(saved, folder / "ss.ckpt")
    words = r"ss\.ckpt: .*missing: blocks\.#\.norm2\.shape\.weight \(3\); foreign: blocks\.#\.extra\.weight \(3\)"
    with pytest.raises(CheckpointError, match=words):
        sam3d.load(folder)


def test_kernels_of_two_layouts_in_one_file_are_refused(folder):
    tensors = torch.load(folder / "mesh.pt", weights_only=True)
    name = "upsample.0.out_layers.0.conv.weight"
    torch.save({**tensors, name: tensors[name].permute(1, 2, 3, 4, 0).contiguous()}, folder / "mesh.pt")
    with pytest.raises(
        CheckpointError, match=r"mesh\.pt: expected sparse kernels of one layout, got \[O, k, k, k, I\] and"
    ):
        sam3d.load(folder)
    torch.save({**tensors, name: tensors[name].flatten(1, 3)}, folder / "mesh.pt")
    with pytest.raises(CheckpointError, match=r"mesh\.pt: .*kernel of a sparse convolution: expected .* with k 1 or 3"):
        sam3d.load(folder)


def test_what_is_no_checkpoint(folder):
    with pytest.raises(FileError, match=r"pipeline\.yaml"):
        sam3d.load(folder / "nowhere")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "decoder.pt")
    with pytest.raises(CheckpointError, match=r"decoder\.pt: expected sam3d-ss-decoder's tensors"):
        sam3d.load(folder)
    for text, words in (("a: 1", "expected some of ss_generator_ckpt_path"), ("- 1", "expected names and values"),
                        ("a: !!python/object:os.x {}", "without running code")):  # fmt: skip
        (folder / "pipeline.yaml").write_text(text)
        with pytest.raises((CheckpointError, FileError), match=words):
            sam3d.load(folder)
    (folder / "pipeline.yaml").write_text("ss_decoder_ckpt_path: gone.pt")
    with pytest.raises(FileError, match=r"gone\.pt"):
        sam3d.load(folder)

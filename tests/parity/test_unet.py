"""The originals' U-Nets, rebuilt from their weights, give the originals' outputs to 1e-5."""

import pytest
import torch
from safetensors.torch import save_file

from voxelry.core.errors import CheckpointError, FileError, SettingError
from voxelry.interop import from_reference, infer_case, load_reference_file

SOURCES = {"ddpm_unet_2d": "diffusion-xray", "ddpm_unet_3d": "diffusion-xray", "fast_ddpm_unet_2d": "fast-ddpm"}


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["ddpm_unet_2d", "ddpm_unet_3d"])
@pytest.mark.parametrize("policy", ["none", "norms", "blocks"])
def test_pretraining_unet(reference, name, policy):
    case, weights, tensors = reference(name)
    network = from_reference("diffusion-xray", case, weights)
    network.checkpointing = policy
    assert not network.training
    x, time = tensors["input.x"], tensors["input.time"]
    assert_close(network(x, time), tensors["output.with_time"])
    assert_close(network(x), tensors["output.without_time"])
    assert_close(network(x, time, tensors["input.self_condition"]), tensors["output.self_conditioned"])


@pytest.mark.parametrize("policy", ["none", "norms", "blocks"])
def test_fast_ddpm_unet(reference, policy):
    case, weights, tensors = reference("fast_ddpm_unet_2d")
    network = from_reference("fast-ddpm", case, weights)
    network.checkpointing = policy
    assert_close(network(tensors["input.x"], tensors["input.time"]), tensors["output"])


@pytest.mark.parametrize("name", ["ddpm_unet_2d", "fast_ddpm_unet_2d"])
@pytest.mark.parametrize("depth", [1, 4, 5])
def test_lifted_weights_give_the_2d_result_in_every_plane(reference, name, depth):
    case, weights, tensors = reference(name)
    network = from_reference(SOURCES[name], case, weights, ndim=3)
    expected = tensors["output.with_time"] if name == "ddpm_unet_2d" else tensors["output"]
    volume = tensors["input.x"].unsqueeze(2).repeat(1, 1, depth, 1, 1)
    with torch.no_grad():
        found = network(volume, tensors["input.time"])
    assert_close(found, expected.unsqueeze(2).expand_as(found))


@pytest.mark.parametrize("name", SOURCES)
def test_architecture_is_read_from_the_tensors(reference, name):
    case, weights, tensors = reference(name)
    found = infer_case(SOURCES[name], {f"module.{key}": value for key, value in weights.items()})
    shown = set(case) & set(found) - {"image_size", "attn_resolutions"}
    assert len(shown) >= 6
    assert {key: found[key] for key in shown} == {key: case[key] for key in shown}
    expected = tensors["output.with_time"] if "output.with_time" in tensors else tensors["output"]
    network = from_reference(SOURCES[name], {}, weights)
    assert_close(network(tensors["input.x"], tensors["input.time"]), expected)


def test_nested_configuration_of_fast_ddpm(reference):
    case, weights, tensors = reference("fast_ddpm_unet_2d")
    nested = {"model": {k: v for k, v in case.items() if k != "image_size"}, "data": {"image_size": 16}}
    assert_close(
        from_reference("fast-ddpm", nested, weights)(tensors["input.x"], tensors["input.time"]), tensors["output"]
    )


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_published_checkpoints_load(reference, tmp_path, prefix):
    case, weights, tensors = reference("ddpm_unet_2d")
    path = tmp_path / "model.pt"
    state = {f"{prefix}{key}": value for key, value in weights.items()}
    torch.save({"model_state_dict": {**state, "betas": torch.zeros(3)} if prefix else state, "epoch": 3}, path)
    network = from_reference("diffusion-xray", case, load_reference_file(path))
    assert_close(network(tensors["input.x"], tensors["input.time"]), tensors["output.with_time"])


def test_fast_ddpm_checkpoint_is_a_list(reference, tmp_path):
    _, weights, _ = reference("fast_ddpm_unet_2d")
    ema = {key: value + 1 for key, value in weights.items()}
    torch.save([weights, {"state": {}}, 1, 100, ema], tmp_path / "ckpt.pth")
    assert torch.equal(load_reference_file(tmp_path / "ckpt.pth")["conv_in.bias"], weights["conv_in.bias"])
    assert torch.equal(load_reference_file(tmp_path / "ckpt.pth", which="ema")["conv_in.bias"], ema["conv_in.bias"])


def test_safetensors_file(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert load_reference_file(tmp_path / "a.safetensors")["a"].tolist() == [1.0, 1.0]


class Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", Malicious(), {"epoch": 3}, []])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_bad_files_are_one_line_and_run_nothing(tmp_path, capsys, content, name):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_reference_file(path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_missing_file(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        load_reference_file(tmp_path / "none.pt")


def test_weights_of_another_architecture(reference):
    case, weights, _ = reference("ddpm_unet_2d")
    with pytest.raises(CheckpointError, match=r"expected a tensor named conv_in\.weight"):
        from_reference("fast-ddpm", {}, weights)
    with pytest.raises(CheckpointError, match="don't fit the case"):
        from_reference("diffusion-xray", {**case, "dim_mults": [1, 2, 8]}, weights)
    with pytest.raises(SettingError, match="source: expected one of"):
        from_reference("stable-diffusion", case, weights)
    flat = {key: value for key, value in weights.items() if not key.startswith("time_mlp")}
    with pytest.raises(CheckpointError, match="time_mlp"):
        from_reference("diffusion-xray", {}, flat)


def test_volumes_are_not_flattened(reference):
    case, weights, _ = reference("ddpm_unet_3d")
    with pytest.raises(CheckpointError, match="3-D and can't make a 2-D"):
        from_reference("diffusion-xray", case, weights, ndim=2)

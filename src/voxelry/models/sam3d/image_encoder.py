"""DINOv2 (Oquab et al. 2023, arXiv:2304.07193) from disk, in the layouts in which its weights are handed around.

`transformers` saves a folder with a configuration; `timm` a folder or a file of tensors named as the original's own,
which differ in how they hold the positions of what isn't a patch. All become `transformers`' network.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from voxelry.core.errors import CheckpointError, FileError
from voxelry.models.tensor_file import load_reference_file

__all__ = ["read_encoder"]

FILES = ("model.safetensors", "pytorch_model.bin")
PATCHES = "patch_embed.proj.weight"
NEEDED = (PATCHES, "cls_token", "pos_embed")
HEAD = 64  # channels of an attention head, in all published sizes
UNUSED = "embeddings.mask_token"
NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
QKV = ("query", "key", "value")


def read_encoder(place: Path) -> Any:
    """A frozen encoder; what could run code is not read.

    Args:
        place: a folder with `config.json` and `model.safetensors` as `transformers` or `timm` saves one, or a file of
            tensors, `.safetensors` or `.pth`, with the names of `timm` or of the original.

    Raises:
        FileError: there is none.
        CheckpointError: it holds no encoder that can be read without running code, or tensors are missing.
    """
    if not place.is_file() and not _weights(place):
        wanted = "expected a folder with config.json and model.safetensors, or a file of tensors"
        raise FileError(place, "no such encoder", wanted)
    known = _of_transformers(place) if _is_of_transformers(place) else _of_timm(place)
    return known.eval().requires_grad_(False)


def _weights(folder: Path) -> list[Path]:
    return [folder / name for name in FILES if (folder / name).is_file()] or sorted(folder.glob("model-*.safetensors"))


def _is_of_transformers(place: Path) -> bool:
    """Whether its configuration names a model of theirs; that of `timm` names an architecture.

    Raises:
        CheckpointError: a configuration that isn't JSON.
    """
    file = place / "config.json"
    if not file.is_file():
        return False
    try:
        return "model_type" in json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: expected JSON: {error}") from error


def _of_transformers(folder: Path) -> Any:
    from transformers import AutoModel

    kind = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    return _loaded(AutoModel, folder, folder, **kind)


def _of_timm(place: Path) -> Any:
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    file = place if place.is_file() else _weights(place)[0]
    tensors = load_reference_file(file)
    missing = [name for name in NEEDED if name not in tensors]
    if missing:
        raise CheckpointError(f"{file}: expected DINOv2's tensors, got no {', '.join(missing)}")
    if not _plain(tensors):
        raise CheckpointError(f"{file}: expected DINOv2 of size small, base or large, whose layers are linear ones")
    registers = _registers(tensors)
    settings = _settings(tensors)
    state = _renamed(tensors)
    if registers is None:
        return _loaded(Dinov2Model, file, None, config=Dinov2Config(**settings), state_dict=state)
    config = Dinov2WithRegistersConfig(**settings, num_register_tokens=registers.shape[1])
    state["embeddings.register_tokens"] = registers
    return _loaded(Dinov2WithRegistersModel, file, None, config=config, state_dict=state)


def _plain(tensors: Mapping[str, Tensor]) -> bool:
    """Whether what leaves a block's first layer enters its second one; in the giant size it is halved between."""
    first, second = (tensors.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and second is not None and first.shape[0] == second.shape[1]


def _registers(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Tokens that belong to no patch, by `timm`'s name or the original's."""
    return tensors.get("reg_token", tensors.get("register_tokens"))


def _settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors show of the configuration."""
    width, channels, patch, _ = tensors[PATCHES].shape
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * isqrt(tensors["pos_embed"].shape[1]),
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        "num_attention_heads": max(1, width // HEAD),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] // width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
    }


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `timm` or the original as `transformers` names them in its files."""
    token, positions = tensors["cls_token"], tensors["pos_embed"]
    if isqrt(positions.shape[1]) ** 2 == positions.shape[1]:  # timm has added the token's position to the token
        positions = torch.cat((torch.zeros_like(token), positions), dim=1)
    found = {
        "embeddings.cls_token": token,
        "embeddings.position_embeddings": positions,
        UNUSED: torch.zeros_like(token[0]),
    }
    for name, tensor in tensors.items():
        before, place, inner = "", "", name
        if name.startswith("blocks."):
            _, place, inner = name.split(".", 2)
            before = f"encoder.layer.{place}."
        stem, _, last = inner.rpartition(".")
        if stem == "attn.qkv":
            for part, each in zip(QKV, tensor.chunk(3), strict=True):
                found[f"{before}attention.attention.{part}.{last}"] = each.contiguous()
        elif inner in NAMES:
            found[before + NAMES[inner]] = tensor
        elif stem in NAMES:
            found[f"{before}{NAMES[stem]}.{last}"] = tensor
    return found


def _loaded(kind: Any, source: Path, place: Path | None, **settings: Any) -> Any:
    """A network of `transformers`, with nothing left to chance.

    Raises:
        CheckpointError: it can't be read, or tensors are missing or of another shape.
    """
    try:
        with _silent():
            found, told = kind.from_pretrained(place, output_loading_info=True, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{source}: no encoder that can be read without running code: {reason}") from error
    missing = sorted(set(told["missing_keys"]) - {UNUSED})
    odd = [str(each[0]) for each in told["mismatched_keys"]]
    if missing or odd:
        what = "; ".join(f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("odd", odd)) if names)
        raise CheckpointError(f"{source}: tensors of the encoder are not as expected, {what}")
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """Without the report of what was read, which errors say in a line."""
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)

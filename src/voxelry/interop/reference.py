"""Networks of other projects, rebuilt as ours from their constructor arguments and weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.errors import CheckpointError, FileError, SettingError
from voxelry.interop import diffusion_xray, fast_ddpm
from voxelry.models.inflate import inflate
from voxelry.models.unet import UNet

__all__ = ["SOURCES", "from_reference", "infer_case", "load_reference_file"]

SOURCES: dict[str, Any] = {"diffusion-xray": diffusion_xray, "fast-ddpm": fast_ddpm}


def from_reference(
    source: str, case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None
) -> nn.Module:
    """Rebuild another project's network, in eval mode, with our calling convention.

    Args:
        source: "diffusion-xray" (Di Via et al. 2025, `Unet`) or "fast-ddpm" (Jiang et al. 2025, `Model`).
        case: the original's constructor arguments; a flat dict, or for Fast-DDPM also its nested
            configuration. Arguments left out take what the weights show, else the original's default.
        weights: the original's state dict, with or without a common prefix such as `module.`.
        ndim: rank of the result; None for that of the weights, 3 lifts 2-D weights (`models.inflate`).

    Returns:
        A `UNet`; `forward(x, time, condition)` with the self-conditioning estimate as `condition`.

    Raises:
        SettingError: an unknown source.
        CheckpointError: weights that are not this architecture's; names the first tensors at fault.
    """
    module = source_module(source)
    weights = strip_prefix(weights, module.STEM)
    found = module.rank(weights)
    settings = module.settings({**module.infer(weights), **module.flat(case)}, weights)
    if ndim is not None and ndim < found:
        raise CheckpointError(f"{source}: the weights are {found}-D and can't make a {ndim}-D network")
    network = UNet(ndim=ndim or found, **settings)
    state = module.convert(weights, len(settings["multipliers"]))
    if network.ndim > found:
        state = inflate(network, state)
    check_state(source, network, state)
    network.load_state_dict(state)
    return network.eval()


def infer_case(source: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the original, as far as its tensors show them.

    What tensors can't show is assumed and documented by the source's `infer`: the number of groups and
    the split of attention channels into heads.
    """
    module = source_module(source)
    return module.infer(strip_prefix(weights, module.STEM))


def load_reference_file(path: str | Path, *, which: str = "model") -> dict[str, Tensor]:
    """Read a published checkpoint's tensors: `.safetensors`, or a PyTorch file (tensors only, no code runs).

    Understands a bare state dict, a dict with `model_state_dict`, `state_dict` or `model`, and the list
    `[model, optimiser, epoch, step, ema]` of Fast-DDPM (`which="ema"` takes its last entry).

    Raises:
        FileError: the file is not there.
        CheckpointError: it can't be read safely, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(path, "no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as fault:
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise CheckpointError(f"{path}: not a checkpoint that can be read without running code: {reason}") from fault
    except Exception as fault:  # safetensors' own error class is no subclass of the above
        raise CheckpointError(f"{path}: {fault}") from fault
    if isinstance(content, list) and content:
        content = content[-1] if which == "ema" else content[0]
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"{path}: expected a state dict of tensors or one under model_state_dict")
    return tensors


def source_module(source: str) -> Any:
    """The module that knows a source.

    Raises:
        SettingError: an unknown source.
    """
    if source not in SOURCES:
        raise SettingError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")
    return SOURCES[source]


def strip_prefix(weights: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """Drop what stands before `stem` (`module.`, `model.`, ...) from every key, and keys without it.

    Raises:
        CheckpointError: no key ends in `stem`.
    """
    for key in weights:
        if key == stem or key.endswith("." + stem):
            prefix = key[: -len(stem)]
            return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    raise CheckpointError(f"weights: expected a tensor named {stem}, found {', '.join(list(weights)[:3]) or 'none'}")


def check_state(source: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with the network's own.

    Raises:
        CheckpointError: the first missing, unknown or misshapen tensors.
    """
    own = network.state_dict()
    faults = [f"{key} is missing" for key in own if key not in state]
    faults += [f"{key} is unknown" for key in state if key not in own]
    faults += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 2} more" if len(faults) > 2 else ""
        raise CheckpointError(f"{source}: weights don't fit the case: {'; '.join(faults[:2])}{more}")

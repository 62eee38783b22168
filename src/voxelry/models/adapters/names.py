"""Whose a tensor is, by its name: the base's or an adapter's, in a network that PEFT has changed.

PEFT finds modules by the end of their names, so an adapter is given a name inside that no module has.
"""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor, nn

__all__ = ["base_hash", "base_modules", "base_state", "inner", "is_of", "without"]


def base_hash(network: nn.Module) -> str:
    """SHA-256 of a network's class and of the names, shapes and values of all of its weights."""
    found = hashlib.sha256(type(network).__name__.encode())
    for name, value in sorted(base_state(network, None).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def inner(adapter: str) -> str:
    """What PEFT calls an adapter."""
    return f"adapter-{adapter}"


def is_of(path: str, adapter: str) -> bool:
    """Whether a tensor belongs to an adapter: PEFT puts its name behind that of the dictionary that holds it."""
    return re.search(rf"\.(lora_\w+|modules_to_save)\.{re.escape(inner(adapter))}(\.|$)", path) is not None


def without(path: str, adapter: str) -> str:
    """The name of an adapter's tensor without the adapter's."""
    return re.sub(rf"\.(lora_\w+|modules_to_save)\.{re.escape(inner(adapter))}(?=\.|$)", r".\1", path, count=1)


def base_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Modules of the base under its own names, as if there were no adapters."""
    found = {}
    for path, module in network.named_modules():
        if not re.search(r"\.(lora_\w+|modules_to_save)(\.|$)", path):
            name = re.sub(r"\.(base_layer|original_module)(?=\.|$)", "", path)
            found[name] = module
    return found


def base_state(network: nn.Module, adapter: str | None) -> dict[str, Tensor]:
    """Weights under the base's own names; with an adapter, its heads in place of the base's."""
    state = network.state_dict()
    found = {
        re.sub(r"\.(base_layer|original_module)(?=\.)", "", path): value
        for path, value in state.items()
        if not re.search(r"\.(lora_\w+|modules_to_save)\.", path)
    }
    if adapter is not None:
        ours = {path: value for path, value in state.items() if is_of(path, adapter) and ".modules_to_save." in path}
        found |= {path.replace(f".modules_to_save.{inner(adapter)}.", "."): value for path, value in ours.items()}
    return found

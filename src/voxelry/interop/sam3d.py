"""Checkpoint folders of SAM 3D Objects: read without running code, and written back.

    checkpoint = voxelry.interop.sam3d.load("checkpoints/hf")
    checkpoint.networks["ss_generator"]

A folder has a `pipeline.yaml` that names the file of each module, `<module>_ckpt_path`, and its configuration,
`<module>_config_path`. What is read of them: the modules in `MODULES`. Other tensors in the same file, such as those of
the image encoders, are kept as they are and written back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from voxelry.core.atomic import replacing
from voxelry.core.errors import CheckpointError, FileError
from voxelry.core.plain_yaml import parse_yaml
from voxelry.interop.weights.sam3d import latent_flow, mesh_decoder, structure_flow, structure_vae
from voxelry.interop.weights.sam3d.kernels import in_layout, layout_of
from voxelry.interop.weights.sam3d.part import Part
from voxelry.models.tensor_file import load_reference_file

__all__ = ["MODULES", "Module", "Sam3dCheckpoint", "load"]

PIPELINE = "pipeline.yaml"

MODULES: dict[str, Part] = {
    "ss_generator": structure_flow.FLOW,
    "ss_encoder": structure_vae.ENCODER,
    "ss_decoder": structure_vae.DECODER,
    "slat_generator": latent_flow.FLOW,
    "slat_decoder_mesh": mesh_decoder.DECODER,
}
"""Modules of a pipeline, and what they are here."""

MARKS = ("model_channels", "num_res_blocks")  # arguments by which a module's own part of a configuration is known


@dataclass(frozen=True)
class Module:
    """One module of a checkpoint.

    Attributes:
        network: ours, in eval mode.
        file: its file, relative to the folder.
        prefix: of its tensors' names there.
        types: of its tensors there, by their name without the prefix.
        layout: of its sparse kernels there, one of `weights.sam3d.kernels.LAYOUTS`; empty without any.
        rest: tensors in that file that the network doesn't have.
        config: the content of its configuration; empty without one.
    """

    network: nn.Module
    file: Path
    prefix: str
    types: Mapping[str, torch.dtype]
    layout: str
    rest: Mapping[str, Tensor]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Sam3dCheckpoint:
    """A folder's modules.

    Attributes:
        modules: by the pipeline's name.
        pipeline: the content of `pipeline.yaml`.
    """

    modules: Mapping[str, Module]
    pipeline: Mapping[str, Any]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Our networks by the pipeline's names."""
        return {name: module.network for name, module in self.modules.items()}

    def with_networks(self, networks: Mapping[str, nn.Module]) -> Sam3dCheckpoint:
        """The same checkpoint with other weights, such as those that were trained further.

        Args:
            networks: by the pipeline's names; of the settings that those of the checkpoint have.

        Raises:
            CheckpointError: a module that the checkpoint doesn't have, or another architecture.
        """
        changed = dict(self.modules)
        for name, network in networks.items():
            if name not in changed:
                raise CheckpointError(f"networks: expected some of {', '.join(changed)}, got {name}")
            own: Any = changed[name].network
            new: Any = network
            if new.settings() != own.settings():
                raise CheckpointError(f"networks: {name} isn't of the checkpoint's architecture")
            changed[name] = replace(changed[name], network=network)
        return replace(self, modules=changed)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of a module's file, with the original's names, layouts and types."""
        module = self.modules[name]
        own = MODULES[name].export(module.network)
        own |= {key: in_layout(own[key], module.layout) for key in _kernels(MODULES[name], own)}
        cast = {module.prefix + key: each.to(module.types.get(key, each.dtype)) for key, each in own.items()}
        return {**module.rest, **cast}

    def save(self, folder: str | Path) -> None:
        """Write each module to `<module>.safetensors` and `<module>.yaml`, and a pipeline that names these files.

        Raises:
            FileError: the folder can't be written.
        """
        named = {f"{name}_ckpt_path": f"{name}.safetensors" for name in self.modules}
        named |= {f"{name}_config_path": f"{name}.yaml" for name in self.modules}
        with replacing(folder) as whole:
            whole.mkdir()
            for name, module in self.modules.items():
                tensors = {key: each.contiguous() for key, each in self.tensors(name).items()}
                save_file(tensors, whole / named[f"{name}_ckpt_path"])
                _write_yaml(whole / named[f"{name}_config_path"], module.config)
            _write_yaml(whole / PIPELINE, {**self.pipeline, **named})


def load(folder: str | Path, *, include_pose: bool = True) -> Sam3dCheckpoint:
    """Read a checkpoint folder; files of PyTorch are read as tensors alone.

    Args:
        folder: with `pipeline.yaml`.
        include_pose: False leaves the pose's latents and their parameters out of the first stage; the shape stays the
            same.

    Raises:
        FileError: no folder, no pipeline in it, or a file that the pipeline names is missing.
        CheckpointError: a pipeline without any module that is known, or tensors that aren't a module's: which are
            missing and which are foreign, by group.
    """
    root = Path(folder)
    pipeline = _read_yaml(root / PIPELINE)
    named = {name: pipeline[f"{name}_ckpt_path"] for name in MODULES if pipeline.get(f"{name}_ckpt_path")}
    if not named:
        wanted = ", ".join(f"{name}_ckpt_path" for name in MODULES)
        raise CheckpointError(f"{root / PIPELINE}: expected some of {wanted}, got none")
    modules = {}
    for name, file in named.items():
        told = pipeline.get(f"{name}_config_path")
        config = _read_yaml(root / told) if told else {}
        case = _arguments(config) | ({"include_pose": include_pose} if name == "ss_generator" else {})
        modules[name] = replace(_module(MODULES[name], case, root, Path(file)), config=config)
    return Sam3dCheckpoint(modules, pipeline)


def _module(part: Part, case: Mapping[str, Any], root: Path, file: Path) -> Module:
    tensors = load_reference_file(root / file)
    stems = [name for name in tensors if re.search(rf"(^|\.){re.escape(part.stem)}$", name)]
    backbone = [name for name in stems if "condition_embedder" not in name]
    if not backbone:
        raise CheckpointError(f"{root / file}: expected {part.source}'s tensors, such as {part.stem}, got none")
    prefix = backbone[0][: -len(part.stem)]
    own = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    try:
        network = part.rebuild(case, own)
    except CheckpointError as error:
        raise CheckpointError(f"{root / file}: {error}") from error
    layouts = sorted({layout_of(own[name]) for name in _kernels(part, own)})
    if len(layouts) > 1:
        raise CheckpointError(f"{root / file}: expected sparse kernels of one layout, got {' and '.join(layouts)}")
    taken = {prefix + part.names.theirs(name) for name in network.state_dict()}
    rest = {name: each for name, each in tensors.items() if name not in taken}
    types = {name: each.dtype for name, each in own.items()}
    return Module(network, file, prefix, types, "".join(layouts), rest, {})


def _kernels(part: Part, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the sparse kernels, theirs."""
    named = part.names.ours
    return [name for name, each in tensors.items() if part.kernels(named(name), each) is not None]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileError(path, "no such file", "expected a checkpoint folder of SAM 3D Objects with pipeline.yaml")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileError(path, "not YAML that can be read without running code") from error
    if not isinstance(content, dict):
        raise FileError(path, f"expected names and values, got {type(content).__name__}")
    return content


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")


def _arguments(content: Any) -> dict[str, Any]:
    """The innermost constructor arguments of a module, anywhere in its configuration."""
    if isinstance(content, dict):
        if any(mark in content for mark in MARKS):
            return content
        found = [_arguments(value) for value in content.values()]
    else:
        found = [_arguments(value) for value in content] if isinstance(content, list) else []
    return next((each for each in found if each), {})

"""Every setting of every shipped network and backbone does something: another value makes another module."""

import copy
import inspect
import re
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import FunctionType

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn

import voxelry.configs
from voxelry.backbones.build import build_backbone
from voxelry.bundle.backbone import resolved
from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.models.mask_rcnn import MaskRCNN

FOLDER = Path(voxelry.configs.__file__).parent
SPACE = Space.from_spacing((32, 32, 32))
PYRAMID = {
    "name": "fpn",
    "out_channels": 8,
    "backbone": {"name": "resnet", "width": 4, "layers": [1, 1], "levels": ["p2", "p3"], "ndim": 3, "in_channels": 1},
}
NO_SETTINGS = {"_target_", "name"}
# read by the task, which makes sizes of anchors of them: tests/unit/engine/test_segment_train.py
TASKS = {("anchors", "sizes"), ("anchors", "unit"), ("anchors", "per_level")}
# of a folder that a test must write first: tests/unit/models/test_sam3d_net.py
FOLDERS = {("image_encoder",), ("image_encoder_width",), ("image_encoder_size",)}
# another value where a larger number would not do
OTHERS = {
    "attention": "linear", "attention_groups": 8, "axes": [0, 1], "block": "pre_norm",
    "checkpointing": "blocks", "decoder": "conv", "down": "average", "extra": "maxpool", "head_dim": 16,
    "image_mean": [0.5], "image_std": [0.5], "max_size": 64, "min_size": 32,
    "levels": ["p3"], "middle_attention": "full", "norm": "batch", "patch_kernel": 5, "patch_padding": 2,
    "pool_kernel": 5, "pool_stride": 4, "residual_blocks": 1, "stem_kernel": 5, "stem_stride": 4,
    "time_activation": "relu", "up": "nearest", "window_blocks": [0], "wiring": "paired",
    "head": "conv", "kind": "shell", "begin": "noise",
}  # fmt: skip
SECOND = {
    "attention": "none", "block": "weight_standardised", "checkpointing": "none", "decoder": "transformer",
    "extra": None,
    "head_dim": 8, "middle_attention": "none", "kind": "filled", "begin": "answer",
}  # fmt: skip
# fewer layers, so that building them takes no time
SHORT = {"depth": 2, "decoder_depth": 1, "flow_depth": 1, "blocks_per_level": 1}
# settings of an alternative, with what chooses it
TOGETHER = {("box", "convs"): {"box": {"head": "conv"}}, ("box", "norm"): {"box": {"head": "conv"}}}
# weights of the same shapes, so that only a small network that is really built tells
VALUES = {"zero_head": {"width": 8, "multipliers": [1, 2], "groups": 4}}


def stored(group, entry):
    """A file as it is, and what it is based on."""
    node = OmegaConf.to_container(OmegaConf.load(FOLDER / group / f"{entry}.yaml"))
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    return node, stored(group, bases[0])[0] if bases else {}


def merged(node, more):
    nested = {key: merged(node[key], value) for key, value in more.items() if isinstance(value, dict)}
    return node | more | nested


def read(group, entry):
    node, base = stored(group, entry)
    return base | node | {key: value for key, value in SHORT.items() if key in base | node}


def leaves(node, path=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        elif (
            key not in NO_SETTINGS
            and (*path, key) not in TASKS | FOLDERS
            and not (key == "backbone" and isinstance(value, str))
        ):
            yield (*path, key), value


def words(node):
    """What of a file is no size or switch: files that differ in those alone have the same settings alive."""
    return [
        (path, value if isinstance(value, str | None) else type(value), value == []) for path, value in leaves(node)
    ]


def different_files():
    """One file of each kind."""
    found = {}
    for group in ("model", "backbone"):
        for path in sorted((FOLDER / group).glob("*.yaml")):
            node = read(group, path.stem)
            found.setdefault(repr((group, node.get("_target_"), words(node))), (group, path.stem))
    return list(found.values())


@contextmanager
def shapes_only():
    """Modules whose weights are never written: that takes neither time nor memory."""
    with pytest.MonkeyPatch.context() as patch:
        for name in vars(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        patch.setattr("voxelry.nn.nd.arranged", lambda x: x)
        yield


@cache
def pyramid():
    """A backbone that detectors share."""
    with shapes_only():
        return build_backbone(PYRAMID)


def build(group, node):
    node = copy.deepcopy(node)
    if group == "backbone":
        return build_backbone(resolved(node, SPACE, 1))
    callee = get_class(node.pop("_target_"))
    if callee is MaskRCNN:
        for part, key in TASKS:
            del node[part][key]
        return MaskRCNN(pyramid(), **node)
    return callee(ndim=3, **node | ({"backbone": PYRAMID} if "backbone" in node else {}))


def seen(value, depth=0):
    """An attribute of a module in plain values."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, list | tuple):
        return [seen(item, depth + 1) for item in value]
    if is_dataclass(value) and type(value).__name__.endswith("Settings"):
        return [(name, seen(item, depth + 1)) for name, item in vars(value).items() if is_read(type(value), name)]
    if isinstance(value, nn.Module | type | FunctionType) or depth > 3 or not hasattr(value, "__dict__"):
        return type(value).__name__
    return [(name, seen(item, depth + 1)) for name, item in vars(value).items()]


@cache
def is_read(kind, field):
    """Whether anything in the room of a dataclass of settings, but for the file that defines it, reads that field."""
    own = Path(inspect.getfile(kind))
    others = [path.read_text() for path in own.parent.glob("*.py") if path != own]
    return any(re.search(rf"\.{field}\b", text) for text in others)


def described(module):
    """What a module is, whatever it remembers of the settings that it was made from."""
    hidden = {"_settings", *vars(nn.Module())}
    parts = [
        (name, type(part).__name__, [(key, seen(value)) for key, value in vars(part).items() if key not in hidden])
        for name, part in module.named_modules()
    ]
    return parts, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def other(key, value):
    if value == "basic":
        return "bottleneck"
    if key in OTHERS and not (key == "levels" and isinstance(value, int)):
        return OTHERS[key] if value != OTHERS[key] else SECOND[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [other("", value[0]), *value[1:]]
    return 2 * value if value else 0.25


def changed(node, path, value):
    node = copy.deepcopy(node)
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return node


@pytest.mark.parametrize(("group", "entry"), different_files(), ids=lambda value: value)
def test_every_setting_of_a_file_is_alive(group, entry):
    node = read(group, entry)
    with shapes_only():
        base = described(build(group, node))
    dead = []
    own = stored(group, entry)[0]  # what a file is based on is looked at by itself
    for path, value in leaves({key: node[key] for key in own}):
        key, start = path[-1], base
        around = merged(node, TOGETHER.get(path, {}))
        if key in VALUES:
            small = around | VALUES[key]
            states = [build(group, small | {key: choice}).state_dict() for choice in (False, True)]
            zeros = [[name for name, tensor in state.items() if not tensor.any()] for state in states]
            dead += [key] if zeros[0] == zeros[1] else []
            continue
        with shapes_only():
            if around != node:
                start = described(build(group, around))
            try:
                made = described(build(group, changed(around, path, other(key, value))))
            except SettingError:
                continue  # what is refused is read
        dead += [".".join(path)] if made == start else []
    assert not dead


def test_a_dead_setting_is_found():
    node = read("backbone", "vitdet")
    with shapes_only():
        everywhere = [
            described(build("backbone", node | {"window_blocks": [], "window_size": size})) for size in (4, 8)
        ]
        windows = [described(build("backbone", node | {"window_size": size})) for size in (4, 8)]
    assert everywhere[0] == everywhere[1]
    assert windows[0] != windows[1]


@pytest.mark.parametrize(("entry", "finest"), [("resnet_fpn", (4, 4, 4)), ("resnet_fpn_fine", (2, 2, 2))])
def test_the_finest_level_of_a_residual_pyramid(entry, finest):
    with shapes_only():
        backbone = build("backbone", read("backbone", entry))
        thick = build_backbone(resolved(read("backbone", entry), Space.from_spacing((32, 32, 32), (5.0, 1.0, 1.0)), 1))
    assert backbone.strides["p2"] == finest
    assert thick.strides["p2"] == (1, *finest[1:])


def test_every_block_of_the_shipped_transformer_attends_in_windows():
    with shapes_only():
        backbone = build_backbone(resolved(stored("backbone", "vitdet")[0], SPACE, 1))
    assert {block.window for block in backbone.vit.blocks} == {(4, 4, 4)}
    assert [isinstance(block.residual, nn.Identity) for block in backbone.vit.blocks] == [True, True, False] * 2

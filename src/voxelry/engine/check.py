"""Whether a configuration makes sense, asked before anything is read or written.

Each part of it is compared with whatever takes it: the parameters of a class and their type hints, or the shipped
files of its group. Small objects are made once, so that they say themselves what they can't take.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeGuard, get_type_hints

import torch
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from voxelry.backbones.build import BACKBONES
from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import ConfigError, SettingError
from voxelry.core.settings import Configured, settings_parts
from voxelry.data.augment import Augment
from voxelry.data.augment.intensity import IntensityAugment
from voxelry.data.augment.spatial import SpatialAugment
from voxelry.data.degrade import Degrade
from voxelry.data.layouts.find import find_pairs
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.slices.augment import SliceAugment
from voxelry.data.slices.dataset import SliceDataset
from voxelry.engine.configs import groups, top_file
from voxelry.engine.rules import fault_of
from voxelry.io import IMAGE_OPTIONS, POINT_OPTIONS
from voxelry.models.adapters.adapters import AdapterSettings

__all__ = ["check_settings", "drop_defaults", "naming"]

_OPEN = ("data.where", "launcher.env", "launcher.resources_per_worker")  # any key
_MAPPINGS = ("options", "point_options", "split", "preprocess", "patches", "slices", "pairs", "degrade")
_NEEDED = ("preprocess", "split")
_WORDS = {"task.loss_weights": ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")}


@dataclass(frozen=True)
class Part:
    """A mapping of the configuration, and what may stand in it.

    Attributes:
        name: dotted, empty for the whole.
        values: what stands there.
        hints: the keys that are known, and the type of each.
        shipped: the defaults of its keys.
    """

    name: str
    values: Mapping[str, Any]
    hints: Mapping[str, Any]
    shipped: Mapping[str, Any]

    def path(self, key: str) -> str:
        """A key as it is typed."""
        return f"{self.name}.{key}" if self.name else key


def check_settings(config: DictConfig) -> None:
    """Refuse a configuration with a setting that nothing knows, or with a value that one can't have.

    Raises:
        ConfigError: names the setting as it is typed, what was expected, and the nearest known setting.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        settings: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or "configuration"
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from error
    if missing:
        raise ConfigError(f"{missing[0]}: not set; give it as {missing[0]}=... (voxelry train --help lists all)")
    recipe_of_config(config)
    parts = list(_parts(settings))
    for part in parts:
        for key in part.values:
            if key not in part.hints and not str(key).startswith("_"):
                raise ConfigError(_unknown(part, str(key), parts))
    for part in parts:
        for key, value in part.values.items():
            if _judged(part, key, value):
                fault = fault_of(part.path(key), value, part.hints[key], part.shipped.get(key))
                if fault:
                    raise ConfigError(f"{part.path(key)}: expected {fault}, got {value!r}")
    _try_out(settings)


def drop_defaults(config: DictConfig) -> list[str]:
    """Take what a group's file set out of a group whose `_target_` is somebody's own and doesn't take it.

    What was typed stays, and is refused where nothing knows it.

    Returns:
        A line for each group that lost settings.

    Raises:
        ConfigError: a `_target_` that there isn't.
    """
    lines = []
    for group in ("model", "optimizer", "learning_rate"):
        node = config.get(group)
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if not isinstance(target, str) or any(
            _with_defaults(group, one).get("_target_") == target for one in groups()[group]
        ):
            continue
        callee = _located(f"{group}._target_", target)
        if _takes_anything(callee):
            continue
        plain: Any = OmegaConf.to_container(node)
        files: list[Mapping[str, Any]] = [_with_defaults(group, entry) for entry in groups()[group]]
        files += [_mapping(_read(file).get(group)) for file in groups()["experiment"].values()]
        dropped = [
            key
            for key, value in plain.items()
            if not key.startswith("_")
            and key not in _parameters(callee)
            and any(own.get(key, ...) == value for own in files)
        ]
        with open_dict(node):
            for key in dropped:
                del node[key]
        if dropped:
            lines.append(
                f"{group}: {target} takes no {', '.join(dropped)}; the group's settings of that name are left out"
            )
    return lines


@contextmanager
def naming(*parts: str, keys: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Errors of a constructor with the setting as it is typed in front.

    Args:
        parts: the parts of the configuration that it is made from, the likeliest first.
        keys: what stands in each of them.

    Raises:
        ConfigError: whatever a constructor says of its settings, in one line.
    """
    try:
        yield
    except (SettingError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        told = " ".join(str(error).split())
        name = re.split(r"[:.,]", told)[0]
        for part in parts:
            if keys is not None and name in (keys.get(part) or {}):
                raise ConfigError(f"{part}.{told}") from error
        raise ConfigError(f"{parts[0]}: {told or type(error).__name__}") from error


def _judged(part: Part, key: str, value: Any) -> bool:
    """Whether a value has to be looked at: what is shipped is right, and `auto` is for the engine."""
    if key not in part.hints or isinstance(value, Mapping):
        return False
    by_engine = value == "auto" and (part.name.startswith("backbone") or part.shipped.get(key) == "auto")
    return not by_engine and (value is None or value != part.shipped.get(key)) and part.path(key) != "model.backbone"


def _unknown(part: Part, key: str, parts: list[Part]) -> str:
    everything = [one.path(name) for one in parts for name in one.hints]
    group = part.name.partition(".")[0]
    same = [path for path in everything if path.rpartition(".")[2] == key]
    near = difflib.get_close_matches(key, list(map(str, part.hints)), n=1, cutoff=0.7)
    # a part's name before its setting's, as in rpn_nms_thresh
    joined = {path.removeprefix(f"{group}.").replace(".", "_"): path for path in everything if path.count(".") > 1}
    close = [
        *(joined[name] for name in difflib.get_close_matches(key, list(joined), n=1, cutoff=0.9)),
        *(path for path in same if path.startswith(f"{group}.")),
        *(part.path(name) for name in near),
        *same,
    ]
    known = ", ".join(sorted(str(name) for name in part.hints if not str(name).startswith("_")))
    told = f"the nearest is {close[0]}" if close else f"expected one of {known}"
    return f"{part.path(key)}: no such setting; {told}"


def _parts(settings: Mapping[str, Any]) -> Iterator[Part]:
    shipped = _shipped_top()
    yield Part("", settings, dict.fromkeys(shipped, Any), shipped)
    for group in ("task", "model", "optimizer", "learning_rate", "launcher"):
        yield from _made(group, settings.get(group), group)
    yield from _backbone("backbone", settings.get("backbone"))
    for group in ("trainer", "metrics"):
        yield from _listed(group, settings.get(group), _shipped(group))
    yield from _data(settings.get("data"))
    augment = settings.get("augment")
    if isinstance(augment, Mapping):
        yield Part("augment", augment, _fields(SpatialAugment) | _fields(IntensityAugment), _shipped("augment"))
    adapter = settings.get("adapter")
    if isinstance(adapter, Mapping):
        hints = {**_fields(AdapterSettings), "name": str, "head_rate": float | None}
        yield Part("adapter", adapter, hints, {})


def _made(name: str, node: Any, group: str) -> Iterator[Part]:
    """A part that a class or function of `_target_` is made from."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{name}: expected an entry of its group ({', '.join(groups()[group])}), got {node!r}")
    target = node.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"{name}._target_: expected the name of a class, got {target!r}")
    callee = _located(f"{name}._target_", target)
    shipped = _shipped(group, target)
    hints = dict.fromkeys(shipped, Any) | _parameters(callee)
    if _takes_anything(callee):
        hints = dict.fromkeys(node, Any) | hints
    yield Part(name, node, hints, shipped)
    inner = settings_parts(callee.Settings) if _is_configured(callee) else {}
    for key, value in node.items():
        path = f"{name}.{key}"
        if not isinstance(value, Mapping) or path in (*_OPEN, "model.backbone") or "_target_" in value:
            continue
        if "name" in value:
            yield from _backbone(path, value)
        elif path in _WORDS:
            yield Part(path, value, dict.fromkeys(_WORDS[path], float), {})
        elif kind := inner.get(key):
            yield from _nested(path, value, kind, _mapping(shipped.get(key)))
        elif isinstance(shipped.get(key), Mapping):
            yield from _listed(path, value, shipped[key])


def _nested(name: str, node: Mapping[str, Any], dataclass: type, shipped: Mapping[str, Any]) -> Iterator[Part]:
    """A part of settings that is a dataclass, with what is in it."""
    yield Part(name, node, dict.fromkeys(shipped, Any) | get_type_hints(dataclass), shipped)
    for key, inner in settings_parts(dataclass).items():
        if isinstance(node.get(key), Mapping):
            yield from _nested(f"{name}.{key}", node[key], inner, _mapping(shipped.get(key)))


def _located(name: str, target: str) -> Any:
    """What a dotted name stands for, without the log lines of Hydra's own search."""
    module, _, attribute = target.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: expected the name of a class, got {target!r} ({error})") from error
    if not callable(found):
        raise ConfigError(f"{name}: expected the name of a class, got {target!r}")
    return found


def _backbone(name: str, node: Any) -> Iterator[Part]:
    if not isinstance(node, Mapping):
        return
    kind = str(node.get("name"))
    with naming(name):
        hints = _parameters(BACKBONES[kind])
    shipped = _shipped("backbone", kind) if name == "backbone" else {}
    yield Part(name, node, {**dict.fromkeys(shipped, Any), **hints, "name": str}, shipped)
    yield from _backbone(f"{name}.backbone", node.get("backbone"))


def _listed(name: str, node: Any, shipped: Mapping[str, Any]) -> Iterator[Part]:
    """A part that the engine reads itself: what is shipped is known."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{name}: expected a mapping, got {node!r}")
    yield Part(name, node, dict.fromkeys(shipped, Any), shipped)


def _data(node: Any) -> Iterator[Part]:
    shipped = _shipped("data")
    yield from _listed("data", node, shipped | _own_keywords(node))
    takers: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "preprocess": (Preprocess, {}),
        "patches": (Patches, {}),
        "slices": (SliceDataset, {"augment": Any}),
        "pairs": (find_pairs, {"resample": bool}),
        "degrade": (Degrade, {}),
    }
    for key, value in node.items():
        name = f"data.{key}"
        if not isinstance(value, Mapping):
            if key in _MAPPINGS and value != "auto" and (value is not None or key in _NEEDED):
                raise ConfigError(f"{name}: expected a mapping such as {{key: value}}, got {value!r}")
        elif key in takers:
            taker, more = takers[key]
            hints = dict.fromkeys(_mapping(shipped.get(key)), Any) | _parameters(taker) | more
            if key in ("slices", "pairs"):  # these may be null, which stands for what suits the task
                hints = {
                    word: hint | None if word in _mapping(shipped.get(key)) else hint for word, hint in hints.items()
                }
            defaults = _mapping(shipped.get(key))
            yield Part(name, value, hints, defaults)
            for inner, own in value.items():
                if inner != "augment" and isinstance(own, Mapping) and isinstance(defaults.get(inner), Mapping):
                    yield from _listed(f"{name}.{inner}", own, defaults[inner])
            if isinstance(value.get("augment"), Mapping):
                yield from _slice_augment(f"{name}.augment", value["augment"], _mapping(defaults.get("augment")))
        elif key == "split":
            yield from _listed(name, value, shipped["split"])
        elif key in ("options", "point_options"):
            known = (*IMAGE_OPTIONS, "label_dataset") if key == "options" else POINT_OPTIONS
            yield Part(name, value, dict.fromkeys(known, Any), {})


def _own_keywords(node: Any) -> dict[str, Any]:
    """What a class of somebody's own is given beside the settings of any data."""
    return dict(node) if isinstance(node, Mapping) and node.get("_target_") else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _slice_augment(name: str, node: Mapping[str, Any], shipped: Mapping[str, Any]) -> Iterator[Part]:
    yield Part(name, node, _parameters(SliceAugment), shipped)


def _try_out(settings: Mapping[str, Any]) -> None:
    """Make what is cheap to make, for what it says of its settings."""
    data = settings["data"]
    for key, maker in (("preprocess", Preprocess), ("patches", Patches), ("degrade", Degrade)):
        if isinstance(data.get(key), Mapping):
            with naming(f"data.{key}", keys={f"data.{key}": data[key]}):
                maker(**data[key])
    augment = (data.get("slices") or {}).get("augment")
    if augment:
        with naming("data.slices.augment", keys={"data.slices.augment": augment}):
            SliceAugment(**augment)
    if settings.get("augment"):
        with naming("augment", keys=settings):
            Augment(**settings["augment"])
    if settings.get("adapter"):
        own = {key: value for key, value in settings["adapter"].items() if key not in ("name", "head_rate")}
        with naming("adapter", keys=settings):
            AdapterSettings(**own)
    for group in ("optimizer", "learning_rate"):
        with naming(group, keys=settings):
            made = _made_of(settings[group])
            if group == "optimizer":
                made([torch.nn.Parameter(torch.zeros(1))])


def _made_of(node: Mapping[str, Any]) -> Any:
    own = {key: value for key, value in node.items() if not key.startswith("_")}
    target = _located("_target_", node["_target_"])
    return (lambda parameters: target(parameters, **own)) if node.get("_partial_") else target(**own)


@cache
def _shipped_top() -> dict[str, Any]:
    files = [top_file(), *groups()["experiment"].values()]
    found: dict[str, Any] = dict.fromkeys(groups())
    for file in files:
        found |= {key: value for key, value in _read(file).items() if key not in ("defaults", "hydra")}
    return {key: value for key, value in found.items() if key != "experiment"}


@cache
def _shipped(group: str, target: str = "") -> dict[str, Any]:
    """The settings of all files of a group, or of those with that target or name, with what they are based on."""
    found: dict[str, Any] = {}
    for entry in groups()[group]:
        own = _with_defaults(group, entry)
        if not target or target in (own.get("_target_"), own.get("name")):
            found = _merged(found, own)
    return found


def _with_defaults(group: str, entry: str) -> dict[str, Any]:
    own = _read(groups()[group][entry])
    found: dict[str, Any] = {}
    for base in own.pop("defaults", ()):
        found = _merged(found, own if base == "_self_" else _with_defaults(group, base))
    return _merged(found, own)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else found.get(key) if value is None and key in found else value
    return found


def _read(file: Any) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def _fields(owner: type) -> dict[str, Any]:
    return dict(get_type_hints(owner)) if hasattr(owner, "__dataclass_fields__") else _parameters(owner)


def _parameters(callee: Callable[..., Any]) -> dict[str, Any]:
    """Parameters and their types; a class may hand keywords on to its base."""
    found: dict[str, Any] = {}
    hands_on = inspect.isclass(callee) and _takes_keywords(callee)
    for owner in reversed(inspect.getmro(callee)[:-1] if hands_on else (callee,)):  # type: ignore[arg-type]
        hints = _hints(owner.__init__ if inspect.isclass(owner) else owner)
        if _is_configured(owner):
            hints |= get_type_hints(owner.Settings)
        found |= {
            name: hints.get(name, Any)
            for name, parameter in inspect.signature(owner).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
    return found


def _is_configured(callee: Any) -> TypeGuard[type[Configured]]:
    return inspect.isclass(callee) and issubclass(callee, Configured) and hasattr(callee, "Settings")


def _takes_anything(callee: Callable[..., Any]) -> bool:
    """Whether something of somebody's own takes keywords that it doesn't list."""
    own = not str(getattr(callee, "__module__", "")).startswith("voxelry.")
    return own and _takes_keywords(callee)


def _takes_keywords(callee: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(callee).parameters.values())


def _hints(callee: Any) -> dict[str, Any]:
    try:
        return get_type_hints(callee)
    except NameError:  # of a type that is imported for checkers alone
        return {}

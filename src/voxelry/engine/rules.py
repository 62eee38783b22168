"""What a setting may be: by the type hints of whatever takes it, and by rules for those that only the engine reads."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["fault_of"]

Rule = tuple[str, Callable[[Any], bool]]

_SIGNED = ("window", "fill", "devices", "image_mean", "channel_axis")  # and whatever is called a range
_POSITIVE = frozenset(
    [
        "batch_size",
        "n_timestep",
        "sample_steps",
        "reconstruct_steps",
        "time_bands",
        "steps",
        "samples",
        "draws",
        "coarse",
        "width",
        "dim",
        "embed_dim",
        "heads",
        "head_dim",
        "groups",
        "depth",
        "image_size",
        "grid",
        "patch_size",
        "mask_unit_size",
        "patch_stride",
        "patch_kernel",
        "blocks_per_level",
        "decoder_dim",
        "decoder_depth",
        "decoder_heads",
        "repeats",
        "truncation",
        "tau",
        "size",
        "sigma",
        "tile_size",
        "spacing",
        "elastic_spacing",
        "organs",
        "out_channels",
        "flow_width",
        "multipliers",
    ]
)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(test: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and test(value)
    )


def _one_of(*words: Any) -> Rule:
    return f"one of {', '.join(map(str, words))}", lambda value: value in words and isinstance(value, str)


def _or_null(rule: Rule) -> Rule:
    return f"{rule[0]}, or null", lambda value: value is None or rule[1](value)


_COUNT: Rule = ("a whole number from 1", _whole(1))
_FROM_ZERO: Rule = ("a whole number from 0", _whole(0))
_RHYTHM: Rule = ("a whole number from 1, or epoch", lambda value: value == "epoch" or _whole(1)(value))
_SWITCH: Rule = ("true or false", lambda value: isinstance(value, bool))
_TEXT: Rule = ("text", lambda value: isinstance(value, str) and bool(value))
_WORDS: Rule = ("a list of names", lambda value: _filled(value, lambda word: isinstance(word, str)))
_LONG: Rule = ("a number above 0", _number(lambda value: value > 0))
_BELOW_ONE = _number(lambda value: 0 <= value < 1)
_DECIDED = lambda value: isinstance(value, list) and len(value) == 3  # noqa: E731
_PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")
_RULES: Mapping[str, Rule] = {
    "name": _TEXT,
    "output_dir": _TEXT,
    "ndim": ("2 or 3", lambda value: value in (2, 3) and not isinstance(value, (bool, float))),
    "seed": _FROM_ZERO,
    "plan": ("auto, a file, or null", lambda value: value is None or _TEXT[1](value) or _filled(value, _DECIDED)),
    "pretrained": _or_null(_TEXT),
    "resume": _SWITCH,
    "resume_changed": _SWITCH,
    "overwrite": _SWITCH,
    "trainer.max_steps": _or_null(_COUNT),
    "trainer.max_epochs": _or_null(_LONG),
    "trainer.max_minutes": _or_null(_LONG),
    "trainer.validate_every": _RHYTHM,
    "trainer.limit_val_batches": (
        "auto, a whole number from 1, or null",
        lambda value: value in ("auto", None) or _whole(1)(value),
    ),
    "trainer.patience": _or_null(_COUNT),
    "trainer.checkpoint_every": _RHYTHM,
    "trainer.keep_every": _or_null(_COUNT),
    "trainer.log_every": _COUNT,
    "trainer.grad_accumulation": _COUNT,
    "trainer.gradient_clip_val": _or_null(("a number from 0", _number(lambda value: value >= 0))),
    "trainer.precision": _one_of(*_PRECISIONS),
    "trainer.accelerator": _one_of("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.devices": (
        "auto, a number of devices, or a list of their numbers",
        lambda value: value == "auto" or (_whole(-1)(value) and value != 0) or _filled(value, _whole(0)),
    ),
    "trainer.ema": _or_null(("a decay from 0 to below 1", _BELOW_ONE)),
    "trainer.compile": _SWITCH,
    "trainer.close_epochs": _SWITCH,
    "trainer.progress": _SWITCH,
    "trainer.logger": _one_of("csv", "tensorboard"),
    "data.batch_size": _COUNT,
    "data.num_workers": _or_null(_FROM_ZERO),
    "data.pin_memory": _SWITCH,
    "data.check": _SWITCH,
    "data.borders": _or_null(_LONG),
    "data.cache": _or_null(_TEXT),
    "data.root": _or_null(_TEXT),
    "data.index": _or_null(_TEXT),
    "data.layout": _TEXT,
    "data.training_samples": (
        "all or a whole number from 1",
        lambda value: value is None or value == "all" or _whole(1)(value),
    ),
    "data.split.file": _or_null(_TEXT),
    "data.split.folds": _or_null(("a whole number from 2", _whole(2))),
    "data.split.fold": _FROM_ZERO,
    "data.split.seed": _or_null(_FROM_ZERO),
    "data.split.fractions": _or_null(
        (
            "shares of train, validation and test that sum to 1",
            lambda value: _filled(value, _number(lambda share: share >= 0)) and abs(sum(value) - 1) < 1e-6,
        )
    ),
    "metrics.at_validation": _or_null(_WORDS),
    "metrics.at_end": _or_null(_WORDS),
    "metrics.classes": _or_null(_WORDS),
    "metrics.thresholds": (
        "a list of numbers above 0",
        lambda value: isinstance(value, list) and all(map(_number(lambda one: one > 0), value)),
    ),
    "data.margin": (
        "a whole number from 0, or one per axis",
        lambda value: _whole(0)(value) or _filled(value, _whole(0)),
    ),
    "data.crop_size": (
        "a whole number from 1, or one per axis",
        lambda value: _whole(1)(value) or _filled(value, _whole(1)),
    ),
    "task.spacing": (
        "a word, or a list of time steps from 0",
        lambda value: _TEXT[1](value) or _filled(value, _whole(0)),
    ),
    "optimizer.betas": ("two decays from 0 to below 1", lambda value: _filled(value, _BELOW_ONE) and len(value) == 2),
    "optimizer.momentum": ("a number from 0 to below 1", _BELOW_ONE),
    "optimizer.lr": ("a number from 0", _number(lambda value: value >= 0)),
}


def _filled(value: Any, test: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(test, value))


def fault_of(name: str, value: Any, hint: Any = Any, shipped: Any = None) -> str:
    """What is expected of a setting instead of its value, or empty text where the value may be.

    Args:
        name: the setting, dotted.
        value: plain.
        hint: type of the parameter that takes it.
        shipped: its default in the configuration files.
    """
    if name in _RULES:
        expected, holds = _RULES[name]
        return "" if holds(value) else expected
    if hint is not Any and not _fits(value, hint):
        return _told(hint)
    if hint is Any and isinstance(shipped, (int, float)) and not _fits(value, type(shipped)):
        return _told(type(shipped))
    numbers = list(_numbers(value))
    leaf = name.rpartition(".")[2]
    if not all(map(math.isfinite, numbers)):
        return "a number"
    signed = leaf in _SIGNED or leaf.endswith("range") or any(number < 0 for number in _numbers(shipped))
    if not signed and any(number < 0 for number in numbers):
        return "no number below 0"
    if leaf in _POSITIVE and any(number == 0 for number in numbers):
        return "a number above 0"
    return ""


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or (isinstance(value, Mapping) and "_target_" in value):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(kind, Mapping) or is_dataclass(kind):
        return isinstance(value, Mapping)
    if issubclass(kind, Sequence):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value if arguments)
    return False


def _told(hint: Any) -> str:
    words = list(dict.fromkeys(_words(hint)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(hint: Any) -> Iterator[str]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _words(part)
    elif origin is Literal:
        yield from map(str, get_args(hint))
    elif hint in _NAMES:
        yield _NAMES[hint]
    elif isinstance(origin or hint, type) and (issubclass(origin or hint, Mapping) or is_dataclass(hint)):
        yield "a mapping"
    elif isinstance(origin or hint, type) and issubclass(origin or hint, Sequence):
        inner = get_args(hint)[:1]
        told = list(_words(inner[0])) if inner else []
        yield f"a list of {_SEVERAL[told[0]]}" if told and told[0] in _SEVERAL else "a list"


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    None: "null",
    type(None): "null",
}
_SEVERAL = {"a list": "lists", "a word": "words"}  # of whatever a list's first reading tells little

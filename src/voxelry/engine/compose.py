"""The configuration of `voxelry train`, from what is given on the command line or in Python.

What is given is settled before Hydra sees it, so that it means what it says: a mapping that a shell cut at its blanks
is put together again, a path with odd characters needs no second pair of quotes and may begin with `~`, and a mapping
may have keys that its default doesn't have. Keys that nothing knows are refused by `engine.check`, which names the
nearest known one. `plan=FILE` stands for the settings of that file (`engine.plan_file`), below what is given beside it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError
from voxelry.core.home import at_home
from voxelry.core.hydra_text import quoted
from voxelry.engine.configs import OWN, groups, packages
from voxelry.engine.plan_file import AUTO, read_plan, remaining

__all__ = ["compose_training", "in_one_line", "parted", "settle", "typed", "value_of", "with_plan"]

_SET = "++"  # what `settle` puts before a setting that is no entry of a group
_MAY_BE_NULL = ("backbone", "experiment")
_PAIRS = {"}": "{", "]": "[", ")": "("}
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-dir", "-cd")
_PATHS = (
    "output_dir",
    "pretrained",
    "plan",
    "data.root",
    "data.unlabelled",
    "data.index",
    "data.cache",
    "data.split.file",
    "data.pairs.target",
)
_TEXTS = ("name", *_PATHS)
_LIKE_A_NUMBER = re.compile(r"[+-]?[\d._]+(e[+-]?\d+)?", re.IGNORECASE)
_QUOTED_KEY = re.compile(r"""(["'])([\w.-]+)\1\s*:""")


def compose_training(settings: Sequence[str | Mapping[str, Any]]) -> DictConfig:
    """The configuration of `voxelry train SETTINGS`, for use from Python.

    Args:
        settings: overrides as they are typed, and mappings from dotted names to plain values.

    Raises:
        ConfigError: a setting can't be read, or names a group's entry that isn't there.
    """
    overrides = [one for given in settings for one in ([given] if isinstance(given, str) else typed(given))]
    try:
        settled = settle(overrides)
        return _with_values(settled) or _by_hydra(tuple(settled))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(in_one_line(error)) from error


def _with_values(settled: Sequence[str]) -> DictConfig | None:
    """The configuration of entries that may have been put together before, with values set in it as Hydra sets them.

    None where there is more than entries and values, or a value that can't be set, which Hydra has words for.
    """
    chosen = tuple(one for one in settled if not one.startswith(_SET))
    values = [OverridesParser.create().parse_override(one) for one in settled if one.startswith(_SET)]
    plain = not any(value.is_sweep_override() for value in values)
    if not plain or any(one.partition("=")[0].strip("~+") not in groups() for one in chosen):
        return None
    config = copy.deepcopy(_of_entries(chosen, tuple(packages().items())))
    try:
        for value in values:
            OmegaConf.update(config, value.key_or_group, value.value(), merge=True, force_add=True)
    except OmegaConfBaseException:
        return None
    return config


@lru_cache(maxsize=64)
def _of_entries(chosen: tuple[str, ...], folders: tuple[tuple[str, Path], ...]) -> DictConfig:
    """Entries of groups put together, which takes Hydra a fifth of a second; they lie in these folders."""
    return _by_hydra(chosen)


def _by_hydra(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_module(OWN, version_base="1.3"):
        return compose("train", overrides=list(overrides))


def typed(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they would be typed.

    Raises:
        ConfigError: a value that can't be.
    """
    found = []
    for name, value in settings.items():
        bare = name.lstrip("+")
        if bare in groups() and isinstance(value, str):
            found.append(f"{name}={value}")
        else:
            path = bare in _PATHS and isinstance(value, str | Path)
            found.append(f"{name}={_written(at_home(str(value)) if path else value, name)}")
    return found


def _written(value: Any, name: str) -> str:
    """A plain value in Hydra's grammar.

    Raises:
        ConfigError: it is none.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Integral | Real):
        return repr(int(value) if isinstance(value, Integral) else float(value))
    if isinstance(value, str | Path):
        return quoted(str(value))
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(one, name)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(_written(one, name) for one in value) + "]"
    raise ConfigError(f"{name}: expected a number, a word, a list or a mapping, got {type(value).__name__}")


def in_one_line(error: Exception) -> str:
    """What Hydra or OmegaConf says, and what it says it of."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    parts = [str(part).strip().splitlines() for part in (error, cause) if part is not None]
    return ": ".join(lines[0].rstrip(".") for lines in parts if lines)


def settle(arguments: Sequence[str]) -> list[str]:
    """Arguments of `voxelry train` as Hydra is to read them; see above. Flags come first, as they are.

    Raises:
        ConfigError: one that can't be read, or an entry that a group doesn't have.
    """
    flags, settings = parted(arguments)
    settings = with_plan(settings)
    # entries of one's own may lie there, which Hydra looks up
    elsewhere = any(one.startswith(("--config-dir", "-cd", "hydra.searchpath")) for one in (*flags, *settings))
    if not elsewhere and _by_time(settings):
        settings = [*settings, "trainer.max_steps=null"]
    return [*flags, *(_override(one, elsewhere) for one in settings)]  # Hydra takes no flag between two overrides


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with what they take, and settings, each in one piece."""
    flags: list[str] = []
    settings: list[str] = []
    flag = ""
    for argument in _joined(arguments):
        (flags if argument.startswith("-") or flag in _WITH_VALUE else settings).append(argument)
        flag = argument
    return flags, settings


def value_of(arguments: Sequence[str], name: str) -> str | None:
    """The value that is given for a setting last, without quotes; None where it isn't given."""
    given = (argument.lstrip("+").partition("=") for argument in arguments)
    return next((value.strip("'\"") for key, _, value in reversed(list(given)) if key == name), None)


def _by_time(arguments: Sequence[str]) -> bool:
    """Whether minutes are all that is said about the length of a training: its schedule ends with them then."""
    values = {name.lstrip("+~"): value for name, _, value in (argument.partition("=") for argument in arguments)}
    if values.get("trainer.max_minutes", "null") == "null" or {"trainer.max_steps", "trainer.max_epochs"} & {*values}:
        return False
    entry = groups()["trainer"].get(values.get("trainer", ""))
    return entry is None or "max_steps" not in yaml.safe_load(entry.read_text(encoding="utf-8"))


def with_plan(arguments: Sequence[str]) -> list[str]:
    """Arguments with the settings of the plan that one of them names before them, but for those that they decide about.

    Raises:
        ConfigError, FileError: the plan can't be read.
    """
    plan = value_of(arguments, "plan")
    if plan in (None, "", "null", AUTO) or plan.startswith("["):
        return list(arguments)
    given = {argument.lstrip("+~").partition("=")[0] for argument in arguments}
    decisions = remaining(read_plan(Path(at_home(plan)).absolute()), given)
    return [*typed({one.setting: one.value for one in decisions}), *arguments]


def _joined(arguments: Sequence[str]) -> Iterator[str]:
    """Arguments with those put together that a shell cut out of one mapping or list."""
    waiting: list[str] = []
    for argument in arguments:
        waiting.append(argument)
        if _open(" ".join(waiting)) <= 0:
            yield " ".join(waiting)
            waiting = []
    yield from waiting


def _open(text: str) -> int:
    """Brackets that are open at the end of a text, outside of quotes."""
    if "=" not in text or text.partition("=")[2][:1] not in _PAIRS.values():
        return 0
    depth, quote = 0, ""
    for character in re.sub(r"\\.", "", text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in _PAIRS.values()) - (character in _PAIRS)
    return depth


def _override(text: str, elsewhere: bool) -> str:
    key, equals, value = text.partition("=")
    if text.startswith("~"):
        return text
    if not equals:
        raise ConfigError(
            f"{text}: expected KEY=VALUE, such as data.root=DIR (voxelry train --help lists the settings)"
        )
    bare = key.lstrip("+")
    if bare in _PATHS and not value.startswith("["):  # of each value of a sweep
        value = ",".join(map(at_home, value.split(",")))
    if bare in _MAY_BE_NULL and value == "null":
        return f"~{bare}"
    if bare in groups():
        if not elsewhere:
            _check_entry(bare, value)
        return text
    if "/" in bare or "@" in bare or bare.startswith("hydra."):
        return text
    as_text = quoted(value)
    readings = [value, _QUOTED_KEY.sub(r"\2:", value), *([] if value[:1] in "[{'\"" else [as_text])]
    if bare in _TEXTS and _LIKE_A_NUMBER.fullmatch(value):  # a folder called 2024
        readings = [as_text]
    for reading in readings:
        try:
            OverridesParser.create().parse_override(f"{_SET}{bare}={reading}")
        except HydraException:
            continue
        return f"{_SET}{bare}={reading}"
    raise ConfigError(
        f"{bare}: can't read {value!r}; expected a value such as 3, word, [1,2] or {{key: value}}, the whole "
        "setting in quotes where a shell would change it"
    )


def _check_entry(group: str, value: str) -> None:
    entries = groups()[group]
    for name in value.split(",") if re.fullmatch(r"[\w.,-]+", value) else ():
        check_choice(group, name, entries, ConfigError)

"""A plan as a file: settings with the reason of each, for people to edit and for `voxelry train plan=FILE`.

The file is YAML, one dotted setting a line, the reason as the line's comment:

    experiment: landmarks_3d
    data.preprocess.spacing: [2.5, 0.8, 0.8]  # median of the images'

What is typed beside `plan=FILE` counts before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from voxelry.core.atomic import replacing
from voxelry.core.errors import ConfigError, FileError
from voxelry.core.plain_yaml import parse_yaml
from voxelry.engine.configs import groups

__all__ = [
    "AUTO",
    "Decision",
    "decisions_of",
    "in_use",
    "in_yaml",
    "is_settled",
    "read_plan",
    "remaining",
    "write_plan",
]

AUTO = "auto"
"""The value of `plan` that has one made as a training begins."""

_CHOICES = ("experiment", "task", "data", "launcher")  # groups whose entry leaves its settings open
# what can't be set beside another setting, or says the same in another way
_RIVALS = {
    "data.preprocess.spacing": ("data.preprocess.image_size",),
    "data.preprocess.image_size": ("data.preprocess.spacing",),
    "data.preprocess.window": ("data.preprocess.normalise",),
    "data.split.folds": ("data.split.file", "data.split.fractions"),
    "data.split.fractions": ("data.split.file", "data.split.folds"),
    "trainer.max_steps": ("trainer.max_epochs",),
}
_COMMENT = "  # "


@dataclass(frozen=True)
class Decision:
    """What a setting is to be.

    Attributes:
        setting: dotted, or a group whose entry is chosen.
        value: plain.
        why: in one line.
    """

    setting: str
    value: Any
    why: str = ""


def is_settled(setting: str, given: Collection[str]) -> bool:
    """Whether settings that are given decide about another one.

    A part decides about what is in it, and the other way round; so does the entry that is chosen of a group (but for
    those of the experiment, the task, the data and the launcher), and what excludes the setting.

    Args:
        setting: dotted.
        given: dotted names, and groups whose entry is chosen.
    """
    for name in given:
        inside = setting.startswith(f"{name}.") and name not in _CHOICES
        around = name.startswith(f"{setting}.") and setting not in _CHOICES
        if setting == name or inside or around or name in _RIVALS.get(setting, ()):
            return True
    return False


def remaining(decisions: Iterable[Decision], given: Collection[str]) -> list[Decision]:
    """The decisions about settings that aren't given."""
    return [one for one in decisions if not is_settled(one.setting, given)]


def decisions_of(plan: Any) -> list[Decision]:
    """The decisions behind the setting `plan` of a configuration: a file, or each with its value and reason.

    Raises:
        ConfigError, FileError: see `read_plan`.
    """
    if plan is None or plan == AUTO:
        return []
    if isinstance(plan, str):
        return read_plan(Path(plan))
    return [Decision(*one) for one in OmegaConf.to_container(plan)]


def in_use(decisions: Iterable[Decision], config: DictConfig) -> list[Decision]:
    """The decisions with the values that a run has, which may have been set when it was started."""
    found = []
    for one in decisions:
        value = one.value if one.setting in groups() or one.setting == "experiment" else _value(config, one.setting)
        changed = value != one.value
        found.append(Decision(one.setting, value, f"set instead of {in_yaml(one.value)}") if changed else one)
    return found


def _value(config: DictConfig, setting: str) -> Any:
    value = OmegaConf.select(config, setting)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def in_yaml(value: object) -> str:
    """A plain value in a line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def write_plan(path: Path, decisions: Iterable[Decision], heading: str = "") -> Path:
    """Write a plan, whole or not at all.

    Args:
        path: the file.
        decisions: in their order.
        heading: comment on top.

    Raises:
        FileError: it can't be written.
    """
    lines = [f"# {line}" for line in heading.splitlines()]
    for one in decisions:
        text = f"{one.setting}: {in_yaml(one.value)}"
        why = " ".join(one.why.split())
        lines.append(f"{text}{_COMMENT}{why}" if why else text)
    with replacing(path, "the plan can't be written") as place:
        place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_plan(path: Path) -> list[Decision]:
    """The settings of a plan, with the comments of their lines as reasons.

    Raises:
        FileError: no such file, or no YAML.
        ConfigError: no mapping from names of settings to values.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"the plan can't be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise FileError(path, f"the plan can't be read: {' '.join(str(error).split())}") from error
    named = isinstance(content, Mapping) and all(isinstance(name, str) and name for name in content)
    if not named or "plan" in content:
        raise ConfigError(f"plan: expected lines such as data.batch_size: 2 in {path}, which voxelry plan --out writes")
    reasons = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        reasons[name.strip("\"' ")] = rest.rpartition(_COMMENT)[2] if _COMMENT in rest else ""
    return [Decision(name, value, reasons.get(name, "").strip()) for name, value in content.items()]

"""How a reader is told what a file doesn't say, in the words that our commands take as they are printed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["choice", "way_to_say"]

_PLAIN = re.compile(r"[A-Za-z_][\w/-]*")  # words that neither YAML nor Hydra takes for anything else
_TAKEN = {"true", "false", "yes", "no", "on", "off", "null", "nan", "inf", "y", "n"}


def way_to_say(group: str = "options", flag: str = "--option", **values: Any) -> str:
    """`'data.options={stack: 0}' in a training, --option stack=0 elsewhere`.

    Args:
        group: of the settings of a training, under `data`.
        flag: of the other commands.
        values: what is told: words, numbers, lists of them.
    """
    shown = {name: _shown(value) for name, value in values.items()}
    inside = ", ".join(f"{name}: {value}" for name, value in shown.items())
    flags = " ".join(f"{flag} {shlex.quote(f'{name}={value}')}" for name, value in shown.items())
    return f"{shlex.quote(f'data.{group}={{{inside}}}')} in a training, {flags} elsewhere"


def choice(datasets: Sequence[str] | Mapping[str, str]) -> str:
    """How to choose one of several images in a file; nothing where there is none.

    Args:
        datasets: what `dataset` may be, perhaps with what each of them is.
    """
    names = list(datasets)[:10]
    listed = [f"{name} ({datasets[name]})" for name in names] if isinstance(datasets, Mapping) else names
    return f"choose one: {way_to_say(dataset=names[0])}; there are {', '.join(listed)}" if names else ""


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and not (_PLAIN.fullmatch(value) and value.lower() not in _TAKEN):
        return json.dumps(value, ensure_ascii=False)
    return str(value)

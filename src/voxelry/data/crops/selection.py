"""Selection criteria: `column=value`, `column>=value`, without a line of SQL from the user."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelry.core.errors import SettingError

__all__ = ["Criterion", "parse_selection"]

OBJECT_KEYS = ("volume", "class")

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PATTERN = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*")


@dataclass(frozen=True)
class Criterion:
    """One condition: `key operator value`; of several values any will do (`=`) or none may hold (`!=`).

    Attributes:
        key: a column, or what is known of objects.
        sign: the operator.
        values: numbers where they can be read as numbers.
        texts: each of them as it was typed: `007` is the text 007 and the number 7.
    """

    key: str
    sign: str
    values: tuple[str | float | None, ...]
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{','.join(self.texts)}"

    @property
    def about_objects(self) -> bool:
        """Whether it chooses among objects, not among files."""
        return self.key in OBJECT_KEYS

    def holds(self, value: Any) -> Any:
        """Whether a value, or each of an array, meets the condition, as Python compares them.

        A number and its text are the same, as folders and databases differ in types; a text equals what was typed,
        letter by letter. An absent value equals `null` alone, and is neither more nor less than anything.

        Raises:
            SettingError: text where a number is compared.
        """
        if hasattr(value, "dtype"):
            return np.array([self._holds(one) for one in value.tolist()], dtype=bool)
        return self._holds(value)

    def _holds(self, value: Any) -> bool:
        if self.sign in ("=", "==", "!="):
            found = any(_equal(value, *wanted) for wanted in zip(self.values, self.texts, strict=True))
            return found != (self.sign == "!=")
        if value is None:
            return False
        wanted = self.values[0]
        try:
            if isinstance(value, str) != isinstance(wanted, str):
                value, wanted = float(value), float(wanted)  # type: ignore[arg-type]  # never None beside this sign
            return bool(_OPERATORS[self.sign](value, wanted))
        except (TypeError, ValueError):
            raise SettingError(f"selection: {self} compares a number with {value!r}") from None


def parse_selection(selection: Mapping[str, Any] | Sequence[str] | None) -> tuple[Criterion, ...]:
    """Criteria from `["split=train", "quality>=3"]` or `{"split": "train", "quality": ">=3", "roi": [1, 2]}`.

    `volume` and `class` are about objects (a plain `volume` is the least volume in voxels, as in the original), all
    other keys are columns of the source. All criteria must hold.

    Raises:
        SettingError: something else than key, sign and value.
    """
    entries: list[tuple[str, str, list[Any]]] = []
    if isinstance(selection, Mapping):
        for key, value in selection.items():
            found = _PATTERN.fullmatch(f"{key}{value}") if isinstance(value, str) and value[:1] in "<>=!" else None
            if found is not None:
                entries.append((found[1], found[2], found[3].split(",")))
            else:
                values = list(value) if isinstance(value, list | tuple) else [value]
                entries.append((str(key), ">=" if key == "volume" else "=", values))
    else:
        for text in selection or ():
            found = _PATTERN.fullmatch(str(text))
            if found is None:
                raise SettingError(f"selection: expected KEY=VALUE or KEY>=VALUE, got {text!r}")
            entries.append((found[1], found[2], found[3].split(",")))
    criteria = []
    for key, sign, values in entries:
        sign = ">=" if key == "volume" and sign == "=" else sign
        plain = tuple(_value(value) for value in values)
        single = sign in (">=", "<=", ">", "<")
        if (single and (len(plain) != 1 or plain[0] is None)) or not plain:
            raise SettingError(f"selection: {key}{sign} expects one value, got {', '.join(map(str, values))}")
        if key in OBJECT_KEYS and any(isinstance(value, str | None) for value in plain):
            raise SettingError(f"selection: {key} expects numbers, got {', '.join(map(str, values))}")
        criteria.append(Criterion(key, sign, plain, tuple(_text(value) for value in values)))
    return tuple(criteria)


def _value(value: Any) -> str | float | None:
    if isinstance(value, str):
        text = value.strip().strip("'\"")
        if text.lower() in ("null", "none"):
            return None
        if text == value.strip():  # quotes keep a number text
            for kind in (int, float):
                try:
                    return kind(text)
                except ValueError:
                    continue
        return text
    return int(value) if isinstance(value, bool) else value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip().strip("'\"")
    return "null" if value is None else str(_value(value))


def _equal(value: Any, wanted: str | float | None, text: str) -> bool:
    if value is None or wanted is None:
        return value is wanted
    if isinstance(value, bool) and text.lower() in ("true", "false"):
        return str(value).lower() == text.lower()
    if isinstance(value, str) or isinstance(wanted, str):
        return str(value) == text
    return bool(value == wanted)

"""Selection criteria: `column=value`, `column>=value`, without a line of SQL from the user."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxelry.core.errors import SettingError

__all__ = ["Criterion", "parse_selection"]

OBJECT_KEYS = ("volume", "class")

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_PATTERN = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*")


@dataclass(frozen=True)
class Criterion:
    """One condition: `key operator value`; of several values any will do (`=`) or none may hold (`!=`)."""

    key: str
    sign: str
    values: tuple[str | float | None, ...]

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{','.join('null' if value is None else str(value) for value in self.values)}"

    @property
    def about_objects(self) -> bool:
        """Whether it chooses among objects, not among files."""
        return self.key in OBJECT_KEYS

    def holds(self, value: Any) -> Any:
        """Whether a value, or each of a numeric array, meets the condition; an absent one only meets `=null`.

        Raises:
            SettingError: text where a number is compared.
        """
        if self.sign in ("=", "==", "!="):
            met: Any = False
            for wanted in self.values:
                same = value is None if wanted is None else _equal(value, wanted)
                met = met | same
            return ~met if hasattr(met, "dtype") else bool(met) != (self.sign == "!=")
        if value is None:
            return False
        try:
            return _OPERATORS[self.sign](value, self.values[0])
        except TypeError:
            raise SettingError(f"selection: {self} compares a number with {value!r}") from None

    def clause(self, column: Any) -> Any:
        """The condition on a column of a database, with bound values."""
        if self.sign in ("=", "==", "!="):
            found = [value for value in self.values if value is not None]
            met = column.in_(found)
            if None in self.values:
                met = met | column.is_(None)
            return ~met if self.sign == "!=" else met
        return _OPERATORS[self.sign](column, self.values[0])


def parse_selection(selection: Mapping[str, Any] | Sequence[str] | None) -> tuple[Criterion, ...]:
    """Criteria from `["split=train", "quality>=3"]` or `{"split": "train", "quality": ">=3", "roi": [1, 2]}`.

    `volume` and `class` are about objects (a plain `volume` is the least volume in voxels, as in the seed), all
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
        criteria.append(Criterion(key, sign, plain))
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


def _equal(value: Any, wanted: Any) -> Any:
    """Equality that takes a number and its text for the same: folders and databases differ in types."""
    if hasattr(value, "dtype") or isinstance(value, str) == isinstance(wanted, str):
        return value == wanted
    return value is not None and str(value) == str(wanted)

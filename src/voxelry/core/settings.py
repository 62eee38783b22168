"""Settings: a dataclass for whatever has many, and plain values, so that what a bundle stores builds the same again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import numpy as np

from voxelry.core.errors import SettingError

__all__ = ["Configured", "check_fraction", "check_range", "keywords", "own_fields", "plain", "settings_parts", "settle"]

S = TypeVar("S")


class Configured:
    """A class that is made from keywords, which are the fields of a dataclass.

    Its constructor takes `**settings` and keeps `settle(cls.Settings, settings)` as `_settings`; what it takes beside
    them are named parameters of its own. `help` and `inspect.signature` show the fields as if they stood there.

    Attributes:
        Settings: the dataclass, with keyword-only fields.
    """

    Settings: ClassVar[type[Any]]
    _settings: Any  # of that dataclass; of a class with few settings, a mapping

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if {"__init__", "Settings"} & set(vars(cls)) and hasattr(cls, "Settings"):
            cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    def settings(self) -> dict[str, Any]:
        """Plain keywords from which the class makes the same again."""
        kept = self._settings
        found: dict[str, Any] = plain(kept if isinstance(kept, Mapping) else asdict(kept))
        return found


def settle(dataclass: type[S], given: Mapping[str, Any], name: str = "") -> S:
    """Settings from plain keywords; those of a part are a mapping or the part's own dataclass.

    Args:
        dataclass: the dataclass.
        given: field to value.
        name: of the part, dotted, for messages.

    Raises:
        SettingError: a keyword that there isn't; names it and those that there are.
        TypeError: a field without a default is missing.
    """
    known = [field.name for field in fields(dataclass)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise SettingError(f"{name}{key}: no such setting; expected one of {', '.join(known)}")
    parts = settings_parts(dataclass)
    return dataclass(
        **{
            key: settle(parts[key], value, f"{name}{key}.") if key in parts and isinstance(value, Mapping) else value
            for key, value in given.items()
        }
    )


def settings_parts(dataclass: Any) -> dict[str, Any]:
    """Fields of a dataclass that hold a dataclass themselves, and which."""
    found = {}
    for key, hint in get_type_hints(dataclass).items():
        inner = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
        if inner:
            found[key] = inner[0]
    return found


def own_fields(settings: Any, dataclass: type) -> dict[str, Any]:
    """The values of those settings that another dataclass has, too: of the part that is made from them."""
    return {field.name: getattr(settings, field.name) for field in fields(dataclass)}


def check_fraction(value: float, name: str) -> None:
    """Refuse what is no share from 0 to below 1.

    Raises:
        SettingError: names the setting.
    """
    if not 0 <= value < 1:
        raise SettingError(f"{name}: expected a fraction in [0, 1), got {value}")


def check_range(value: Sequence[float], name: str) -> None:
    """Refuse what is no lower and a higher number.

    Raises:
        SettingError: names the setting.
    """
    if len(value) != 2 or not value[0] < value[1]:
        raise SettingError(f"{name}: expected a low and a higher number, got {value}")


def plain(value: Any) -> Any:
    """Mappings as dicts with text for keys, sequences but text as lists, NumPy's values as Python's, at any depth.

    Everything else stays as it is.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return value
    return [plain(item) for item in value]


def keywords(node: Mapping[str, Any] | None) -> dict[str, Any]:
    """A part of a configuration as keywords of what it describes: plain values, without `_target_`; {} for None."""
    return {} if node is None else {name: value for name, value in plain(node).items() if name != "_target_"}


def _signature(cls: type[Configured]) -> inspect.Signature:
    """The constructor's parameters, with the fields in place of the keywords that stand for them."""
    _, *own = inspect.signature(cls.__init__).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
        return inspect.Signature(own)
    named = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    hints = get_type_hints(cls.Settings)
    of_settings = inspect.signature(cls.Settings).parameters.values()
    return inspect.Signature(
        [*named, *(one.replace(kind=one.KEYWORD_ONLY, annotation=hints[one.name]) for one in of_settings)]
    )

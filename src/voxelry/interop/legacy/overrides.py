"""Other projects' settings as overrides of ours, with a note for each that the user reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxelry.core.choice import unknown_choice
from voxelry.core.errors import ConfigError, FileError
from voxelry.core.hydra_text import quoted
from voxelry.core.plain_yaml import parse_yaml

__all__ = ["OPTIMIZERS", "Translation", "count", "number", "read", "read_settings", "text", "truth", "whole", "wholes"]

OPTIMIZERS = {"adamw": "adamw", "adam": "adam", "sgd": "sgd"}


@dataclass
class Translation:
    """One run: Hydra overrides, and notes that say what was taken over, changed or ignored.

    Attributes:
        overrides: of the configuration.
        notes: for the user to read.
        measure: the held-out part, `validation` or `test`, that a trained model is to be measured on, without any
            training; empty for a training.
        source: the file, for messages.
    """

    overrides: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measure: str = ""
    source: str = ""

    def set(self, key: str, value: Any, origin: str = "", why: str = "") -> None:
        """Add an override; `origin` is the key it came from."""
        self.overrides.append(f"{key}={_hydra(value)}")
        if origin:
            self.notes.append(f"{origin} -> {key}={_hydra(value)}" + (f" ({why})" if why else ""))

    def ignore(self, origin: str, why: str) -> None:
        """Note a key that plays no part."""
        self.notes.append(f"{origin} ignored: {why}")

    def differs(self, what: str) -> None:
        """Note something of the original that isn't carried over."""
        self.notes.append(f"not carried over: {what}")

    def take(self, source: dict[str, Any], prefix: str, keys: Mapping[str, tuple[str, Callable[[Any], Any]]]) -> None:
        """Move what is there of `keys`, theirs to ours and how to convert it, out of a section called `prefix`."""
        for key, (ours, convert) in keys.items():
            if key in source:
                self.set(ours, self.read(f"{prefix}.{key}", source.pop(key), convert), f"{prefix}.{key}")

    def read(self, origin: str, value: Any, convert: Callable[[Any], Any]) -> Any:
        """A value as `convert` makes it.

        Raises:
            ConfigError: it can't be made; names the file and the key.
        """
        return read(self.source, origin, value, convert)

    def flag(self, section: dict[str, Any], prefix: str, key: str, usual: bool) -> bool:
        """Move whether something is wanted out of a section called `prefix`; `usual` where it isn't said.

        Raises:
            ConfigError: neither true nor false.
        """
        return bool(self.read(f"{prefix}.{key}", section.pop(key, usual), truth))

    def leftovers(self, source: Mapping[str, Any], prefix: str) -> None:
        """Note all that is left of a section as unknown."""
        for key in source:
            self.ignore(f"{prefix}.{key}", "no such setting")

    def optimizer(self, path: Path, name: Any, origin: str) -> None:
        """Choose the optimizer of that name.

        Raises:
            ConfigError: there is none.
        """
        ours = OPTIMIZERS.get(str(name).lower())
        if ours is None:
            raise unknown_choice(f"{path}: {origin}", name, OPTIMIZERS, ConfigError)
        self.set("optimizer", ours, origin)


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a JSON or YAML file.

    Raises:
        FileError: missing, not JSON or YAML, or no object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"can't be read: {getattr(error, 'strerror', None) or 'not text'}") from error
    try:
        content = parse_yaml(text) if path.suffix in (".yml", ".yaml") else json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(path, f"line {error.lineno}: not JSON ({error.msg})") from error
    except ValueError as error:
        raise FileError(path, "not YAML") from error
    except Exception as error:  # yaml.YAMLError, without importing yaml for a JSON file
        raise FileError(path, f"not plain YAML: {error}") from error
    if not isinstance(content, dict):
        raise FileError(path, "expected an object with model and dataset")
    return content


def read(source: str | Path, origin: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """A value of a file, as `convert` makes it.

    Raises:
        ConfigError: it can't be made; names the file and the key.
    """
    try:
        return convert(value)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        place = f"{source}: " if source else ""
        raise ConfigError(
            f"{place}{origin}: expected {_WANTED.get(convert, 'another value')}, got {value!r}"
        ) from error


def number(value: Any) -> float:
    """A finite number, from text as well; true is none, though Python takes it for 1.

    Raises:
        ValueError, TypeError: it is none.
    """
    said = float(value)
    if isinstance(value, bool) or not math.isfinite(said):
        raise ValueError(value)
    return said


def whole(value: Any) -> int:
    """A whole number, from text as well.

    Raises:
        ValueError, TypeError, OverflowError: it is none.
    """
    said = number(value)
    if said != int(said):
        raise ValueError(value)
    return int(said)


def count(value: Any) -> int:
    """A whole number from 1 on.

    Raises:
        ValueError, TypeError, OverflowError: it is none.
    """
    said = whole(value)
    if said < 1:
        raise ValueError(value)
    return said


def wholes(value: Any) -> list[int]:
    """A list of whole numbers from 1 on, with one of them at least.

    Raises:
        ValueError, TypeError, OverflowError: it is none.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(value)
    return [count(item) for item in value]


def text(value: Any) -> str:
    """Text that names something; `${` would be replaced on the way.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or not value.strip() or "${" in value:
        raise ValueError(value)
    return value


def truth(value: Any) -> bool:
    """Whether a value means true: some originals compare with the string "true", so files hold both kinds.

    Raises:
        ValueError: it means neither.
    """
    said = value.strip().lower() if isinstance(value, str) else value
    if said in ("true", 1):  # True is 1
        return True
    if said is None or said in ("false", "", 0):
        return False
    raise ValueError(value)


_WANTED: dict[Callable[[Any], Any], str] = {
    number: "a number",
    whole: "a whole number",
    count: "a whole number from 1 on",
    wholes: "a list of whole numbers from 1 on",
    text: "a name, without ${ in it",
    truth: "true or false",
    str.lower: "a word",
}


_WORD = re.compile(r"(?!(?:null|true|false|inf|nan)$)[a-z]\w*", re.ASCII | re.IGNORECASE)  # not read as anything else


def _hydra(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    if isinstance(value, str) and not _WORD.fullmatch(value):
        return quoted(value)
    return str(value)

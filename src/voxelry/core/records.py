"""Records of arrays and plain values in one file, whose reading runs no code.

A safetensors file: the arrays as they are, and in its header a text that says how values are made of them. Classes are
known by their names alone, among those that the reader lists.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import FileError
from voxelry.core.guard import guarded

__all__ = ["read_head", "read_record", "write_records"]

_KEY = "voxelry"  # of the header's text; one alone, as the order of several isn't fixed
_FORMAT = 1
_KIND = "is"  # marks what JSON has no word for
_WAY_OUT = "delete it"


def write_records(path: Path, head: Mapping[str, Any], records: Sequence[Any], classes: Sequence[type] = ()) -> None:
    """Write a file; the same values give the same bytes.

    Args:
        head: what JSON can hold, and numbers that aren't finite.
        records: numbers, texts, None, arrays, tensors, and lists, tuples, mappings and `classes` of them. Arrays come
            back in their type and shape, tensors on the CPU.
        classes: whose instances are told by the arguments of their constructors, which are attributes, too.

    Raises:
        FileError: it can't be written.
        TypeError: a value of another class.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[Any]] = {}
    trees = [_told(record, arrays, f"{number}.", tuple(classes)) for number, record in enumerate(records)]
    text = json.dumps({"format": _FORMAT, "head": dict(head), "records": trees})
    with guarded(path, "can't be written"):
        save_file(arrays, path, metadata={_KEY: text})


def read_head(path: Path) -> dict[str, Any]:
    """The head of a file, without its arrays.

    Raises:
        FileError: it isn't there, or isn't such a file.
    """
    head: dict[str, Any] = _reading(path, lambda file, told: told["head"])
    return head


def read_record(path: Path, number: int, classes: Sequence[type] = ()) -> Any:
    """One of a file's records, of which alone the arrays are read.

    Args:
        classes: that it may be made of.

    Raises:
        FileError: it isn't there, isn't such a file, or holds a class that isn't listed.
    """
    known = {one.__name__: one for one in classes}
    return _reading(path, lambda file, told: _made(told["records"][number], file.get_tensor, known))


def _reading(path: Path, use: Callable[[Any, dict[str, Any]], Any]) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileError(path, "no such file")
    try:
        with safe_open(path, "numpy") as file:
            told = json.loads((file.metadata() or {})[_KEY])
            if told["format"] != _FORMAT:
                raise ValueError(f"format: expected {_FORMAT}, got {told['format']}")
            return use(file, told)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise FileError(path, f"damaged: {error}", _WAY_OUT) from error


def _told(value: Any, arrays: dict[str, NDArray[Any]], prefix: str, classes: tuple[type, ...]) -> Any:
    """A value as JSON can hold it; arrays go to `arrays`."""

    def told(one: Any) -> Any:
        return _told(one, arrays, prefix, classes)

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | Tensor):
        name, tensor = f"{prefix}{len(arrays)}", isinstance(value, Tensor)
        arrays[name] = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, order="C")
        return {_KIND: "tensor" if tensor else "array", "name": name}
    if isinstance(value, list):
        return [told(one) for one in value]
    if isinstance(value, tuple):
        return {_KIND: "tuple", "items": [told(one) for one in value]}
    if isinstance(value, Mapping):
        return {_KIND: "mapping", "items": [[told(name), told(one)] for name, one in value.items()]}
    if type(value) in classes:
        fields = {name: told(getattr(value, name)) for name in inspect.signature(type(value)).parameters}
        return {_KIND: "record", "class": type(value).__name__, "fields": fields}
    raise TypeError(f"{type(value).__name__}: expected one of {', '.join(one.__name__ for one in classes)}")


def _made(told: Any, read: Callable[[str], NDArray[Any]], classes: Mapping[str, type]) -> Any:
    """A value from what `_told` says of it."""

    def made(one: Any) -> Any:
        return _made(one, read, classes)

    if isinstance(told, list):
        return [made(one) for one in told]
    if not isinstance(told, dict):
        return told
    kind = told[_KIND]
    if kind == "array":
        return read(told["name"])
    if kind == "tensor":
        return torch.from_numpy(read(told["name"]))
    if kind == "tuple":
        return tuple(made(one) for one in told["items"])
    if kind == "mapping":
        return {made(name): made(one) for name, one in told["items"]}
    if kind != "record" or told["class"] not in classes:
        raise ValueError(f"expected records of {', '.join(classes)}, got {told.get('class', kind)}")
    return classes[told["class"]](**{name: made(one) for name, one in told["fields"].items()})

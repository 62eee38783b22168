"""What is said of a word that isn't among those that there are."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from voxelry.core.errors import SettingError, VoxelryError

__all__ = ["check_choice", "unknown_choice"]


def check_choice(field: str, value: Any, choices: Iterable[Any], error: type[VoxelryError] = SettingError) -> None:
    """Refuse a value that is none of the choices.

    Args:
        field: whose value it is, with its file where it has one: how the message begins.
        value: as it was given.
        choices: in the order to be named.
        error: the class of the error.

    Raises:
        error: names the field, all choices and, for a word, the nearest of them.
    """
    known = list(choices)
    if value not in known:
        raise unknown_choice(field, value, known, error)


def unknown_choice(
    field: str, value: Any, choices: Iterable[Any], error: type[VoxelryError] = SettingError
) -> VoxelryError:
    """The error of `check_choice`, for where a look-up has found nothing."""
    known = [str(choice) for choice in choices]
    near = get_close_matches(value, known, n=1) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return error(f"{field}: expected one of {', '.join(known) or 'none'}, got {value!r}{hint}")

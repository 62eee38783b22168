"""Flags of `voxelry predict` that the tasks declare, see `tasks.options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from voxelry.core.errors import SettingError
from voxelry.core.option import Option
from voxelry.tasks.options import OPTIONS

__all__ = ["flagged", "read_asked", "with_options"]


def declared() -> dict[str, dict[str, Option]]:
    """By the name of each option, the tasks that take it and what they say of it."""
    found: dict[str, dict[str, Option]] = {}
    for task, options in OPTIONS.items():
        for option in options:
            found.setdefault(option.name, {})[task] = option
    return found


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each declared option in place of its `**` keywords."""
    given = inspect.signature(command, eval_str=True)
    parameters = [one for one in given.parameters.values() if one.kind is not one.VAR_KEYWORD]
    for name, tasks in declared().items():
        first = next(iter(tasks.values()))
        kind: Any = list[first.type] if first.repeated else first.type  # type: ignore[name-defined]
        annotation = Annotated[kind | None, typer.Option(help=_help(tasks))]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _help(tasks: Mapping[str, Option]) -> str:
    """What each task says of an option, those that say the same together."""
    said: dict[str, list[str]] = {}
    for task, option in tasks.items():
        said.setdefault(option.help, []).append(task)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in said.items()) + "."


def read_asked(asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Values of the flags as a prediction takes them, and the images that flags name in place of an input.

    Raises:
        SettingError: a value of another form.
    """
    values: dict[str, Any] = {}
    files: dict[str, list[Path]] = {}
    for name, tasks in declared().items():
        option = next(iter(tasks.values()))
        if asked.get(name) is None:
            continue
        values[name] = asked[name] if option.read is None else option.read(asked[name])
        if option.files is not None:
            files[name] = option.files(values[name])
    return values, files


def flagged(check: Callable[[Mapping[str, Any]], Any], options: Mapping[str, Any]) -> None:
    """Check options, and name one that is refused as it was typed.

    Raises:
        SettingError: what the check says, with two dashes before it.
    """
    try:
        check(options)
    except SettingError as error:
        raise SettingError(f"--{error}") from None

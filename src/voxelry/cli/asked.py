"""Flags of `voxelry predict` that the tasks declare, see `tasks.options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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


def read_asked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the flags as a prediction takes them.

    Raises:
        SettingError: a value of another form.
    """
    values: dict[str, Any] = {}
    for name, tasks in declared().items():
        read = next(iter(tasks.values())).read
        if asked.get(name) is not None:
            values[name] = asked[name] if read is None else read(asked[name])
    return values


@contextmanager
def flagged() -> Iterator[None]:
    """Have an option that is refused named as it was typed.

    Raises:
        SettingError: what is raised within, with two dashes before it where that is a flag.
    """
    try:
        yield
    except SettingError as error:
        if str(error).partition(":")[0] in declared():
            raise SettingError(f"--{error}") from None
        raise

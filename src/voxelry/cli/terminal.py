"""What every command shares: the application itself, its progress bar, where a bundle lies, what is set anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from voxelry.core.errors import SettingError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["app", "bundle_folder", "progress", "read_changes", "read_spacing"]

app = typer.Typer(
    name="voxelry",
    help="Deep learning on biomedical images and volumes, in patient millimetres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def bundle_folder(path: Path) -> Path:
    """The bundle itself, or that of the run in this folder."""
    return path / "bundle" if (path / "bundle").is_dir() else path


def read_changes(texts: list[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` texts of `--set` as a mapping; values are read as YAML's plain numbers, words and lists.

    Raises:
        SettingError: a text of another form.
    """
    import yaml

    changes = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        try:
            changes[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not value.strip():
            raise SettingError(f"--set: expected NAME=VALUE such as task.tile_size=192, got {text!r}")
    return changes


def read_spacing(text: str) -> float | list[float]:
    """mm per voxel, one number or one per axis in array order.

    Raises:
        SettingError: no numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(f"--spacing: expected mm such as 0.8 or 0.8,0.7, got {text!r}") from None
    return values[0] if len(values) == 1 else values


@contextmanager
def progress(text: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr, silent when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        yield bar, bar.add_task(text, total=total)

"""What every command shares: the application itself, its progress bar, where a bundle lies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["app", "bundle_folder", "progress"]

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


@contextmanager
def progress(text: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr, silent when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        yield bar, bar.add_task(text, total=total)

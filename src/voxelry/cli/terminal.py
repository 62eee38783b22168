"""What every command shares: the application itself, its progress bar, where a bundle lies, what is set anew."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.remote import as_path

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = [
    "Adapter",
    "Adapters",
    "Bundle",
    "Device",
    "ImageOptions",
    "LabelOptions",
    "Layout",
    "PointOptions",
    "Rank",
    "Settings",
    "Spacing",
    "app",
    "progress",
    "read_changes",
    "read_file_options",
    "read_options",
    "read_spacing",
]

_OPTION_HELP = (
    "What the images don't say: NAME=VALUE of dataset, spacing, channel, channel_axis, ndim, stack; repeatable."
)
_ADAPTER_HELP = "An adapter of that bundle, where its task has them, or the folder of the run that trained it."
_ADAPTERS_HELP = (
    "An adapter of that bundle, or the folder of the run that trained it; repeatable, the first one answers."
)
_DEVICE_HELP = "cpu, cuda, cuda:1; by default a GPU when there is one."
_LABEL_HELP = f"{_OPTION_HELP} label_dataset=NAME is for labels."
_LAYOUT_HELP = "auto, volumes, nnunet, totalsegmentator, hdf5, prepared and others, see docs/data.md."
_POINT_HELP = "What the landmark files don't say: axis_order=zyx or coordinate_system=LPS."
_SET_HELP = "A setting of use, such as task.tile_size=[96,192,192] or task.score_threshold=0.3; as often as needed."
_SPACING_HELP = "mm per voxel of a file that doesn't say or is wrong: 0.8, or one per axis."

# Options of several commands.
Adapter = Annotated[Path | None, typer.Option(parser=as_path, metavar="<path>", help=_ADAPTER_HELP)]
Adapters = Annotated[
    list[Path] | None, typer.Option("--adapter", parser=as_path, metavar="<path>", help=_ADAPTERS_HELP)
]
Bundle = Annotated[Path, typer.Option(parser=as_path, metavar="<path>", help="A bundle, or the folder of a run.")]
Device = Annotated[str | None, typer.Option(help=_DEVICE_HELP)]
ImageOptions = Annotated[list[str] | None, typer.Option(help=_OPTION_HELP)]
LabelOptions = Annotated[list[str] | None, typer.Option(help=_LABEL_HELP)]
Layout = Annotated[str, typer.Option(help=_LAYOUT_HELP)]
PointOptions = Annotated[list[str] | None, typer.Option(help=_POINT_HELP)]
Rank = Annotated[int, typer.Option(min=2, max=3, help="Rank of the images.")]
Settings = Annotated[list[str] | None, typer.Option(help=_SET_HELP)]
Spacing = Annotated[str | None, typer.Option(help=_SPACING_HELP)]

app = typer.Typer(
    name="voxelry",
    help="Deep learning on biomedical images and volumes, in patient millimetres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def read_changes(
    texts: list[str] | None, flag: str = "--set", example: str = "task.tile_size=192", known: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`NAME=VALUE` texts of a flag as a mapping; values are read as YAML's plain numbers, words and lists.

    Args:
        flag, example: for the message.
        known: the names there are; any where it is empty.

    Raises:
        SettingError: a text of another form, or a name that isn't known.
    """
    import yaml

    changes = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        try:
            changes[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            equals = ""
        if not equals or not value.strip():
            raise SettingError(f"{flag}: expected NAME=VALUE such as {example}, got {text!r}")
        if known:
            check_choice(flag, name.strip(), known)
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


def read_options(option: list[str] | None) -> dict[str, Any]:
    """What `--option` says about images with labels."""
    from voxelry.io import IMAGE_OPTIONS

    return read_changes(option, "--option", "channel_axis=0", (*IMAGE_OPTIONS, "label_dataset"))


def read_file_options(option: list[str] | None, point_option: list[str] | None) -> dict[str, dict[str, Any]]:
    """What `--option` and `--point-option` say about the files of a dataset, as keywords of `find_cases`."""
    from voxelry.io import POINT_OPTIONS

    return {
        "options": read_options(option),
        "point_options": read_changes(point_option, "--point-option", "axis_order=zyx", POINT_OPTIONS),
    }


@contextmanager
def progress(text: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr; where that is no terminal, a line every so often."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    watched = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not watched) as bar:
        job = bar.add_task(text, total=total)
        with nullcontext() if watched else _told(bar, job):
            yield bar, job


@contextmanager
def _told(bar: Progress, job: TaskID, seconds: float = 30.0) -> Iterator[None]:
    """Write how far a job is, every so many seconds for as long as the block takes."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(seconds):
            task = next(task for task in bar.tasks if task.id == job)
            whole = "" if task.total is None else f" of {task.total:.0f}"
            print(f"{task.description}: {task.completed:.0f}{whole}", file=sys.stderr)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()

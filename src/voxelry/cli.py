"""The `voxelry` command.

Nothing heavy is imported here: every command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxelry.core.errors import ConfigError, VoxelryError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["app", "main"]

app = typer.Typer(
    name="voxelry",
    help="Deep learning on biomedical images and volumes, in patient millimetres.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class LandmarkFormat(StrEnum):
    """Formats that landmarks are written in."""

    mrk = "mrk.json"
    fcsv = "fcsv"
    csv = "csv"
    json = "json"
    txt = "txt"


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Deep learning on biomedical images and volumes, in patient millimetres."""
    if version:
        import voxelry

        print(f"voxelry {voxelry.__version__}")
        raise typer.Exit


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[HYDRA OVERRIDES]",
)
def train(context: typer.Context) -> None:
    """Train: voxelry train experiment=landmarks_3d data.root=DIR (--config FILE.json for a seed's file).

    Everything after `train` is Hydra's: overrides, --multirun, --cfg job, --help.
    """
    from voxelry.engine.launch import launch, launch_file

    arguments = list(context.args)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in arguments if argument != "--debug"]
    for position, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-c") and argument != "--cfg":
            rest = arguments[:position] + arguments[position + 1 :]
            if not value:
                if position >= len(rest):
                    raise ConfigError("--config: expected a file after it")
                value = rest.pop(position)
            launch_file(Path(value), rest, debug=debug)
            return
    launch(arguments, debug=debug)


@app.command()
def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Files, folders, DICOM series, or a .txt list of them.")],
    model: Annotated[Path, typer.Option(help="A bundle, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the predictions.")],
    format: Annotated[LandmarkFormat, typer.Option(help="How landmarks are written.")] = LandmarkFormat.mrk,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU when there is one.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Which array of an HDF5 or zarr file, or which DICOM series.")
    ] = None,
) -> None:
    """Predict for images; outputs lie in the input's own world."""
    from voxelry.engine.model import load
    from voxelry.engine.predict import gather_inputs, predict_files
    from voxelry.engine.writers import writer_for

    paths = gather_inputs(inputs)
    loaded = load(_bundle(model), device)
    write = writer_for(loaded.task_name, format.value)
    options = {} if dataset is None else {"dataset": dataset}
    with _progress("predicting", len(paths)) as (bar, job):
        outcome = predict_files(
            loaded, paths, out, write=write, options=options, progress=lambda path: bar.advance(job)
        )
    for _, reason in outcome.failed:
        print(f"voxelry: error: {reason}", file=sys.stderr)
    print(f"{len(outcome.written)} of {len(paths)} predicted" + (f"; written to {out}" if outcome.written else ""))
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with volumes/ and landmarks/, or another layout.")],
    model: Annotated[Path, typer.Option(help="A bundle, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics and report.")] = Path("evaluation"),
    layout: Annotated[str, typer.Option(help="auto, volumes, chest, hand, cephalometric.")] = "auto",
    cases: Annotated[Path | None, typer.Option(help="A list of case names; by default all of them.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU when there is one.")] = None,
) -> None:
    """Measure a model on labelled data: metrics per case, a summary and a report."""
    from voxelry.engine.model import load
    from voxelry.engine.report import evaluate_folder

    loaded = load(_bundle(model), device)
    with _progress("evaluating", None) as (bar, job):

        def advance(total: int) -> None:
            bar.update(job, total=total, advance=1)

        summary, report = evaluate_folder(loaded, data, out, layout=layout, cases=cases, progress=advance)
    for name, value in summary.items():
        print(f"{name:32} {value:.4g}")
    print(f"report: {report}")


@app.command()
def doctor(path: Annotated[Path, typer.Argument(help="A file, a folder of images or a dataset.")]) -> None:
    """Show what is in a dataset and what is wrong with it; exit status 1 when something is."""
    from rich.console import Console

    from voxelry.data.doctor import inspect, render

    with _progress("reading", None) as (bar, job):
        diagnosis = inspect(path, progress=lambda done, total: bar.update(job, total=total, completed=done))
    Console(soft_wrap=not sys.stdout.isatty()).print(render(diagnosis))
    if diagnosis.wrong:
        raise typer.Exit(1)


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    count: Annotated[int, typer.Option(min=1, help="How many cases.")] = 20,
    ndim: Annotated[int, typer.Option(min=2, max=3, help="Rank of the images.")] = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same cases.")] = 0,
    size: Annotated[int, typer.Option(min=16, help="Voxels along the longest axis.")] = 64,
    format: Annotated[str, typer.Option(help="Suffix of the images, such as .nii.gz, .mha, .npy, .png.")] = ".nii.gz",
    landmarks: Annotated[LandmarkFormat, typer.Option(help="How landmarks are written; txt has no names.")] = (
        LandmarkFormat.txt
    ),
) -> None:
    """Make anatomy-like images with exact landmarks, labels and instances."""
    from voxelry.data.phantoms import write_phantoms

    written = write_phantoms(
        out, count, seed=seed, ndim=ndim, shape=(size,) * ndim, format=format, landmark_format=landmarks.value
    )
    print(f"{count} phantoms in {written}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    ndim: Annotated[int, typer.Option(min=2, max=3, help="Rank of the images.")] = 3,
) -> None:
    """Phantoms, a short pretraining, fine-tuning on few labels, predictions, a report: a few minutes on a laptop."""
    from voxelry.engine.demo import run_demo

    report = run_demo(out, ndim=ndim)
    print(f"report: {report}")


def _bundle(path: Path) -> Path:
    return path / "bundle" if (path / "bundle").is_dir() else path


@contextmanager
def _progress(text: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar on stderr, silent when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        yield bar, bar.add_task(text, total=total)


def main() -> None:
    """Run the command; errors that a user caused are one line, exit status 1."""
    try:
        app()
    except VoxelryError as error:
        if "--debug" in sys.argv:
            raise
        print(f"voxelry: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("voxelry: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

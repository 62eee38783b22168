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

from voxelry.core.errors import ConfigError, SettingError, VoxelryError

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


class PhantomKind(StrEnum):
    """What phantoms show."""

    torso = "torso"
    nuclei = "nuclei"


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
    format: Annotated[
        str | None,
        typer.Option(
            help="landmarks: mrk.json, fcsv, csv, json, txt; segment: nii.gz, ome.zarr, tif; by default the first."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU when there is one.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Which array of an HDF5 or zarr file, or which DICOM series.")
    ] = None,
) -> None:
    """Predict for images; outputs lie in the input's own world."""
    from voxelry.engine.model import load
    from voxelry.engine.predict import gather_inputs, predict_files

    paths = gather_inputs(inputs)
    loaded = load(_bundle(model), device)
    options = {} if dataset is None else {"dataset": dataset}
    with _progress("predicting", len(paths)) as (bar, job):
        within = bar.add_task("tiles", total=None, visible=False)

        def done(path: Path) -> None:
            bar.advance(job)
            bar.update(within, visible=False)

        def tile(path: Path, count: int, total: int) -> None:
            if count == 1:
                bar.reset(within, total=total, description=f"tiles of {path.name}", visible=True)
            bar.update(within, completed=count)

        outcome = predict_files(loaded, paths, out, format=format, options=options, progress=done, tiles=tile)
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
    kind: Annotated[PhantomKind, typer.Option(help="torso: with landmarks, labels, instances; nuclei: instances.")] = (
        PhantomKind.torso
    ),
) -> None:
    """Make images of invented torsos or nuclei, of which everything is known exactly."""
    from voxelry.data.phantoms import write_phantoms

    written = write_phantoms(
        out,
        count,
        seed=seed,
        ndim=ndim,
        shape=(size,) * ndim,
        format=format,
        landmark_format=landmarks.value,
        kind=kind.value,
    )
    print(f"{count} phantoms in {written}")


@app.command()
def index(
    source: Annotated[str, typer.Argument(help="A folder of images, or the address of a metadata database.")],
    out: Annotated[Path, typer.Option(help="The index to build or to bring up to date.")],
    crop_size: Annotated[str, typer.Option(help="Voxels, one number or one per axis: 64 or 32,64,64.")] = "64",
    overlap: Annotated[str, typer.Option(help="Voxels that neighbouring crops share.")] = "0",
    layout: Annotated[str, typer.Option(help="auto, volumes, hdf5 and others, see the README.")] = "auto",
    where: Annotated[list[str] | None, typer.Option(help="Only images that meet this, such as volume>=8000.")] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Channels per crop; by default all.")] = None,
    pad: Annotated[str, typer.Option(help="What crops larger than their image are filled with.")] = "error",
    min_volume: Annotated[float, typer.Option(min=0, help="Smaller objects, in voxels, don't count.")] = 0.0,
    min_objects: Annotated[int, typer.Option(min=0, help="Crops that show fewer are left out.")] = 1,
    min_visible: Annotated[float, typer.Option(min=0, max=1, help="Share of an object's box in the crop.")] = 0.0,
    bad_boxes: Annotated[str, typer.Option(help="error, or drop boxes that are NaN, empty or outside.")] = "error",
    statistics: Annotated[bool, typer.Option(help="Read intensities, which normalisation needs.")] = True,
    table: Annotated[str, typer.Option(help="The database's table of images.")] = "annotations",
    boxes_table: Annotated[str, typer.Option(help="The database's table of boxes.")] = "boxes",
    root: Annotated[Path | None, typer.Option(help="Folder that relative paths of the database are in.")] = None,
    on_error: Annotated[str, typer.Option(help="raise, or skip images that can't be read.")] = "raise",
) -> None:
    """Index all crops of a collection, for data=crops; goes on where a killed run stopped."""
    from voxelry.engine.index import build_index

    with _progress("indexing", None) as (bar, job):
        summary = build_index(
            source,
            out,
            crop_size=_voxels(crop_size, "crop-size"),
            overlap=_voxels(overlap, "overlap"),
            layout=layout,
            selection=where,
            channels=channels,
            pad=pad,
            min_volume=min_volume,
            min_objects=min_objects,
            min_visible=min_visible,
            bad_boxes=bad_boxes,
            statistics=statistics,
            table=table,
            boxes_table=boxes_table,
            root=root,
            on_error=on_error,
            progress=lambda done, total, name: bar.update(job, total=total, completed=done),
            say=lambda line: print(f"voxelry: {line}", file=sys.stderr),
        )
    print(summary.render())


def _voxels(text: str, name: str) -> int | list[int]:
    """`64`, or `32,64,64`."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(f"--{name}: expected whole numbers such as 64 or 32,64,64, got {text!r}") from None
    return values[0] if len(values) == 1 else values


class DemoTask(StrEnum):
    """What a demo is about."""

    landmarks = "landmarks"
    segment = "segment"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    ndim: Annotated[int, typer.Option(min=2, max=3, help="Rank of the images.")] = 3,
    task: Annotated[DemoTask, typer.Option(help="What is learned.")] = DemoTask.landmarks,
) -> None:
    """Phantoms, a short training, predictions for images not seen before, a report: a few minutes on a laptop."""
    from voxelry.engine.demo import run_demo

    report = run_demo(out, task=task.value, ndim=ndim)
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

"""Commands that make and use models: train, predict, evaluate, demo."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voxelry.cli.asked import flagged, read_asked, with_options
from voxelry.cli.terminal import (
    Adapter,
    Bundle,
    Device,
    ImageOptions,
    LabelOptions,
    Layout,
    PointOptions,
    Rank,
    Settings,
    Spacing,
    app,
    progress,
    read_changes,
    read_file_options,
    read_spacing,
)
from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError, SettingError
from voxelry.core.remote import as_path

if TYPE_CHECKING:
    from voxelry.engine.keeper import Pool
    from voxelry.engine.outcome import Outcome

__all__ = ["demo", "evaluate", "import_weights", "predict", "rerun", "train"]

Launcher = Annotated[str, typer.Option(help="local: this process; ray: several, here or on a cluster.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes of --launcher ray; by default 2.")]
LauncherOptions = Annotated[
    list[str] | None,
    typer.Option(help="A setting of ray such as cpus_per_worker=4, see docs/scaling.md; as often as needed."),
]
JobReport = Annotated[
    Path | None,
    typer.Option(parser=as_path, metavar="<path>", help="A table of what became of each file: .csv, .json or .html."),
]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[HYDRA OVERRIDES]",
)
def train(context: typer.Context) -> None:
    """Train: voxelry train experiment=landmarks_3d data.root=DIR (--config FILE.json for a file of the originals).

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


def predict(
    model: Bundle,
    out: Annotated[Path, typer.Option(parser=as_path, metavar="<path>", help="Folder for the predictions.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=as_path, help="Files, folders, DICOM series, or a .txt list of them; also s3://, gs://, https://."
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Suffix of what is written, of those that the task has; by default its first.")
    ] = None,
    device: Device = None,
    dataset: Annotated[
        str | None, typer.Option(help="Which array of an HDF5 or zarr file, or which DICOM series.")
    ] = None,
    channel: Annotated[
        int | None, typer.Option(help="Which channel or time point, from 0, of an image with several.")
    ] = None,
    spacing: Spacing = None,
    adapter: Adapter = None,
    option: ImageOptions = None,
    set: Settings = None,
    launcher: Launcher = "local",
    workers: Workers = None,
    launcher_option: LauncherOptions = None,
    job_report: JobReport = None,
    **asked: Any,
) -> None:
    """Predict for images; outputs lie in the input's own world. What is there already is kept, see docs/scaling.md."""
    from voxelry.bundle.model import load
    from voxelry.engine.inputs import gather_inputs
    from voxelry.engine.outcome import check_job_report, write_job_report
    from voxelry.engine.predict import predict_files
    from voxelry.io import IMAGE_OPTIONS

    if job_report is not None:
        check_job_report(job_report)
    own = read_asked(asked)
    with flagged():
        paths = gather_inputs(inputs or [], own)
    source: dict[str, Any] = {"path": model, "device": device, "changes": read_changes(set), "adapter": adapter}
    pool = _pool(launcher, workers, read_changes(launcher_option, "--launcher-option", "cpus_per_worker=4"), source)
    loaded = load(**source if pool is None else source | {"device": "cpu"})
    reader = {"dataset": dataset, "channel": channel, "spacing": None if spacing is None else read_spacing(spacing)}
    reading = read_changes(option, "--option", "channel_axis=0", IMAGE_OPTIONS)
    options = own | reading | {name: value for name, value in reader.items() if value is not None}
    with flagged(), _file_by_file(len(paths)) as watched:
        outcome = predict_files(loaded, paths, out, format=format, options=options, pool=pool, **watched)
    if job_report is not None:
        write_job_report(job_report, outcome.rows)
    _tell(outcome, out, "predicted")


@contextmanager
def _file_by_file(count: int) -> Iterator[dict[str, Callable[..., None]]]:
    """A progress bar for files, and one for the tiles of a large one: what `predict_files` calls."""
    with progress("predicting", count) as (bar, job):
        within = bar.add_task("tiles", total=None, visible=False)

        def done(path: Path) -> None:
            bar.advance(job)
            bar.update(within, visible=False)

        def tile(path: Path, count: int, total: int) -> None:
            if count == 1:
                bar.reset(within, total=total, description=f"tiles of {path.name}", visible=True)
            bar.update(within, completed=count)

        yield {"progress": done, "tiles": tile}


def _tell(outcome: Outcome, out: Path, done: str) -> None:
    """What became of the files; exit status 1 where one failed."""
    for _, reason in outcome.failed:
        print(f"voxelry: error: {reason}", file=sys.stderr)
    for note in outcome.notes:
        print(f"voxelry: {note}", file=sys.stderr)
    before = f", {len(outcome.kept)} of them before" if outcome.kept else ""
    where = f"; written to {out}" if outcome.written else ""
    print(f"{len(outcome.written)} of {len(outcome.rows)} {done}{before}{where}")
    if outcome.failed:
        raise typer.Exit(1)


def _pool(launcher: str, workers: int | None, options: dict[str, Any], source: dict[str, Any]) -> Pool | None:
    """Who predicts; None: this process.

    Raises:
        SettingError: no such launcher, or settings that it doesn't have.
    """
    from voxelry.engine.ray_pool import RayPool

    check_choice("--launcher", launcher, ("local", "ray"))
    if launcher == "ray":
        return RayPool(source, **{"num_workers": workers or 2, **options})
    if workers is not None or options:
        flag = "--launcher-option" if workers is None else "--workers"
        raise SettingError(f"{flag}: expected with --launcher ray")
    return None


app.command()(with_options(predict))


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Argument(parser=as_path, help="Folder with volumes/ and landmarks/, or another layout.")
    ],
    model: Bundle,
    out: Annotated[Path, typer.Option(parser=as_path, metavar="<path>", help="Folder for metrics and report.")] = Path(
        "evaluation"
    ),
    layout: Layout = "auto",
    cases: Annotated[
        Path | None,
        typer.Option(parser=as_path, metavar="<path>", help="A list of case names; else all of them."),
    ] = None,
    adapter: Adapter = None,
    device: Device = None,
    option: LabelOptions = None,
    point_option: PointOptions = None,
    set: Settings = None,
    launcher: Launcher = "local",
    workers: Workers = None,
    launcher_option: LauncherOptions = None,
    job_report: JobReport = None,
) -> None:
    """Measure a model on labelled data: metrics per case, a summary and a report. What is measured already is kept."""
    from voxelry.bundle.model import load
    from voxelry.engine.cases import NothingMeasuredError
    from voxelry.engine.outcome import check_job_report, write_job_report
    from voxelry.engine.report import PAGE, evaluate_folder

    if job_report is not None:
        check_job_report(job_report)
    reading: dict[str, Any] = read_file_options(option, point_option)
    source: dict[str, Any] = {"path": model, "device": device, "changes": read_changes(set), "adapter": adapter}
    pool = _pool(launcher, workers, read_changes(launcher_option, "--launcher-option", "cpus_per_worker=4"), source)
    loaded = load(**source if pool is None else source | {"device": "cpu"})
    with progress("evaluating", None) as (bar, job):

        def advance(total: int) -> None:
            bar.update(job, total=total, advance=1)

        asked: dict[str, Any] = {"layout": layout, "cases": cases, "progress": advance, "pool": pool}
        try:
            found = evaluate_folder(loaded, data, out, **asked, **reading)
        except NothingMeasuredError as error:
            outcome = error.outcome
        else:
            outcome = found.outcome
    if job_report is not None:
        write_job_report(job_report, outcome.rows)
    if outcome.written:
        for name, value in found.summary.items():
            print(f"{name:32} {value:.4g}")
        print(f"report: {out / PAGE}")
    _tell(outcome, out, "measured")


@app.command()
def rerun(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the second run; by default beside it.")] = None,
) -> None:
    """Do a run again from its manifest and compare; exit status 1 where the weights differ."""
    from voxelry.engine.rerun import rerun as again

    found = again(run, out)
    for line in found.lines:
        print(line)
    print(f"{found.folder}: {'the same weights, bit for bit' if found.same else 'other weights'}")
    if not found.same:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    ndim: Rank = 3,
    task: Annotated[
        str, typer.Option(help="What is learned: landmarks, segment, reconstruct, translate or another package's task.")
    ] = "landmarks",
) -> None:
    """Phantoms, a short training, predictions for images not seen before, a report: a few minutes on a laptop."""
    from voxelry.demos.demo import run_demo

    report = run_demo(out, task=task, ndim=ndim)
    print(f"report: {report}")


@app.command()
def import_weights(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    source: Annotated[str, typer.Option("--from", help="The project that it is of: sam3d.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    organ: Annotated[int, typer.Option(help="Label value that the bundle is for.")] = 1,
    edge: Annotated[
        float, typer.Option(min=0.0, help="Edge of the organ's frame in mm, about twice its extent.")
    ] = 100.0,
    pose: Annotated[bool, typer.Option(help="Keep the latents of the pose and their parameters.")] = False,
    reader: Annotated[
        str, typer.Option(help="The new network that reads prompts: shape_tiny, shape_small, shape_base.")
    ] = "shape_small",
) -> None:
    """Make a bundle of another project's checkpoint folder; nothing in it is run."""
    from voxelry.engine.import_weights import import_weights as write

    for line in write(source, checkpoint, out, organ=organ, edge=edge, include_pose=pose, reader=reader):
        print(line)
    print(f"bundle: {out}")

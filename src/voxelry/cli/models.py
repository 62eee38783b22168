"""Commands that make and use models: train, predict, evaluate, demo."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from voxelry.cli.terminal import (
    LABEL_OPTION_HELP,
    OPTION_HELP,
    POINT_OPTION_HELP,
    app,
    progress,
    read_changes,
    read_file_options,
    read_spacing,
)
from voxelry.core.errors import ConfigError, SettingError

__all__ = ["demo", "evaluate", "predict", "train"]

ADAPTER_HELP = "reconstruct, reconstruct_flow: an adapter of that bundle, or the folder of the run that trained it."
SET_HELP = "A setting of use, such as task.tile_size=[96,192,192] or task.score_threshold=0.3; as often as needed."


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
    model: Annotated[Path, typer.Option(help="A bundle, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the predictions.")],
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="Files, folders, DICOM series, or a .txt list of them.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="landmarks: mrk.json, fcsv, csv, json, txt; segment: nii.gz, ome.zarr, tif; "
            "reconstruct: ply, stl, glb, obj; translate: nii.gz, mha, npy, ome.tif, ome.zarr, png; "
            "by default the first."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU when there is one.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Which array of an HDF5 or zarr file, or which DICOM series.")
    ] = None,
    channel: Annotated[
        int | None, typer.Option(help="Which channel or time point, from 0, of an image with several.")
    ] = None,
    click: Annotated[
        list[str] | None,
        typer.Option(help="reconstruct: x,y,z in RAS mm inside the organ, once per slice; column,row with --slice."),
    ] = None,
    plane: Annotated[
        list[str] | None,
        typer.Option(help="reconstruct: axial, coronal, sagittal, or a normal x,y,z; once, or once per click."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="reconstruct: the organ in the clicked slice, as an image.")] = None,
    slice: Annotated[Path | None, typer.Option(help="reconstruct: a single slice, without a volume.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="mm per voxel of a file that doesn't say or is wrong: 0.8, or one per axis.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="reconstruct: which organ, where a model knows several.")] = None,
    adapter: Annotated[Path | None, typer.Option(help=ADAPTER_HELP)] = None,
    steps: Annotated[
        int | None, typer.Option(help="translate: time steps to sample in, of those trained; reconstruct_flow.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="translate, reconstruct_flow: another sampler than the model's.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="translate, reconstruct_flow: so many, and their mean and spread."),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option(help="translate: NAME=FILE for each contrast there is, instead of an input; as often as needed."),
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help=OPTION_HELP)] = None,
    set: Annotated[list[str] | None, typer.Option(help=SET_HELP)] = None,
) -> None:
    """Predict for images; outputs lie in the input's own world."""
    from voxelry.bundle.model import load
    from voxelry.engine.predict import gather_inputs, predict_files
    from voxelry.io import IMAGE_OPTIONS

    contrasts = _contrasts(contrast)
    if contrasts and inputs:
        raise SettingError("--contrast: expected no input beside it")
    paths = gather_inputs([*(inputs or []), *([] if slice is None else [slice]), *list(contrasts.values())[:1]])
    loaded = load(model, device, changes=read_changes(set), adapter=adapter)
    prompt = {
        "click": _points(click),
        "plane": _planes(plane),
        "mask": mask,
        "slice": True if slice is not None else None,
        "label": label,
    }
    given = {name: value for name, value in prompt.items() if value is not None}
    if loaded.kind.prompted and click is None:
        raise SettingError("--click: expected x,y,z in RAS mm inside the organ (column,row with --slice)")
    if given and not loaded.kind.prompted:
        raise SettingError(f"--{next(iter(given))}: expected with a model for reconstruct, not {loaded.task_name}")
    sampling = {"steps": steps, "sampler": sampler, "samples": samples, "contrast": contrasts or None}
    way = {name: value for name, value in sampling.items() if value is not None}
    taken = {*loaded.kind.options, *(("contrast",) if loaded.task_name == "translate" else ())}
    if strange := [name for name in way if name not in taken]:
        wanted = "translate" if strange[0] == "contrast" else "translate or reconstruct_flow"
        raise SettingError(f"--{strange[0]}: expected with a model for {wanted}, not {loaded.task_name}")
    reader = {"dataset": dataset, "channel": channel, "spacing": None if spacing is None else read_spacing(spacing)}
    told = read_changes(option, "--option", "channel_axis=0", IMAGE_OPTIONS)
    options = given | way | told | {name: value for name, value in reader.items() if value is not None}
    with progress("predicting", len(paths)) as (bar, job):
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


def _points(texts: list[str] | None) -> list[list[float]] | None:
    from voxelry.tasks.reconstruct.prompt import read_points

    return [read_points(text, "--click") for text in texts] if texts else None


def _planes(texts: list[str] | None) -> str | list[float] | list[str | list[float]] | None:
    """One plane for all clicks, or one for each."""
    from voxelry.tasks.reconstruct.prompt import read_points

    planes = [read_points(text, "--plane") if "," in text else text for text in texts or ()]
    return planes[0] if len(planes) == 1 else planes or None


def _contrasts(texts: list[str] | None) -> dict[str, Path]:
    """`NAME=FILE` texts as a mapping."""
    found = {}
    for text in texts or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise SettingError(f"--contrast: expected NAME=FILE such as t1=scan.nii.gz, got {text!r}")
        found[name] = Path(path)
    return found


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with volumes/ and landmarks/, or another layout.")],
    model: Annotated[Path, typer.Option(help="A bundle, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics and report.")] = Path("evaluation"),
    layout: Annotated[str, typer.Option(help="auto, volumes, prepared, chest, hand, cephalometric.")] = "auto",
    cases: Annotated[Path | None, typer.Option(help="A list of case names; by default all of them.")] = None,
    adapter: Annotated[Path | None, typer.Option(help=ADAPTER_HELP)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU when there is one.")] = None,
    option: Annotated[list[str] | None, typer.Option(help=LABEL_OPTION_HELP)] = None,
    point_option: Annotated[list[str] | None, typer.Option(help=POINT_OPTION_HELP)] = None,
    set: Annotated[list[str] | None, typer.Option(help=SET_HELP)] = None,
) -> None:
    """Measure a model on labelled data: metrics per case, a summary and a report."""
    from voxelry.bundle.model import load
    from voxelry.engine.report import evaluate_folder

    reading = read_file_options(option, point_option)
    loaded = load(model, device, changes=read_changes(set), adapter=adapter)
    with progress("evaluating", None) as (bar, job):

        def advance(total: int) -> None:
            bar.update(job, total=total, advance=1)

        summary, report = evaluate_folder(loaded, data, out, layout=layout, cases=cases, progress=advance, **reading)
    for name, value in summary.items():
        print(f"{name:32} {value:.4g}")
    print(f"report: {report}")


class DemoTask(StrEnum):
    """What a demo is about."""

    landmarks = "landmarks"
    segment = "segment"
    reconstruct = "reconstruct"
    translation = "translate"  # `translate` is a method of every text


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    ndim: Annotated[int, typer.Option(min=2, max=3, help="Rank of the images.")] = 3,
    task: Annotated[DemoTask, typer.Option(help="What is learned.")] = DemoTask.landmarks,
) -> None:
    """Phantoms, a short training, predictions for images not seen before, a report: a few minutes on a laptop."""
    from voxelry.demos.demo import run_demo

    report = run_demo(out, task=task.value, ndim=ndim)
    print(f"report: {report}")

"""Commands that look at data and make it: doctor, plan, phantoms, index, prepare."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from voxelry.cli.terminal import (
    LabelOptions,
    Layout,
    PointOptions,
    Rank,
    Spacing,
    app,
    progress,
    read_file_options,
    read_options,
    read_spacing,
)
from voxelry.core.errors import SettingError
from voxelry.core.remote import as_path

__all__ = ["doctor", "index", "phantoms", "plan", "prepare"]


class PhantomKind(StrEnum):
    """What phantoms show."""

    torso = "torso"
    nuclei = "nuclei"
    organ = "organ"


class LandmarkFormat(StrEnum):
    """Formats that landmarks are written in."""

    mrk = "mrk.json"
    fcsv = "fcsv"
    csv = "csv"
    json = "json"
    txt = "txt"


@app.command()
def doctor(
    path: Annotated[Path, typer.Argument(parser=as_path, help="A file, a folder of images or a dataset.")],
    task: Annotated[
        str | None, typer.Option(help="Look for what keeps it from being trained: landmarks, segment, reconstruct, ...")
    ] = None,
    layout: Layout = "auto",
    target: Annotated[str | None, typer.Option(help="Of pairs: the folder that the others are to become.")] = None,
    option: LabelOptions = None,
    point_option: PointOptions = None,
) -> None:
    """Show what is in a dataset and what is wrong with it; exit status 1 when something is."""
    from rich.console import Console

    from voxelry.data.doctor.inspect import render
    from voxelry.engine.doctor import diagnose

    reading = read_file_options(option, point_option)
    with progress("reading", None) as (bar, job):
        diagnosis = diagnose(
            path,
            task=task,
            layout=layout,
            target=target,
            options=reading["options"],
            point_options=reading["point_options"],
            progress=lambda done, total: bar.update(job, total=total, completed=done),
        )
    Console(soft_wrap=not sys.stdout.isatty()).print(render(diagnosis))
    if diagnosis.wrong:
        raise typer.Exit(1)


@app.command()
def plan(
    data: Annotated[Path, typer.Argument(help="A dataset in one of the layouts, see docs/data.md.")],
    task: Annotated[str, typer.Option(help="What is to be learned: landmarks, segment, reconstruct, ...")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as of voxelry train, which the plan leaves as they are.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file for voxelry train plan=FILE, to be edited freely.")] = None,
) -> None:
    """Plan a training by its data and this machine: every setting, its value and why; nothing is trained."""
    from rich.console import Console

    from voxelry.engine.plan.plan import plan_folder
    from voxelry.engine.plan.table import render, summary
    from voxelry.engine.plan_file import write_plan

    with progress("reading", None) as (bar, job):
        planned = plan_folder(
            data,
            task,
            settings or (),
            progress=lambda done, total: bar.update(job, total=total, completed=done),
        )
    Console(soft_wrap=not sys.stdout.isatty()).print(render(planned))
    if out is not None:
        written = write_plan(out, planned.decisions, f"voxelry train plan={out}\n{summary(planned)}")
        print(f"plan: {written}")


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    count: Annotated[int, typer.Option(min=1, help="How many cases.")] = 20,
    ndim: Rank = 3,
    seed: Annotated[int, typer.Option(help="The same seed gives the same cases.")] = 0,
    size: Annotated[int, typer.Option(min=16, help="Voxels along the longest axis.")] = 64,
    format: Annotated[str, typer.Option(help="Suffix of the images, such as .nii.gz, .mha, .npy, .png.")] = ".nii.gz",
    landmarks: Annotated[LandmarkFormat, typer.Option(help="How landmarks are written; txt has no names.")] = (
        LandmarkFormat.txt
    ),
    kind: Annotated[
        PhantomKind, typer.Option(help="torso: landmarks, labels, instances; nuclei: instances; organ: labels.")
    ] = (PhantomKind.torso),
) -> None:
    """Make images of invented torsos, nuclei or organs, of which everything is known exactly."""
    from voxelry.phantoms import write_phantoms

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
    layout: Layout = "auto",
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
    box_edges: Annotated[
        str, typer.Option(help="Boxes of the database: voxel (one voxel at 5 is 4.5 to 5.5) or half_open (5 to 6).")
    ] = "voxel",
    root: Annotated[Path | None, typer.Option(help="Folder that relative paths of the database are in.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Which array of HDF5 or zarr files is the image.")] = None,
    label_dataset: Annotated[str | None, typer.Option(help="Which array of HDF5 files holds the ids.")] = None,
    spacing: Spacing = None,
    option: LabelOptions = None,
    digest: Annotated[str, typer.Option(help="Changed files are told by sampled blocks, or by the whole.")] = "sampled",
    on_error: Annotated[str, typer.Option(help="raise, or skip images that can't be read.")] = "raise",
) -> None:
    """Index all crops of a collection, for data=crops; goes on where a killed run stopped."""
    from voxelry.engine.index import build_index

    reader = {
        "dataset": dataset,
        "label_dataset": label_dataset,
        "spacing": None if spacing is None else read_spacing(spacing),
    }
    with progress("indexing", None) as (bar, job):
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
            box_edges=box_edges,
            digest=digest,
            root=root,
            options=read_options(option) | {name: value for name, value in reader.items() if value is not None},
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


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Option("--source", "--original_nifti_dir", help="Volumes and labels in a known layout.")
    ],
    out: Annotated[Path, typer.Option("--out", "--out_dir", help="Folder to fill; goes on where it stopped.")],
    layout: Layout = "auto",
    organs: Annotated[
        str | None, typer.Option(help="Of masks or segments with names: those to take, liver,spleen.")
    ] = None,
    channel: Annotated[int, typer.Option(min=0, help="Of images with several.")] = 0,
    axes: Annotated[str, typer.Option(help="Axes that slices are cut across: 0, 1, 2 for x, y, z.")] = "0,1,2",
    spacing: Annotated[float, typer.Option(help="mm, of the isotropic grid.")] = 1.0,
    classes: Annotated[int | None, typer.Option(min=1, help="Labels 1 to this; by default those found.")] = None,
    merge: Annotated[
        list[str] | None, typer.Option(help="Labels that count as one class, 1,2; once for each new class.")
    ] = None,
    modality: Annotated[str, typer.Option(help="auto, ct, mr, us.")] = "auto",
    window: Annotated[str, typer.Option(help="Of CT: default, a preset's name, or LOW,HIGH.")] = "default",
    slices: Annotated[
        str, typer.Option("--slices", "--slice_sampling_method", help="random_axis, uniform, central, all, oblique.")
    ] = "random_axis",
    oblique: Annotated[float, typer.Option(min=0, max=1, help="Share of oblique slices, of random_axis.")] = 0.0,
    slices_per_class: Annotated[int, typer.Option(min=1, help="Slices of each case and class.")] = 8,
    min_pixels: Annotated[int, typer.Option(min=1, help="Slices that show less of the organ are passed over.")] = 9,
    truncation: Annotated[float, typer.Option(help="mm at which signed distances are clipped.")] = 20.0,
    sdf: Annotated[
        str, typer.Option(help="boxes: of each class its own box; full: NAME_sdf.npy (C, D, H, W) as well.")
    ] = "boxes",
    register: Annotated[
        Path | None, typer.Option(help="A template that every scan is brought onto; shapes and slices lie on its grid.")
    ] = None,
    transform: Annotated[str, typer.Option(help="How it is brought there: rigid or affine.")] = "rigid",
    meshes: Annotated[bool, typer.Option(help="Write surfaces as PLY.")] = True,
    smooth: Annotated[int, typer.Option(min=0, help="Rounds of smoothing of the surfaces.")] = 10,
    option: LabelOptions = None,
    seed: Annotated[int, typer.Option(help="Of random slices and clicks.")] = 0,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; by default one per core.")] = None,
    on_error: Annotated[str, typer.Option(help="raise, or skip cases that can't be prepared.")] = "raise",
) -> None:
    """Prepare labelled volumes for reconstruct: shapes, meshes, slices with clicks, and a page to look at."""
    from voxelry.engine.prepare import prepare as run

    with progress("preparing", None) as (bar, job):
        summary = run(
            source,
            out,
            layout=layout,
            organs=None if organs is None else [name.strip() for name in organs.split(",")],
            channel=channel,
            axes=_numbers(axes, "axes"),
            spacing=spacing,
            classes=classes,
            merge=None if merge is None else [_numbers(group, "merge") for group in merge],
            modality=modality,
            window=_window(window),
            slices=slices,
            slices_per_class=slices_per_class,
            oblique=oblique,
            sdf=sdf,
            register=None if register is None else str(register),
            transform=transform,
            min_pixels=min_pixels,
            truncation=truncation,
            meshes=meshes,
            smooth=smooth,
            options=read_options(option),
            seed=seed,
            workers=workers,
            on_error=on_error,
            progress=lambda done, total, name: bar.update(job, total=total, completed=done),
        )
    print(summary.render())
    if summary.faults:
        raise typer.Exit(1)


def _numbers(text: str, name: str) -> list[int]:
    """`1`, or `1,2`."""
    found = _voxels(text, name)
    return found if isinstance(found, list) else [found]


def _window(text: str) -> str | list[float]:
    """A preset's name, or `-1000,2000`."""
    parts = text.split(",")
    if len(parts) != 2:
        return text
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise SettingError(f"--window: expected a preset's name or LOW,HIGH, got {text!r}") from None

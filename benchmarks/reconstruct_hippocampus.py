"""Hippocampus from one click on one slice: Dice by plane, by number of slices, with and without the slice's mask.

    python benchmarks/reconstruct_hippocampus.py --minutes 25 --bundle runs/hippocampus_shape
    python benchmarks/reconstruct_hippocampus.py --lora --minutes 25 --adapt-minutes 4

Both labels are one organ. The split is 80/20 by case, by seed; every prompt of the table is a random click inside of
the organ on a random slice that shows it, however little of it. Time is the wall clock of the training loop.

A prompt tells where the volume lies that its slice is from. These volumes were cut out around the organ, so that alone
says where its middle is, to 1 mm along each axis; the rows `no volume` are without it, as for a picture of a slice.

`--lora` trains a base on phantoms of one organ and adapts it to 10 cases, beside the same 10 cases from scratch. The
two stages of SAM 3D Objects are in `sam3d_hippocampus.py`.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.card import model_card
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.data.slices.augment import SliceAugment
from voxelry.data.slices.case import SliceBatch, collate_slices
from voxelry.data.slices.dataset import SliceDataset
from voxelry.data.slices.sources import VolumeSlices
from voxelry.data.splits import few_shot, split_cases
from voxelry.models.adapters.adapters import Adapters, AdapterSettings
from voxelry.models.shape import ShapeNet
from voxelry.phantoms import write_phantoms
from voxelry.tasks.base import Row
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.reconstruct import ReconstructPrediction, ReconstructTask, report
from voxelry.tasks.reconstruct.targets import mean_shape, organ_shapes
from voxelry.viz.report import Report

DATA = Path(os.environ.get("VOXELRY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
ORGAN = (1, 2)
MARGIN = 2.0
ADAPTED = r"(.*\.)?(conv2|resample|down)"  # of all convolutions so many that an adapter stays below 5 % of the base
PLANES = ("sagittal", "coronal", "axial")
PRIOR_GRID = 40


def slices_of(cases: Sequence[Case], organ: Sequence[int] = ORGAN) -> VolumeSlices:
    """Cases in memory."""
    preprocess = Preprocess(normalise="percentile", align="auto")
    return VolumeSlices(VolumeDataset(cases, preprocess=preprocess, need=("labels",), cache="memory"))


def training_data(
    source: VolumeSlices, organ: Sequence[int], arguments: argparse.Namespace, *, slices: int | None = None
) -> SliceDataset:
    """Prompts of 1 to 3 slices, or of so many, two in five of them with masks; everything moved a little."""
    intensity = {"gamma": 0.15, "contrast": 0.15, "brightness": 0.05, "bias_field": 0.0, "noise": 0.02}
    return SliceDataset(
        source,
        organs=[tuple(organ)],
        slices=(1, arguments.slices) if slices is None else slices,
        oblique=arguments.oblique,
        min_pixels=1,
        mask=0.5,
        field_of_view=0.8,
        image_size=arguments.image_size,
        view=arguments.view,
        grid=arguments.grid,
        truncation=15.0,
        margin=MARGIN,
        augment=SliceAugment(
            rotation=arguments.rotation, scale=arguments.scale, turn=0.0, zoom=0.05, shift=0.0, intensity=intensity
        ),
        centre_jitter=arguments.jitter,
        seed=arguments.seed,
    )


def held_out_data(
    source: VolumeSlices,
    training: SliceDataset,
    *,
    mask: float,
    slices: int,
    repeats: int,
    field_of_view: float = 1.0,
    seed: int = 1000,
) -> SliceDataset:
    """Prompts as a user gives them, in the frame of the training, with the truth."""
    return SliceDataset(
        source,
        organs=training.organs,
        slices=slices,
        min_pixels=1,
        mask=mask,
        repeats=repeats,
        field_of_view=field_of_view,
        view=training.views.view,
        image_size=training.views.image_size,
        grid=training.views.grid,
        truncation=training.views.truncation,
        edge=training.edges,
        truth=True,
        seed=seed,
    )


def new_task(
    source: VolumeSlices, training: SliceDataset, arguments: argparse.Namespace, **settings: Any
) -> ReconstructTask:
    """An untrained network that answers the training cases' mean shape."""
    torch.manual_seed(arguments.seed)
    organ = training.organs[0]
    network = ShapeNet(image_size=arguments.image_size, grid=arguments.grid, prior_grid=PRIOR_GRID)
    edge = training.edges[organ[0]]
    network.set_mean_shape(
        mean_shape(organ_shapes(source, organ, training.views.truncation), edge, 64, training.views.truncation)
    )
    return ReconstructTask(
        network, organs=[organ], edges=[edge], slices=arguments.slices, view=arguments.view, **settings
    )


def finer(task: ReconstructTask, grid: int) -> None:
    """Let a network answer on more cells than it was trained on: its weights don't depend on them."""
    network: Any = task.network
    task.network = ShapeNet(**{**network.settings(), "grid": grid})
    task.network.load_state_dict(network.state_dict())


def mixed(source: Any, training: SliceDataset, arguments: argparse.Namespace) -> Iterator[SliceBatch]:
    """Batches of prompts with the same number of slices: one as often as `--single` says, else two, three, ..."""
    counts = range(1, arguments.slices + 1)
    sets = [training_data(source, training.organs[0], arguments, slices=count) for count in counts]
    streams = [batches(data, arguments.batch, arguments.seed + place) for place, data in enumerate(sets)]
    several = len(streams) - 1
    chances = [arguments.single if several else 1.0, *[(1 - arguments.single) / max(several, 1)] * several]
    generator = np.random.default_rng(arguments.seed)
    while True:
        yield next(streams[int(generator.choice(len(streams), p=chances))])


def ahead(loader: Iterator[SliceBatch]) -> Iterator[SliceBatch]:
    """The same batches, each made while the one before it is learned from."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, loader)
        while True:
            batch = coming.result()
            coming = maker.submit(next, loader)
            yield batch


def batches(dataset: SliceDataset, size: int, seed: int) -> Iterator[SliceBatch]:
    """Shuffled passes without end."""
    generator = np.random.default_rng(seed)
    queue: list[tuple[int, int]] = []
    epoch = 0
    while True:
        while len(queue) < size:
            queue = [(epoch, index) for index in generator.permutation(len(dataset)).tolist()] + queue
            epoch += 1
        yield collate_slices([dataset.sample(index, epoch) for epoch, index in (queue.pop() for _ in range(size))])


def train(
    task: ReconstructTask,
    dataset: SliceDataset,
    arguments: argparse.Namespace,
    *,
    minutes: float,
    groups: Callable[[], Any] | None = None,
    rate: float | None = None,
) -> int:
    """Train until the time is up: AdamW, a warm-up and half a cosine; the weights end as their average.

    Returns:
        Number of optimizer steps.
    """
    rate = arguments.rate if rate is None else rate
    chosen = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen if groups is None else groups(), lr=rate, weight_decay=0.02)
    first = [group["lr"] for group in optimizer.param_groups]
    average = [parameter.detach().clone() for parameter in chosen]
    task.train()
    loader = ahead(mixed(dataset.source, dataset, arguments))
    next(batches(dataset, 1, 0))  # compiles kernels and reads the cases
    clock = time.process_time if arguments.processor_time else time.perf_counter
    begin, done, recent = clock(), 0, 0.0
    while (share := (clock() - begin) / (60 * minutes)) < 1:
        task.on_progress(share)
        factor = min(1.0, 20 * share) * 0.5 * (1 + math.cos(math.pi * max(0.0, share - 0.05) / 0.95))
        for group, own in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = own * max(factor, 1e-3)
        losses = task.training_loss(next(loader))
        optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        done += 1
        decay = min(arguments.ema, done / (done + 10))
        with torch.no_grad():
            for mean, weight in zip(average, chosen, strict=True):
                mean.lerp_(weight, 1 - decay)
        now = losses.get("overlap", losses["loss"]).item()
        recent = now if done == 1 else 0.95 * recent + 0.05 * now
        if arguments.verbose and done % 50 == 0:
            parts = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"  {share:4.0%} step {done}: overlap {recent:.3f}; {parts}", flush=True)
    with torch.no_grad():
        for mean, weight in zip(average, chosen, strict=True):
            weight.copy_(mean)
    return done


def measure(task: ReconstructTask, dataset: SliceDataset) -> tuple[list[ReconstructPrediction], list[Row]]:
    """Predictions and rows of all prompts."""
    task.eval()
    predictions: list[ReconstructPrediction] = []
    rows: list[Row] = []
    for index in range(len(dataset)):
        batch = collate_slices([dataset[index]])
        found = task.predict(batch)
        rows += task.metrics(found, batch)
        predictions += found
    return predictions, rows


COLUMNS = {
    "dice": "Dice", "hd95_mm": "HD95", "assd_mm": "ASSD", "on_slice_contour_mm": "on slice",
    "mean_shape_dice": "mean shape", "ellipsoid_dice": "ellipsoid", "nearest_shape_dice": "nearest",
}  # fmt: skip


def show(name: str, rows: Sequence[Row]) -> None:
    """One line of the table."""
    cells = []
    for column in COLUMNS:
        values = np.array([float(row.get(column, math.nan)) for row in rows])
        cells.append(float(np.nanmean(values)) if np.isfinite(values).any() else math.nan)
    print(f"{name:34s} {len(rows):5d} " + " ".join(f"{cell:10.3f}" for cell in cells), flush=True)


def headings() -> None:
    """The line above those of `show`."""
    print(f"{'':34s} {'n':>5s} " + " ".join(f"{title:>10s}" for title in COLUMNS.values()))


def write_report(
    title: str, path: Path, task: ReconstructTask, found: tuple[SliceDataset, list[ReconstructPrediction], list[Row]]
) -> None:
    """The page of an evaluation: its cases, what was answered, and the rows."""
    cases, predictions, rows = found
    page = Report(title, subtitle=f"{len(cases)} prompts on held-out cases")
    report.add_results(page, task, Evaluation(rows=rows, predictions=predictions, cases=cases))
    print(page.save(path))


def table(
    task: ReconstructTask, source: VolumeSlices, training: SliceDataset, arguments: argparse.Namespace
) -> tuple[SliceDataset, list[ReconstructPrediction], list[Row]]:
    """By prompt, plane, number of slices and field of view; answers the data, predictions and rows of clicks alone."""
    headings()
    clicks: Any = None
    counts = [(slices, 1.0) for slices in range(1, arguments.slices + 1)]
    for slices, field in (*counts, (1, 0.0)):
        for mask, prompt in ((0.0, "click"), (1.0, "click and mask")):
            dataset = held_out_data(
                source, training, mask=mask, slices=slices, repeats=arguments.repeats, field_of_view=field
            )
            predictions, rows = measure(task, dataset)
            show(f"{prompt}, {slices} slice{'s' * (slices > 1)}" + ", no volume" * (not field), rows)
            for plane in PLANES if slices == 1 and field else ():
                show(f"    {plane}", [row for row in rows if row["plane"] == plane])
            clicks = (dataset, predictions, rows) if clicks is None else clicks
    found: tuple[SliceDataset, list[ReconstructPrediction], list[Row]] = clicks
    return found


def compare(arguments: argparse.Namespace, training_cases: list[Case], test_cases: list[Case]) -> None:
    """The main table."""
    source, held_out = slices_of(training_cases), slices_of(test_cases)
    training = training_data(source, ORGAN, arguments)
    task = new_task(source, training, arguments, contour=arguments.contour, contour_predicted=True, recentre=True)
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    print(f"{parameters / 1e6:.2f} million parameters, frame of {task.edges[0]:.0f} mm")
    steps = train(task, training, arguments, minutes=arguments.minutes)
    print(f"{steps} steps")
    finer(task, arguments.answer_grid)
    truths = held_out_data(source, training, mask=0.0, slices=1, repeats=1)
    task.fit_baseline(truths[index] for index in range(min(len(truths), len(task.baselines.shapes))))
    dataset, predictions, rows = table(task, held_out, training, arguments)
    if arguments.bundle:
        names = {"train": [case.name for case in training_cases], "validation": [case.name for case in test_cases]}
        record = {"data": {"root": str(arguments.data), **names, "test": []}, "metrics": {"on": "validation"}}
        card = model_card(task, record, task.summary(rows))
        print(write_bundle(arguments.bundle, task, source.volumes.preprocess, record=record, card=card))
    if arguments.report:
        write_report("Hippocampus from one click", arguments.report, task, (dataset, predictions, rows))


@contextmanager
def phantoms(arguments: argparse.Namespace) -> Iterator[VolumeSlices]:
    """Invented organs, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_phantoms(Path(folder), arguments.phantoms, kind="organ", format=".nii.gz", oblique=False)
        yield slices_of(find_cases(root))


def phantom_base(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Weights of a network trained on phantoms, read from `--base` where that is there, else kept there."""
    if arguments.base is not None and arguments.base.is_file():
        return load_file(arguments.base)
    with phantoms(arguments) as source:
        data = training_data(source, ORGAN, arguments)
        task = new_task(source, data, arguments)
        print(f"base: {train(task, data, arguments, minutes=arguments.minutes)} steps on {arguments.phantoms} phantoms")
    weights = task.network.state_dict()
    if arguments.base is not None:
        save_file(weights, arguments.base)
    return weights


def lora(arguments: argparse.Namespace, training_cases: list[Case], test_cases: list[Case]) -> None:
    """A base trained on phantoms, adapted to few cases, beside the same cases from scratch for the same time."""
    held_out = slices_of(test_cases)
    few = slices_of(few_shot(training_cases, arguments.shots, arguments.seed))
    base = phantom_base(arguments)
    data = training_data(few, ORGAN, arguments)
    headings()
    for method in ("scratch", "LoRA"):
        task = new_task(few, data, arguments)
        groups = None
        if method == "LoRA":
            network: Any = task.network
            shape = network.prior.distances.clone()
            network.load_state_dict(base)
            network.set_mean_shape(shape[0, 0])
            adapters = Adapters(task.network)
            adapters.add("hippocampus", AdapterSettings(rank=4, alpha=8.0, targets=ADAPTED))
            own, whole = adapters.trainable()
            print(f"trains {own} numbers, {own / whole:.1%} of the base")

            def groups(adapters: Adapters = adapters) -> Any:
                return adapters.parameter_groups(arguments.adapter_rate, heads=arguments.adapter_rate)

        steps = train(task, data, arguments, minutes=arguments.adapt_minutes, groups=groups)
        for mask, prompt in ((0.0, "click"), (1.0, "click and mask")):
            rows = measure(task, held_out_data(held_out, data, mask=mask, slices=1, repeats=arguments.repeats))[1]
            show(f"{method}, {prompt}, {steps} steps", rows)


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """What both scripts of this benchmark can be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "hippocampus")
    parser.add_argument("--minutes", type=float, default=25.0, help="of training, or of the base's with --lora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--slices", type=int, default=3, help="the most of a prompt")
    parser.add_argument("--single", type=float, default=0.65, help="share of batches with one slice per prompt")
    parser.add_argument("--jitter", type=float, default=0.05, help="of the frame's centre in training, in edges")
    parser.add_argument("--oblique", type=float, default=0.15, help="share of slices in training that are oblique")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--grid", type=int, default=40, help="cells per axis in training")
    parser.add_argument("--answer-grid", type=int, default=64, help="cells per axis after training")
    parser.add_argument("--contour", type=float, default=3.0, help="mm over which the answer is bent to its contour")
    parser.add_argument("--rotation", type=float, default=10.0, help="degrees, of the augmentation")
    parser.add_argument("--scale", type=float, default=0.1, help="of the augmentation")
    parser.add_argument("--view", type=float, default=0.74, help="a slice's side in edges of the frame")
    parser.add_argument("--repeats", type=int, default=3, help="prompts of each held-out case")
    parser.add_argument("--cases", type=int, default=None, help="measure so many held-out cases only")
    parser.add_argument("--bundle", type=Path, help="folder to write the trained model to")
    parser.add_argument("--report", type=Path, help="HTML page to write")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="minutes are of the processor")
    parser.add_argument("--base", type=Path, help="safetensors file of the base: read, or written if it isn't there")
    parser.add_argument("--phantoms", type=int, default=150, help="invented organs that the base is trained on")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--adapt-minutes", type=float, default=3.0)
    parser.add_argument("--adapter-rate", type=float, default=4e-3)
    parser.add_argument("--verbose", action="store_true")
    return parser


def cases_of(arguments: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """Cases to learn from and held-out ones, and so many threads as were asked for."""
    torch.set_num_threads(arguments.threads)
    splits = split_cases(find_cases(arguments.data), fractions=(0.8, 0.2), seed=arguments.seed)
    training, test = splits["train"], splits["validation"][: arguments.cases]
    print(f"seed {arguments.seed}: {len(training)} training and {len(test)} held-out cases")
    return training, test


def main() -> None:
    arguments = arguments_of(__doc__).parse_args()
    (lora if arguments.lora else compare)(arguments, *cases_of(arguments))


if __name__ == "__main__":
    main()

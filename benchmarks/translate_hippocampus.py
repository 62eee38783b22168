"""Restoration by few calls of a network, beside plain regression by the same network, and non-local means.

    python benchmarks/translate_hippocampus.py --minutes 25 --bundle runs/hippocampus_translate --report report.html
    python benchmarks/translate_hippocampus.py --neubias --minutes 10

Hippocampus: T1 crops scaled by their 0.5 and 99.5 percentiles to [0, 1]; k-space along the inferior-superior axis is
cut to |k| <= n / 6 (zero-filled, magnitude), then Rician noise of 0.03 is added. The split is 80/20 by case, by seed;
in training, cases are degraded anew in every pass. `--neubias` restores confocal from wide-field fluorescence: one
half of a stack along x is learned, the other measured. Time is the wall clock of the training loop, in which both
networks learn from the same batches. PSNR and SSIM are of whole volumes with a data range of 1, SSIM with a Gaussian
window of sigma 1.5; GMSD and the spectral distance are perceptual, lower is better.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from voxelry.data.collate import collate
from voxelry.data.degrade import Degrade
from voxelry.data.degrade.dataset import DegradedDataset
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.parts import SampleSource
from voxelry.data.patches import crop
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.normalise import find_levels, scale
from voxelry.data.sample import Batch, Sample
from voxelry.data.splits import split_cases
from voxelry.io import read_image
from voxelry.metrics.translation import summarise, translate_metrics
from voxelry.models.unet.haar import HaarUNet
from voxelry.tasks.base import Row
from voxelry.tasks.evaluate import Evaluation, evaluate_task
from voxelry.tasks.translate import TranslatePrediction, TranslateTask
from voxelry.tasks.translate.targets import input_channels

DATA = Path(os.environ.get("VOXELRY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
RECIPE = [{"name": "kspace", "axis": "IS", "keep": "1/3"}, {"name": "rician", "sigma": 0.03}]
PREPROCESS = {"normalise": "percentile", "percentiles": (0.5, 99.5)}
COLUMNS = {"psnr": "PSNR", "ssim": "SSIM", "gmsd": "GMSD", "spectral_distance": "spectral", "detail_ratio": "detail"}

Draw = Callable[[int, int], Sample]
"""`(case, pass over the data) -> ` a training sample."""


class Samples:
    """A list of samples as evaluations want it."""

    def __init__(self, samples: Sequence[Sample]):
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def sample(self, index: int, epoch: int) -> Sample:
        """The same in every pass."""
        return self.samples[index]


def degraded(cases: Sequence[Case], *, redraw: bool, seed: int) -> DegradedDataset:
    """Cases in memory, degraded by the recipe."""
    return DegradedDataset(
        cases,
        degrade=Degrade(RECIPE),
        redraw=redraw,
        preprocess=Preprocess(**PREPROCESS),  # type: ignore[arg-type]
        need=(),
        cache="memory",
        seed=seed,
    )


def stack(path: Path) -> tuple[Sample, Sample]:
    """Wide-field and confocal of one field, each scaled by its own percentiles: both halves along x."""
    image = read_image(path)
    pixels = torch.from_numpy(image.array.astype(np.float32))
    levels = find_levels(pixels, "percentile", percentiles=(0.5, 99.9))
    confocal, wide = scale(pixels, levels, clip=False)
    whole = Sample(wide[None], image.space, "stack", str(path), target=confocal[None])
    half = image.space.shape[-1] // 2
    parts = []
    for name, start in (("left", 0), ("right", image.space.shape[-1] - half)):
        size = (*image.space.shape[:-1], half)
        part = crop(whole, [0] * (len(size) - 1) + [start], size)
        parts.append(part.replace(name=name, levels=levels.flip(0).float()))
    return parts[0], parts[1]


def batches(
    draw: Draw, count: int, arguments: argparse.Namespace, size: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Shuffled passes without end; volumes of a batch are cut to what they all hold (or `size`), at random places.

    They are mirrored along x in half of the cases: left and right are alike.
    """
    generator = np.random.default_rng(arguments.seed)
    order = ((number, int(case)) for number in itertools.count() for case in generator.permutation(count))
    while True:
        samples = [draw(case, number) for number, case in itertools.islice(order, arguments.batch)]
        shape = np.min([sample.space.shape for sample in samples] + ([] if size is None else [size]), axis=0)
        cut = []
        for sample in samples:
            room = np.asarray(sample.space.shape) - shape
            window = crop(sample, generator.integers(room + 1).tolist(), shape.tolist())
            if generator.random() < 0.5:
                assert window.target is not None  # both kinds of data have one
                window = window.replace(image=window.image.flip(-1), target=window.target.flip(-1))
            cut.append(window)
        yield collate(cut)


def new_task(arguments: argparse.Namespace) -> TranslateTask:
    """An untrained network and the same again for regression."""
    torch.manual_seed(arguments.seed)
    network = HaarUNet(
        ndim=3,
        in_channels=input_channels(1, 1, 3, tells_place=False),
        out_channels=1,
        width=arguments.width,
        multipliers=arguments.multipliers,
        blocks_per_level=arguments.blocks,
        block="pre_norm",
        attention="none",
        middle_attention="none",
        zero_head=True,
        checkpointing="none",
    )
    return TranslateTask(
        network,
        mode=arguments.mode,
        objective=arguments.objective,
        noise_scale=arguments.noise_scale,
        start_share=arguments.start_share,
        loss_type=arguments.loss,
    )


def train(task: TranslateTask, loader: Iterator[Batch], arguments: argparse.Namespace) -> int:
    """Train until the time is up: AdamW, a warm-up and half a cosine; the weights end as their average.

    Returns:
        Number of optimizer steps.
    """
    weights = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=arguments.rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = [weight.detach().clone() for weight in weights]
    task.train()
    task.training_loss(next(loader))  # reads the first cases
    begin, done, recent = time.perf_counter(), 0, [math.nan, math.nan]
    while (share := (time.perf_counter() - begin) / (60 * arguments.minutes)) < 1:
        task.on_progress(share)
        factor = min(1.0, 20 * share + 0.02) * 0.5 * (1 + math.cos(math.pi * max(0.0, share - 0.05) / 0.95))
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * max(factor, 1e-3)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            losses = task.training_loss(next(loader))
        optimizer.zero_grad()
        losses["loss"].backward()
        for network in (task.network, task.baseline):
            if network is not None:  # each by itself, so that neither holds the other back
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        done += 1
        decay = min(arguments.ema, done / (done + 10))
        with torch.no_grad():
            for mean, weight in zip(average, weights, strict=True):
                mean.lerp_(weight, 1 - decay)
        parts = [losses.get("loss_network", losses["loss"]).item(), float(losses.get("loss_baseline", math.nan))]
        recent = parts if done == 1 else [0.98 * a + 0.02 * b for a, b in zip(recent, parts, strict=True)]
        if arguments.verbose and done % 50 == 0:
            print(f"  {share:4.0%} step {done}: loss {recent[0]:.5f}, regression {recent[1]:.5f}", flush=True)
    with torch.no_grad():
        for mean, weight in zip(average, weights, strict=True):
            weight.copy_(mean)
    return done


def non_local_means(images: Sequence[Sample], arguments: argparse.Namespace) -> Callable[[Sample], torch.Tensor]:
    """The classic, its strength tuned by PSNR on some training cases."""
    from skimage.restoration import denoise_nl_means

    def restored(sample: Sample, strength: float) -> torch.Tensor:
        found = denoise_nl_means(sample.image[0].numpy(), patch_size=3, patch_distance=3, h=strength, fast_mode=True)
        return torch.from_numpy(found)[None].float()

    scores = {
        strength: np.mean([measured(restored(sample, strength), sample)["psnr"] for sample in images])
        for strength in (0.02, 0.03, 0.04, 0.05, 0.07)
    }
    best = max(scores, key=scores.__getitem__)
    if arguments.verbose:
        print(f"non-local means: h {best}")
    return lambda sample: restored(sample, best)


def measured(image: torch.Tensor, sample: Sample) -> dict[str, float]:
    """The figures of one restored image, data range 1."""
    assert sample.target is not None  # both kinds of data have one
    return translate_metrics(image, sample.target, data_range=(0.0, 1.0), space=sample.space)


def show(name: str, summary: dict[str, float], seconds: float | None = None) -> None:
    """One line of the table."""
    cells = " ".join(f"{summary[column]:9.4f}" for column in COLUMNS)
    print(f"{name:30s} {cells} {'' if seconds is None else f'{seconds:9.2f}'}", flush=True)


def table(
    task: TranslateTask, held_out: SampleSource, classic: Callable[[Sample], torch.Tensor]
) -> list[dict[str, Any]]:
    """Every method on the held-out cases; answers the summaries by number of calls, for the report."""
    samples = [held_out[index] for index in range(len(held_out))]
    print(f"{'':30s} " + " ".join(f"{title:>9s}" for title in [*COLUMNS.values(), "seconds"]))
    show("degraded input", summarise([measured(sample.image, sample) for sample in samples]))
    show("non-local means", summarise([measured(classic(sample), sample) for sample in samples]))
    path, found = task.path, []
    task.eval()
    task.quick = True
    for steps in (1, 2, 4):
        task.path = path.request(steps)
        evaluation = evaluate_task(task, held_out)
        summary = evaluation.summary
        if not found and "baseline_psnr" in summary:
            show("regression, 1 call", {name: summary[f"baseline_{name}"] for name in COLUMNS})
        show(f"{task.mode}, {task.path.calls} calls", summary, summary["seconds"])
        found.append({"sampler": task.path.sampler, **summary, "calls": task.path.calls})
        if task.mode == "regression":
            break
    task.path, task.quick = path, False
    return found


def leave(
    task: TranslateTask, training: SampleSource, held_out: SampleSource, calls: Any, arguments: argparse.Namespace
) -> None:
    """Bundle and report."""
    predictions: list[TranslatePrediction] = []
    rows: list[Row] = []
    if arguments.report or arguments.bundle:
        task.fit_baseline(training[index] for index in range(len(training)))
        evaluation = evaluate_task(task, held_out)
        predictions, rows = evaluation.predictions, evaluation.rows
        show(f"{task.mode}, as it is used", evaluation.summary, evaluation.summary["seconds"])
        coverage = {name: value for name, value in evaluation.summary.items() if name.startswith("coverage_")}
        print("uncalibrated " + ", ".join(f"{name} {value:.3f}" for name, value in coverage.items()))
    if arguments.bundle:
        from voxelry.bundle.bundle import write_bundle
        from voxelry.bundle.card import model_card

        half = len(predictions) // 2
        task.calibrate(predictions[:half], [held_out[index] for index in range(half)])
        again = [
            task.calibration.coverage(case) for case in evaluate_task(task, Samples(tail(held_out, half))).predictions
        ]
        for name in again[0] if again else ():
            print(f"calibrated on the other half: {name} {np.mean([row[name] for row in again]):.3f}")
        names = {"train": [], "validation": [case.name for case in predictions], "test": []}
        data = {"degrade": {"steps": RECIPE}, "options": {}}
        record = {
            "data": {"root": str(arguments.data), **names},
            "training": {"data": data, "seed": arguments.seed},
            "metrics": {"on": "validation", **task.summary(rows)},
        }
        card = model_card(task, record, task.summary(rows))
        print(write_bundle(arguments.bundle, task, Preprocess(**PREPROCESS), record=record, card=card))
    if arguments.report:
        from voxelry.tasks.translate import report
        from voxelry.viz.report import Report

        page = Report("Restoration in few calls", subtitle=f"{len(held_out)} held-out cases")
        report.add_results(page, task, Evaluation(rows=rows, predictions=predictions, cases=held_out), calls=calls)
        print(page.save(arguments.report))


def tail(source: SampleSource, start: int) -> list[Sample]:
    """The samples from number `start` on."""
    return [source[index] for index in range(start, len(source))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "hippocampus")
    parser.add_argument("--neubias", action="store_true", help="wide-field to confocal instead")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", default="bridge")
    parser.add_argument("--objective", default="x0")
    parser.add_argument("--loss", default="l2")
    parser.add_argument("--noise-scale", type=float, default=0.25)
    parser.add_argument("--start-share", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cases", type=int, default=None, help="measure so many held-out cases only")
    parser.add_argument("--bundle", type=Path, help="folder to write the trained model to")
    parser.add_argument("--report", type=Path, help="HTML page to write")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    training: SampleSource
    held_out: SampleSource
    size = None
    if arguments.neubias:
        left, right = stack(DATA / "neubias" / "xyzc_16bit__dna_conf_wf.tif")
        training, held_out = Samples([left]), Samples([right])
        size = (32, 48, 48)
    else:
        splits = split_cases(find_cases(arguments.data), fractions=(0.8, 0.2), seed=arguments.seed)
        training = degraded(splits["train"], redraw=True, seed=arguments.seed)
        held_out = degraded(splits["validation"][: arguments.cases], redraw=False, seed=arguments.seed)
    print(f"seed {arguments.seed}: {len(training)} training and {len(held_out)} held-out cases")
    task = new_task(arguments)
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    steps = train(task, batches(training.sample, len(training), arguments, size), arguments)
    print(f"{parameters / 1e6:.2f} million parameters, {steps} steps of {arguments.batch} samples")
    tuning = [training[index] for index in range(min(3, len(training)))]
    calls = table(task, held_out, non_local_means(tuning, arguments))
    leave(task, training, held_out, calls, arguments)


if __name__ == "__main__":
    main()

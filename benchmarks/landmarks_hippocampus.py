"""Landmarks on hippocampus MRI crops: ours and a plain MONAI U-Net, trained for the same time in one run.

    python benchmarks/landmarks_hippocampus.py --minutes 15
    python benchmarks/landmarks_hippocampus.py --minutes 8 --ndim 2
    python benchmarks/landmarks_hippocampus.py --few-shot --pretrain-minutes 12
    python benchmarks/landmarks_hippocampus.py --write-slices FOLDER     (mid-sagittal slices, for `voxelry train`)

The split is 80/20 by case, by seed. Subjects are unknown in this data: the two crops of one patient may lie
on both sides. Time is the wall clock of the training loop; reading and measuring do not count.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.collate import collate
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.data.splits import split_cases
from voxelry.engine.precision import fast_half
from voxelry.io import LandmarkSet, write_image, write_landmarks
from voxelry.metrics.landmarks import MeanPosition
from voxelry.models.unet.folded import FoldedUNet
from voxelry.tasks.base import Row, Task
from voxelry.tasks.evaluate import Evaluation
from voxelry.tasks.landmarks import LandmarkPrediction, LandmarkTask, report
from voxelry.tasks.pretrain import PretrainTask
from voxelry.viz.report import Report

DATA = Path(os.environ.get("VOXELRY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MIDLINE = 2  # the array axis along the patient's left-right, in canonical orientation; a slice doesn't have it
PATCH = (40, 52, 36)
BATCH = {2: 16, 3: 4}
# these images are cut out of larger ones: black borders, which no test image has, cost both methods more than 0.5 mm
CROPPED: dict[str, Any] = {"shift": 3.0, "shift_fraction": 0.0, "fill": "edge", "outside": "keep"}


@dataclass
class Recipe:
    """How a task is trained."""

    augment: Augment
    learning_rate: float
    ema: float = 0.0
    cosine: bool = False


def our_recipe(arguments: argparse.Namespace) -> Recipe:
    """The peer's shifts and noise; cosine schedule; averaged weights.

    Larger movements (`few_recipe`) cost 0.1 mm with all labels, see RESULTS.md.
    """
    return replace(peer_recipe(), learning_rate=arguments.rate, ema=0.995, cosine=True)


def few_recipe(arguments: argparse.Namespace, learning_rate: float) -> Recipe:
    """Movements, mirror images of left and right (a slice has none), intensities; cosine schedule; averaged weights."""
    augment = Augment(
        **CROPPED, rotation=15.0, scale=0.15, mirror=0.5, elastic=arguments.elastic, elastic_spacing=12.0,
        gamma=0.1, contrast=0.1, brightness=0.05, bias_field=0.0, noise=0.03,
    )  # fmt: skip
    return Recipe(augment, learning_rate, ema=0.995, cosine=True)


def peer_recipe() -> Recipe:
    """Shifts and noise, constant rate."""
    still = {"rotation": 0.0, "scale": 0.0, "gamma": 0.0, "contrast": 0.0, "brightness": 0.0}
    return Recipe(Augment(**CROPPED, noise=0.05, bias_field=0.0, **still), 1e-3)


def our_network(arguments: argparse.Namespace, channels: int, *, borders: bool = False) -> nn.Module:
    """A U-Net without attention, at rank 3 on blocks of two voxels per axis."""
    return FoldedUNet(
        ndim=arguments.ndim,
        in_channels=1 + 2 * arguments.ndim * borders,
        fold=arguments.fold or {2: 1, 3: 2}[arguments.ndim],
        out_channels=channels,
        width=arguments.width,
        multipliers=arguments.multipliers,
        blocks_per_level=arguments.blocks,
        block=arguments.block,
        attention="none",
        middle_attention="none",
        checkpointing="none",
    )


class PlainPeer(nn.Module):
    """MONAI's U-Net with channels 16 to 128 and two residual units, fed a multiple of its stride."""

    def __init__(self, ndim: int, landmarks: int):
        super().__init__()
        from monai.networks.nets import UNet

        self.net = UNet(ndim, 1, landmarks, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 1, *S) -> (B, N, *S)`."""
        size = image.shape[2:]
        padding = [side for length in reversed(size) for side in (0, -length % 8)]
        answer: Tensor = self.net(nn.functional.pad(image, padding, mode="replicate"))
        for axis, length in enumerate(size, start=2):
            answer = answer.narrow(axis, 0, length)
        return answer


def split(arguments: argparse.Namespace) -> dict[str, list[Case]]:
    """The cases of each part."""
    return split_cases(find_cases(arguments.data, need_landmarks=True), fractions=(0.8, 0.2), seed=arguments.seed)


def load(cases: Sequence[Case], ndim: int) -> list[Sample]:
    """Preprocessed samples in memory; at rank 2 the mid-sagittal slice with the points projected on it."""
    preprocess = Preprocess(normalise="percentile")
    dataset = VolumeDataset(cases, preprocess=preprocess, need=("landmarks", "labels"), borders=True)
    samples = [dataset[index] for index in range(len(dataset))]
    return samples if ndim > MIDLINE else [mid_sagittal(sample) for sample in samples]


def mid_sagittal(sample: Sample) -> Sample:
    """The slice in the middle of the left-right axis, a plane in the same world."""
    middle = sample.space.shape[MIDLINE] // 2
    corner = sample.space.to_world(np.array([0.0, 0.0, middle]))
    affine = np.concatenate([sample.space.affine[:, :MIDLINE], [[corner[0]], [corner[1]], [corner[2]], [1.0]]], axis=1)
    assert sample.landmarks is not None
    assert sample.borders is not None
    return sample.replace(
        image=sample.image[..., middle].contiguous(),
        borders=sample.borders[: 2 * MIDLINE, ..., middle].contiguous(),
        space=Space(sample.space.shape[:MIDLINE], affine),
        landmarks=sample.landmarks[:, :MIDLINE].contiguous(),
        labels=None if sample.labels is None else sample.labels[..., middle].contiguous(),
    )


def train(
    task: Task,
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    seed: int,
    minutes: float = math.inf,
    steps: int | None = None,
    half: bool = False,
) -> int:
    """Train until the time is up, or the number of steps reached; the weights end as their average.

    Args:
        half: let the network compute in bfloat16.

    Returns:
        Number of optimizer steps.
    """
    rng = np.random.default_rng(seed)
    patches = Patches(PATCH[: samples[0].ndim], foreground=0.0, fill="edge")
    optimizer = torch.optim.AdamW(task.network.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    average = copy.deepcopy(task.network)
    task.train()
    queue: list[int] = []
    size = BATCH[samples[0].ndim]
    recipe.augment(patches(samples[0], np.random.default_rng(0)), np.random.default_rng(0))  # compiles its kernels
    begin, done = time.perf_counter(), 0
    while True:
        share = done / steps if steps else (time.perf_counter() - begin) / (60 * minutes)
        if share >= 1:
            break
        if recipe.cosine:
            factor = min(1.0, 10 * share) * 0.5 * (1 + math.cos(math.pi * max(0.0, share - 0.1) / 0.9))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * max(factor, 1e-3)
        while len(queue) < size:
            queue += rng.permutation(len(samples)).tolist()
        chosen = [samples[queue.pop()] for _ in range(size)]
        batch = collate([recipe.augment(patches(sample, rng), rng) for sample in chosen])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = task.training_loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(task.network.parameters(), 1.0)
        optimizer.step()
        done += 1
        # a young average forgets its random start quickly
        decay = min(recipe.ema, done / (done + 10))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), task.network.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
    task.network.load_state_dict(average.state_dict())
    return done


def measure(task: LandmarkTask, samples: Sequence[Sample]) -> tuple[list[LandmarkPrediction], list[Row]]:
    """Predictions and rows of held-out cases, each at its own size."""
    task.eval()
    predictions: list[LandmarkPrediction] = []
    rows: list[Row] = []
    for sample in samples:
        batch = collate([sample])
        found = task.predict(batch)
        rows += task.metrics(found, batch)
        predictions += found
    return predictions, rows


def show(name: str, summary: dict[str, float], steps: int | None = None) -> None:
    """One line of the table."""
    interval = f"[{summary['mre_mm_low']:.2f}, {summary['mre_mm_high']:.2f}]"
    print(
        f"{name:34s} {summary['mre_mm']:6.3f} {interval:14s} {summary['median_mm']:7.3f} {summary['sdr_2mm']:8.1%} "
        f"{summary['sdr_3mm']:8.1%} {'' if steps is None else steps:>7}",
        flush=True,
    )


def ours(
    arguments: argparse.Namespace, names: Sequence[str], borders: float | None = None, **settings: Any
) -> LandmarkTask:
    """Our task with its benchmark settings."""
    return LandmarkTask(
        our_network(arguments, len(names) + arguments.label_classes, borders=borders is not None),
        borders=borders,
        landmark_names=names,
        sigma=arguments.sigma,
        coordinate_weight=arguments.coordinate_weight,
        label_classes=arguments.label_classes,
        **settings,
    )


def with_views(task: LandmarkTask) -> LandmarkTask:
    """The same weights, asked about shifted copies too."""
    again = LandmarkTask(task.network, **task.settings() | {"ensemble_shift": 1})
    again.load_state_dict(task.state_dict())
    return again


def train_member(arguments: argparse.Namespace, member: int) -> tuple[dict[str, Tensor], int]:
    """Train one network of ours in a process of its own; answers its weights and the number of steps."""
    torch.set_num_threads(max(1, arguments.threads // at_once(arguments)))
    training = load(split(arguments)["train"], arguments.ndim)
    seed = arguments.seed + 1000 * member
    torch.manual_seed(seed)
    task = ours(arguments, training[0].landmark_names, arguments.borders or None)
    minutes = arguments.minutes * at_once(arguments) / arguments.members
    steps = train(task, training, our_recipe(arguments), minutes=minutes, seed=seed, half=arguments.half)
    return task.network.state_dict(), steps


def at_once(arguments: argparse.Namespace) -> int:
    """How many networks are trained side by side: small ones use two processors better than one of them does."""
    return int(min(arguments.members, arguments.threads))


def mean_points(answers: Sequence[Sequence[LandmarkPrediction]]) -> list[LandmarkPrediction]:
    """For every case the mean of the points that networks found."""
    return [
        replace(
            found[0],
            **{
                name: np.mean([getattr(one, name) for one in found], axis=0)
                for name in ("index", "world", "spread_mm", "radii_mm", "presence")
            },
        )
        for found in zip(*answers, strict=True)
    ]


def rows_of(task: LandmarkTask, predictions: Sequence[LandmarkPrediction], samples: Sequence[Sample]) -> list[Row]:
    """Metrics of predictions, a row a case."""
    return [
        row
        for prediction, sample in zip(predictions, samples, strict=True)
        for row in task.metrics([prediction], collate([sample]))
    ]


def compare(arguments: argparse.Namespace, training: list[Sample], test: list[Sample], page: Report) -> None:
    """The main table."""
    ndim, names = arguments.ndim, test[0].landmark_names
    print(f"{'':34s} {'MRE mm':>6s} {'95 %':14s} {'median':>7s} {'≤ 2 mm':>8s} {'≤ 3 mm':>8s} {'steps':>7s}")
    with ProcessPoolExecutor(at_once(arguments), mp_context=get_context("spawn")) as processes:
        trained = list(processes.map(partial(train_member, arguments), range(arguments.members)))
    answers, viewed = [], []
    for member, (weights, steps) in enumerate(trained):
        task = ours(arguments, names, arguments.borders or None)
        task.network.load_state_dict(weights)
        predictions, rows = measure(task, test)
        show(f"voxelry, network {member + 1}", task.summary(rows), steps)
        answers.append(predictions)
        viewed.append(measure(with_views(task), test)[0])
    task.fit_baseline(training)
    show(f"voxelry, mean of {arguments.members}", task.summary(rows_of(task, mean_points(answers), test)))
    predictions = mean_points(viewed)
    rows = rows_of(task, predictions, test)
    summary = task.summary(rows)
    show("voxelry, mean of views", summary)
    report.add_results(page, task, Evaluation(rows=rows, predictions=predictions, cases=test))
    if arguments.peer:
        torch.manual_seed(arguments.seed)
        peer = LandmarkTask(
            PlainPeer(ndim, len(names)), landmark_names=names, ndim=ndim, sigma=2.0, decoder="expectation"
        )
        steps = train(
            peer, training, peer_recipe(), minutes=arguments.minutes, seed=arguments.seed, half=arguments.half
        )
        show("MONAI U-Net 16-128", peer.summary(measure(peer, test)[1]), steps)
    print(f"{'mean position':34s} {summary['mean_position_mm']:6.3f}")


def few_shot(arguments: argparse.Namespace, training: list[Sample], test: list[Sample], page: Report) -> None:
    """Pretrained against scratch, the same steps each, over draws of the labelled cases."""
    names = test[0].landmark_names
    torch.manual_seed(arguments.seed)
    pretraining = PretrainTask(our_network(arguments, 1), objective="v", schedule="cosine")
    steps = train(
        pretraining,
        training,
        few_recipe(arguments, 1e-3),
        minutes=arguments.pretrain_minutes,
        seed=arguments.seed,
        half=arguments.half,
    )
    print(f"pretrained on {len(training)} images without labels: {steps} steps")
    pretrained = pretraining.network.state_dict()
    errors = {method: np.full((arguments.draws, len(arguments.shots)), np.nan) for method in ("scratch", "pretrained")}
    for column, count in enumerate(arguments.shots):
        for draw in range(arguments.draws):
            order = np.random.default_rng([arguments.seed, draw]).permutation(len(training))[:count]
            for method, table in errors.items():
                torch.manual_seed(draw)
                task = ours(arguments, names, time_step=arguments.few_time_step)
                if method == "pretrained":
                    own = task.network.state_dict()
                    fitting = {key: value for key, value in pretrained.items() if value.shape == own[key].shape}
                    task.network.load_state_dict(own | fitting)
                chosen = [training[index] for index in order]
                recipe = few_recipe(arguments, arguments.few_rate)
                train(task, chosen, recipe, steps=arguments.few_steps, seed=draw, half=arguments.half)
                summary = task.summary(measure(task, test)[1])
                table[draw, column] = summary["mre_mm"]
                show(f"{count} labels, draw {draw}, {method}", summary)
    baseline = MeanPosition.fit([points(sample) for sample in training], [sample.space for sample in training])
    guesses = [
        np.linalg.norm(baseline.predict(sample.space) - sample.space.to_world(points(sample)), axis=-1)
        for sample in test
    ]
    print(f"{'labels':>8s} {'scratch':>16s} {'pretrained':>16s} {'difference':>16s}")
    for column, count in enumerate(arguments.shots):
        cells = [errors["scratch"][:, column], errors["pretrained"][:, column]]
        cells.append(cells[1] - cells[0])
        print(f"{count:8d}", *(f"{cell.mean():8.3f} ± {cell.std():5.3f}" for cell in cells))
    report.add_few_shot(page, arguments.shots, errors, baseline={"mean position": float(np.mean(guesses))})


def points(sample: Sample) -> np.ndarray:
    """Index coordinates `(N, ndim)` of a sample's landmarks."""
    assert sample.landmarks is not None
    return sample.landmarks.double().numpy()


def write_slices(samples: Sequence[Sample], folder: Path) -> None:
    """Mid-sagittal slices as a data set in the original's folders."""
    for sample in samples:
        write_image(folder / "volumes" / f"{sample.name}.npy", sample.image.numpy(), sample.space)
        plane = Space.from_spacing(sample.space.shape)  # npy keeps no space; the points go with what it will be read as
        marks = LandmarkSet(sample.landmark_names, plane.to_world(points(sample)))
        write_landmarks(folder / "landmarks" / f"{sample.name}.txt", marks, space=plane)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "hippocampus")
    parser.add_argument("--ndim", type=int, choices=(2, 3), default=3)
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, for each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--half", action=argparse.BooleanOptionalAction, default=fast_half("cpu"),
        help="train in bfloat16, both methods; by default where the processor has it in hardware",
    )  # fmt: skip
    ours = parser.add_argument_group("our network and training")
    ours.add_argument("--width", type=int, default=16)
    ours.add_argument("--multipliers", type=int, nargs="+", default=[1, 2, 4])
    ours.add_argument("--blocks", type=int, default=1, help="per level")
    ours.add_argument("--block", default="pre_norm")
    ours.add_argument("--fold", type=int, default=None, help="voxels per block; default 1 at rank 2, 2 at rank 3")
    ours.add_argument("--rate", type=float, default=3e-3)
    ours.add_argument("--sigma", type=float, default=2.0, help="mm")
    ours.add_argument("--coordinate-weight", type=float, default=0.0)
    ours.add_argument(
        "--label-classes", type=int, default=3, help="learn the labels too, which the peer doesn't; 0: not"
    )
    ours.add_argument("--members", type=int, default=4, help="networks that share the time and answer together")
    ours.add_argument("--borders", type=float, default=20.0, help="mm as unit of the distances to them; 0: not told")
    ours.add_argument("--elastic", type=float, default=2.5, help="mm, of the movements with few labels")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--few-shot", action="store_true")
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10, 25])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--pretrain-minutes", type=float, default=12.0)
    parser.add_argument("--few-steps", type=int, default=300, help="of each fine-tuning")
    parser.add_argument("--few-rate", type=float, default=2e-3)
    parser.add_argument("--few-time-step", type=int, default=None, help="told to both networks; default none")
    parser.add_argument("--report", type=Path, help="HTML page to write")
    parser.add_argument("--write-slices", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    splits = split(arguments)
    if arguments.write_slices:
        write_slices(load([case for part in splits.values() for case in part], 2), arguments.write_slices)
        return
    training, test = (load(splits[part], arguments.ndim) for part in ("train", "validation"))
    print(f"rank {arguments.ndim}, seed {arguments.seed}: {len(training)} training and {len(test)} held-out cases")
    page = Report("Hippocampus landmarks", subtitle=f"rank {arguments.ndim}, {len(test)} held-out cases")
    (few_shot if arguments.few_shot else compare)(arguments, training, test, page)
    if arguments.report:
        print(page.save(arguments.report))


if __name__ == "__main__":
    main()

"""Nuclei in real stacks: a Mask R-CNN begun on phantoms, beside Otsu's threshold and a watershed.

    python benchmarks/segment_nuclei.py --minutes 34
    python benchmarks/segment_nuclei.py --minutes 2 --out /somewhere     (whether it runs at all)

Trained on two stacks, measured on the held-out one, which decides nothing: no checkpoint is chosen by it and no
threshold. The watershed is tuned on the training stacks; its second row is tuned on the held-out one itself, which is
more than any method may know. Time is the wall clock of the two trainings; the first part of it is spent on phantoms,
which are half of what is seen in the second part as well: from one or two stacks alone a network learns what their
nuclei look like and finds no others. So a stack of another microscope (stardist's), which no network was trained on, is
measured as well.

The `raw` of 1137 is no image: its neighbouring voxels don't agree (correlation 0.001, in the other two 0.57 and 0.53),
as only the low byte of a 16-bit stack is there. It is never trained on; held out, every method finds nothing in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from voxelry.bundle.model import Model, load
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.engine.compose import compose_training
from voxelry.engine.train import train
from voxelry.io import read_image, write_image
from voxelry.metrics.instances import instance_row, summarise
from voxelry.phantoms import write_phantoms
from voxelry.tasks.segment.baseline import Watershed

DATA = Path(os.environ.get("VOXELRY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
STACKS, NOISE = ("1135_mini", "1136_mini", "1137_mini"), "1137_mini"
PATCH = "[40,64,64]"
Stack = tuple[np.ndarray, tuple[float, ...], np.ndarray]
SHOWN = ("ap_50", "ap_75", "precision_50", "recall_50", "mean_iou_50", "pq", "predicted", "truth")


def settings(arguments: argparse.Namespace, out: Path, minutes: float) -> list[str]:
    """What both trainings have in common."""
    return [
        "experiment=segment_3d",
        f"output_dir={out}",
        f"seed={arguments.seed}",
        f"data.patches.size={PATCH}",
        "data.patches.margin=6",
        "data.batch_size=2",
        "data.num_workers=0",
        "task.score_threshold=0.5",
        "task.tile_overlap=0.5",
        "augment.rotation=15",
        "augment.scale=0.15",
        "augment.flip=0.5",
        "augment.elastic=0",
        "augment.intensity_probability=0.8",
        "augment.gamma=0.4",
        "augment.contrast=0.3",
        "augment.noise=0.1",
        "trainer.accelerator=cpu",
        "trainer.precision=auto",
        "trainer.progress=false",
        "trainer.max_steps=null",
        f"trainer.max_minutes={minutes}",
        "trainer.ema=0.99",
        "trainer.log_every=5",
        "trainer.checkpoint_every=200",
        *arguments.override,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "go_nuclear")
    parser.add_argument("--out", type=Path, default=Path("runs/segment_nuclei"))
    parser.add_argument("--minutes", type=float, default=34.0, help="of both trainings together")
    parser.add_argument("--phantom-share", type=float, default=0.45, help="part of the time spent on phantoms alone")
    parser.add_argument("--phantoms", type=int, default=60)
    parser.add_argument("--held-out", choices=STACKS, default=NOISE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--override", action="append", default=[], help="a setting of both trainings")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    training = tuple(name for name in STACKS if name not in (arguments.held_out, NOISE))

    phantoms = arguments.out / "phantoms"
    if not phantoms.exists():
        shape = (48, 80, 80)
        write_phantoms(phantoms, arguments.phantoms, seed=7, shape=shape, kind="nuclei", format=".nii.gz")
    pretraining = [
        *settings(arguments, arguments.out / "pretrain", arguments.minutes * arguments.phantom_share),
        f"data.root={phantoms}",
        "data.split.fractions=[1.0,0.0,0.0]",
        "trainer.validate_every=1000000",
        "optimizer.lr=2e-3",
    ]
    train(compose_training(pretraining))
    print(f"phantoms: {time.monotonic() - started:.0f} s since the start", flush=True)

    tuning = [
        *settings(arguments, arguments.out / "nuclei", arguments.minutes * (1 - arguments.phantom_share)),
        f"data.root={mixed(arguments, phantoms, training)}",
        "data.split.fractions=[1.0,0.0,0.0]",
        f"pretrained={arguments.out / 'pretrain'}",
        "trainer.validate_every=1000000",
        "optimizer.lr=1e-3",
    ]
    run = train(compose_training(tuning))
    print(f"trained: {time.monotonic() - started:.0f} s since the start", flush=True)

    known = Watershed.tuned([read(arguments.data, name) for name in training])
    assert run.bundle is not None
    networks = {
        "Mask R-CNN, phantoms and stacks": load(run.bundle, "cpu"),
        "Mask R-CNN, phantoms alone": load(arguments.out / "pretrain" / "bundle", "cpu"),
    }
    print(f"\n{arguments.minutes:g} minutes of training on {', '.join(training)}, {arguments.threads} threads")
    other = arguments.data.parent / "stardist"
    unseen = {
        arguments.held_out: read(arguments.data, arguments.held_out),
        "stardist": read_pair(other / "img3d.tif", other / "mask3d.tif"),
    }
    for stack, case in unseen.items():
        rows = {name: found_by(model, case) for name, model in networks.items()} | {
            "Otsu and watershed, tuned on the training stacks": watershed(known, case),
            "Otsu and watershed, tuned on this very stack": watershed(Watershed.tuned([case]), case),
            "Otsu and watershed, default settings": watershed(Watershed(1.0, 4.0), case),
        }
        print(f"\non {stack}")
        print(" | ".join(["", f"{'method':48}", *(f"{name:>12}" for name in SHOWN), ""]))
        for name, summary in rows.items():
            print(" | ".join(["", f"{name:48}", *(f"{summary[key]:12.3f}" for key in SHOWN), ""]))
    print(f"{time.monotonic() - started:.0f} s in all; bundle: {run.bundle}")


def mixed(arguments: argparse.Namespace, phantoms: Path, training: Sequence[str]) -> Path:
    """A folder with the phantoms and the stacks, each of these so often that they are half of what is drawn."""
    root = arguments.out / "mixed"
    shutil.rmtree(root, ignore_errors=True)  # another run may have trained on what is held out now
    for part in ("volumes", "instances"):
        (root / part).mkdir(parents=True)
        for file in (phantoms / part).iterdir():
            (root / part / f"phantom_{file.name}").hardlink_to(file)
    for name in training:
        sample = sample_of(arguments.data, name, Preprocess())
        assert sample.masks is not None
        for part, array in (("volumes", sample.image), ("instances", sample.masks[None].int())):
            first = write_image(root / part / f"{name}_000.nii.gz", array.numpy(), sample.space)
            for number in range(1, arguments.phantoms // len(training)):
                (root / part / f"{name}_{number:03d}.nii.gz").hardlink_to(first)
    return root


def sample_of(folder: Path, name: str, preprocess: Preprocess) -> Sample:
    """One stack with its nuclei."""
    (found,) = [one for one in find_cases(folder) if one.name == name]
    return VolumeDataset([found], preprocess=preprocess, need=("masks",))[0]


def read(folder: Path, name: str) -> Stack:
    """Intensities in [0, 1], voxel size and ids of one stack."""
    sample = sample_of(folder, name, Preprocess(normalise="percentile"))
    assert sample.masks is not None
    return sample.image[0].numpy(), sample.space.spacing, sample.masks.numpy()


def read_pair(image: Path, ids: Path) -> Stack:
    """As `read`, of two files."""
    found = read_image(image)
    raw = Sample(torch.from_numpy(found.array.astype(np.float32)), found.space, "")
    sample = Preprocess(normalise="percentile")(raw)
    return sample.image[0].numpy(), sample.space.spacing, read_image(ids).array[0].astype(np.int64)


def found_by(model: Model, stack: Stack) -> dict[str, float]:
    """Metrics of what a network finds."""
    image, spacing, truth = stack
    prediction = model.predict(image[None], space=Space.from_spacing(image.shape, spacing))
    return summarise([instance_row(prediction.instances, truth)])


def watershed(method: Watershed, stack: Stack) -> dict[str, float]:
    """Metrics of what a watershed finds."""
    image, spacing, truth = stack
    return summarise([instance_row(method(image, spacing), truth)])


if __name__ == "__main__":
    main()

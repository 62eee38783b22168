"""The default experiments as a training makes them: configuration, phantoms, task and batch."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch

from gpu_sections.bench import Bench

FEW = ("landmarks_2d",)  # of tiny runs


def experiments(bench: Bench) -> list[str]:
    """Names of the experiments that come with the program."""
    import voxelry.configs

    folder = Path(voxelry.configs.__file__).parent / "experiment"
    return list(FEW) if bench.tiny else sorted(path.stem for path in folder.glob("*.yaml"))


@cache
def made(experiment: str, size: int, patch: int) -> tuple[Any, Any]:
    """The new task of an experiment, and a batch of it, both on the CPU."""
    task, batches = prepared(experiment, size, patch)
    return task, next(batches)


def prepared(experiment: str, size: int, patch: int) -> tuple[Any, Iterator[Any]]:
    """The new task of an experiment, and batches without end that are read and changed as in a training."""
    from voxelry.bundle.registry import recipe_of_config
    from voxelry.data.collate import collate
    from voxelry.engine.compose import compose_training
    from voxelry.engine.data import build_data
    from voxelry.engine.train import build_task

    kind = "nuclei" if experiment.startswith("segment") else "torso"
    settings = [f"experiment={experiment}", f"data.root={phantoms(kind, int(experiment[-2]), size)}"]
    if kind == "nuclei":
        settings.append(f"data.patches.size={patch}")
    config = compose_training([*settings, "data.num_workers=0", "data.split.fractions=[0.5,0.25,0.25]"])
    recipe = recipe_of_config(config)
    torch.manual_seed(0)
    splits = build_data(config.data, ndim=config.ndim, augment=config.augment, seed=0, recipe=recipe)
    task, _ = build_task(config, recipe, splits)
    together = getattr(splits.train, "collate", collate)

    def batches() -> Iterator[Any]:
        for first in count(step=config.data.batch_size):
            numbers = range(first, first + config.data.batch_size)
            yield together([splits.train[number % len(splits.train)] for number in numbers])

    return task, batches()


@cache
def phantoms(kind: str, ndim: int, size: int) -> Path:
    """A folder of four invented images, which goes when the program ends."""
    from voxelry.phantoms import write_phantoms

    root = Path(tempfile.mkdtemp(prefix="voxelry_gpu_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return write_phantoms(root / kind, 4, ndim=ndim, shape=(size,) * ndim, kind=kind, format=".npy")

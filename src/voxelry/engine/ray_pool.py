"""Predictions of many files by a pool of Ray actors that hold the model: `voxelry predict --launcher ray`.

Ray Data hands each actor one file at a time and starts lost actors anew. The ledger and the folder of outputs are this
process's; the actors write below `.voxelry` alone, so that all machines must see the files under the same paths.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from voxelry.bundle.model import Model, load
from voxelry.core.optional import require
from voxelry.core.settings import settle
from voxelry.engine.cluster import ClusterSettings, cluster, gpus_of_each, own_interrupt
from voxelry.engine.file_job import FileJob, do
from voxelry.engine.ledger import Made

__all__ = ["RayPool"]


class RayPool:
    """Does jobs of `engine.predict` in other processes, on this machine or a cluster.

    Args:
        source: keywords of `voxelry.load`, by which each actor loads the model that is predicted with.
        settings: those of `ClusterSettings`, such as `num_workers=4`.

    Raises:
        SettingError: no such setting.
        ConfigError: a setting that can't be.
    """

    def __init__(self, source: Mapping[str, Any], **settings: Any):
        self.source = dict(source)
        self.settings = settle(ClusterSettings, settings)
        self.settings.check()

    def __call__(self, model: Model[Any], jobs: Iterator[FileJob]) -> Iterator[tuple[FileJob, Made]]:
        """What becomes of each job, in the order in which they end.

        Raises:
            MissingDependencyError: Ray is not installed.
            ConfigError: no cluster, or one with fewer GPUs than are asked for.
        """
        own, taken = self.settings, list(jobs)
        require("ray.data", "ray")
        if taken:
            with cluster(own.address, cpus=own.num_workers * own.cpus_per_worker), own_interrupt():
                for number, made in self._made(taken):
                    yield taken[number], made

    def _made(self, jobs: Sequence[FileJob]) -> Iterator[tuple[int, Made]]:
        import ray.data

        _quiet()
        own, device = self.settings, self.source.get("device")
        accelerator = "auto" if device is None else str(device).partition(":")[0]
        gpus = gpus_of_each(accelerator, own.num_workers, own.gpus_per_worker)
        # a block a file: what was done is told file by file, and a lost actor costs the file it had
        numbers = ray.data.from_items(
            [{"number": number} for number in range(len(jobs))], override_num_blocks=len(jobs)
        )
        made = numbers.map_batches(
            _Predictor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(own.num_workers, len(jobs)), max_tasks_in_flight_per_actor=1),
            fn_constructor_kwargs={
                "source": {**self.source, "device": "cuda" if gpus else "cpu"},
                "jobs": jobs,
                "folder": str(Path.cwd()),
                "threads": max(1, int(own.cpus_per_worker)),
            },
            num_cpus=own.cpus_per_worker,
            num_gpus=gpus or None,
            resources=dict(own.resources_per_worker or {}) or None,
            runtime_env={"env_vars": {name: str(value) for name, value in (own.env or {}).items()}},
        )
        for row in made.iter_rows():
            yield int(row["number"]), Made(**json.loads(row["made"]))


class _Predictor:
    """An actor with the model.

    Args:
        source: keywords of `load`.
        jobs: all of them; a batch names those that are meant.
        folder: the working folder of the command, which relative paths begin at.
        threads: that it may use.
    """

    def __init__(self, source: Mapping[str, Any], jobs: Sequence[FileJob], folder: str, threads: int):
        os.chdir(folder)
        torch.set_num_threads(threads)
        self.model, self.jobs = load(**source), jobs

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        made = [json.dumps(asdict(do(self.model, self.jobs[int(number)]))) for number in batch["number"]]
        return {"number": batch["number"], "made": made}


def _quiet() -> None:
    """Leave the terminal to the command's own progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

"""Work on many files by a pool of Ray actors that hold the model: `voxelry predict` and `evaluate --launcher ray`.

Ray Data hands each actor one file at a time and starts lost actors anew. The ledger and the folder of outputs are this
process's; the actors write below `.voxelry` alone, so that all machines must see the files under the same paths.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from voxelry.bundle.model import Model, load
from voxelry.core.errors import VoxelryError
from voxelry.core.optional import require
from voxelry.core.settings import settle
from voxelry.engine.cluster import ClusterSettings, cluster, gpus_of_each, own_interrupt
from voxelry.engine.jobs import Job, run_job, run_parts
from voxelry.engine.ledger import Made

__all__ = ["RayPool"]


class RayPool:
    """Does jobs in other processes, on this machine or a cluster.

    Args:
        source: keywords of `voxelry.load`, by which each actor loads the model.
        settings: those of `ClusterSettings`, such as `num_workers=4`.

    Raises:
        SettingError: no such setting.
        ConfigError: a setting that can't be.
    """

    def __init__(self, source: Mapping[str, Any], **settings: Any):
        self.source = dict(source)
        self.settings = settle(ClusterSettings, settings)
        self.settings.check()

    def __call__(
        self, model: Model[Any], jobs: Iterator[Job], tiles: Callable[[Path, int, int], None] | None
    ) -> Iterator[tuple[Job, Made]]:
        """What becomes of each job, in the order in which they end.

        The parts of a very large file are shared out, and the file follows them: whoever has it finds the parts that
        are done and does the others.

        Raises:
            MissingDependencyError: Ray is not installed.
            ConfigError: no cluster, or one with fewer GPUs than are asked for.
        """
        own, taken = self.settings, list(jobs)
        if taken:
            require("ray.data", "ray")
            rows = [row for number, job in enumerate(taken) for row in self._rows(model, number, job)]
            with cluster(own.address, cpus=own.num_workers * own.cpus_per_worker), own_interrupt():
                for row in self._done(taken, rows):
                    job = taken[int(row["number"])]
                    if row["made"]:
                        yield job, Made(**json.loads(row["made"]))
                    elif tiles is not None:
                        tiles(job.path, int(row["stop"]), int(row["parts"]))

    def _rows(self, model: Model[Any], number: int, job: Job) -> Iterator[dict[str, int]]:
        """What is to be done for a file: shares of its parts, from `start` to `stop`, then all that is left."""
        parts = 0
        with suppress(VoxelryError):  # it is told when the file is read
            parts = job.count_parts(model)
        size = max(1, -(-parts // self.settings.num_workers))
        for start in range(0, parts, size):
            yield {"number": number, "start": start, "stop": min(start + size, parts), "parts": parts}
        yield {"number": number, "start": 0, "stop": 0, "parts": parts}

    def _done(self, jobs: Sequence[Job], rows: Sequence[Mapping[str, int]]) -> Iterator[dict[str, Any]]:
        import ray.data

        _quiet()
        own, device = self.settings, self.source.get("device")
        accelerator = "auto" if device is None else str(device).partition(":")[0]
        gpus = gpus_of_each(accelerator, own.num_workers, own.gpus_per_worker)
        resources = dict(own.resources_per_worker or {})
        # a block a row: what was done is told one by one, and a lost actor costs what it had at hand
        asked = ray.data.from_items(list(rows), override_num_blocks=len(rows))
        done = asked.map_batches(
            _Predictor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(own.num_workers, len(rows)), max_tasks_in_flight_per_actor=1),
            fn_constructor_kwargs={
                "source": {**self.source, "device": "cuda" if gpus else "cpu"},
                "jobs": jobs,
                "folder": str(Path.cwd()),
                "threads": max(1, int(own.cpus_per_worker)),
            },
            num_cpus=own.cpus_per_worker,
            num_gpus=gpus or None,
            memory=resources.pop("memory", None),
            resources=resources or None,
            runtime_env={"env_vars": {name: str(value) for name, value in (own.env or {}).items()}},
        )
        yield from done.iter_rows()


class _Predictor:
    """An actor with the model.

    Args:
        source: keywords of `load`.
        jobs: all of them; a row names the one that is meant.
        folder: the working folder of the command, which relative paths begin at.
        threads: that it may use.
    """

    def __init__(self, source: Mapping[str, Any], jobs: Sequence[Job], folder: str, threads: int):
        os.chdir(folder)
        torch.set_num_threads(threads)
        self.model, self.jobs = load(**source), jobs

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        number, start, stop = (int(batch[name][0]) for name in ("number", "start", "stop"))
        job, made = self.jobs[number], ""
        if start < stop:
            run_parts(self.model, job, range(start, stop))
        else:
            made = json.dumps(asdict(run_job(self.model, job)))
        return {**batch, "made": [made]}


def _quiet() -> None:
    """Leave the terminal to the command's own progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

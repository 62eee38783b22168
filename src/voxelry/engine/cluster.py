"""A Ray cluster, joined or started for as long as a command takes, for training and for prediction."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from voxelry.core.errors import ConfigError, VoxelryError

__all__ = ["ClusterSettings", "calm", "cluster", "gpus_of_each", "own_interrupt"]


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where Ray runs, and how much of it a command takes.

    Attributes:
        num_workers: processes that do the work.
        cpus_per_worker: CPUs of each.
        gpus_per_worker: GPUs of each; None: one where the device that was asked for and the cluster allow it.
        resources_per_worker: Ray's own and custom ones, such as `{"memory": 16e9}`.
        address: of a cluster; None: `RAY_ADDRESS`, else Ray is started for this command.
        env: environment variables of the workers.
    """

    num_workers: int
    cpus_per_worker: float = 1
    gpus_per_worker: float | None = None
    resources_per_worker: Mapping[str, float] | None = None
    address: str | None = None
    env: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Refuse what can't be.

        Raises:
            ConfigError: names the setting.
        """
        if self.num_workers < 1:
            raise ConfigError(f"launcher.num_workers: expected 1 or more, got {self.num_workers}")


@contextlib.contextmanager
def cluster(address: str | None, *, cpus: float) -> Iterator[None]:
    """Ray, joined or started for as long as the run takes.

    Raises:
        ConfigError: nothing answers at the address.
        VoxelryError: Ray didn't start, on a machine that is overloaded.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    address = address or os.environ.get("RAY_ADDRESS")
    started: dict[str, Any] = {}
    if address is None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # of machines that clouds take back
        started = {"num_cpus": max(os.cpu_count() or 1, int(-(-cpus // 1))), "include_dashboard": False}
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": f"{__name__}.calm"},
            **started,
        )
    except ConnectionError as error:
        raise ConfigError(
            f"launcher.address: no Ray cluster answers at {address} (one that asks for a token needs "
            "RAY_AUTH_MODE=token here, too)"
        ) from error
    except Exception as error:
        if type(error) is Exception:  # Ray has no class of its own for a node that doesn't come up
            raise VoxelryError(f"Ray could not be started: {error}") from error
        raise
    try:
        yield
    finally:
        ray.shutdown()


def calm() -> None:
    """Run in Ray's processes: one of them asks for the dashboard, which we don't start, and complains every second."""
    import ray

    # without it, the process would look for any Ray on this machine
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(name).setLevel(logging.ERROR)


def gpus_of_each(accelerator: str, workers: int, asked: float | None) -> float:
    """GPUs of each worker.

    Raises:
        ConfigError: more than there are.
    """
    import ray

    found = float(ray.cluster_resources().get("GPU", 0))
    if asked is None:
        if accelerator == "auto":
            return 1 if found >= workers else 0
        asked = 1 if accelerator in ("gpu", "cuda") else 0
    if asked * workers > found:
        raise ConfigError(
            f"launcher.num_workers: {workers} workers with {asked:g} GPU each, but the cluster has {found:g} GPUs"
        )
    return asked


@contextlib.contextmanager
def own_interrupt() -> Iterator[None]:
    """Give Ctrl-C back afterwards: Ray takes it and keeps it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where it can't have been taken
            signal.signal(signal.SIGINT, before)

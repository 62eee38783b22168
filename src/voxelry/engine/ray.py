"""The same training in several processes, on one machine or a cluster: `launcher=ray`.

Every worker runs `engine.train.train_process` on its part of each batch. Ray Train starts the workers,
connects them, keeps the checkpoints they report, and starts all of them again from the last one when
one is lost. Worker 0 writes the bundle and the report, so `output_dir` has to be a folder that all
machines share.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from voxelry.core.choice import check_choice
from voxelry.core.errors import ConfigError, VoxelryError
from voxelry.core.optional import require
from voxelry.core.settings import Configured, settle
from voxelry.engine.cluster import ClusterSettings, cluster, gpus_of_each, own_interrupt
from voxelry.engine.placement import Placement
from voxelry.engine.run_folder import checkpoint_to_resume
from voxelry.engine.train import Run, train_process

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["RayLauncher", "RaySettings"]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
CHECKPOINT = "last.ckpt"
log = logging.getLogger("voxelry")


@dataclass(frozen=True, kw_only=True)
class RaySettings(ClusterSettings):
    """Where Ray runs, and how much of it a training takes; those of `configs/launcher/ray.yaml`.

    Attributes:
        placement: one of `STRATEGIES`.
        max_failures: lost workers, after each of which the run goes on from its last checkpoint.
    """

    placement: str = "PACK"
    max_failures: int = 3

    def check(self) -> None:
        """Refuse what can't be.

        Raises:
            ConfigError: names the setting.
        """
        super().check()
        check_choice("launcher.placement", self.placement, STRATEGIES, ConfigError)


class RayLauncher(Configured):
    """Trains with Ray Train, see `RaySettings`."""

    Settings = RaySettings

    def __init__(self, **settings: Any):
        self._settings = settle(RaySettings, settings)

    def __call__(self, config: DictConfig) -> Run:
        """Train what a configuration describes.

        A step takes `num_workers * config.data.batch_size` samples: those that one process with a batch of
        that size would take. Where Ray already runs in this process, that instance is used and left running.

        Raises:
            MissingDependencyError: Ray is not installed.
            ConfigError: a setting that Ray can't meet.
            VoxelryError: what `train` raises, and a run that failed more often than `max_failures` allows.
        """
        require("ray", "ray")
        require("ray.train.torch", "ray")
        own: RaySettings = self._settings
        own.check()
        output = Path(config.output_dir).resolve()
        checkpoint_to_resume(output, resume=config.resume, overwrite=config.overwrite)
        name = f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
        verdict = output / "ray" / f"{name}.txt"
        with cluster(own.address, cpus=own.num_workers * own.cpus_per_worker), own_interrupt():
            answer = _fit(config, own, name, verdict)
        if answer is None:
            return Run(None, {}, True, output / "checkpoints" / CHECKPOINT)
        bundle, checkpoint = (None if path is None else Path(path) for path in (answer["bundle"], answer["checkpoint"]))
        return Run(**answer | {"bundle": bundle, "checkpoint": checkpoint})


def _fit(config: DictConfig, own: RaySettings, name: str, verdict: Path) -> dict[str, Any] | None:
    """What the first worker answers; None after Ctrl-C."""
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer

    gpus = gpus_of_each(config.trainer.accelerator, own.num_workers, own.gpus_per_worker)
    resources = {**(own.resources_per_worker or {}), "CPU": own.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "config": OmegaConf.to_container(config, resolve=True),
            "folder": str(Path.cwd()),
            "verdict": str(verdict),
        },
        scaling_config=ScalingConfig(
            num_workers=own.num_workers,
            use_gpu=gpus > 0,
            resources_per_worker=resources,
            placement_strategy=own.placement,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(verdict.parent),
            failure_config=FailureConfig(max_failures=own.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": {key: str(value) for key, value in (own.env or {}).items()}},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    answer: dict[str, Any] | None = None
    try:
        answer = trainer.fit().return_value
    except TrainingFailedError as error:
        if not verdict.exists():
            cause = str(error).strip().splitlines()[-1]
            raise VoxelryError(f"failed more than launcher.max_failures={own.max_failures} times: {cause}") from error
    except SystemExit:  # how Ray ends after Ctrl-C
        return None
    if verdict.exists():
        raise VoxelryError(verdict.read_text(encoding="utf-8"))
    return answer


def _work(job: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker does, here as everywhere where a worker was lost and all start again.

    What a user did wrong is wrong the second time, too: such an error is left in a file, and
    workers that find one do nothing.
    """
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    verdict = Path(job["verdict"])
    if verdict.exists():
        return None
    context = ray.train.get_context()
    rank = context.get_world_rank()
    logging.getLogger().setLevel(logging.WARNING)  # Ray gave it a handler, and tells much
    log.setLevel(logging.WARNING if rank else logging.INFO)
    config = OmegaConf.create(job["config"])
    config.trainer.progress = False
    config.trainer.devices = "auto"  # Ray lets a worker see its own
    with contextlib.chdir(job["folder"]), contextlib.ExitStack() as stack:
        restored = None
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            restored = Path(stack.enter_context(checkpoint.as_directory())) / CHECKPOINT
        placement = Placement(
            rank=rank,
            world_size=context.get_world_size(),
            trainer={
                # most tasks leave a few parameters out, such as the time embedding of a pretrained network
                "strategy": RayDDPStrategy(find_unused_parameters=True),
                "plugins": [RayLightningEnvironment()],
            },
            restored=restored,
            admitted=True,
            saved=_report,
        )
        try:
            run = train_process(config, placement)
        except VoxelryError as error:
            verdict.parent.mkdir(parents=True, exist_ok=True)
            verdict.write_text(str(error), encoding="utf-8")
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # no traceback: the user gets the line alone
            raise
    return asdict(run) | {"bundle": run.bundle and str(run.bundle), "checkpoint": str(run.checkpoint)}


def _report(trainer: pl.Trainer, path: Path) -> None:
    """Tell Ray how far the run is, and hand it the checkpoint; every worker takes part."""
    import ray.train

    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()} | {"step": trainer.global_step}
    if not trainer.is_global_zero:
        ray.train.report(metrics)
        return
    log.info(", ".join(f"{name} {metrics[name]:.4g}" for name in ("step", "loss", "val") if name in metrics))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".report-") as folder:
        try:
            os.link(path, Path(folder) / CHECKPOINT)
        except OSError:  # not every file system has links
            shutil.copyfile(path, Path(folder) / CHECKPOINT)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

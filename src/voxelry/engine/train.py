"""From a configuration to a trained bundle and its report."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from voxelry.core.errors import CheckpointError, ConfigError
from voxelry.core.rank import check_ndim
from voxelry.data.sample import Sample
from voxelry.engine.bundle import describe, write_bundle
from voxelry.engine.card import model_card
from voxelry.engine.checkpoints import Checkpoints, check_description, read_checkpoint
from voxelry.engine.data import Splits, build_data, plain
from voxelry.engine.evaluate import Evaluation, evaluate_task, write_summary
from voxelry.engine.lightning import TaskModule
from voxelry.engine.loader import evaluation_loader, training_loader
from voxelry.engine.report import write_report
from voxelry.engine.samples import PeriodicSamples
from voxelry.tasks.base import Task
from voxelry.tasks.pretrain import PretrainTask

if TYPE_CHECKING:
    from voxelry.models.transfer import TransferReport

__all__ = ["Run", "train"]

log = logging.getLogger("voxelry")


@dataclass
class Run:
    """What a finished training left behind.

    Attributes:
        bundle: the bundle's folder; None when the run was interrupted.
        summary: the metrics on the held-out cases.
        interrupted: stopped by Ctrl-C or SIGTERM; `resume=true` goes on.
        checkpoint: the checkpoint to go on from.
    """

    bundle: Path | None
    summary: dict[str, float]
    interrupted: bool
    checkpoint: Path


def train(config: DictConfig) -> Run:
    """Train what `configs/train.yaml` and its overrides describe.

    Writes into `config.output_dir`: `checkpoints/`, `bundle/`, `report.html`, `metrics/`, `summary.json`.

    Raises:
        VoxelryError: whatever a user can cause: data that don't fit, unknown names, a full disk.
    """
    ndim = check_ndim(config.ndim)
    output = Path(config.output_dir)
    pl.seed_everything(config.seed, verbose=False)
    splits = build_data(config.data, ndim=ndim, augment=config.augment, seed=config.seed, task=_task_name(config))
    task, transferred = _build_task(config, splits, ndim)
    if transferred is not None:
        log.info("%s", transferred)
    description = describe(task)
    trainer_config = config.trainer

    last = output / "checkpoints" / "last.ckpt"
    resume = last if config.resume and last.exists() else None
    state: dict[str, Any] = {}
    if resume is not None:
        state = read_checkpoint(resume).get("voxelry", {})
        check_description(resume, state, description)
        log.info("going on from %s, step after %d batches", resume, state["batches_taken"])

    max_steps = _max_steps(config, len(splits.train))
    module = TaskModule(
        task,
        optimizer=instantiate(config.optimizer),
        learning_rate=instantiate(config.learning_rate),
        max_steps=max_steps,
        max_minutes=trainer_config.max_minutes,
        seed=config.seed,
        description=description,
    )
    checkpoints = Checkpoints(
        output / "checkpoints",
        every=trainer_config.checkpoint_every,
        validate_every=trainer_config.validate_every,
        monitor=task.monitor,
        higher_is_better=task.higher_is_better,
    )
    with _quiet():
        trainer = _trainer(trainer_config, task, output, checkpoints, max_steps)
        batches = training_loader(
            splits.train,
            batch_size=config.data.batch_size,
            seed=config.seed,
            batches_taken=state.get("batches_taken", 0),
            num_workers=config.data.num_workers,
            pin_memory=config.data.pin_memory,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        validation = evaluation_loader(splits.validation) if len(splits.validation) else None
        if trainer_config.compile:
            task.network.compile()
        trainer.fit(module, batches, validation, ckpt_path=resume, weights_only=True if resume else None)
    if checkpoints.interrupted:
        return Run(None, {}, True, checkpoints.last_path)
    if not trainer.is_global_zero:
        return Run(None, {}, False, checkpoints.last_path)
    if checkpoints.best_path.exists() and len(splits.validation):
        _load_best(task, checkpoints.best_path)
    return _finish(config, task, splits, module, transferred, checkpoints, output)


def _task_name(config: DictConfig) -> str:
    target = config.task.get("_target_", "")
    return "landmarks" if target.endswith("LandmarkTask") else "pretrain"


def _build_task(config: DictConfig, splits: Splits, ndim: int) -> tuple[Task, TransferReport | None]:
    """The task around a new network, its weights taken from `config.pretrained` where that is set."""
    sample = splits.train[0]
    channels = {"in_channels": int(sample.image.shape[0]), "out_channels": _outputs(sample, config)}
    extra: dict[str, Any] = {}
    if _task_name(config) == "landmarks":
        extra["landmark_names"] = splits.train.landmark_names
        if config.data.patches is not None:
            # trained on windows of this size, so whole volumes are predicted by tiles of it
            extra.setdefault("tile_size", plain(config.data.patches)["size"])
    if config.pretrained is None:
        network = instantiate(config.model, ndim=ndim, **channels, _convert_="all")
        return instantiate(config.task, network=network, **extra, _convert_="all"), None
    from voxelry.engine.pretrained import read_pretrained
    from voxelry.models.transfer import transfer

    pretrained = read_pretrained(Path(config.pretrained))
    network = pretrained.build(config.model, ndim=ndim, **channels)
    report = transfer(network, pretrained.weights)
    if not report.matched:
        raise CheckpointError(f"{pretrained.source}: none of its weights fits the configured network")
    if _task_name(config) == "landmarks":
        extra["input_range"] = pretrained.input_range
    return instantiate(config.task, network=network, **extra, _convert_="all"), report


def _outputs(sample: Sample, config: DictConfig) -> int:
    if _task_name(config) == "landmarks":
        if sample.landmarks is None:
            raise ConfigError(f"{sample.source}: no landmarks, which task=landmarks needs")
        return len(sample.landmarks) + int(config.task.get("label_classes", 0))
    return int(sample.image.shape[0])


def _max_steps(config: DictConfig, cases: int) -> int | None:
    """Optimizer steps of the run; `trainer.max_epochs`, where it is set, counts passes over the data instead."""
    trainer = config.trainer
    if trainer.max_epochs is not None:
        return max(1, math.ceil(trainer.max_epochs * cases / config.data.batch_size / trainer.grad_accumulation))
    if trainer.max_steps is None and trainer.max_minutes is None:
        raise ConfigError("trainer.max_steps: expected a number, or trainer.max_minutes or trainer.max_epochs")
    return trainer.max_steps


def _trainer(
    config: DictConfig, task: Task, output: Path, checkpoints: Checkpoints, max_steps: int | None
) -> pl.Trainer:
    from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

    callbacks: list[Callback] = [checkpoints]
    if config.ema is not None:
        callbacks.insert(
            0, EMAWeightAveraging(decay=config.ema, update_starting_at_step=_ema_start(config.ema, max_steps))
        )
    if isinstance(task, PretrainTask):
        # before the averaging callback, which takes the averaged weights away again when validation ends
        callbacks.insert(0, PeriodicSamples(output / "samples"))
    if config.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=1))
    loggers: dict[str, type[Logger]] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
    if config.logger not in loggers:
        raise ConfigError(f"trainer.logger: expected one of {', '.join(loggers)}, got {config.logger!r}")
    logger = loggers[config.logger](save_dir=output, name="", version="logs")  # type: ignore[call-arg]
    return pl.Trainer(
        max_steps=max_steps or -1,
        max_epochs=-1,
        # the endless loader counts batches, the settings count optimizer steps
        val_check_interval=config.validate_every * config.grad_accumulation,
        check_val_every_n_epoch=None,
        log_every_n_steps=config.log_every,
        accumulate_grad_batches=config.grad_accumulation,
        gradient_clip_val=config.gradient_clip_val,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=config.devices,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=bool(config.progress),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _ema_start(decay: float, max_steps: int | None) -> int:
    # an average of the first, wild weights would take 1 / (1 - decay) steps to forget them
    window = round(1 / (1 - decay))
    return min(window, max_steps // 4) if max_steps else window


def _load_best(task: Task, path: Path) -> None:
    state = read_checkpoint(path)["state_dict"]
    prefix = "task."
    task.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def _finish(
    config: DictConfig,
    task: Task,
    splits: Splits,
    module: TaskModule,
    transferred: TransferReport | None,
    checkpoints: Checkpoints,
    output: Path,
) -> Run:
    """Calibrate, measure on held-out cases, write the bundle and the report."""
    task.eval()
    task.fit_baseline(splits.train.preprocessed(index) for index in range(len(splits.train)))
    if len(splits.validation):
        validated = evaluate_task(task, splits.validation)
        task.calibrate(validated.predictions, [splits.validation[index] for index in range(len(splits.validation))])
    held_out, part = (splits.test, "test") if len(splits.test) else (splits.validation, "validation")
    evaluation = evaluate_task(task, held_out) if len(held_out) else Evaluation.empty()
    record = {
        "data": {
            "root": str(config.data.root),
            "train": [case.name for case in splits.train.cases],
            "validation": [case.name for case in splits.validation.cases],
            "test": [case.name for case in splits.test.cases],
        },
        "training": OmegaConf.to_container(config, resolve=True),
        "metrics": {"on": part, **{key: float(value) for key, value in evaluation.summary.items()}},
    }
    bundle = write_bundle(
        output / "bundle",
        task,
        splits.train.preprocess,
        record=record,
        card=model_card(task, record, evaluation.summary),
    )
    evaluation.write(output / "metrics")
    write_report(
        output / "report.html",
        task,
        evaluation,
        held_out=held_out,
        part=part,
        history=module.history,
        logs=output / "logs" / "metrics.csv",
        transfer=None if transferred is None else str(transferred),
    )
    summary = {
        "seed": config.seed,
        "training_samples": len(splits.train),
        "pretrained": config.pretrained is not None,
        "on": part,
        **{key: float(value) for key, value in evaluation.summary.items()},
    }
    write_summary(output / "summary.json", summary)
    return Run(bundle, evaluation.summary, False, checkpoints.last_path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice on things we decided out of a user's terminal."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("high")
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*Checkpoint directory.*",
            ".*`tensorboardX` has been removed.*",
            ".*The number of training batches.*",
            ".*Experiment logs directory.*",
            ".*GPU available but not used.*",
            ".*but have no `val_dataloader`.*",
            ".*isinstance.treespec, LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)

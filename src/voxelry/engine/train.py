"""From a configuration to a trained bundle and its report."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from voxelry.bundle.bundle import describe, write_bundle
from voxelry.bundle.card import model_card
from voxelry.bundle.checkpoint import read_checkpoint
from voxelry.bundle.pretrained import cases_seen_by, read_pretrained
from voxelry.bundle.registry import recipe_of_config
from voxelry.bundle.seen import digests_of_parts
from voxelry.core.errors import ConfigError, VoxelryError
from voxelry.data.loader import Loading, evaluation_loader, training_loader
from voxelry.data.parts import Splits
from voxelry.engine.averaging import MovingAverage
from voxelry.engine.check import check_settings, drop_defaults
from voxelry.engine.checkpoints import Checkpoints, check_description
from voxelry.engine.data import build_data
from voxelry.engine.devices import check_devices
from voxelry.engine.lightning import TaskModule
from voxelry.engine.logs import EvaluationLines, make_logger, progress_callback
from voxelry.engine.manifest import given_settings, write_manifest
from voxelry.engine.pace import EPOCH, Pace, pace
from voxelry.engine.placement import Placement
from voxelry.engine.plan_file import Decision, decisions_of, in_use, write_plan
from voxelry.engine.precision import resolve_precision
from voxelry.engine.report import write_report
from voxelry.engine.resume import check_same_run, describe_run
from voxelry.engine.run_folder import begin_clean, checkpoint_to_resume
from voxelry.engine.time_shares import TimeShares
from voxelry.engine.validations import LEAST, ValidatedCases, Validations
from voxelry.metrics.choice import MetricChoice
from voxelry.models.transfer import TransferReport
from voxelry.tasks.base import Task
from voxelry.tasks.evaluate import Evaluation, evaluate_task, write_summary
from voxelry.tasks.recipe import Recipe

__all__ = ["Run", "build_task", "train", "train_process"]

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
    """Train what `configs/train.yaml` and its overrides describe, by the means of `config.launcher`.

    Writes into `config.output_dir`: `checkpoints/`, `bundle/`, `report.html`, `metrics/`, `summary.json`,
    and, when it begins, `manifest.json`.

    Raises:
        VoxelryError: whatever a user can cause: data that don't fit, unknown names, a full disk.
    """
    try:
        launched: Run = instantiate(config.launcher, _convert_="all")(config)
    except (InstantiationException, OmegaConfBaseException) as error:
        # Hydra wraps what a constructor says of its settings
        own = (
            error.__cause__ if isinstance(error.__cause__, VoxelryError) else ConfigError(" ".join(str(error).split()))
        )
        raise own from error
    return launched


@dataclass(frozen=True)
class _Begun:
    """A training that is ready to go: what is learned, from what, and from which step on."""

    config: DictConfig
    placement: Placement
    recipe: Recipe
    splits: Splits
    task: Task
    transferred: TransferReport | None
    description: dict[str, Any]
    digests: dict[str, dict[str, str]]
    clock: TimeShares
    resume: Path | None
    state: dict[str, Any]
    plan: Sequence[Decision]

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir)


def train_process(config: DictConfig, placement: Placement = Placement()) -> Run:  # noqa: B008 it is frozen
    """One process of a training; of several, only the first one answers with a bundle.

    Raises:
        VoxelryError: see `train`.
    """
    begun = _begin(config, placement)
    module, checkpoints, trainer = _fit(begun)
    if checkpoints.interrupted:
        return Run(None, {}, True, checkpoints.last_path)
    if not trainer.is_global_zero:
        return Run(None, {}, False, checkpoints.last_path)
    kept = _keep_best(begun.task, checkpoints, trainer.global_step)
    bundle, summary = _finish(begun, module.history, kept)
    return Run(bundle, summary, False, checkpoints.last_path)


def _begin(config: DictConfig, placement: Placement) -> _Begun:
    clock, settings = TimeShares(), given_settings(config)
    for line in drop_defaults(config):
        log.info("%s", line)
    check_settings(config)
    check_devices(config.trainer.accelerator, config.trainer.devices)
    output = Path(config.output_dir)
    config.trainer.precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    anew = config.overwrite or (placement.admitted and not config.resume)
    resume = placement.restored or checkpoint_to_resume(output, resume=config.resume, overwrite=anew)
    pl.seed_everything(config.seed, verbose=False)
    recipe = recipe_of_config(config)
    recipe.check_adapter(config)
    with placement.first_one_alone():
        splits = build_data(config.data, ndim=config.ndim, augment=config.augment, seed=config.seed, recipe=recipe)
    _check_validated(config, splits)
    task, transferred = build_task(config, recipe, splits)
    if transferred is not None:
        log.info("%s", transferred)
    digests = {} if placement.rank else digests_of_parts(splits)
    description = describe(task) | {"run": describe_run(config, digests), "earlier": _earlier(config)}
    state: dict[str, Any] = {}
    # read before an earlier run's files go, of which it may be one
    plan = [] if placement.rank else in_use(decisions_of(config.get("plan")), config)
    if resume is not None:
        state = _state_to_resume(resume, config, description, same=placement.restored is not None)
    elif not placement.rank:
        if config.resume:
            log.info("%s: no run to go on with, a new one begins", output)
        begin_clean(output)
        write_manifest(output, settings, digests)
    if plan:
        write_plan(output / "plan.yaml", plan, "what this training was planned to be")
    return _Begun(
        config, placement, recipe, splits, task, transferred, description, digests, clock, resume, state, plan
    )


def _optimizer(config: DictConfig) -> Any:
    """What makes the optimizer of the weights.

    A fused one may undo the scaling of losses by itself, so that Lightning clips no gradients of mixed precision then.
    """
    trainer = config.trainer
    clipped = bool(trainer.gradient_clip_val) and str(trainer.precision).endswith("-mixed")
    if clipped and config.optimizer.get("fused"):
        return instantiate(config.optimizer, fused=False, foreach=True)
    return instantiate(config.optimizer)


def _fit(begun: _Begun) -> tuple[TaskModule, Checkpoints, pl.Trainer]:
    config, placement, splits, task = begun.config, begun.placement, begun.splits, begun.task
    rhythm = pace(
        config.trainer, cases=len(splits.train), batch_size=config.data.batch_size, world_size=placement.world_size
    )
    module = TaskModule(
        task,
        optimizer=_optimizer(config),
        learning_rate=instantiate(config.learning_rate),
        max_steps=rhythm.max_steps,
        max_minutes=config.trainer.max_minutes,
        seed=config.seed,
        description=begun.description,
    )
    module.batches_taken = begun.state.get("batches_taken", 0)  # the loader starts there
    checkpoints = Checkpoints(
        begun.output / "checkpoints",
        every=rhythm.checkpoint_every,
        keep_every=config.trainer.keep_every,
        validations=_validations(config, rhythm) if len(splits.validation) else None,
        patience=config.trainer.patience,
        monitor=task.monitor,
        higher_is_better=task.higher_is_better,
        saved=placement.saved,
    )
    with _quiet():
        logger = False if placement.rank else make_logger(config.trainer.logger, begun.output, begun.state.get("step"))
        trainer = _trainer(begun, checkpoints, rhythm, {"logger": logger, **placement.trainer})
        share = Loading(rank=trainer.global_rank, world_size=trainer.world_size)
        module.validated = _validated(begun, share)
        loading = replace(
            share,
            batch_size=config.data.batch_size,
            num_workers=config.data.num_workers,
            pin_memory=config.data.pin_memory,
        )
        batches = training_loader(
            splits.train,
            loading,
            seed=config.seed,
            batches_taken=lambda: module.batches_taken,
            closed=rhythm.closed,
        )
        validation = evaluation_loader(splits.validation, share, module.validated) if module.validated else None
        if config.trainer.compile:
            task.network.compile()
        resume = begun.resume
        trainer.fit(module, batches, validation, ckpt_path=resume, weights_only=True if resume else None)
    return module, checkpoints, trainer


def _validations(config: DictConfig, rhythm: Pace) -> Validations:
    """After every pass where that is asked for, and else at each fifth of a short run, too."""
    return Validations(rhythm.validate_every, 0 if config.trainer.validate_every == EPOCH else LEAST)


def _validated(begun: _Begun, share: Loading) -> ValidatedCases | None:
    """Which cases are measured while learning; all of them after every pass where that is asked for."""
    cases, trainer = len(begun.splits.validation), begun.config.trainer
    if not cases:
        return None
    limit = (
        None if trainer.validate_every == EPOCH and trainer.limit_val_batches == "auto" else trainer.limit_val_batches
    )
    return ValidatedCases(cases, limit, rank=share.rank, world_size=share.world_size, seed=begun.config.seed)


def _check_validated(config: DictConfig, splits: Splits) -> None:
    """Refuse what needs validation cases where there are none, and otherwise say that there are none.

    Raises:
        ConfigError: `trainer.patience` or a learning rate that falls on a plateau.
    """
    if len(splits.validation):
        return
    for name, asked in (
        ("trainer.patience", config.trainer.patience is not None),
        ("learning_rate", str(config.learning_rate.get("_target_")).endswith(".Plateau")),
    ):
        if asked:
            listed = config.data.split.get("file")
            way = f"list some in {listed}" if listed else "give some, such as by data.split.fractions=[0.8,0.1,0.1]"
            raise ConfigError(f"{name}: acts by validations, but the split has no validation cases; {way}")
    log.info("no validation cases: there is no best checkpoint, the bundle gets the weights of the last step")


def _state_to_resume(path: Path, config: DictConfig, description: dict[str, Any], *, same: bool) -> dict[str, Any]:
    """What a checkpoint says of the run that goes on from it.

    Args:
        same: it is of this very run, whose settings need no comparison.

    Raises:
        CheckpointError: it is of another model or another run.
    """
    content = read_checkpoint(path)
    state: dict[str, Any] = content.get("voxelry", {})
    if not same:
        check_description(path, state, description, ("network",) if config.resume_changed else ("task", "network"))
        check_same_run(path, state.get("run", {}), description["run"], forced=config.resume_changed)
    log.info("going on from %s, step %d", path, content["global_step"])
    return state | {"step": content["global_step"]}


def _earlier(config: DictConfig) -> list[dict[str, Any]]:
    """The cases that the weights have seen that a run begins with."""
    if config.pretrained is None:
        return []
    return cases_seen_by(Path(config.pretrained))


def _keep_best(task: Task, checkpoints: Checkpoints, step: int) -> str:
    """Put the weights of the best validation into a task; answers which weights it has then."""
    if checkpoints.best is None or not checkpoints.best_path.is_file():
        if checkpoints.validations is not None:
            log.warning(
                "%s was no number in any validation: the bundle gets the weights of the last step", task.monitor
            )
        return f"last step, {step}"
    _load_best(task, checkpoints.best_path)
    kept = f"best validation, step {checkpoints.best_step}"
    log.info("the bundle gets the weights of the %s: %s %.4g", kept, task.monitor, checkpoints.best)
    return kept


def build_task(config: DictConfig, recipe: Recipe, splits: Splits) -> tuple[Task, TransferReport | None]:
    """The task around a new network, its weights taken from `config.pretrained` where that is set."""
    pretrained = None
    if config.pretrained is not None:
        pretrained = read_pretrained(Path(config.pretrained), ndim=config.ndim)
    recipe.settle(config, splits)
    network, report = recipe.network(config, splits.train, pretrained)
    settings = recipe.settings(config, splits.train, pretrained)
    task: Task = instantiate(config.task, network=network, **settings, _convert_="all")
    chosen: Any = OmegaConf.to_container(config.metrics, resolve=True)
    task.choose(MetricChoice.from_settings(chosen))
    recipe.prepare(task, config, splits.train)
    return task, report


def _trainer(begun: _Begun, checkpoints: Checkpoints, rhythm: Pace, further: Mapping[str, Any]) -> pl.Trainer:
    from lightning.pytorch.callbacks import Callback, ProgressBar

    config = begun.config.trainer
    callbacks: list[Callback] = [checkpoints]
    if config.ema is not None:
        callbacks.insert(0, MovingAverage(config.ema))
    # before the averaging callback, which takes the averaged weights away again when validation ends
    callbacks[:0] = begun.recipe.callbacks(begun.output)
    if config.progress:
        callbacks.append(progress_callback())
    callbacks.append(begun.clock)
    return pl.Trainer(
        max_steps=rhythm.max_steps or -1,
        max_epochs=-1,
        val_check_interval=1,  # `Checkpoints` says after each step whether one is due
        check_val_every_n_epoch=None,
        log_every_n_steps=config.log_every,
        accumulate_grad_batches=config.grad_accumulation,
        gradient_clip_val=config.gradient_clip_val,
        gradient_clip_algorithm=config.gradient_clip_algorithm,
        precision=config.precision,
        accelerator=config.accelerator,
        devices=config.devices,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(one, ProgressBar) for one in callbacks),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **further,
    )


def _load_best(task: Task, path: Path) -> None:
    state = read_checkpoint(path)["state_dict"]
    prefix = "task."
    task.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def _calibrate(begun: _Begun) -> None:
    """Fit a task's baseline to the training cases, and what it says of itself to the validation cases."""
    task, splits = begun.task.eval(), begun.splits
    task.fit_baseline(splits.unaltered(index) for index in range(len(splits.train)))
    if len(splits.validation) and type(task).calibrate is not Task.calibrate:
        told = EvaluationLines("calibration", len(splits.validation)) if begun.config.trainer.progress else None
        validated = evaluate_task(task, splits.validation, progress=told)
        cases = [begun.recipe.truth_of(splits.validation, index) for index in range(len(splits.validation))]
        task.calibrate(validated.predictions, cases)


def _finish(begun: _Begun, history: Sequence[Mapping[str, float]], kept: str) -> tuple[Path, dict[str, float]]:
    """Calibrate, measure on held-out cases, write the bundle and the report; the bundle and the summary.

    Args:
        history: summaries of the validations.
        kept: which weights the task has.
    """
    config, task, splits, output = begun.config, begun.task, begun.splits, begun.output
    _calibrate(begun)
    data = {
        "root": str(config.data.get("index") or config.data.root),
        **splits.names,
        "digests": begun.digests,
        "earlier": begun.description["earlier"],
    }
    begun.recipe.finish(task, splits, output, data)  # with what the calibration found
    part, held_out = splits.held_out
    evaluation: Evaluation[Any] = Evaluation()
    if len(held_out):
        told = EvaluationLines(part, len(held_out)) if config.trainer.progress else None
        evaluation = evaluate_task(task, held_out, progress=told).chosen(task)
    figures = {key: float(value) for key, value in evaluation.summary.items()}
    record = {
        "data": data,
        "weights": kept,
        "training": OmegaConf.to_container(config, resolve=True),
        "metrics": {"on": part, **figures},
    }
    if begun.plan:
        record["plan"] = [vars(decision) for decision in begun.plan]
    card = model_card(task, record, evaluation.summary)
    bundle = write_bundle(
        output / "bundle", task, splits.preprocess, record=record, card=card, template=splits.template
    )
    evaluation.write(output / "metrics")
    begun.clock.lap("evaluating")
    write_report(
        output,
        task,
        evaluation,
        splits=splits,
        history=history,
        transfer=begun.transferred,
        times=begun.clock.rows(),
        plan=begun.plan,
    )
    summary = {
        "seed": config.seed,
        "training_samples": len(splits.train),
        "pretrained": config.pretrained is not None,
        "pretrained_from": None if config.pretrained is None else str(config.pretrained),
        "on": part,
        "weights": kept,
        **figures,
    }
    write_summary(output / "summary.json", summary)
    return bundle, evaluation.summary


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
            ".*your dataloader is not resumable.*",  # ours starts where the checkpoint ended
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)

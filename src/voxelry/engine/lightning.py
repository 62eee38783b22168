"""Any task as a LightningModule.

Randomness: before every batch the generators are seeded from (seed, batch number, rank), so a run that
was interrupted goes on with the very numbers it would have drawn, and the checkpoint needs no
generator states.

Several processes share a run: each has its part of every batch and of the validation cases; losses,
validation metrics and the time spent are the same for all of them, so that they decide alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from voxelry.core.errors import VoxelryError
from voxelry.data.sample import Batch
from voxelry.engine.schedules import LearningRate
from voxelry.engine.shortage import Portions
from voxelry.engine.validations import ValidatedCases
from voxelry.tasks.base import Row, Task

__all__ = ["DivergedError", "TaskModule"]

log = logging.getLogger(__name__)


class DivergedError(VoxelryError):
    """The training loss is no number any more."""


class TaskModule(pl.LightningModule):
    """Training and validation of one task.

    Args:
        task: what is trained; its own `state_dict` is this module's under `task.`.
        optimizer: builds the optimizer from the parameters.
        learning_rate: moves the optimizer's learning rate with progress.
        max_steps: optimizer steps of the whole run, or None when only time limits it.
        max_minutes: wall-clock limit of the whole run over all its sessions, or None.
        seed: seed of everything drawn during training.
        description: what the checkpoint says of the model, to refuse another's; see `engine.checkpoints`.

    Attributes:
        validated: which cases validations measure, the sampler of their loader; None for all that it has.
    """

    def __init__(
        self,
        task: Task,
        *,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        learning_rate: LearningRate,
        max_steps: int | None,
        max_minutes: float | None = None,
        seed: int = 0,
        description: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.task = task
        self.make_optimizer, self.learning_rate = optimizer, learning_rate
        self.max_steps, self.max_minutes, self.seed = max_steps, max_minutes, seed
        self.description = description or {}
        self.validated: ValidatedCases | None = None
        self.trained = 0.0
        self.batches_taken = 0
        self.elapsed = 0.0
        self.rows: list[Row] = []
        self.history: list[dict[str, float]] = []
        self.portions = Portions(task.training_loss)
        self._clock = 0.0

    def progress(self) -> float:
        """Fraction of the run that is spent, by steps or by time, whichever is further, in [0, 1]."""
        steps = self.trainer.global_step / self.max_steps if self.max_steps else 0.0
        minutes = self.elapsed / 60 / self.max_minutes if self.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over whatever is not frozen."""
        return self.make_optimizer(self.task.parameter_groups())

    def on_train_start(self) -> None:
        """Start the clock."""
        self._clock = time.monotonic()
        self.portions.fixed = self.trainer.world_size > 1
        self.portions.context = self.trainer.precision_plugin.forward_context

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the batch and set the learning rate."""
        entropy = np.random.SeedSequence([self.seed, self.batches_taken, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        progress = self.progress()
        self.task.on_progress(progress)
        drawn = self.batches_taken * self.trainer.world_size + self.global_rank
        self.task.on_batch(drawn * len(batch))
        factor = self.learning_rate.factor(progress)
        optimizer = self.optimizers(use_pl_optimizer=False)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch's loss."""
        losses = self.portions.first(batch)
        loss, shared = losses["loss"], self._shared(losses)
        if not torch.isfinite(shared["loss"]):
            raise DivergedError(
                f"{', '.join(batch.names)}: the loss became {loss.item()} at step {self.trainer.global_step}; "
                "lower optimizer.lr, set trainer.gradient_clip_val or train in float32"
            )
        # counted here because the callbacks that write checkpoints run before `on_train_batch_end`
        self.batches_taken += 1
        self.trained += self.task.work(batch)
        logged = {f"train/{name}": value for name, value in shared.items() if value.isfinite()}
        logged["step"] = torch.tensor(float(self.trainer.global_step))  # Lightning's own count is off in resumed runs
        self.log_dict(logged, batch_size=len(batch), prog_bar=False)
        self.log("loss", shared["loss"], batch_size=len(batch), prog_bar=True, logger=False)
        return loss * self.portions.weight

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of a batch, also where it is learned from in parts."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of half precision on a GPU
        factor = (1.0 if scaler is None else scaler.get_scale()) / self.trainer.accumulate_grad_batches
        self.portions.backward(loss, factor, self.zero_grad)

    def _shared(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means of the losses over the processes; a part that is undefined in some is the mean of the others'."""
        values = {name: value.detach() for name, value in losses.items()}
        if self.trainer.world_size == 1:
            return values
        each = torch.stack([value.float() for value in values.values()])
        defined = each.isfinite()
        defined[list(values).index("loss")] = True  # where this one is not finite in any process, all must know
        sums = torch.stack([torch.where(defined, each, 0.0), defined.float()])
        distributed.all_reduce(sums)
        return dict(zip(values, sums[0] / sums[1], strict=True))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop when the time is spent."""
        now = time.monotonic()
        self.elapsed, self._clock = self.elapsed + now - self._clock, now
        if self.max_minutes and self.trainer.world_size > 1:
            self.elapsed = self.trainer.strategy.broadcast(self.elapsed)
        if self.max_minutes and self.elapsed >= self.max_minutes * 60:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's rows."""
        self.rows = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict and measure one batch."""
        self._settle_cases(batch)
        wanted = self.task.while_learning()
        self.rows += self.task.metrics(self.task.predict_to_measure(batch, wanted), batch, wanted)

    def _settle_cases(self, batch: Batch) -> None:
        """In the first validation, as it meets its first case: how many of them the training pays for."""
        if self.validated is None or self.validated.count is not None:
            return
        count = self.validated.settle(self.trained, self.task.work(batch) * self.task.calls)
        self.validated.count = count = int(self.trainer.strategy.broadcast(count))
        if count < self.validated.cases:
            log.info(
                "validations measure %d of %d cases, for a tenth of the training's work; all by "
                "trainer.limit_val_batches=null", count, self.validated.cases,
            )  # fmt: skip

    def on_validation_epoch_end(self) -> None:
        """Log what is wanted of the summary of all rows."""
        self.rows = self._all_rows()
        summary = self.task.while_learning().of(self.task.summary(self.rows))
        logged = {f"val/{name}": float(value) for name, value in summary.items()}
        self.log_dict(logged | {"step": float(max(0, self.trainer.global_step - 1))}, sync_dist=True)
        monitored = float(summary[self.task.monitor])
        self.log("val", monitored, prog_bar=True, logger=False, sync_dist=True)
        if not self.trainer.sanity_checking:
            if self.task.judged(self.progress()):
                self.learning_rate.observe(monitored, self.task.higher_is_better)
            self.history.append({"step": float(self.trainer.global_step), **{k: float(v) for k, v in summary.items()}})

    def _all_rows(self) -> list[Row]:
        """The rows of all processes, in the order of the cases; see `data.loader.evaluation_loader`."""
        size = self.trainer.world_size
        if size == 1:
            return self.rows
        parts: list[list[Row]] = [[] for _ in range(size)]
        distributed.all_gather_object(parts, self.rows)
        rows = [part[place] for place in range(len(parts[0])) for part in parts if place < len(part)]
        loader = self.trainer.val_dataloaders
        assert loader is not None
        return rows[: self.validated.count if self.validated else len(loader.dataset)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to go on exactly."""
        checkpoint["voxelry"] = {
            **self.description,
            "batches_taken": self.batches_taken,
            "elapsed": self.elapsed,
            "trained": self.trained,
            "validated": self.validated and self.validated.count,
            "learning_rate": self.learning_rate.state_dict(),
            "history": self.history,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        state = checkpoint["voxelry"]
        self.batches_taken, self.elapsed = state["batches_taken"], state["elapsed"]
        self.learning_rate.load_state_dict(state["learning_rate"])
        self.history = list(state["history"])
        self.trained = state.get("trained", 0.0)
        if self.validated is not None and state.get("validated") is not None:
            self.validated.count = state["validated"]

"""What a task is to the engine.

A task knows the network, the loss and the answer; it knows nothing of the loop, the configuration or
the cluster. `engine/lightning.py` adapts any of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from voxelry.bundle.task import StoredTask
from voxelry.data.sample import Sample
from voxelry.metrics.choice import ALL, MetricChoice, Wanted

__all__ = ["SHARE", "STEP_COST", "Row", "Task"]

SHARE = 0.1  # of the training's work, that what is measured or shown while learning may take
STEP_COST = 3  # calls of the network that learning from a batch is worth: forward, and twice that backward

Row = dict[str, float | str]


class Images(Protocol):
    """What a task is given at a time: a batch of any class whose images, batch first, are `image`."""

    @property
    def image(self) -> Tensor: ...


BatchT = TypeVar("BatchT", bound=Images)
PredictionT = TypeVar("PredictionT")


class Task(StoredTask, Generic[BatchT, PredictionT]):
    """A network together with what it is trained for: `Task[Batch, Volume]` learns from `Batch`es, answers `Volume`s.

    Attributes:
        monitor: the summary metric that decides which checkpoint is best.
        higher_is_better: the sense of `monitor`.
        slow: patterns of metrics that take long, so that validations leave them out.
        highest_threshold: the largest of `MetricChoice.thresholds` that makes sense; None where there are none.
    """

    monitor: str
    higher_is_better: bool = False
    slow: Sequence[str] = ()
    highest_threshold: float | None = None

    @abstractmethod
    def training_loss(self, batch: BatchT) -> dict[str, Tensor]:
        """Losses of one batch, scalars; `loss` is minimised, the others are logged."""

    @abstractmethod
    def predict(self, batch: BatchT) -> list[PredictionT]:
        """One prediction per sample, in the sample's own space; no gradients are needed."""

    def predict_to_measure(self, batch: BatchT, wanted: Wanted) -> list[PredictionT]:
        """Predictions for `metrics`; a task may leave out what only other metrics than the wanted need."""
        return self.predict(batch)

    @abstractmethod
    def metrics(self, predictions: Sequence[PredictionT], batch: BatchT, wanted: Wanted = ALL) -> list[Row]:
        """One row per sample: `name` and plain numbers, NaN where undefined.

        Args:
            wanted: of the summary; what costs time and isn't wanted may be left out.
        """

    @abstractmethod
    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        """All rows in a few numbers; holds `monitor`."""

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold with that choice; by default what it holds without any row."""
        return list(self.summary(()))

    def measured_classes(self) -> Sequence[str]:
        """Names of the classes, landmarks or organs that are measured each by itself; none by default."""
        return ()

    def choose(self, metrics: MetricChoice) -> None:
        """Compute and tell those metrics from now on.

        Raises:
            SettingError: a metric, class or threshold that the task doesn't have; names the nearest.
        """
        metrics.check(self.metric_names(metrics), self.measured_classes(), self.highest_threshold)
        self.chosen = metrics

    def while_learning(self) -> Wanted:
        """Which metrics a validation computes."""
        return self.chosen.while_learning(self.monitor, self.slow)

    def parameter_groups(self) -> Iterable[Any]:
        """What an optimizer trains: parameters, or groups of them with settings of their own."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def on_progress(self, share: float) -> None:
        """Told before every batch how much of the training is spent, in [0, 1]; nothing by default.

        For what changes in the course of a training. An interrupted one goes on with the share it had reached.
        """
        return

    def on_batch(self, drawn: int) -> None:
        """Told before every training batch how many samples all processes have drawn so far; nothing by default."""
        return

    @property
    def calls(self) -> int:
        """Calls of the network that a prediction takes; the more, the fewer cases are measured while learning."""
        return 1

    def work(self, batch: BatchT) -> float:
        """What a call of the network has to do for a batch, in any unit; by default the voxels of its images."""
        return batch.image.numel()

    def judged(self, share: float) -> bool:
        """Whether a validation after this share of the training, in [0, 1], may be the best; always by default.

        Not while a part that the answer is made with hasn't begun to learn.
        """
        return True

    def fit_baseline(self, samples: Iterable[Sample]) -> None:
        """Remember from the training cases what the metrics compare with; nothing by default."""
        return

    def calibrate(self, predictions: Sequence[PredictionT], samples: Sequence[Sample]) -> None:
        """Learn from validation cases what only held-out predictions tell: how sure they are; nothing by default.

        Called once, after training and before the bundle is written.
        """
        return

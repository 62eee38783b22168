"""What a training does where its memory runs out: it learns from a batch in parts, whose gradients add up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from voxelry.core.errors import VoxelryError

__all__ = ["Portions", "ShortageError", "is_shortage", "parts_of"]

# of the processor's allocators, on several systems; GPUs have an error of their own
_WORDS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory")

BatchT = TypeVar("BatchT")

log = logging.getLogger("voxelry")


class ShortageError(VoxelryError):
    """The memory doesn't hold a training step on a single case."""


class Portions:
    """Learns from batches, in parts where the memory doesn't hold them at once.

    Args:
        losses: of a batch or a part of it, the mean over its samples.

    Attributes:
        count: parts of a batch.
        fixed: whether that can't be changed, since several processes keep step.
        context: what losses are computed within, such as that of the run's precision.
    """

    def __init__(self, losses: Callable[[Any], dict[str, Tensor]]):
        self.losses, self.count, self.fixed = losses, 1, False
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._batch: Any = None

    @property
    def weight(self) -> float:
        """Share of the batch that `first` told of."""
        return len(self._parts()[0]) / len(self._batch)

    def first(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch, or of the first of its parts.

        Raises:
            ShortageError: not even a single sample fits.
        """
        self._batch = batch
        while True:
            try:
                with self.context():
                    return self.losses(self._parts()[0])
            except Exception as error:
                self._halve(error)

    def backward(self, loss: Tensor, factor: float, forget: Callable[[], None]) -> None:
        """Add up the gradients of all parts.

        Args:
            loss: what `first` answered, times its `weight` and `factor`.
            factor: of the losses of the other parts.
            forget: sets the gradients to zero, where a part has to be learned from anew.

        Raises:
            ShortageError: see `first`.
        """
        try:
            loss.backward()
            return self._add(self._parts()[1:], factor)
        except Exception as error:
            self._halve(error)
        loss.detach_()  # whoever else holds it would keep its graph
        while True:
            forget()
            try:
                return self._add(self._parts(), factor)
            except Exception as error:
                self._halve(error)

    def _parts(self) -> list[Any]:
        return parts_of(self._batch, self.count)

    def _add(self, parts: Sequence[Any], factor: float) -> None:
        for part in parts:
            with self.context():
                loss = self.losses(part)["loss"]
            (loss * (factor * len(part) / len(self._batch))).backward()

    def _halve(self, error: Exception) -> None:
        """Take parts of half the size from now on; raises `error` where it is about something else."""
        if self.fixed or not is_shortage(error):
            raise error
        if self.count >= len(self._batch):
            raise ShortageError(
                f"{', '.join(self._batch.names)}: there is no memory for a training step; smaller windows "
                "(data.patches={size: 32}), a narrower network (model.width) or trainer.precision=bf16-mixed help most"
            ) from error
        self.count *= 2
        each = -(-len(self._batch) // self.count)
        log.warning(
            "the memory ran out: batches are learned from in parts of %d from now on, whose gradients add up "
            "(data.batch_size=%d trainer.grad_accumulation=%d)", each, each, self.count,
        )  # fmt: skip


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def parts_of(batch: BatchT, count: int) -> list[BatchT]:
    """A batch in so many parts of about the same size, or as many as it has samples.

    Args:
        batch: a dataclass whose tensors and lists have a value for each sample.
    """
    own: Any = batch
    if count == 1:
        return [batch]
    size = -(-len(own) // min(count, len(own)))
    values = {one.name: getattr(own, one.name) for one in fields(own)}
    each = {name: value for name, value in values.items() if isinstance(value, Tensor | list)}
    return [
        replace(own, **{name: value[start : start + size] for name, value in each.items()})
        for start in range(0, len(own), size)
    ]

"""A training whose memory runs out goes on with parts of its batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from voxelry.data.sample import Batch
from voxelry.engine.lightning import TaskModule
from voxelry.engine.schedules import Cosine
from voxelry.engine.shortage import ShortageError, is_shortage, parts_of

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|no `val_dataloader`|LeafSpec).*")


@dataclass
class Points:
    """A batch of places and heights."""

    image: Tensor
    heights: Tensor
    names: list[str]

    def __len__(self):
        return len(self.image)


class Full(torch.autograd.Function):
    """Passes on, and has no memory for the way back of more than one sample."""

    @staticmethod
    def forward(ctx, x):
        ctx.count = len(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.count > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return grad


class Line(nn.Module):
    """Linear regression that can learn from so many samples at once, forward and backward."""

    def __init__(self, forward: int = 8, backward: int = 8):
        super().__init__()
        self.network, self.most, self.full = nn.Linear(1, 1), forward, backward < 8

    def training_loss(self, batch):
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        x = Full.apply(batch.image.requires_grad_()) if self.full else batch.image
        return {"loss": (self.network(x) - batch.heights).square().mean()}

    def work(self, batch):
        return 1.0

    def on_progress(self, share): ...

    def on_batch(self, drawn): ...

    def parameter_groups(self):
        return self.parameters()


def learned(task, accumulation=1) -> list[float]:
    """Weights after two steps."""
    torch.manual_seed(0)
    nn.init.ones_(task.network.weight)
    nn.init.zeros_(task.network.bias)
    batches = [Points(torch.rand(3, 1), torch.rand(3, 1), ["a", "b", "c"]) for _ in range(2 * accumulation)]
    module = TaskModule(
        task, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1), learning_rate=Cosine(), max_steps=2
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        enable_model_summary=False,
        use_distributed_sampler=False,
        accumulate_grad_batches=accumulation,
        **quiet,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return [value.item() for value in task.parameters()]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("limits", [{"forward": 2}, {"forward": 1}, {"backward": 1}])
def test_the_same_is_learned_in_parts(limits, accumulation, caplog):
    whole = learned(Line(), accumulation)
    with caplog.at_level(logging.WARNING, "voxelry"):
        parts = learned(Line(**limits), accumulation)
    if accumulation == 1 or "forward" in limits:
        assert parts == pytest.approx(whole, rel=1e-5)
    assert parts != [1.0, 0.0]
    assert "batches are learned from in parts of" in caplog.text
    assert "trainer.grad_accumulation=" in caplog.text


def test_a_single_case_that_does_not_fit_is_refused_with_what_helps():
    with pytest.raises(ShortageError, match=r"^a, b, c: there is no memory .*data\.patches.*model\.width.*bf16-mixed"):
        learned(Line(forward=0))


def test_other_errors_are_none_of_memory():
    assert is_shortage(MemoryError())
    assert is_shortage(RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"))
    assert not is_shortage(RuntimeError("shapes differ"))
    assert not is_shortage(ValueError("out of memory"))


@pytest.mark.parametrize(("count", "sizes"), [(1, [5]), (2, [3, 2]), (4, [2, 2, 1]), (8, [1] * 5)])
def test_a_batch_in_parts(count, sizes):
    batch = Batch(torch.arange(5.0)[:, None], [None] * 5, list("abcde"), boxes=[torch.full((1,), i) for i in range(5)])
    parts = parts_of(batch, count)
    assert [len(part) for part in parts] == sizes
    assert [name for part in parts for name in part.names] == list("abcde")
    assert torch.equal(torch.cat([part.image for part in parts]), batch.image)
    assert [int(box) for part in parts for box in part.boxes] == list(range(5))

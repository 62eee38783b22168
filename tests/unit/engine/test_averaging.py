"""Averaged weights follow the learning ones closely at first, and slowly later."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from voxelry.engine.averaging import MovingAverage, decay_after


class Counter(torch.nn.Module):
    """One weight and a counter."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("seen", torch.tensor(0))


def test_the_average_is_the_recurrence_of_its_decays():
    average = MovingAverage(0.9)
    model = Counter()
    averaged = AveragedModel(model, use_buffers=True, multi_avg_fn=average._kwargs["multi_avg_fn"])
    expected = None
    for step, value in enumerate([4.0, -2.0, 7.0, 0.5]):
        model.weight.data.fill_(value)
        model.seen += 1
        assert average.should_update(step_idx=step)
        averaged.update_parameters(model)
        decay = (1 + step) / (10 + step)
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert int(averaged.module.seen) == 4
    assert not average.should_update(epoch_idx=3)


@pytest.mark.parametrize(
    ("steps", "decay", "expected"), [(0, 0.99, 0.1), (80, 0.99, 0.9), (10_000, 0.99, 0.99), (5, 0, 0)]
)
def test_the_decay_grows_to_what_was_set(steps, decay, expected):
    assert decay_after(steps, decay) == pytest.approx(expected)

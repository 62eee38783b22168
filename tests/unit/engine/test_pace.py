"""Steps, epochs and validations of a run."""

import pytest

from voxelry.core.errors import ConfigError
from voxelry.engine.compose import compose_training
from voxelry.engine.pace import pace


def rhythm(*overrides, cases, batch_size=2, world_size=1):
    config = compose_training(["data.root=nowhere", *overrides])
    return pace(config.trainer, cases=cases, batch_size=batch_size, world_size=world_size)


@pytest.mark.parametrize(("cases", "steps"), [(5, 1), (10, 1), (25, 2), (195, 13)])
def test_an_epoch_has_the_steps_that_its_batches_need(cases, steps):
    found = rhythm("trainer.max_epochs=200", "trainer.grad_accumulation=8", "trainer.validate_every=epoch", cases=cases)
    assert (found.max_steps, found.validate_every) == (200 * steps, steps)


def test_processes_share_an_epoch():
    found = rhythm("trainer.max_epochs=2", "trainer.validate_every=epoch", cases=9, world_size=2)
    assert found.max_steps == 6


def test_validations_of_closed_passes_fall_on_their_ends():
    found = rhythm(
        "trainer.close_epochs=true",
        "trainer.max_steps=100",
        "trainer.validate_every=10",
        "trainer.grad_accumulation=4",
        cases=50,
    )
    assert found.validate_every == 7


def test_open_passes_validate_by_steps():
    found = rhythm("trainer.validate_every=10", "trainer.grad_accumulation=4", cases=50)
    assert (found.max_steps, found.validate_every, found.closed) == (2000, 10, False)


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"trainer\.max_steps"):
        rhythm("trainer.max_steps=null", cases=5)

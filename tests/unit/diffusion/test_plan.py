"""One object says what is trained and what is sampled."""

import json

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.flow import GOLDEN_RATIO
from voxelry.diffusion.objectives import convert
from voxelry.diffusion.plan import Plan
from voxelry.diffusion.samplers import SAMPLERS
from voxelry.diffusion.schedules import SPACINGS, Schedule, timesteps

OF_FOUR = Plan.from_settings()


def test_the_default_is_four_trailing_steps_of_a_cosine_schedule():
    assert OF_FOUR.steps == OF_FOUR.trained == (249, 499, 749, 999)
    assert (OF_FOUR.schedule.name, OF_FOUR.sampler, OF_FOUR.objective, OF_FOUR.calls) == ("cosine", "ddim", "v", 4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"spacing": "fast_ddpm_uniform", "steps": 10, "schedule": "linear", "objective": "epsilon", "clip": None},
        {"spacing": [3, 40, 99], "n_timestep": 100, "steps": None, "eta": 0.5},
        {"sampler": "heun", "train_steps": "all", "schedule": "sigmoid", "linear_end": 0.03},
        {"train_steps": [9, 249, 499, 749, 999]},
    ],
)
def test_settings_build_the_same_plan(settings):
    plan = Plan.from_settings(**settings)
    again = Plan.from_settings(**json.loads(json.dumps(plan.settings())))
    assert again.settings() == plan.settings()
    assert again.steps == plan.steps
    assert again.trained == plan.trained
    assert torch.equal(again.schedule.betas, plan.schedule.betas)
    if settings:
        assert again.request(steps=2).steps == plan.request(steps=2).steps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("count", [2, 4, 7, 10])
def test_the_network_is_called_as_often_as_the_plan_says_and_where_it_was_trained(spacing, sampler, count):
    plan = Plan.from_settings(spacing=spacing, steps=count, sampler=sampler)
    asked = []

    def predict(x, t):
        asked.append(t)
        return torch.tanh(x)

    plan.sample(predict, torch.randn(1, 1, 3, 4))
    assert len(asked) == plan.calls == (2 * len(plan.steps) - 1 if sampler == "heun" else len(plan.steps))
    assert sorted(set(asked)) == list(plan.steps) == timesteps(spacing, 1000, count)
    assert set(plan.draw(400).tolist()) == set(plan.steps)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_that_knows_the_image_gives_the_image(ndim, objective, sampler):
    plan = Plan.from_settings(objective=objective, sampler=sampler)
    x0 = torch.rand((2, 1, *(5, 4, 3)[:ndim]), dtype=torch.float64) * 2 - 1
    found = plan.sample(lambda x, t: convert(x0, x, t, plan.schedule, "x0", objective), torch.randn_like(x0))
    torch.testing.assert_close(found, x0, rtol=1e-8, atol=1e-8)


def test_eta_reaches_the_sampler():
    start = torch.zeros(1, 1, 8, 8)
    drawn = [
        Plan.from_settings(eta=eta).sample(lambda x, t: x, start, generator=torch.Generator().manual_seed(0))
        for eta in (0.0, 1.0)
    ]
    assert drawn[0].abs().max() == 0
    assert drawn[1].abs().max() > 0


def test_training_draws_every_step_when_asked():
    plan = Plan.from_settings(train_steps="all", n_timestep=50)
    assert plan.trained is None
    assert sorted(plan.draw(50).tolist()) == list(range(50))  # one draw from each fiftieth
    assert sorted(plan.draw(2000, stratified=False).unique().tolist()) == list(range(50))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_consecutive_batches_cover_the_steps_evenly(batch):
    position, drawn = 0.3, []
    for _ in range(120 // batch):
        drawn.append(OF_FOUR.draw(batch, position=position))
        position = (position + batch * GOLDEN_RATIO) % 1
    counts = torch.cat(drawn).unique(return_counts=True)
    assert counts[0].tolist() == [249, 499, 749, 999]
    assert counts[1].max() - counts[1].min() <= 2
    # and so does any run of a few of them, at batch 1 as well
    sequence = torch.cat(drawn).unfold(0, 8, 1)
    assert all(len(run.unique()) == 4 for run in sequence)


def test_a_sequence_does_not_depend_on_how_it_is_cut_into_batches():
    whole = OF_FOUR.draw(12, position=0.1)
    half = (0.1 + 6 * GOLDEN_RATIO) % 1
    assert torch.equal(whole, torch.cat([OF_FOUR.draw(6, position=0.1), OF_FOUR.draw(6, position=half)]))


def test_a_generator_repeats_the_draw():
    first, second = (OF_FOUR.draw(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.int64


def test_fewer_steps_of_a_trained_model_are_some_of_those_it_knows():
    assert OF_FOUR.request(steps=2).steps == (499, 999)
    assert OF_FOUR.request(steps=1, sampler="dpm_solver").steps == (999,)
    assert OF_FOUR.request(steps=2).request(steps=4).steps == OF_FOUR.steps
    assert OF_FOUR.request(sampler="heun").calls == 7
    assert Plan.from_settings(spacing=[5, 50, 99], n_timestep=100).request(steps=2).steps == (50, 99)
    assert Plan.from_settings(eta=0.5).request(sampler="heun").eta == 0


def test_any_number_of_steps_of_a_model_that_was_trained_at_all():
    plan = Plan.from_settings(train_steps="all")
    assert plan.request(steps=7, sampler="ddim", eta=1.0).settings() | {"eta": 0.0} == (
        Plan.from_settings(train_steps="all", steps=7).settings()
    )


def test_steps_that_were_not_trained_are_refused_with_those_that_were():
    with pytest.raises(SettingError) as caught:
        OF_FOUR.request(steps=8)
    message = str(caught.value)
    assert "would visit 124, 249, 374" in message
    assert "trained at 249, 499, 749, 999 only" in message
    assert "it can do 1, 2, 4 of them" in message
    with pytest.raises(SettingError, match=r"visit 0, 88, .* \.\.\., .*999, but .* trained at 0, 199, 399"):
        Plan.from_settings(spacing="fast_ddpm_non_uniform", steps=10).request(steps=20)
    with pytest.raises(SettingError, match=r"expected 1 to 2 of 5, 99, got 3"):
        Plan.from_settings(spacing=[5, 99], n_timestep=100).request(steps=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "magic"}, "sampler: expected one of ddpm, ddim, dpm_solver, heun, got 'magic'"),
        ({"objective": "y"}, "objective: expected one of"),
        ({"spacing": "zigzag"}, "timesteps: expected a list or one of"),
        ({"spacing": [4, 1000]}, "timesteps: expected steps from 0 to 999"),
        ({"steps": 0}, "sample_steps: expected 1 to 1000"),
        ({"eta": 0.5, "sampler": "heun"}, "eta: expected 0, or more for the sampler ddim; got 0.5 for heun"),
        ({"clip": [1, -1]}, "clip: expected a low and a high value"),
        ({"train_steps": "some"}, "train_steps: expected visited, all or a list"),
        ({"train_steps": [1, 2]}, "4 steps would visit 249, 499, 749, 999, but the model was trained at 1, 2 only"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(SettingError, match=message) as caught:
        Plan.from_settings(**settings)
    assert "\n" not in str(caught.value)


def test_a_plan_can_be_made_of_its_parts():
    schedule = Schedule(torch.linspace(0.1, 0.9, 5))
    plan = Plan(schedule, (1, 4), trained=(1, 4))
    assert plan.request(steps=1).steps == (4,)
    with pytest.raises(SettingError, match="only a named schedule"):
        plan.settings()
    for steps in ((), (4, 1)):
        with pytest.raises(SettingError, match="timesteps"):
            Plan(schedule, steps)

"""Schedules and samplers against the originals' files and, step by step, against diffusers."""

import json

import pytest
import torch
from safetensors import safe_open

from voxelry.diffusion.samplers import ddim, ddpm, dpm_solver
from voxelry.diffusion.schedules import Schedule, timesteps


def tensors(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["case"])  # noqa: SIM118


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["linear", "cosine", "quadratic", "sigmoid"])
def test_beta_schedules(golden, name):
    expected, case = tensors(golden / "beta_schedules.safetensors")
    betas = Schedule.from_name(name, steps=case["timesteps"]).betas
    torch.testing.assert_close(betas, expected[name].double(), rtol=1e-6, atol=1e-8)


def test_fast_ddpm_time_steps(golden):
    _, case = tensors(golden / "fast_ddpm_sampler.safetensors")
    for name, expected in case["timesteps"].items():
        kind, count = name.split(".")
        assert timesteps(f"fast_ddpm_{kind}", 1000, int(count)) == expected


@pytest.mark.parametrize("conditions", [("condition",), ("before", "after")])
@pytest.mark.parametrize("name", ["uniform.10", "uniform.20", "non_uniform.10", "non_uniform.20"])
def test_fast_ddpm_sampler(golden, name, conditions):
    known, _ = tensors(golden / "fast_ddpm_sampler.safetensors")
    known = {key: value.double() for key, value in known.items()}
    shift = 0.2 * torch.cat([known[f"input.{key}"] for key in conditions], dim=1).mean(dim=1, keepdim=True)
    kind, count = name.split(".")
    seen = []
    found = ddim(
        lambda x, t: torch.tanh(0.7 * x + shift + t / 1000),
        known["input.x_T"],
        Schedule.from_name("linear", steps=1000),
        timesteps(f"fast_ddpm_{kind}", 1000, int(count)),
        callback=seen.append,
    )
    which = "one_condition" if len(conditions) == 1 else "two_conditions"
    assert relative(found, known[f"output.{which}.{name}"]) < 1e-5
    if len(conditions) == 1:
        assert relative(seen[0].estimate, known[f"output.x0_first.{name}"]) < 1e-5


PREDICTION = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULE = Schedule.from_name("linear", steps=1000)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def settings(objective):
    return {"trained_betas": SCHEDULE.betas.numpy(), "prediction_type": PREDICTION[objective]}


def in_float64(scheduler):
    """The peer with its table in float64: in float32 the beta of one step of a thousand has three digits."""
    scheduler.alphas_cumprod = SCHEDULE.alphas_bar
    return scheduler


def predict(x, t):
    return torch.tanh(0.7 * x + t / 1000)


def start(ndim):
    return torch.randn((2, 1, *(6, 5, 4)[:ndim]), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def steps_of(scheduler, x, **step):
    """The peer's images after each of its steps."""
    images = []
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, int(t)), t, x, **step).prev_sample
        images.append(x)
    return images


def compare(seen, expected):
    assert len(seen) == len(expected)
    for step, image in zip(seen, expected, strict=True):
        assert relative(step.x, image) < 1e-5


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("objective", PREDICTION)
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_is_that_of_diffusers(diffusers, objective, ndim, clip, eta):
    scheduler = diffusers.DDIMScheduler(**settings(objective), clip_sample=clip is not None, timestep_spacing="leading")
    in_float64(scheduler).set_timesteps(20)
    seen = []
    ddim(
        predict,
        start(ndim),
        SCHEDULE,
        scheduler.timesteps.flip(0).tolist(),
        objective=objective,
        clip=clip,
        eta=eta,
        generator=torch.Generator().manual_seed(7),
        callback=seen.append,
    )
    generator = torch.Generator().manual_seed(7)
    expected = steps_of(scheduler, start(ndim), eta=eta, use_clipped_model_output=True, generator=generator)
    compare(seen, expected)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("objective", PREDICTION)
@pytest.mark.parametrize("count", [25, 1000])
def test_ddpm_is_that_of_diffusers(diffusers, objective, variance, count):
    scheduler = diffusers.DDPMScheduler(
        **settings(objective), clip_sample=True, variance_type=f"fixed_{variance}", timestep_spacing="leading"
    )
    in_float64(scheduler).set_timesteps(count)
    seen = []
    ddpm(
        predict,
        start(2),
        SCHEDULE,
        scheduler.timesteps.flip(0).tolist(),
        objective=objective,
        clip=(-1.0, 1.0),
        variance=variance,
        generator=torch.Generator().manual_seed(7),
        callback=seen.append,
    )
    compare(seen, steps_of(scheduler, start(2), generator=torch.Generator().manual_seed(7)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, under numpy 2
@pytest.mark.parametrize("objective", PREDICTION)
@pytest.mark.parametrize("count", [5, 20])
def test_dpm_solver_is_that_of_diffusers(diffusers, objective, count):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **settings(objective), algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint"
    )
    in_float64(scheduler).set_timesteps(count)
    seen = []
    steps = scheduler.timesteps.flip(0).tolist()
    dpm_solver(predict, start(3), SCHEDULE, steps, objective=objective, callback=seen.append)
    compare(seen, steps_of(scheduler, start(3)))

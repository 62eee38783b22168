import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.objectives import Objective, convert, q_sample
from voxelry.diffusion.samplers import SAMPLERS, ddim, ddpm, heun, network_calls, sample, start_from
from voxelry.diffusion.schedules import Schedule, timesteps

SCHEDULE = Schedule.from_name("linear", steps=200)


def image(ndim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, 1, *(5, 4, 3)[:ndim]), generator=generator, dtype=torch.float64) * 2 - 1


def oracle(x0, objective="epsilon"):
    """A network that knows the answer."""
    return lambda x, t: convert(x0, x, t, SCHEDULE, "x0", objective)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("method", SAMPLERS)
def test_a_perfect_prediction_gives_the_image(method, objective, ndim):
    x0 = image(ndim)
    steps = timesteps("uniform", 200, 9)
    found = sample(method, oracle(x0, objective), torch.randn_like(x0), SCHEDULE, steps, objective=objective)
    torch.testing.assert_close(found, x0, rtol=1e-8, atol=1e-8)


def test_one_ddim_step_lands_on_the_estimate():
    x0 = image(2)
    x_t = q_sample(x0, 120, torch.randn_like(x0), SCHEDULE)
    torch.testing.assert_close(ddim(oracle(x0), x_t, SCHEDULE, [120]), x0)


def test_ddim_with_a_perfect_prediction_stays_on_the_straight_path():
    x0, noise = image(3), torch.randn_like(image(3))
    seen = []
    ddim(oracle(x0), q_sample(x0, 199, noise, SCHEDULE), SCHEDULE, [3, 50, 199], callback=seen.append)
    assert [(step.index, step.total, step.t, step.t_next) for step in seen] == [
        (0, 3, 199, 50),
        (1, 3, 50, 3),
        (2, 3, 3, -1),
    ]
    for step in seen:
        torch.testing.assert_close(step.x, q_sample(x0, step.t_next, noise, SCHEDULE))
        torch.testing.assert_close(step.estimate, x0)


def test_the_exact_denoiser_of_normal_data_gives_normal_samples():
    # data N(mean, width^2) has a known best predictor, so the samplers must bring noise to that very distribution
    mean, width = 0.4, 0.3

    def best(x, t):
        a, s = SCHEDULE.signal(t, x), SCHEDULE.noise(t, x)
        return (mean * s**2 + width**2 * a * x) / (s**2 + width**2 * a**2)

    schedule_end = SCHEDULE.alpha_bar(199) ** 0.5
    for method in SAMPLERS:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn((4000, 1, 2, 2), generator=generator, dtype=torch.float64)
        start = schedule_end * mean + start * (1 - schedule_end**2 * (1 - width**2)) ** 0.5
        steps = timesteps("uniform", 200, 100)
        drawn = sample(method, best, start, SCHEDULE, steps, objective="x0", generator=generator)
        assert drawn.mean().item() == pytest.approx(mean, abs=0.01), method
        assert drawn.std().item() == pytest.approx(width, abs=0.015), method


def test_solvers_of_second_order_are_closer_than_ddim():
    # for normal data the noise-free path is known: a point keeps its distance from the mean in deviations
    mean, width = 0.4, 0.3

    def best(x, t):
        a, s = SCHEDULE.signal(t, x), SCHEDULE.noise(t, x)
        return (mean * s**2 + width**2 * a * x) / (s**2 + width**2 * a**2)

    def spread(t):
        share = SCHEDULE.alpha_bar(t)
        return (1 - share + width**2 * share) ** 0.5

    start = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    exact = mean + width * (start - SCHEDULE.alpha_bar(199) ** 0.5 * mean) / spread(199)
    few = timesteps("quadratic", 200, 15)
    errors = {
        method: (sample(method, best, start, SCHEDULE, few, objective="x0") - exact).abs().max().item()
        for method in ("ddim", "dpm_solver", "heun")
    }
    assert errors["dpm_solver"] < 0.5 * errors["ddim"]
    assert errors["heun"] < 0.2 * errors["ddim"]


def test_heun_falls_with_the_square_of_the_step():
    # the noise-free path of normal data, as above, from step 335 to step 15 of a fine schedule
    fine = Schedule.from_name("cosine", steps=400)
    mean, width = 0.4, 0.3

    def best(x, t):
        a, s = fine.signal(t, x), fine.noise(t, x)
        return (mean * s**2 + width**2 * a * x) / (s**2 + width**2 * a**2)

    def place(start, t):
        signal, spread = (fine.alpha_bar(i) for i in (t, 335))
        scale = [(1 - share + width**2 * share) ** 0.5 for share in (signal, spread)]
        return signal**0.5 * mean + scale[0] * (start - spread**0.5 * mean) / scale[1]

    start = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    errors = {}
    for stride in (32, 16, 8):
        seen = []
        steps = list(range(15, 336, stride))
        heun(best, start, fine, steps, objective="x0", callback=seen.append)
        errors[stride] = (seen[-2].x - place(start, 15)).abs().max().item()
    assert errors[16] < errors[32] / 3
    assert errors[8] < errors[16] / 3.5  # a fourth in the limit


def test_heun_stays_in_range_over_few_steps_of_a_schedule_that_ends_in_noise():
    # sigma is 20,000 at the end of the cosine schedule; estimates that jump about must not be amplified by it
    fine = Schedule.from_name("cosine", steps=1000)
    seen = []
    heun(lambda x, t: torch.sin(7 * x), image(3), fine, [249, 499, 749, 999], objective="x0", callback=seen.append)
    assert all(step.x.abs().max() < 5 for step in seen)


@pytest.mark.parametrize(
    ("method", "settings"), [("ddpm", {}), ("ddpm", {"variance": "large"}), ("ddim", {"eta": 1.0})]
)
def test_random_samplers_repeat_with_their_seed_and_differ_without(method, settings):
    def predict(x, t):
        return torch.tanh(x)

    start = image(2)
    runs = [
        sample(method, predict, start, SCHEDULE, [0, 90, 199], generator=torch.Generator().manual_seed(s), **settings)
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2])


def test_ddim_at_eta_one_is_ddpm_of_small_variance():
    def predict(x, t):
        return torch.tanh(x + t / 200)

    runs = [
        SAMPLERS[method](
            predict, image(3), SCHEDULE, [0, 40, 120, 199], generator=torch.Generator().manual_seed(3), **settings
        )
        for method, settings in (("ddpm", {"variance": "small"}), ("ddim", {"eta": 1.0}))
    ]
    torch.testing.assert_close(runs[0], runs[1])


@pytest.mark.parametrize("method", SAMPLERS)
def test_clipping_keeps_the_estimates_in_range(method):
    seen = []
    found = sample(method, lambda x, t: 3 * x, image(2), SCHEDULE, [0, 60, 199], clip=(-0.5, 0.5), callback=seen.append)
    assert all(step.estimate.abs().max() <= 0.5 for step in seen)
    assert found.abs().max() <= 0.5


@pytest.mark.parametrize("method", SAMPLERS)
def test_self_conditioning_passes_the_last_estimate_on(method):
    given, made = [], []

    def predict(x, t, estimate):
        given.append(estimate)
        return torch.tanh(x)

    sample(
        method,
        predict,
        image(2),
        SCHEDULE,
        [10, 60, 199],
        self_condition=True,
        callback=lambda step: made.append(step.estimate),
    )
    assert given[0] is None
    before = given[1::2] if method == "heun" else given[1:]  # its look ahead is told what the step began with
    assert len(given) == network_calls(method, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, made[: len(before)], strict=True))


def test_a_start_in_the_middle_drops_the_steps_above():
    x0 = image(3)
    x_t, steps = start_from(x0, 100, SCHEDULE, [0, 50, 100, 150, 199], generator=torch.Generator().manual_seed(0))
    assert steps == [0, 50, 100]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=x0.dtype)
    torch.testing.assert_close(x_t, q_sample(x0, 100, noise, SCHEDULE))
    torch.testing.assert_close(ddim(oracle(x0), x_t, SCHEDULE, steps), x0)


def test_the_network_may_answer_in_another_precision():
    found = ddim(lambda x, t: torch.tanh(x).bfloat16(), image(2).float(), SCHEDULE, [0, 199])
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: sample("magic", oracle(image(2)), image(2), SCHEDULE, [0]), "sampler"),
        (lambda: ddpm(oracle(image(2)), image(2), SCHEDULE, [0], variance="medium"), "variance"),
        (lambda: ddim(oracle(image(2)), image(2), SCHEDULE, [5, 3]), "timesteps"),
        (lambda: ddim(oracle(image(2)), image(2), SCHEDULE, [5, 200]), "timesteps"),
        (lambda: ddim(oracle(image(2)), image(2), SCHEDULE, []), "timesteps"),
        (lambda: start_from(image(2), 200, SCHEDULE, [0]), "t_start"),
        (lambda: ddim(oracle(image(2)), image(2), SCHEDULE, [5], objective="y"), "objective"),
    ],
)
def test_what_is_refused_names_the_setting(call, word):
    with pytest.raises(SettingError, match=word):
        call()


def test_objective_and_sampler_agree_on_names():
    x0, noise = image(2), torch.randn_like(image(2))
    for name in ("epsilon", "x0", "v"):
        target = Objective(name).target(x0, noise, 70, SCHEDULE)
        x_t = q_sample(x0, 70, noise, SCHEDULE)
        torch.testing.assert_close(ddim(lambda x, t, y=target: y, x_t, SCHEDULE, [70], objective=name), x0)

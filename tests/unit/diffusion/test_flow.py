import math

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.flow import (
    FLOW_SAMPLERS,
    GOLDEN_RATIO,
    draw_times,
    estimate_x0,
    euler,
    flow_times,
    heun,
    interpolate,
    velocity,
    velocity_from_x0,
)


def ends(ndim, batch=3):
    shape = (batch, 2, *(5, 4, 3)[:ndim])
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("ndim", [0, 2, 3])
def test_the_path_is_straight_and_ends_at_its_ends(ndim):
    x0, x1 = ends(ndim)
    assert torch.equal(interpolate(x0, x1, 0.0), x0)
    assert torch.equal(interpolate(x0, x1, 1.0), x1)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    path = interpolate(x0, x1, t)
    for index, time in enumerate(t.tolist()):  # a time for each of the batch is that time for the one
        torch.testing.assert_close(path[index], interpolate(x0, x1, time)[index])
    slope = (interpolate(x0, x1, t + 1e-4) - path) / 1e-4
    torch.testing.assert_close(slope, velocity(x0, x1), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("t", [0.3, 1.0, torch.tensor([0.1, 0.6, 1.0])])
def test_velocity_and_data_say_the_same(t):
    x0, x1 = ends(3)
    x_t = interpolate(x0, x1, t)
    torch.testing.assert_close(estimate_x0(velocity(x0, x1), x_t, t), x0)
    torch.testing.assert_close(velocity_from_x0(x0, x_t, t), velocity(x0, x1))


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS.values())
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("ndim", [0, 2, 3])
def test_a_network_that_knows_the_image_gives_it_from_any_start(sampler, count, ndim):
    x0, x1 = ends(ndim)
    found = sampler(lambda x, t: velocity_from_x0(x0, x, t), x1, flow_times(count, shift=2.0))
    torch.testing.assert_close(found, x0)


@pytest.mark.parametrize(("sampler", "calls"), [(euler, 4), (heun, 7)])
def test_the_number_of_calls_is_the_one_promised(sampler, calls):
    asked, steps = [], []

    def predict(x, t):
        asked.append(t)
        return torch.tanh(x)

    sampler(predict, ends(2)[1], flow_times(4), callback=steps.append)
    assert len(asked) == calls
    assert all(0 < t <= 1 for t in asked)  # networks are not trained at 0
    assert [(step.index, step.total, step.t, step.t_next) for step in steps] == [
        (0, 4, 1.0, 0.75),
        (1, 4, 0.75, 0.5),
        (2, 4, 0.5, 0.25),
        (3, 4, 0.25, 0.0),
    ]


def test_the_callback_is_shown_the_path_and_the_estimate():
    x0, x1 = ends(3)
    steps = []
    euler(lambda x, t: velocity(x0, x1), x1, (1.0, 0.4, 0.1), callback=steps.append)
    for step in steps:
        torch.testing.assert_close(step.x, interpolate(x0, x1, step.t_next))
        torch.testing.assert_close(step.estimate, x0)


def gaussian_velocity(mean, width):
    """The mean velocity between N(0, 1) and N(mean, width^2), drawn independently of each other."""

    def predict(x, t):
        variance = (1 - t) ** 2 * width**2 + t**2
        seen = x - (1 - t) * mean
        best_x0 = mean + (1 - t) * width**2 / variance * seen
        return t / variance * seen - best_x0

    return predict


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS.values())
def test_the_exact_velocity_of_normal_data_gives_normal_samples(sampler):
    start = torch.randn((20000, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sampler(gaussian_velocity(0.4, 0.3), start, flow_times(100))
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order):
    # the flow keeps a point's distance from the mean in deviations, so its end is known
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = 0.4 + 0.3 * start
    coarse, fine = (
        (sampler(gaussian_velocity(0.4, 0.3), start, flow_times(count)) - exact).abs().max() for count in (40, 80)
    )
    assert (coarse / fine).log2().item() == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS.values())
def test_clipping_keeps_every_estimate_in_range_and_the_path_straight(sampler):
    steps = []
    x1 = ends(2)[1]
    found = sampler(lambda x, t: -5 * x, x1, flow_times(3), clip=(-1.0, 1.0), callback=steps.append)
    assert all(step.estimate.abs().max() <= 1 for step in steps)
    assert torch.equal(found, steps[-1].estimate)
    first = steps[0]
    if sampler is euler:
        torch.testing.assert_close(first.x, interpolate(first.estimate, x1, first.t_next))


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS.values())
def test_the_network_may_answer_in_another_precision(sampler):
    found = sampler(lambda x, t: torch.tanh(x).bfloat16(), ends(2)[1].float(), flow_times(2))
    assert found.dtype == torch.float32


def test_times_of_the_sampler_descend_from_one_to_zero():
    assert flow_times(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    shifted = flow_times(4, shift=3.0)
    assert (shifted[0], shifted[-1]) == (1.0, 0.0)
    assert shifted[2] == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))  # more of the path is walked in small steps near noise
    assert list(shifted) == sorted(shifted, reverse=True)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("method", ["uniform", "logit_normal"])
def test_drawn_times_have_the_distribution_asked_for(method, shift, stratified):
    generator = torch.Generator().manual_seed(0)
    times = draw_times(20000, generator=generator, method=method, shift=shift, stratified=stratified)
    assert times.dtype == torch.float32
    assert times.min() > 0
    assert times.max() <= 1
    plain = (times / (shift - (shift - 1) * times)).double()  # undo the shift
    place = plain if method == "uniform" else torch.special.ndtr(torch.logit(plain))
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert (place <= level).double().mean().item() == pytest.approx(level, abs=0.015)


def test_a_batch_has_one_time_in_each_stratum():
    times = draw_times(8, generator=torch.Generator().manual_seed(3))
    assert sorted(math.floor(((t - times.min()).item() + 1e-6) * 8) for t in times) == list(range(8))
    again = draw_times(8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(times, again)


def test_batches_of_one_cover_the_path_when_the_position_moves_on():
    times, position = [], 0.0
    for _ in range(50):
        times.append(draw_times(1, position=position).item())
        position = (position + GOLDEN_RATIO) % 1
    gaps = torch.tensor([0.0, *sorted(times), 1.0]).diff()
    assert gaps.max() < 2.7 / 50  # independent draws leave gaps twice as wide


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: flow_times(0), "sample_steps"),
        (lambda: flow_times(2, shift=0.0), "shift"),
        (lambda: draw_times(2, method="cosine"), "times"),
        (lambda: draw_times(2, stratified=False, position=0.1), "position"),
        (lambda: euler(lambda x, t: x, torch.ones(1), (1.0,)), "times"),
        (lambda: euler(lambda x, t: x, torch.ones(1), (0.0, 1.0)), "times"),
        (lambda: heun(lambda x, t: x, torch.ones(1), (1.5, 0.0)), "times"),
        (lambda: heun(lambda x, t: x, torch.ones(1), (1.0, -0.1)), "times"),
    ],
)
def test_what_is_refused_names_the_setting(call, word):
    with pytest.raises(SettingError, match=word):
        call()

"""Laws of the diffusion mathematics."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelry.diffusion.objectives import PREDICTIONS, convert, q_sample
from voxelry.diffusion.samplers import SAMPLERS, sample
from voxelry.diffusion.schedules import SCHEDULES, Schedule, timesteps

schedules = st.builds(
    lambda name, steps: Schedule.from_name(name, steps=steps),
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(min_value=2, max_value=60),
)


def images(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    schedule=schedules,
    source=st.sampled_from(PREDICTIONS),
    to=st.sampled_from(PREDICTIONS),
    ndim=st.sampled_from([2, 3]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_there_and_back_is_nothing(schedule, source, to, ndim, seed, data):
    # beta is at most 0.9999 and at least 1e-4, so a factor of at most 1e2 is lost on the way
    t = torch.tensor(data.draw(st.lists(st.integers(0, schedule.steps - 2), min_size=2, max_size=2)))
    value, x_t = images((2, 1, *(4, 3, 2)[:ndim]), seed), images((2, 1, *(4, 3, 2)[:ndim]), seed + 1)
    there = convert(value, x_t, t, schedule, source, to)
    torch.testing.assert_close(convert(there, x_t, t, schedule, to, source), value, rtol=1e-8, atol=1e-8)


@given(schedule=schedules, seed=st.integers(0, 2**16), data=st.data())
def test_noising_a_batch_is_noising_its_members(schedule, seed, data):
    t = data.draw(st.lists(st.integers(-1, schedule.steps - 1), min_size=3, max_size=3))
    x0, noise = images((3, 2, 4, 3), seed), images((3, 2, 4, 3), seed + 1)
    together = q_sample(x0, torch.tensor(t), noise, schedule)
    for index, step in enumerate(t):
        alone = q_sample(x0[index : index + 1], step, noise[index : index + 1], schedule)
        torch.testing.assert_close(together[index : index + 1], alone)


@given(
    schedule=schedules,
    method=st.sampled_from(sorted(SAMPLERS)),
    spacing=st.sampled_from(["uniform", "trailing", "leading", "quadratic"]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_samplers_do_not_care_about_the_order_of_axes(schedule, method, spacing, seed, data):
    steps = timesteps(spacing, schedule.steps, data.draw(st.integers(1, min(8, schedule.steps))))
    order = data.draw(st.permutations(range(2, 5)))
    x0, x = images((2, 1, 4, 3, 2), seed), images((2, 1, 4, 3, 2), seed + 1)

    def estimate(target):
        return lambda x, t: 0.7 * target + 0.1 * torch.tanh(x)

    settings = {"objective": "x0"} | ({"variance": "small"} if method == "ddpm" else {})
    steps = steps[-1:] if method == "ddpm" else steps  # its noise is drawn in the order of the axes
    plain = sample(method, estimate(x0), x, schedule, steps, **settings)
    moved = sample(method, estimate(x0.permute(0, 1, *order)), x.permute(0, 1, *order), schedule, steps, **settings)
    torch.testing.assert_close(moved, plain.permute(0, 1, *order), rtol=1e-8, atol=1e-8)


@given(
    steps=st.integers(1, 1000),
    spacing=st.sampled_from(["uniform", "trailing", "leading", "quadratic"]),
    data=st.data(),
)
def test_lists_of_steps_ascend_and_hold_no_more_than_asked(steps, spacing, data):
    count = data.draw(st.integers(1, steps))
    listed = timesteps(spacing, steps, count)
    assert listed == sorted(set(listed))
    assert 0 <= listed[0] <= listed[-1] < steps
    assert len(listed) <= count
    assert spacing == "quadratic" or len(listed) == count
    assert spacing == "leading" or listed[-1] == steps - 1

import math

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.schedules import SCHEDULES, SPACINGS, Schedule, timesteps


def test_the_seeds_default_is_linear_from_1e_4_to_2e_2_in_500_steps():
    schedule = Schedule.from_name("linear")
    assert len(schedule) == schedule.steps == 500
    assert schedule.betas[0].item() == pytest.approx(1e-4)
    assert schedule.betas[-1].item() == pytest.approx(0.02)
    assert schedule.betas[1].item() == pytest.approx(1e-4 + 0.0199 / 499)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_signal_falls_and_the_noise_rises(name):
    schedule = Schedule.from_name(name, steps=100)
    assert (schedule.alphas_bar.diff() < 0).all()
    assert (schedule.snr.diff() < 0).all()
    assert schedule.alpha_bar(-1) == 1.0
    assert schedule.alpha_bar(0) == pytest.approx(1 - schedule.betas[0].item())


def test_the_cosine_schedule_follows_its_formula_in_the_middle():
    schedule = Schedule.from_name("cosine", steps=1000)
    expected = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 500)]
    assert schedule.alpha_bar(499) == pytest.approx(
        expected[1] / expected[0], rel=1e-2
    )  # betas start at no less than 1e-4


def test_coefficients_take_the_type_and_the_shape_of_the_image():
    schedule = Schedule.from_name("linear", steps=10)
    image = torch.zeros(2, 3, 4, 5, 6)
    signal, noise = schedule.signal(torch.tensor([-1, 9]), image), schedule.noise(torch.tensor([-1, 9]), image)
    assert signal.shape == noise.shape == (2, 1, 1, 1, 1)
    assert signal.dtype == torch.float32
    assert signal[0].item() == 1.0
    assert noise[0].item() == 0.0
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))
    assert schedule.signal(9, image).item() == signal[1].item()


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("uniform", [0, 33, 66, 99]),
        ("trailing", [24, 49, 74, 99]),
        ("leading", [0, 25, 50, 75]),
        ("quadratic", [0, 11, 44, 99]),
        ([99, 3, 3, 50], [3, 50, 99]),
    ],
)
def test_lists_of_four_steps_of_a_hundred(spacing, expected):
    assert timesteps(spacing, 100, 4) == expected


@pytest.mark.parametrize("spacing", ["uniform", "trailing", "leading", "quadratic"])
def test_all_steps_and_one_step(spacing):
    assert timesteps(spacing, 7, 1) == [0 if spacing == "leading" else 6]
    if spacing != "quadratic":  # which visits steps near the end only
        assert timesteps(spacing, 7) == list(range(7))


def test_fast_ddpm_lists_as_its_code_has_them():
    assert timesteps("fast_ddpm_uniform", 1000, 10) == [0, *range(99, 1000, 100)]  # eleven
    assert timesteps("fast_ddpm_uniform", 1000, 7)[-1] == 993
    assert timesteps("fast_ddpm_non_uniform", 1000, 10) == [0, 199, 399, 599, 699, 799, 849, 899, 949, 999]
    assert len(timesteps("fast_ddpm_non_uniform", 1000, 8)) == 7


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: Schedule.from_name("zigzag"), "schedule"),
        (lambda: Schedule.from_name("linear", steps=0), "n_timestep"),
        (lambda: Schedule.from_name("linear", end=1.5), "betas"),
        (lambda: Schedule(torch.zeros(3)), "betas"),
        (lambda: Schedule(torch.full((2, 2), 0.1)), "betas"),
        (lambda: timesteps("uniform", 10, 11), "sample_steps"),
        (lambda: timesteps("zigzag", 10, 2), "timesteps"),
        (lambda: timesteps([0, 10], 10), "timesteps"),
        (lambda: timesteps([], 10), "timesteps"),
        (lambda: timesteps("fast_ddpm_non_uniform", 1000, 1), "sample_steps"),
    ],
)
def test_what_is_refused_names_the_setting(call, word):
    with pytest.raises(SettingError, match=word):
        call()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_named_lists_ascend_within_the_schedule(spacing):
    for steps in (20, 500, 1000):
        listed = timesteps(spacing, steps, 10)
        assert listed == sorted(set(listed))
        assert listed[0] >= 0
        assert listed[-1] < steps

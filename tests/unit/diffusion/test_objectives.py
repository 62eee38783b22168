import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.objectives import PREDICTIONS, Objective, convert, noise_like, q_sample, sample_times
from voxelry.diffusion.schedules import Schedule

SCHEDULE = Schedule.from_name("linear", steps=100)


def noised_pair(shape=(3, 2, 4, 5), t=(0, 40, 99)):
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    times = torch.tensor(t)
    return x0, noise, times, q_sample(x0, times, noise, SCHEDULE)


def test_noising_keeps_the_variance_of_standard_normal_images():
    x0, noise = torch.randn(2, 1, 40, 40), torch.randn(2, 1, 40, 40)
    assert q_sample(x0, 50, noise, SCHEDULE).std().item() == pytest.approx(1.0, abs=0.05)


def test_step_minus_one_is_the_clean_image():
    x0, noise, _, _ = noised_pair()
    assert torch.equal(q_sample(x0, -1, noise, SCHEDULE), x0)


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("to", PREDICTIONS)
def test_every_target_can_be_read_as_every_other(source, to):
    x0, noise, t, x_t = noised_pair()
    given, wanted = (Objective(name).target(x0, noise, t, SCHEDULE) for name in (source, to))
    torch.testing.assert_close(convert(given, x_t, t, SCHEDULE, source, to), wanted, rtol=1e-9, atol=1e-9)


def test_velocity_is_the_derivative_of_the_noised_image_by_the_angle():
    # with a = cos(phi), s = sin(phi): d x_t / d phi = cos(phi) noise - sin(phi) x0 (Salimans & Ho 2022, appendix D)
    x0, noise, _, _ = noised_pair()
    phi, step = torch.atan2(SCHEDULE.noise(30, x0), SCHEDULE.signal(30, x0)), 1e-6
    ahead, behind = (torch.cos(phi + d) * x0 + torch.sin(phi + d) * noise for d in (step, -step))
    velocity = Objective("v").target(x0, noise, 30, SCHEDULE)
    torch.testing.assert_close((ahead - behind) / (2 * step), velocity, rtol=1e-7, atol=1e-7)


def test_losses_of_a_known_difference():
    output, target = torch.full((2, 1, 4, 4), 3.0), torch.ones(2, 1, 4, 4)
    t = torch.tensor([0, 1])
    for loss, expected in (("l1", 2.0), ("l2", 4.0), ("huber", 1.5)):
        assert Objective(loss=loss).errors(output, target, t, SCHEDULE).tolist() == [expected] * 2


@pytest.mark.parametrize("weighting", ["snr", "truncated_snr", "min_snr", "p2"])
def test_a_weighting_means_the_same_for_every_prediction(weighting):
    x0, noise, t, x_t = noised_pair()
    guess = x0 + 0.1 * torch.cos(torch.arange(x0.numel(), dtype=x0.dtype)).reshape(x0.shape)
    losses = []
    for prediction in PREDICTIONS:
        objective = Objective(prediction, weighting=weighting)
        output = convert(guess, x_t, t, SCHEDULE, "x0", prediction)
        losses.append(objective.errors(output, objective.target(x0, noise, t, SCHEDULE), t, SCHEDULE))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-6, atol=0)


def test_snr_weighting_leaves_epsilon_as_it_is():
    assert torch.allclose(Objective(weighting="snr").weights(SCHEDULE), torch.ones(100, dtype=torch.float64))


def test_min_snr_caps_easy_steps_at_gamma():
    weights = Objective("x0", weighting="min_snr").weights(SCHEDULE)
    assert weights.max().item() == 5.0
    torch.testing.assert_close(weights[-1], SCHEDULE.snr[-1])


def test_half_precision_errors_are_summed_in_single():
    output = torch.full((1, 1, 64, 64), 300.0, dtype=torch.float16)
    errors = Objective().errors(output, torch.zeros_like(output), torch.tensor([3]), SCHEDULE)
    assert errors.dtype == torch.float32
    assert errors.item() == 90000.0  # more than float16 holds


@pytest.mark.parametrize("stratified", [True, False])
def test_times_cover_the_schedule_evenly_with_both_ends(stratified):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample_times(8, 10, generator=generator, stratified=stratified) for _ in range(500)])
    share = torch.bincount(drawn, minlength=10) / len(drawn)
    assert len(share) == 10
    assert (share - 0.1).abs().max() < 0.02


def test_stratified_times_put_one_in_each_part():
    for _ in range(20):
        assert sorted((sample_times(4, 400, stratified=True) // 100).tolist()) == [0, 1, 2, 3]


def test_times_and_noise_repeat_with_their_seed():
    drawn = [
        (sample_times(5, 100, generator=generator), noise_like(torch.zeros(2, 3), generator))
        for generator in (torch.Generator().manual_seed(4) for _ in range(2))
    ]
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"prediction": "y"}, "objective"), ({"loss": "l3"}, "loss_type"), ({"weighting": "heavy"}, "weighting")],
)
def test_unknown_names_are_refused(settings, word):
    with pytest.raises(SettingError, match=word):
        Objective(**settings)
    with pytest.raises(SettingError, match="objective"):
        convert(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0, SCHEDULE, "epsilon", "y")

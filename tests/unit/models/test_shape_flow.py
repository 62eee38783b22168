"""Shapes as latents, and the flow among them."""

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.flow import draw_times, flow_times, heun, interpolate, velocity
from voxelry.models.shape import Prompt, ShapeAutoencoder, ShapeFlow
from voxelry.ops.prompt import frame_points
from voxelry.tasks.reconstruct.losses import sdf_loss

CONV = {
    "image_size": 16, "grid": 16, "prior_grid": 16, "width": 8, "multipliers": (1, 2), "volume_width": 8,
    "volume_multipliers": (1, 2), "context": 16, "latent_grid": 4, "autoencoder_width": 8, "flow_width": 16,
    "flow_depth": 1,
}  # fmt: skip
TOKENS = {
    "decoder": "transformer", "image_size": 16, "grid": 16, "prior_grid": 16, "patch": 8, "dim": 32, "depth": 1,
    "decoder_depth": 1, "heads": 2, "tokens": 4, "context": 16, "volume_width": 8, "latent_grid": 4,
    "autoencoder_width": 8, "flow_depth": 2,
}  # fmt: skip
BOTH = pytest.mark.parametrize("settings", [CONV, TOKENS], ids=["conv", "transformer"])


def balls(radii, grid=16):
    """Signed distances in edges, `(B, 1, n, n, n)`."""
    away = frame_points(grid, torch.zeros(())).norm(dim=-1)
    return torch.stack([away - radius for radius in radii])[:, None]


def prompts(count, slices=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, slices, 1, 16, 16, generator=generator)
    plane = torch.tensor([[0.0, 1 / 16, -0.5], [1 / 16, 0.0, -0.5], [0.0, 0.01, 0.02]]).expand(count, slices, 3, 3)
    return Prompt.build(image, plane, click=torch.full((count, slices, 2), 7.0))


def awake(network):
    """Last layers that answer something."""
    for name, value in network.named_parameters():
        if "head" in name or "last" in name:
            torch.nn.init.normal_(value, std=0.1)
    return network.eval()


@pytest.mark.parametrize(("grid", "latent_grid"), [(16, 8), (24, 4), (15, 5), (7, 1)])
def test_distances_become_latents_and_distances_again(grid, latent_grid):
    coder = ShapeAutoencoder(grid=grid, latent_grid=latent_grid, channels=3, width=4)
    mean, log_variance = coder.encode(balls([0.2, 0.3], grid))
    assert mean.shape == log_variance.shape == (2, *coder.latent_shape) == (2, 3, *(latent_grid,) * 3)
    found = coder.decode(mean)
    assert found.shape == (2, 1, *(grid,) * 3)
    assert found.abs().max() <= coder.truncation + 1e-6
    assert found.mean() > 0.4 * coder.truncation  # untrained, most of the cube is outside


def test_an_autoencoder_learns_shapes():
    coder = ShapeAutoencoder(grid=16, latent_grid=4, channels=4, width=16)
    optimizer = torch.optim.Adam(coder.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 160)
    generator = torch.Generator().manual_seed(0)
    for _ in range(160):
        truth = balls((0.15 + 0.25 * torch.rand(4, generator=generator)).tolist())
        found, divergence = coder(truth)
        loss = sdf_loss(found, truth.clamp(-0.2, 0.2), 0.1) + 1e-5 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    truth = balls([0.21, 0.33])
    with torch.no_grad():
        found = coder.eval()(truth)[0]
    inside, wanted = found < 0, truth < 0
    dice = 2 * (inside & wanted).sum(dim=(1, 2, 3, 4)) / (inside.sum(dim=(1, 2, 3, 4)) + wanted.sum(dim=(1, 2, 3, 4)))
    assert dice.min() > 0.88  # cells are a quarter of a radius


def test_latents_are_standardised_by_what_was_observed():
    coder = ShapeAutoencoder(grid=16, latent_grid=4, channels=2, width=4)
    latents = torch.randn(64, 2, 4, 4, 4) * torch.tensor([3.0, 0.2]).view(-1, 1, 1, 1) + 5
    for part in latents.split(16):
        coder.observe(part)
    plain = coder.standardised(latents)
    assert plain.mean(dim=(0, 2, 3, 4)).abs().max() < 0.02
    assert (plain.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.02
    torch.testing.assert_close(coder.restored(plain), latents)
    for _ in range(300):  # what the encoder said long ago is forgotten
        coder.observe(latents[:16] - 5)
    assert coder.latent_mean.abs().max() < 0.5


def test_an_autoencoder_draws_its_latents_in_training_only():
    coder = ShapeAutoencoder(grid=16, latent_grid=4, width=4)
    truth = balls([0.3])
    assert not torch.equal(coder(truth)[0], coder(truth)[0])
    coder.eval()
    assert torch.equal(coder(truth)[0], coder(truth)[0])
    assert coder(truth)[1] > 0


@BOTH
def test_the_answer_is_that_of_the_network_it_contains_and_settings_build_it_again(settings):
    network = awake(ShapeFlow(**settings))
    prompt = prompts(2)
    again = ShapeFlow(**network.settings())
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(prompt).sdf, network(prompt).sdf)
        torch.testing.assert_close(network.read(prompt).output.sdf, network(prompt).sdf)
        torch.testing.assert_close(network.read(prompt).estimate, network.latents(network(prompt).sdf))


@BOTH
def test_hypotheses_are_repeatable_differ_and_do_not_depend_on_company(settings):
    network = awake(ShapeFlow(**settings))
    noise = torch.randn(3, *network.autoencoder.latent_shape)
    prompt = prompts(2)
    with torch.no_grad():
        both = network.sample(network.read(prompt), noise, flow_times(2))
        alone = network.sample(network.read(prompts(1)), noise[:2], flow_times(2))
    assert both.shape == (2, 3, 16, 16, 16)
    assert (both[:, 0] - both[:, 1]).abs().max() > 1e-4
    first = prompts(2).image[:1]
    torch.testing.assert_close(first, prompts(1).image)
    torch.testing.assert_close(alone[0], both[0, :2], rtol=1e-4, atol=1e-5)


@BOTH
def test_the_flow_and_what_it_is_told_learn_together_but_the_latents_do_not(settings):
    network = awake(ShapeFlow(**settings)).train()
    condition = network.read(prompts(2)).repeated(2)
    x_t = torch.randn(4, *network.autoencoder.latent_shape)
    network.correction(x_t, torch.rand(4), condition).square().mean().backward()
    for part in (network.flow, network.encoder):
        assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in part.parameters())
    assert all(value.grad is None for value in network.autoencoder.parameters())


def test_the_expected_velocity_leads_noise_to_the_estimate_and_its_error():
    network = ShapeFlow(**CONV).eval()
    network.error.copy_(torch.tensor([0.3, 0.8, 1.0, 2.0]))
    count = 3000
    estimate = torch.tensor([1.0, -2.0, 0.0, 0.5]).view(1, 4, 1, 1, 1).expand(count, -1, 4, 1, 1)
    noise = torch.randn(estimate.shape, generator=torch.Generator().manual_seed(0))
    found = heun(lambda x, t: network.expected(x, x.new_full((count,), t), estimate)[0], noise, flow_times(40))
    assert (found - estimate).mean(dim=(0, 2, 3, 4)).abs().max() < 0.05
    torch.testing.assert_close((found - estimate).std(dim=(0, 2, 3, 4)), network.error, rtol=0.05, atol=0.0)


def test_what_is_left_for_the_network_has_variance_one_where_the_expectation_holds():
    network = ShapeFlow(**CONV)
    network.error.fill_(0.4)
    estimate = torch.randn(4000, 4, 1, 1, 1)
    x0, x1 = estimate + 0.4 * torch.randn_like(estimate), torch.randn_like(estimate)
    for time in (0.02, 0.3, 0.7, 1.0):
        t = torch.full((4000,), time)
        mean, deviation = network.expected(interpolate(x0, x1, t), t, estimate)
        rest = (velocity(x0, x1) - mean) / deviation
        assert rest.mean().abs() < 0.05
        assert rest.std() == pytest.approx(1.0, abs=0.05)


def test_the_error_is_that_of_the_estimates_seen():
    network = ShapeFlow(**CONV)
    latents = torch.randn(8, 4, 4, 4, 4)
    for _ in range(3):
        network.observe(latents, latents + torch.tensor([0.1, 0.2, 0.5, 1.0]).view(-1, 1, 1, 1))
    torch.testing.assert_close(network.error, torch.tensor([0.1, 0.2, 0.5, 1.0]))


@BOTH
def test_a_flow_learns_two_possibilities_where_a_mean_would_be_neither(settings):
    network = awake(ShapeFlow(**{**settings, "latent_grid": 2, "latent_channels": 1})).train()
    with torch.no_grad():
        condition = network.read(prompts(1))
    condition.estimate.zero_()
    optimizer = torch.optim.Adam(network.flow.parameters(), lr=3e-3)
    each = condition.repeated(32)
    one = torch.ones(1, *network.autoencoder.latent_shape)
    for step in range(110):
        torch.manual_seed(step)
        x0 = one * (2 * torch.randint(0, 2, (32, 1, 1, 1, 1)) - 1)
        x1, t = torch.randn_like(x0), draw_times(32)
        x_t = interpolate(x0, x1, t)
        mean, deviation = network.expected(x_t, t, each.estimate)
        loss = (network.correction(x_t, t, each) - (velocity(x0, x1) - mean) / deviation).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().shapes = lambda latents: (
        latents.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    )
    found = network.sample(condition, torch.randn(64, *network.autoencoder.latent_shape), flow_times(12))[0]
    means = found.mean(dim=(1, 2, 3))
    assert (means.abs() > 0.6).float().mean() > 0.75  # most are one or the other; of a normal blur one in ten
    assert found.std(dim=(1, 2, 3)).median() < 0.3  # as a whole
    assert 6 <= (means > 0).sum() <= 58  # and both come


@pytest.mark.parametrize(
    ("change", "word"), [({"latent_grid": 5}, "latent_grid"), ({"latent_grid": 16}, "latent_grid"),
                         ({"latent_channels": 0}, "latent_channels"), ({"autoencoder_width": -1}, "width")]
)  # fmt: skip
def test_what_can_not_be_is_refused(change, word):
    with pytest.raises(SettingError, match=word):
        ShapeFlow(**{**CONV, **change})


def test_an_unknown_sampler_is_refused():
    network = ShapeFlow(**CONV).eval()
    condition = network.read(prompts(1))
    with pytest.raises(SettingError, match="sampler: expected one of euler, heun"):
        network.sample(condition, torch.randn(1, *network.autoencoder.latent_shape), flow_times(1), sampler="rk4")

import math

import numpy as np
import pytest
import torch
from torch import nn

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.sample import Batch
from voxelry.models.unet import UNet
from voxelry.tasks.pretrain import PretrainTask
from voxelry.tasks.pretrain.predict import write_images
from voxelry.tasks.pretrain.targets import Rescale, band_edges, band_of, fixed_noise


def space_of(ndim):
    """Oblique, mirrored, with another spacing on each axis."""
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (3.0, 1.5, 0.8)
    affine[:3, 3] = (11.0, -7.0, 5.0)
    shape = (7, 8, 6)[:ndim]
    return Space(shape, np.column_stack([affine[:, :ndim], affine[:, 3]]))


def batch_of(ndim, names=("a", "b"), channels=1):
    space = space_of(ndim)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((len(names), channels, *space.shape), generator=generator)
    return Batch(images, [space] * len(names), list(names), [f"{name}.nii" for name in names])


def unet(ndim, *, self_condition=True, channels=1):
    return UNet(
        ndim=ndim,
        in_channels=channels,
        out_channels=channels,
        width=8,
        multipliers=(1, 2),
        self_condition=self_condition,
        groups=4,
        heads=2,
        head_dim=4,
    )


def small_task(ndim, **settings):
    channels = settings.pop("channels", 1)
    network = unet(ndim, self_condition=settings.pop("conditioned", True), channels=channels)
    return PretrainTask(network, **{"n_timestep": 40, "sample_steps": 4, "reconstruct_steps": 3} | settings)


class Witness(nn.Module):
    """Answers zero noise and remembers what it was asked."""

    self_condition = True

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))
        self.asked = []

    def forward(self, x, time, condition=None):
        self.asked.append((x.detach(), time, condition, torch.is_grad_enabled()))
        return self.gain * x


@pytest.mark.parametrize(
    ("ndim", "settings"), [(3, {}), (2, {"objective": "v", "loss_type": "huber", "weighting": "min_snr"})]
)
def test_one_image_is_learned(ndim, settings):
    task = small_task(ndim, **settings)
    batch = batch_of(ndim, names=("only",) * 4)
    batch.image[:] = batch.image[:1]
    optimizer = torch.optim.Adam(task.parameters(), lr=5e-3)
    before = task.summary(task.metrics(task.predict(batch), batch))
    for _ in range(25):
        optimizer.zero_grad()
        task.training_loss(batch)["loss"].backward()
        optimizer.step()
    after = task.summary(task.metrics(task.predict(batch), batch))
    assert after["val_loss"] < 0.8 * before["val_loss"]


def test_losses_are_the_whole_and_its_bands():
    task = small_task(2, time_bands=2)
    losses = task.training_loss(batch_of(2, names=tuple("abcd")))
    bands = [losses[f"loss_band_{band}"] for band in range(2)]
    assert set(losses) == {"loss", "loss_band_0", "loss_band_1"}
    assert losses["loss"].requires_grad
    assert not any(band.requires_grad for band in bands)
    # stratified: half of the batch is in each half of the schedule
    torch.testing.assert_close(losses["loss"].detach(), torch.stack(bands).mean())


def test_training_repeats_with_its_seed():
    task, batch = small_task(3), batch_of(3)
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(task.training_loss(batch)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_the_network_sees_noised_images_in_the_diffusion_range():
    network = Witness()
    task = PretrainTask(network, n_timestep=40, self_condition=False)
    batch = batch_of(2, names=tuple("abcdefgh"))
    task.training_loss(batch)
    ((seen, time, _, _),) = network.asked
    clean = batch.image * 2 - 1
    first = int(time.argmin())
    signal, noise = (table(time, clean) for table in (task.schedule.signal, task.schedule.noise))
    residue = (seen - signal * clean) / noise
    assert residue.std().item() == pytest.approx(1.0, abs=0.15)
    assert residue.mean().item() == pytest.approx(0.0, abs=0.15)
    assert (seen[first] - clean[first]).abs().mean() < (seen - clean).abs().mean()


def test_half_of_the_batches_see_the_networks_own_estimate():
    network = Witness()
    task = PretrainTask(network, n_timestep=40)
    assert task.self_condition
    batch = batch_of(2)
    given = []
    for _ in range(60):
        network.asked.clear()
        task.training_loss(batch)
        *first, (x_t, time, estimate, has_gradient) = network.asked
        assert has_gradient
        given.append(estimate is not None)
        if estimate is not None:
            ((first_x, _, first_estimate, first_gradient),) = first
            assert first_estimate is None
            assert not first_gradient
            assert torch.equal(first_x, x_t)
            expected = (x_t / task.schedule.signal(time, x_t)).clamp(-1, 1)  # of an answer of no noise
            torch.testing.assert_close(estimate, expected)
    assert 15 < sum(given) < 45


def test_sampling_passes_estimates_on():
    network = Witness()
    PretrainTask(network, n_timestep=40, sample_steps=3).sample(1, (1, 4, 4))
    assert [condition is None for _, _, condition, _ in network.asked] == [True, False, False]


def test_a_network_without_a_place_for_it_gets_no_estimate():
    assert not small_task(2, conditioned=False).self_condition
    with pytest.raises(SettingError, match="self_condition"):
        small_task(2, conditioned=False, self_condition=True)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
def test_predictions_repeat_alone_and_in_any_batch(ndim, sampler):
    task = small_task(ndim, sampler=sampler).eval()
    batch = batch_of(ndim)
    together, again = task.predict(batch), task.predict(batch)
    second = Batch(batch.image[1:], batch.spaces[1:], batch.names[1:], batch.sources[1:])
    (alone,) = task.predict(second)
    for prediction in (again[1], alone):
        torch.testing.assert_close(prediction.reconstruction, together[1].reconstruction, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prediction.noised, together[1].noised, rtol=1e-5, atol=1e-6)
        assert prediction.losses == pytest.approx(together[1].losses, rel=1e-4)
    assert together[0].losses != together[1].losses
    assert together[0].space is batch.spaces[0]
    assert together[0].source == "a.nii"


def test_rows_hold_the_errors_of_the_reconstruction():
    task, batch = small_task(3).eval(), batch_of(3)
    predictions = task.predict(batch)
    rows = task.metrics(predictions, batch)
    assert [row["name"] for row in rows] == ["a", "b"]
    for row, prediction in zip(rows, predictions, strict=True):
        error = (prediction.reconstruction - prediction.image).double()
        assert row["mse"] == pytest.approx((error**2).mean().item())
        assert row["mae"] == pytest.approx(error.abs().mean().item())
        assert row["psnr"] == pytest.approx(-10 * math.log10(row["mse"]))
        assert -1 <= row["ssim"] <= 1
        bands = [row[f"val_loss_band_{band}"] for band in range(4)]
        assert row["val_loss"] == pytest.approx(np.mean(bands))
    summary = task.summary(rows)
    assert summary[task.monitor] == pytest.approx(np.mean([row["val_loss"] for row in rows]))


def test_the_summary_leaves_out_what_is_undefined():
    task = small_task(2)
    summary = task.summary([{"name": "a", "psnr": math.inf, "x": math.nan}, {"name": "b", "psnr": 20.0, "x": math.nan}])
    assert summary["psnr"] == 20.0
    assert math.isnan(summary["x"])
    assert math.isnan(task.summary([])["val_loss"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_samples_repeat_in_any_batch_size_and_stay_in_range(ndim):
    task = small_task(ndim, channels=2).eval()
    shape = (2, *space_of(ndim).shape)
    drawn = [task.sample(3, shape, generator=torch.Generator().manual_seed(1), batch_size=size) for size in (1, 2, 3)]
    assert drawn[0].shape == (3, *shape)
    assert drawn[0].min() >= 0
    assert drawn[0].max() <= 1
    for other in drawn[1:]:
        torch.testing.assert_close(other, drawn[0], rtol=1e-4, atol=1e-4)
    assert task.sample(0, shape).shape == (0, *shape)


def test_the_noising_process_begins_clean_and_ends_in_noise():
    task = small_task(3, n_timestep=500)
    image = batch_of(3).image[0]
    times, stages = task.noising_process(image, 4)
    assert times == [-1, 0, 166, 333, 499]
    assert stages.shape == (5, *image.shape)
    np.testing.assert_allclose(stages[0], image.numpy(), atol=1e-6)
    alike = [np.corrcoef(stage.ravel(), image.numpy().ravel())[0, 1] for stage in stages]
    assert alike[0] > alike[1] > alike[2] > alike[3]
    assert abs(alike[4]) < 0.3


def test_the_denoising_process_ends_with_the_sample():
    task = small_task(2, sample_steps=9).eval()
    shape = (1, *space_of(2).shape)
    times, stages = task.denoising_process(shape, 4, generator=torch.Generator().manual_seed(2))
    assert times[0] == 39
    assert times[-1] == -1
    assert times == sorted(times, reverse=True)
    sample = task.sample(1, shape, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(stages[-1], sample[0].numpy(), atol=1e-6)


def test_settings_rebuild_the_task():
    task = small_task(2, objective="v", diffusion_range=(0, 1), reconstruct_from=7, sampler="ddpm")
    again = PretrainTask(task.network, **task.settings())
    assert again.settings() == task.settings()
    assert again.sample_steps == task.sample_steps


def test_samples_are_compared_with_the_data():
    task, images = small_task(2), batch_of(2, names=tuple("abcd")).image
    distances = task.compare(images, images)
    assert distances["swd"] == 0.0
    assert distances["swd_floor"] > 0
    assert math.isnan(task.compare(images[:1], images[:1])["swd_floor"])


def test_ranges_are_mapped_there_and_back():
    rescale = Rescale((-1000, 3000), (-1, 1))
    image = torch.tensor([-1000.0, 1000.0, 5000.0])
    torch.testing.assert_close(rescale.forward(image), torch.tensor([-1.0, 0.0, 2.0]))
    torch.testing.assert_close(rescale.inverse(rescale.forward(image)), image)


def test_bands_cut_the_schedule():
    assert band_edges(10, 4) == [0, 2, 5, 8, 10]
    assert band_of(torch.arange(10), [0, 2, 5, 8, 10]).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert band_of(torch.arange(3), [0, 3]).tolist() == [0, 0, 0]


def test_fixed_noise_belongs_to_the_case():
    like = torch.zeros(2, 1, 5, 4)
    both, turned = fixed_noise(["a", "b"], like, seed=0), fixed_noise(["b", "a"], like, seed=0)
    assert torch.equal(both, turned.flip(0))
    assert not torch.equal(both, fixed_noise(["a", "b"], like, seed=1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_volumes_are_written_over_their_input(tmp_path, ndim):
    from voxelry.io import read_image

    task = small_task(ndim).eval()
    prediction = task.predict(batch_of(ndim))[0]
    images = {"noised": prediction.noised, "reconstruction": prediction.reconstruction}
    written = write_images(prediction.name, images, tmp_path / "made" / "here", prediction.space, "nii.gz")
    assert [path.name for path in written] == ["a_noised.nii.gz", "a_reconstruction.nii.gz"]
    expected = [prediction.noised, prediction.reconstruction]
    for path, image in zip(written, expected, strict=True):
        again = read_image(path)
        assert again.space.is_close(prediction.space)
        np.testing.assert_allclose(again.array, image.numpy(), rtol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_report_shows_everything(tmp_path, ndim):
    from voxelry.tasks.pretrain.report import add_losses, add_noising, add_reconstructions, add_samples
    from voxelry.viz.report import Report

    task, batch = small_task(ndim).eval(), batch_of(ndim)
    predictions = task.predict(batch)
    rows = task.metrics(predictions, batch)
    space, shape = batch.spaces[0], tuple(batch.image.shape[1:])
    history = [{"step": float(step), **task.summary(rows)} for step in (10, 20)]
    report = Report("pretraining")
    add_reconstructions(report, task, predictions, rows, count=1)
    add_losses(report, task, rows, history)
    add_noising(report, task, batch.image[0], space, frames=3)
    denoising = task.denoising_process(shape, 3)
    add_samples(report, task, task.sample(2, shape), batch.image, space, denoising=denoising)
    page = report.save(tmp_path / "report.html").read_text()
    for heading in ("Reconstruction", "Held-out loss", "noising process", "Samples"):
        assert heading in page
    assert page.count("<img") + page.count("<svg") >= 6


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"schedule": "zigzag"}, "schedule"),
        ({"objective": "y"}, "objective"),
        ({"sampler": "magic"}, "sampler"),
        ({"time_bands": 0}, "time_bands"),
        ({"reconstruct_from": 40}, "reconstruct_from"),
        ({"data_range": (1, 1)}, "data_range"),
        ({"spacing": "zigzag"}, "timesteps"),
    ],
)
def test_what_is_refused_names_the_setting(settings, word):
    with pytest.raises(SettingError, match=word):
        small_task(2, **settings)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_u_net_is_given_its_own_estimate(ndim, monkeypatch):
    network = UNet(ndim=ndim, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=4, self_condition=True)
    task = PretrainTask(network, n_timestep=20)
    assert task.self_condition
    given = []
    original = UNet.forward

    def forward(self, x, time=None, condition=None):
        given.append(condition)
        return original(self, x, time, condition)

    monkeypatch.setattr(UNet, "forward", forward)
    image = torch.rand(2, 1, *[8] * ndim)
    space = Space.from_spacing([8] * ndim)
    batch = Batch(image=image, spaces=[space, space], names=["a", "b"], sources=["", ""])
    for _ in range(8):
        task.training_loss(batch)["loss"].backward()
    shown = [condition for condition in given if condition is not None]
    assert shown, "half of the batches should come with an estimate"
    assert len(shown) < len(given)
    assert all(float(condition.abs().sum()) > 0 for condition in shown)

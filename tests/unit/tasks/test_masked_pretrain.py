"""Masked-autoencoder pretraining: what is hidden, what is counted, what is learned, where it goes on."""

import json

import pytest
import torch
import yaml

from voxelry.backbones.hiera import Hiera
from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.sample import Sample
from voxelry.models.mae import MaskedAutoencoder, patchify, unpatchify
from voxelry.models.transfer import transfer
from voxelry.phantoms import make_phantom
from voxelry.tasks.pretrain.masked import MaskedPretrainTask
from voxelry.tasks.pretrain.masked_report import add_masked_reconstructions
from voxelry.viz.report import Report

ENCODER = {
    "input_size": 32,
    "embed_dim": 16,
    "stages": [1, 1, 1],
    "q_pool": 1,
    "mask_unit_size": 2,
    "mask_unit_attention": [True, True, False],
    "patch_kernel": 5,
    "patch_stride": 4,
    "patch_padding": 2,
}


def autoencoder(ndim, channels=1, **encoder):
    return MaskedAutoencoder(ndim=ndim, in_channels=channels, encoder={**ENCODER, **encoder}, decoder_dim=32,
                             decoder_depth=1, decoder_heads=4)  # fmt: skip


def images(ndim, count=2, shape=None, channels=1):
    shape = shape or (32,) * ndim
    space = Space.from_spacing(shape, (3.0, 1.0, 0.5)[-ndim:])
    return collate([Sample(torch.rand(channels, *shape), space, f"case_{index}") for index in range(count)])


def phantoms(ndim, count=4, first=0):
    return collate([make_phantom(first + seed, shape=(32,) * ndim, spacing=(2.0,) * ndim, ndim=ndim)
                    for seed in range(count)])  # fmt: skip


def test_patches_are_boxes_with_their_channels_first():
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = patchify(x, (2, 3))
    assert patches.shape == (1, 2, 2, 12)
    assert torch.equal(patches[0, 1, 0], x[0, :, 2:4, :3].flatten())
    assert torch.equal(unpatchify(patches, 2, (2, 3)), x)
    volume = torch.rand(2, 3, 4, 6, 8)
    assert torch.equal(unpatchify(patchify(volume, (1, 2, 4)), 3, (1, 2, 4)), volume)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_mask_hides_its_share_in_every_sample(ndim):
    network = autoencoder(ndim)
    mask = network.draw_mask(3, (32,) * ndim, 0.6)
    assert mask.shape == (3, 4**ndim)
    assert mask.sum(dim=1).tolist() == [int(4**ndim * 0.4)] * 3
    assert not torch.equal(mask[0], mask[1])
    hidden = network.hidden(mask, (32,) * ndim)
    assert hidden.shape == (3, *(32,) * ndim)
    first = hidden[(0, *(slice(None, None, 8),) * ndim)]
    assert torch.equal(first.flatten(), ~mask[0])
    assert hidden[0].float().mean() == (~mask[0]).float().mean()
    assert network.draw_mask(1, (16,) * ndim, 0.999).sum() == 1
    assert (~network.draw_mask(1, (16,) * ndim, 0.001)).sum() == 1
    with pytest.raises(SettingError, match=r"mask_unit_size: an image of .* is a single unit"):
        network.draw_mask(1, (8,) * ndim, 0.6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_prediction_does_not_see_what_is_hidden(ndim):
    network = autoencoder(ndim).eval()
    x = torch.rand(2, 1, *(32,) * ndim)
    mask = network.draw_mask(2, x.shape[2:], 0.6)
    other = torch.where(network.hidden(mask, x.shape[2:])[:, None], torch.rand_like(x), x)
    with torch.no_grad():
        assert torch.equal(network(x, mask), network(other, mask))
        assert not torch.equal(network(x, mask), network(1 - x, mask))


def test_predictions_lie_where_their_patches_are():
    network = autoencoder(2).eval()
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 6] = True  # the unit at (1, 2)
    with torch.no_grad():
        network.mask_token.zero_()
        network.decoder_pos_embed.zero_()
        network.decoder_blocks = torch.nn.ModuleList()
        network.decoder_embed.bias.fill_(1)
        predicted = network(torch.rand(1, 1, 32, 32), mask)
    odd = (predicted != predicted[0, 0, 0]).any(dim=-1)[0]
    assert predicted.shape == (1, 4, 4, 64)
    assert odd.nonzero().tolist() == [[1, 2]]


def test_targets_are_normalised_by_patch_and_restored():
    network = autoencoder(3, channels=2)
    x = torch.rand(2, 2, 20, 32, 27)
    targets = network.targets(x)
    assert targets.values.shape == (2, 3, 4, 4, 2 * 8**3)
    inside = targets.values[:, :2, :, :3]
    torch.testing.assert_close(inside.mean(dim=-1), torch.zeros(2, 2, 4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inside.var(dim=-1), torch.ones(2, 2, 4, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(network.targets(5 * x + 3).values, targets.values, atol=1e-3, rtol=0)
    whole = unpatchify(targets.restore(targets.values), 2, network.patch_size)
    torch.testing.assert_close(whole[:, :, :20, :32, :27], x)
    assert targets.weights.sum() == x.numel()
    plain = network.targets(x, normalise=False)
    assert torch.equal(unpatchify(plain.restore(plain.values), 2, network.patch_size)[:, :, :20, :32, :27], x)


def test_a_flat_patch_has_finite_targets():
    values = autoencoder(2).targets(torch.full((1, 1, 32, 32), 0.3)).values
    assert values.isfinite().all()
    assert values.abs().max() < 1e-3


@pytest.mark.parametrize(("ndim", "shape"), [(2, (32, 32)), (2, (30, 21)), (3, (32, 16, 16)), (3, (10, 17, 16))])
def test_only_hidden_voxels_of_the_image_are_counted(ndim, shape, monkeypatch):
    task = MaskedPretrainTask(autoencoder(ndim), normalise_targets=False)
    batch = images(ndim, shape=shape)
    mask = task.network.draw_mask(2, shape, 0.6)
    hidden = task.network.hidden(mask, shape)
    monkeypatch.setattr(task.network, "draw_mask", lambda *_: mask)
    with torch.no_grad():
        predicted = unpatchify(task.network(batch.image, mask), 1, task.network.patch_size)
        predicted = predicted[(..., *(slice(size) for size in shape))]
        expected = (predicted - batch.image).square()[hidden[:, None]].mean()
        torch.testing.assert_close(task.training_loss(batch)["loss"], expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_held_out_figures_repeat(ndim):
    task = MaskedPretrainTask(autoencoder(ndim)).eval()
    batch = images(ndim, count=3)
    first = task.predict(batch)
    torch.manual_seed(5)
    alone = task.predict(collate([Sample(batch.image[1], batch.spaces[1], "case_1")]))
    assert torch.equal(alone[0].hidden, first[1].hidden)
    assert not torch.equal(first[0].hidden, first[1].hidden)
    assert alone[0].loss == pytest.approx(first[1].loss, rel=1e-5)
    other = MaskedPretrainTask(task.network, seed=1).predict(batch)
    assert not torch.equal(other[0].hidden, first[0].hidden)


@pytest.mark.parametrize(("ndim", "shape"), [(2, (30, 21)), (3, (10, 17, 16))])
def test_what_was_seen_is_kept(ndim, shape):
    task = MaskedPretrainTask(autoencoder(ndim, channels=2)).eval()
    batch = images(ndim, shape=shape, channels=2)
    for prediction, image in zip(task.predict(batch), batch.image, strict=True):
        seen = ~prediction.hidden.expand_as(image)
        assert prediction.reconstruction.shape == image.shape == (2, *shape)
        assert torch.equal(prediction.reconstruction[seen], image[seen])
        assert (prediction.reconstruction != image)[~seen].float().mean() > 0.99
        assert (prediction.masked(-1.0)[~seen] == -1).all()
        assert torch.equal(prediction.masked()[seen], image[seen])
        assert prediction.hidden.any()
        assert not prediction.hidden.all()


def test_metrics_are_of_the_hidden_voxels():
    task = MaskedPretrainTask(autoencoder(2), data_range=(0, 2)).eval()
    batch = images(2)
    predictions = task.predict(batch)
    rows = task.metrics(predictions, batch)
    for row, prediction in zip(rows, predictions, strict=True):
        error = (prediction.reconstruction - prediction.image)[prediction.hidden[None]].double()
        assert row["mse"] == pytest.approx(float(error.square().mean()), rel=1e-5)
        assert row["mae"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
        assert row["psnr"] == pytest.approx(float(10 * torch.log10(4 / error.square().mean())), rel=1e-5)
        assert row["hidden"] == 10 / 16
        assert -1 <= row["ssim"] < 1
    summary = task.summary(rows)
    assert summary["val_loss"] == pytest.approx(sum(prediction.loss for prediction in predictions) / 2)
    assert task.monitor in task.summary([])


@pytest.mark.parametrize("ndim", [2, 3])
def test_training_lowers_the_held_out_loss(ndim):
    task = MaskedPretrainTask(autoencoder(ndim), normalise_targets=False)
    batch, held_out = phantoms(ndim), phantoms(ndim, count=2, first=10)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)

    def held_out_loss():
        return task.summary(task.metrics(task.eval().predict(held_out), held_out))["val_loss"]

    before = held_out_loss()
    for _ in range(25):
        task.train()
        loss = task.training_loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in task.parameters())
    assert held_out_loss() < 0.5 * before


def test_half_precision_trains():
    task = MaskedPretrainTask(autoencoder(3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.training_loss(images(3, shape=(20, 16, 16)))["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters())


@pytest.mark.parametrize("ndim", [2, 3])
def test_settings_make_the_same_task(ndim):
    task = MaskedPretrainTask(autoencoder(ndim), mask_ratio=0.75, normalise_targets=False, seed=3).eval()
    network = MaskedAutoencoder(**json.loads(json.dumps(task.network.settings())))
    network.load_state_dict(task.network.state_dict())
    again = MaskedPretrainTask(network, **yaml.safe_load(yaml.safe_dump(task.settings()))).eval()
    assert again.settings() == task.settings()
    batch = images(ndim)
    assert again.predict(batch)[1].loss == task.predict(batch)[1].loss


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_encoder_goes_on_as_a_backbone(ndim):
    network = autoencoder(ndim).eval()
    backbone = Hiera(**{**network.encoder.settings(), "num_classes": 3}).eval()
    report = transfer(backbone, network.encoder.state_dict())
    assert set(report.matched) == set(network.encoder.state_dict())
    assert set(report.new) == {"norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}
    assert not report.skipped
    assert not report.adapted
    x = torch.rand(1, 1, *(24,) * ndim)
    for name, level in backbone(x).items():
        assert torch.equal(level, network.encoder(x)[name])


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_report_shows_what_was_hidden(ndim, tmp_path):
    task = MaskedPretrainTask(autoencoder(ndim)).eval()
    batch = phantoms(ndim, count=2)
    predictions = task.predict(batch)
    rows = task.metrics(predictions, batch)
    report = add_masked_reconstructions(Report("masked"), task, predictions, rows, count=1)
    text = report.save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "60% of the mask units" in text
    assert text.count(f"{batch.names[0]}: held out, masked and completed") >= 1
    assert f"{batch.names[1]}: held out" not in text
    assert all(name in text for name in batch.names)


def test_what_can_not_be_is_told():
    with pytest.raises(SettingError, match="mask_ratio: expected a share"):
        MaskedPretrainTask(autoencoder(2), mask_ratio=1.0)
    with pytest.raises(SettingError, match="data_range: expected a low"):
        MaskedPretrainTask(autoencoder(2), data_range=(1, 1))
    with pytest.raises(SettingError, match="network: expected a MaskedAutoencoder"):
        MaskedPretrainTask(torch.nn.Identity())
    with pytest.raises(SettingError, match="encoder: expected hiera, got 'resnet'"):
        MaskedAutoencoder(ndim=2, encoder={"name": "resnet"})
    with pytest.raises(SettingError, match="out_channels: expected the image's 1, got 3"):
        MaskedAutoencoder(ndim=2, out_channels=3, encoder=ENCODER)
    with pytest.raises(SettingError, match=r"encoder\.unit_order: mask units must be boxes"):
        autoencoder(2, unit_order="strided")

"""The snippets of the document on Fast-DDPM for volumes, with their import lines changed."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import yaml

from voxelry.diffusion.schedules import Schedule
from voxelry.interop.legacy.translate import (
    BRATS,
    AttnBlock3D,
    Downsample3D,
    Model,
    ResnetBlock3D,
    Upsample3D,
    calculate_3d_metrics,
    extract_3d_patches,
    resize_3d,
    sg_generalized_steps_3d,
    transform_3d_augment,
)

CONFIG = """
data:
    dataset: "BRATS"
    image_size: 8
    depth: 4
    channels: 1
model:
    type: "sg"
    in_channels: 2
    out_ch: 1
    ch: 32
    ch_mult: [1, 2]
training:
    batch_size: 1
"""


def namespace(value):
    return Namespace(**{key: namespace(one) for key, one in value.items()}) if isinstance(value, dict) else value


def test_the_network_of_the_configuration_samples_as_the_document_has_it():
    content = yaml.safe_load(CONFIG)
    model = Model(namespace(content)).eval()
    assert model.settings() == Model(content).settings()
    assert (model.ndim, model.in_channels, model.out_channels) == (3, 2, 1)
    betas = Schedule.from_name("linear", steps=100).betas
    noise, condition = torch.randn(1, 1, 4, 8, 8), torch.randn(1, 1, 4, 8, 8)
    xs, x0_preds = sg_generalized_steps_3d(noise, condition, [0, 0, 49, 99], model, betas, eta=0)
    assert (len(xs), len(x0_preds)) == (4, 3)
    torch.testing.assert_close(xs[-1], x0_preds[-1])  # without noise the last step ends at its estimate
    at = float((1 - betas).cumprod(0)[99])
    with torch.no_grad():
        et = model(torch.cat([condition, noise], dim=1), torch.full((1,), 99.0))
    torch.testing.assert_close(x0_preds[0], (noise - et * (1 - at) ** 0.5) / at**0.5, rtol=1e-4, atol=1e-3)


def test_the_blocks_have_the_documents_sizes():
    x, temb = torch.randn(1, 32, 4, 6, 8), torch.randn(1, 512)
    assert ResnetBlock3D(in_channels=32, out_channels=64, dropout=0.0)(x, temb).shape == (1, 64, 4, 6, 8)
    assert ResnetBlock3D(in_channels=32, conv_shortcut=True, dropout=0.1, temb_channels=512)(x, temb).shape == x.shape
    assert AttnBlock3D(32)(x).shape == x.shape
    for with_conv in (True, False):
        assert Upsample3D(32, with_conv)(x).shape == (1, 32, 8, 12, 16)
        assert Downsample3D(32, with_conv)(x).shape == (1, 32, 2, 3, 4)
    expected = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="trilinear")
    torch.testing.assert_close(Upsample3D(32, False)(x), expected)


def test_data_come_in_the_documents_words(tmp_path):
    for folder, sign in (("A", 1), ("B", -1)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "case.npy", sign * np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 8, 8))
    item = BRATS(tmp_path, 4, split="val", depth=2)[0]
    assert (sorted(item), item["case_name"]) == (["FD", "LD", "case_name"], "case")
    assert item["FD"].shape == item["LD"].shape == (1, 2, 4, 4)
    torch.testing.assert_close(item["FD"], -item["LD"])
    flipped = BRATS(tmp_path, 4, split="train", depth=2)[0]
    torch.testing.assert_close(flipped["FD"], -flipped["LD"])  # alike


def test_volumes_are_flipped_alike_and_scaled():
    volume = np.random.default_rng(0).random((2, 3, 4))
    one, other = transform_3d_augment([volume, volume], split="train", min_max=(-1, 1))
    assert torch.equal(one, other)
    assert one.shape == (1, 2, 3, 4)
    (still,) = transform_3d_augment([volume], min_max=(-1, 1))
    np.testing.assert_allclose(still[0].numpy(), 2 * volume - 1, rtol=1e-5)
    assert resize_3d(volume, (4, 3, 8)).shape == (4, 3, 8)


def test_patches_cover_the_volume():
    volume = np.arange(10 * 9 * 8).reshape(10, 9, 8)
    patches = extract_3d_patches(volume, patch_size=4, stride=3)
    assert all(patch.shape == (4, 4, 4) for patch in patches)
    assert np.unique(np.concatenate([patch.ravel() for patch in patches])).size == volume.size
    assert extract_3d_patches(volume, (16, 4, 4), 4)[0].shape == (10, 4, 4)


def test_the_documents_three_figures_warn():
    volume = np.random.default_rng(0).random((8, 8, 8))
    with pytest.warns(UserWarning, match="original_"):
        psnr, ssim, dice = calculate_3d_metrics(volume + 0.1, volume)
    assert psnr == pytest.approx(20 * np.log10(255 / 0.1))
    assert ssim > 0.99
    assert dice == pytest.approx(2 * ((volume + 0.1) * volume).sum() / (2 * volume + 0.1).sum())

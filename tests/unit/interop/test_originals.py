"""The original's own examples, with only their import lines changed."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.interop.legacy.originals import DDPM, Unet, Volume3DDiffusionDataset
from voxelry.io import write_image


def test_the_network_example():
    model = Unet(
        dim=16,
        channels=1,
        dim_mults=[1, 2, 4],
        self_condition=False,
        resnet_block_groups=4,
        att_heads=4,
        att_res=16,
        is_3d=True,
    )
    batch_size = 1
    x = torch.randn(batch_size, 1, 16, 16, 16)
    output = model(x)
    assert output.shape == x.shape


@pytest.mark.parametrize("is_3d", [False, True])
def test_the_pretraining_example(is_3d):
    ddpm = DDPM(image_size=16, channels=1, device="cpu", is_3d=is_3d, unet_channels=[1, 2])
    batch_size = 2
    x = torch.randn(batch_size, 1, *[16] * (3 if is_3d else 2))
    t = ddpm.sample_timesteps(batch_size)
    assert t.shape == (2,)
    assert int(t.min()) >= 1
    loss = ddpm.p_losses(x, t)
    loss.backward()
    assert 0 < loss.item() < 10
    assert ddpm.model.stem.weight.grad is not None


def test_three_channels_and_self_conditioning_work_together():
    ddpm = DDPM(image_size=16, device="cpu", unet_channels=[1, 2], timesteps=4)
    assert ddpm.sample(ddpm.model, 2).shape == (2, 3, 16, 16)
    for _ in range(4):  # with and without the estimate
        assert ddpm.p_losses(torch.rand(1, 3, 16, 16), ddpm.sample_timesteps(1)).isfinite()


def test_every_keyword_of_the_originals_constructor_has_its_effect():
    torch.manual_seed(0)
    ddpm = DDPM(
        image_size=8, channels=1, device="cpu", lr=0.5, optimizer="sgd", timesteps=6, beta_schedule="quadratic",
        beta_start=1e-3, beta_end=0.1, unet_channels=[1, 2], unet_self_condition=False, unet_att_res=4,
        unet_att_heads=2, unet_res_blocks=2, use_ema=True,
    )  # fmt: skip
    settings = ddpm.model.settings()
    wanted = {"width": 8, "multipliers": [1, 2], "head_dim": 4, "heads": 2, "groups": 2, "self_condition": False}
    assert {name: settings[name] for name in wanted} == wanted
    assert type(ddpm.optimizer) is torch.optim.SGD
    assert ddpm.optimizer.param_groups[0]["lr"] == 0.5
    np.testing.assert_allclose(ddpm.schedule.betas[[0, -1]], [1e-3, 0.1], rtol=1e-6)
    before = ddpm.ema_model.head.bias.clone()
    ddpm.p_losses(torch.rand(2, 1, 8, 8), ddpm.sample_timesteps(2)).backward()
    ddpm.optimizer.step()
    ddpm.update_ema()
    expected = 0.995 * before + 0.005 * ddpm.model.head.bias.detach()
    torch.testing.assert_close(ddpm.ema_model.head.bias, expected)
    image = torch.zeros(1, 1, 8, 8)
    assert ddpm.sample(ddpm.ema_model, 1, timesteps=2, x_cond=image).abs().max() < 1  # barely noised, and back
    assert DDPM(image_size=8, device="cpu").ema_model is None
    with pytest.raises(SettingError, match="optimizer: expected one of adam, adamw, sgd, got 'lion'"):
        DDPM(image_size=8, device="cpu", optimizer="lion")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(SettingError, match="device: cuda asked for, but there is no GPU"):
        DDPM(image_size=16, device="cuda")


@pytest.fixture
def volumes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        space = Space.from_spacing((10, 12, 14), (3.0, 1.0, 1.0))
        write_image(
            tmp_path / "volumes" / f"v{number}.nii.gz", rng.random((1, 10, 12, 14), dtype=np.float32) * 900, space
        )
    return tmp_path


def test_the_dataset_splits_resizes_and_normalises(volumes):
    train, test = (Volume3DDiffusionDataset(volumes, volume_size=8, phase=phase) for phase in ("train", "test"))
    assert [len(train), len(test)] == [4, 1]
    item = train[0]
    assert item["name"] == "v0"
    assert item["image"].shape == (1, 8, 8, 8)
    assert item["image"].min() == 0
    assert item["image"].max() == 1
    assert {item["name"] for item in (*train, *test)} == {f"v{number}" for number in range(5)}


def test_a_subclass_with_a_reader_of_its_own(volumes):
    class MyCustom3DDataset(Volume3DDiffusionDataset):
        def read_volume(self, volume_path):
            ramp = torch.linspace(0, 1, 6).reshape(1, 6, 1, 1).expand(1, 6, 5, 4)
            return ramp if volume_path.name.startswith("v0") else 1 - ramp

    dataset = MyCustom3DDataset(volumes, volume_size=(6, 5, 4), transform=lambda image: image * 2)
    assert torch.allclose(dataset[0]["image"][0, :, 0, 0], torch.linspace(0, 2, 6))
    assert torch.allclose(dataset[1]["image"][0, :, 0, 0], torch.linspace(2, 0, 6))


def test_a_reader_of_ones_own_gets_any_file_and_its_range_is_kept(tmp_path):
    (tmp_path / "volumes").mkdir()
    for number in range(2):
        np.full(27, 0.2 + 0.3 * number, dtype="<f4").tofile(tmp_path / "volumes" / f"v{number}.scanner")
    (tmp_path / "volumes" / "notes.txt").write_text("about them")

    class Mine(Volume3DDiffusionDataset):
        def read_volume(self, volume_path):
            return torch.from_numpy(np.fromfile(volume_path, "<f4").reshape(1, 3, 3, 3))

    dataset = Mine(tmp_path, volume_size=3, phase="all", file_extension=".scanner")
    assert [item["name"] for item in dataset] == ["v0", "v1"]
    assert [float(item["image"].mean()) for item in dataset] == pytest.approx([0.2, 0.5])


def test_other_channels_and_phases_are_refused(volumes):
    with pytest.raises(SettingError, match="1 channels, expected channels=3"):
        Volume3DDiffusionDataset(volumes, channels=3)[0]
    with pytest.raises(SettingError, match="phase"):
        Volume3DDiffusionDataset(volumes, phase="tra")

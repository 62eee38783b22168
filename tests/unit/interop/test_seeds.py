"""The original's own examples, with only their import lines changed."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.io import write_image
from voxelry.interop.seeds import DDPM, Unet, Volume3DDiffusionDataset


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
    ddpm = DDPM(image_size=16, channels=1, device="cpu", is_3d=is_3d, channel_mults=[1, 2])
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
    ddpm = DDPM(image_size=16, channels=3, channel_mults=[1, 2], timesteps=4)
    assert ddpm.sample(2).shape == (2, 3, 16, 16)
    for _ in range(4):  # with and without the estimate
        assert ddpm.p_losses(torch.rand(1, 3, 16, 16), ddpm.sample_timesteps(1)).isfinite()


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


def test_other_channels_and_phases_are_refused(volumes):
    with pytest.raises(SettingError, match="1 channels, expected channels=3"):
        Volume3DDiffusionDataset(volumes, channels=3)[0]
    with pytest.raises(SettingError, match="phase"):
        Volume3DDiffusionDataset(volumes, phase="tra")

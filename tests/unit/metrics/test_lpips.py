import pickle

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as oracle

from voxelry.core.errors import FileError, SettingError
from voxelry.metrics.lpips import lpips


def alexnet():
    """The convolutions of AlexNet as torchvision numbers them, untrained."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """A file of weights, and the network that they belong to."""
    network = alexnet()
    path = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in network.state_dict().items()}, path)
    return path, network


@pytest.mark.parametrize(("channels", "shape"), [(3, (64, 50)), (1, (33, 47))])
def test_it_is_that_of_torchmetrics(published, monkeypatch, channels, shape):
    path, network = published
    monkeypatch.setattr(oracle, "_get_tv_model_features", lambda *_: network)
    expected = oracle._LPIPS(net="alex")
    image, reference = torch.rand(2, 2, channels, *shape)
    with torch.no_grad():
        colours = (part.expand(-1, 3, -1, -1) for part in (image, reference))
        torch.testing.assert_close(
            lpips(image, reference, weights=path).float(), expected(*colours, normalize=True).flatten()
        )


def test_a_volume_is_the_mean_of_its_planes(published):
    path, _ = published
    image, reference = torch.rand(2, 1, 1, 32, 34, 36)
    planes = []
    for axis, size in enumerate((32, 34, 36), start=2):
        for middle in (size // 4, 3 * size // 4):
            pair = (part.select(axis, middle) for part in (image, reference))
            planes.append(lpips(*pair, weights=path))
    torch.testing.assert_close(lpips(image, reference, weights=path, slices=2), torch.stack(planes).mean(dim=0))
    assert lpips(image, image, weights=path).item() == 0


class Surprise:
    def __reduce__(self):
        return print, ("code ran",)


def test_weights_have_to_be_there_and_hold_tensors_alone(tmp_path, capsys):
    image, path = torch.rand(1, 1, 32, 32), tmp_path / "alexnet.pth"
    with pytest.raises(FileError, match=r"no such file \(LPIPS needs the weights of AlexNet; nothing is downloaded\)"):
        lpips(image, image, weights=path)
    path.write_bytes(pickle.dumps(Surprise(), protocol=2))
    with pytest.raises(FileError, match="tensors alone"):
        lpips(image, image, weights=path)
    for content in ({"features.0.weight": torch.zeros(64, 3, 11, 11)}, [1]):
        torch.save(content, path)
        with pytest.raises(FileError, match="expected a state dict of AlexNet"):
            lpips(image, image, weights=path)
    assert "code ran" not in capsys.readouterr().out


def test_what_does_not_fit_is_refused(published):
    path, _ = published
    for shape, fault in (((1, 2, 32, 32), "1 or 3 channels"), ((1, 1, 16, 32, 32), "at least 32 voxels")):
        with pytest.raises(SettingError, match=fault):
            lpips(torch.rand(shape), torch.rand(shape), weights=path)

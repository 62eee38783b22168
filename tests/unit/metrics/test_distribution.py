import pickle
import sys
from pathlib import Path

import pytest
import torch

from voxelry.core.errors import FileError, MissingDependencyError, SettingError
from voxelry.metrics.distribution import fid, laplacian_pyramid, sliced_wasserstein


def textures(count, ndim, seed, *, blurred=False):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((count, 1, *[32, 28, 24][:ndim]), generator=generator)
    if blurred:
        for axis in range(2, images.ndim):
            images = (images + images.roll(1, axis) + images.roll(-1, axis)) / 3**0.5
    return images


@pytest.mark.parametrize("ndim", [2, 3])
def test_equal_sets_are_at_no_distance(ndim):
    images = textures(3, ndim, 0)
    assert set(sliced_wasserstein(images, images, patches=256).values()) == {0.0}


@pytest.mark.parametrize("ndim", [2, 3])
def test_another_draw_is_nearer_than_another_texture(ndim):
    data = textures(6, ndim, 0)
    same = sliced_wasserstein(textures(6, ndim, 1), data, patches=1024)["swd"]
    other = sliced_wasserstein(textures(6, ndim, 1, blurred=True), data, patches=1024)["swd"]
    assert same < 0.3 * other


def test_a_blur_shows_in_the_fine_levels_and_a_shift_in_the_last():
    data = textures(6, 2, 0)
    blurred = sliced_wasserstein(textures(6, 2, 1, blurred=True), data)
    shifted = sliced_wasserstein(data + 0.5, data)
    last = max(name for name in blurred if name != "swd")
    assert shifted["swd_level_0"] == pytest.approx(0.0, abs=1e-5)
    assert shifted[last] > 0.5
    assert blurred["swd_level_0"] > 0.1


def test_a_shift_of_normal_patches_has_the_distance_theory_gives():
    # one voxel, one level: in one dimension the distance of two equal shapes is the shift, in deviations
    data = textures(8, 2, 0)
    found = sliced_wasserstein(data + 0.5, data, patch_size=1, levels=1, patches=20000)
    assert found["swd"] == pytest.approx(0.5, abs=0.01)


def test_the_distance_repeats_with_its_seed():
    samples, data = textures(2, 2, 3), textures(3, 2, 4)
    assert sliced_wasserstein(samples, data, seed=1) == sliced_wasserstein(samples, data, seed=1)
    assert sliced_wasserstein(samples, data, seed=1) != sliced_wasserstein(samples, data, seed=2)


@pytest.mark.parametrize(("shape", "smallest"), [((2, 1, 33, 28), (9, 7)), ((1, 2, 28, 14, 5), (7, 7, 5))])
def test_the_pyramid_of_a_constant_has_no_detail(shape, smallest):
    *details, rest = laplacian_pyramid(torch.full(shape, 3.0), smallest=7)
    assert len(details) == 2
    for detail in details:
        torch.testing.assert_close(detail, torch.zeros_like(detail))
    torch.testing.assert_close(rest, torch.full_like(rest, 3.0))
    assert tuple(rest.shape[2:]) == smallest


def test_the_pyramid_keeps_thin_axes():
    levels = laplacian_pyramid(torch.rand(1, 1, 5, 28, 28), smallest=7)
    assert [tuple(level.shape[2:]) for level in levels] == [(5, 28, 28), (5, 14, 14), (5, 7, 7)]


@pytest.mark.parametrize(
    "pair",
    [
        (torch.rand(0, 1, 9, 9), torch.rand(2, 1, 9, 9)),
        (torch.rand(2, 1, 9, 9), torch.rand(2, 2, 9, 9)),
        (torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9, 9)),
    ],
)
def test_sets_that_do_not_fit_are_refused(pair):
    with pytest.raises(SettingError, match="samples"):
        sliced_wasserstein(*pair)


def test_fid_needs_its_weights_on_disk(tmp_path):
    images = torch.rand(2, 1, 9, 9)
    with pytest.raises(FileError, match="no such file"):
        fid(images, images, weights=tmp_path / "inception.pth")


class Surprise:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_fid_does_not_run_what_a_weights_file_holds(tmp_path):
    images, weights, trace = torch.rand(2, 1, 9, 9), tmp_path / "inception.pth", tmp_path / "trace"
    weights.write_bytes(pickle.dumps(Surprise(trace), protocol=2))
    with pytest.raises(FileError, match="tensors alone"):
        fid(images, images, weights=weights)
    torch.save({"weight": Surprise(trace)}, weights)
    with pytest.raises(FileError, match="tensors alone"):
        fid(images, images, weights=weights)
    assert not trace.exists()


def test_fid_refuses_what_is_no_grey_or_colour_image(tmp_path):
    weights = tmp_path / "inception.pth"
    torch.save({}, weights)
    with pytest.raises(SettingError, match="channels"):
        fid(torch.rand(2, 2, 9, 9), torch.rand(2, 2, 9, 9), weights=weights)


def test_fid_says_what_to_install(tmp_path, monkeypatch):
    weights = tmp_path / "inception.pth"
    torch.save({}, weights)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingDependencyError, match="torch_fidelity"):
        fid(torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9), weights=weights)

import math

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.metrics.images import mae, mse, nmse, psnr, ssim, ssim_map


def pair(rng, shape):
    """A smooth image and a noisy copy, in [0, 1]."""
    waves = sum(np.sin(np.arange(size) / (2 + axis)).reshape([-1 if i == axis else 1 for i in range(len(shape))])
                for axis, size in enumerate(shape))  # fmt: skip
    smooth = (waves - waves.min()) / np.ptp(waves)
    noisy = np.clip(smooth + 0.1 * rng.standard_normal(shape), 0, 1)
    return smooth, noisy


def batched(array):
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


@pytest.mark.parametrize("shape", [(40, 31), (24, 19, 13)])
def test_ssim_is_that_of_scikit_image(rng, shape):
    from skimage.metrics import structural_similarity

    a, b = pair(rng, shape)
    expected, expected_map = structural_similarity(
        a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim(batched(a), batched(b), data_range=1.0).item() == pytest.approx(expected, abs=1e-10)
    np.testing.assert_allclose(ssim_map(batched(a), batched(b), data_range=1.0)[0, 0].numpy(), expected_map, atol=1e-10)


@pytest.mark.parametrize("shape", [(40, 31), (24, 19, 13)])
def test_psnr_is_that_of_scikit_image(rng, shape):
    from skimage.metrics import peak_signal_noise_ratio

    a, b = pair(rng, shape)
    expected = peak_signal_noise_ratio(a, b, data_range=2.0)
    assert psnr(batched(b), batched(a), data_range=2.0).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("shape", [(40, 31), (24, 19, 13)])
def test_nmse_is_that_of_scikit_image_squared(rng, shape):
    from skimage.metrics import normalized_root_mse

    a, b = pair(rng, shape)
    expected = normalized_root_mse(a, b, normalization="euclidean") ** 2
    assert nmse(batched(b), batched(a)).item() == pytest.approx(expected, abs=1e-10)


def test_nmse_has_an_answer_for_images_of_zeros():
    zeros, ones = torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    assert nmse(zeros, ones).item() == 1
    assert nmse(zeros, zeros).item() == 0
    assert nmse(ones, zeros).item() == math.inf
    assert nmse(ones, ones, mask=torch.zeros(1, 3, 3)).isnan().all()


def test_known_numbers():
    image, reference = torch.full((1, 2, 4, 4), 0.75), torch.full((1, 2, 4, 4), 0.25)
    assert mse(image, reference).item() == 0.25
    assert mae(image, reference).item() == 0.5
    assert psnr(image, reference, data_range=1.0).item() == pytest.approx(10 * math.log10(4))


@pytest.mark.parametrize("shape", [(2, 1, 12, 9), (2, 3, 12, 9, 4)])
def test_an_image_is_like_itself(shape):
    image = torch.rand(shape)
    assert ssim(image, image, data_range=1.0).tolist() == pytest.approx([1.0, 1.0])
    assert psnr(image, image, data_range=1.0).tolist() == [math.inf, math.inf]
    assert mse(image, image).tolist() == [0.0, 0.0]


def test_a_batch_is_measured_like_its_members(rng):
    image, other = (torch.from_numpy(rng.random((3, 2, 13, 12, 5))) for _ in range(2))
    for metric in (mse, mae, lambda *x: ssim(*x, data_range=1.0), lambda *x: psnr(*x, data_range=1.0)):
        alone = torch.cat([metric(image[i : i + 1], other[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(metric(image, other), alone)


def test_the_order_of_axes_does_not_matter(rng):
    image, other = (torch.from_numpy(rng.random((1, 1, 17, 12, 5))) for _ in range(2))
    plain = ssim(image, other, data_range=1.0)
    moved = ssim(image.permute(0, 1, 4, 2, 3), other.permute(0, 1, 4, 2, 3), data_range=1.0)
    torch.testing.assert_close(plain, moved)


def test_axes_shorter_than_the_window_are_mirrored_as_often_as_needed(rng):
    thin = torch.from_numpy(rng.random((1, 1, 20, 20, 1)))
    other = torch.from_numpy(rng.random((1, 1, 20, 20, 1)))
    # a slab of one voxel, mirrored, is constant along its axis: the same as in the plane
    expected = ssim(thin[..., 0], other[..., 0], data_range=1.0)
    torch.testing.assert_close(ssim(thin, other, data_range=1.0), expected)


def test_only_voxels_inside_the_mask_count(rng):
    image = torch.from_numpy(rng.random((2, 1, 14, 14)))
    other = image.clone()
    other[:, :, :3] += 0.5
    mask = torch.ones(2, 14, 14, dtype=torch.bool)
    mask[0, :3] = False
    assert mse(image, other, mask=mask).tolist() == pytest.approx([0.0, 0.25 * 3 / 14])
    local = ssim_map(image, other, data_range=1.0)
    expected = local[0, 0][mask[0]].mean()
    assert ssim(image, other, data_range=1.0, mask=mask)[0].item() == pytest.approx(expected.item())


def test_an_empty_mask_has_no_error():
    image = torch.rand(1, 1, 5, 5)
    assert mse(image, image, mask=torch.zeros(1, 5, 5, dtype=torch.bool)).isnan().all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda a: mse(a, a[..., 1:]), "image"),
        (lambda a: psnr(a, a, data_range=0.0), "data_range"),
        (lambda a: ssim(a, a, data_range=-1.0), "data_range"),
        (lambda a: mse(a, a, mask=torch.ones(1, 4, 4)), "mask"),
    ],
)
def test_what_does_not_fit_is_refused(call, word):
    with pytest.raises(SettingError, match=word):
        call(torch.rand(1, 1, 5, 5))

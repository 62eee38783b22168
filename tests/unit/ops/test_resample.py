"""The Numba kernels against plain PyTorch, SciPy and worked numbers."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import affine_transform

from voxelry.core.errors import SettingError
from voxelry.ops.resample import (
    _checked_fill,
    _checked_map,
    _in_torch,
    resample,
    resample_points,
    spline_at,
    spline_grid,
    spline_lipschitz,
)

SHAPE = (9, 11, 13)
OUT = (10, 8, 7)
GRID = (5, 4, 6)


def oblique_map(rng, ndim):
    """A map that rotates, mirrors and scales each axis differently."""
    matrix = np.diag([-0.8, 1.1, 0.6][:ndim]) + rng.normal(scale=0.15, size=(ndim, ndim))
    offset = np.asarray(SHAPE[:ndim]) / 2 - matrix @ (np.asarray(OUT[:ndim]) / 2)
    return matrix, offset


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize("fill", [-1.0, "edge", (2.0, 3.0)])
@pytest.mark.parametrize(
    ("order", "dtype"), [(1, torch.float32), (0, torch.int64), (0, torch.float16), (1, torch.int16)]
)
def test_kernel_equals_plain_pytorch(rng, ndim, displaced, fill, order, dtype):
    image = torch.from_numpy(rng.uniform(0, 50, (2, *SHAPE[:ndim]))).to(dtype)
    matrix, offset = oblique_map(rng, ndim)
    control = rng.normal(size=(ndim, *GRID[:ndim])) if displaced else None
    result = resample(image, matrix, offset, OUT[:ndim], displacement=control, order=order, fill=fill)
    source = image.float() if order == 1 else image
    expected = _in_torch(
        source, *_checked_map(matrix, offset, control, ndim), OUT[:ndim], order, _checked_fill(fill, source)
    )
    assert result.dtype == (torch.float32 if order == 1 else dtype)
    assert (result != result.flatten()[0]).any()
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5 if order == 1 else 0)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("order", [0, 1])
def test_inside_it_agrees_with_scipy(rng, ndim, order):
    image = rng.random(SHAPE[:ndim], dtype=np.float32)
    matrix, offset = oblique_map(rng, ndim)
    offset = offset + 0.1  # SciPy breaks ties the other way
    expected = affine_transform(image, matrix, offset, OUT[:ndim], order=order, mode="nearest")
    result = resample(torch.from_numpy(image)[None], matrix, offset, OUT[:ndim], order=order, fill="edge")[0]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_rank_two_is_rank_three_of_depth_one(rng, ndim):
    image = torch.from_numpy(rng.random((1, *SHAPE[-2:]), dtype=np.float32))
    matrix, offset = oblique_map(rng, 2)
    control = rng.normal(size=(2, 5, 4))
    flat = resample(image, matrix, offset, (8, 7), displacement=control)
    lifted = np.eye(3)
    lifted[1:, 1:] = matrix
    control3 = np.concatenate([np.zeros((1, 4, 5, 4)), np.repeat(control[:, None], 4, axis=1)])
    deep = resample(image[:, None], lifted, [0, *offset], (1, 8, 7), displacement=control3)
    torch.testing.assert_close(deep[:, 0], flat)


def test_half_a_voxel_belongs_to_the_image():
    image = torch.tensor([[[1.0, 2.0, 4.0]] * 3])
    offsets = {-0.5: 1.0, -0.51: -9.0, 0.25: 1.25, 2.5: 4.0, 2.51: -9.0}
    for offset, value in offsets.items():
        assert resample(image, np.eye(2), [1, offset], (1, 1), fill=-9).item() == pytest.approx(value)
    assert resample(image, np.eye(2), [1, 0.5], (1, 1), order=0).item() == 1.0  # a tie goes down
    assert resample(image, np.eye(2), [1, 0.5 + 1e-12], (1, 1), order=0).item() == 1.0
    assert resample(image, np.eye(2), [1, 0.51], (1, 1), order=0).item() == 2.0


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_reversal_is_exact(rng, ndim):
    image = torch.from_numpy(rng.random((2, *SHAPE[:ndim]), dtype=np.float32))
    last = np.asarray(SHAPE[:ndim]) - 1
    result = resample(image, -np.eye(ndim), last, SHAPE[:ndim])
    assert torch.equal(result, image.flip(list(range(1, ndim + 1))))


def test_label_values_survive_and_bool_stays_bool():
    labels = torch.tensor([[[0, 2**40, 7]]])
    result = resample(labels, np.eye(2), [0, 0.2], (1, 4), order=0, fill=-3)
    assert result.tolist() == [[[0, 2**40, 7, -3]]]
    assert resample(labels > 0, np.eye(2), [0, 0], (1, 3), order=0).tolist() == [[[False, True, True]]]


def test_complex_numbers_are_copied_by_nearest_neighbour():
    image = torch.tensor([[[1 + 2j, 3 - 1j]]], dtype=torch.complex128)
    assert torch.equal(resample(image, np.eye(2), [0, 1], (1, 1), order=0), image[:, :, 1:])


def test_views_and_channels_last_are_read_correctly(rng):
    image = torch.from_numpy(rng.random((6, 7, 3), dtype=np.float32)).permute(2, 0, 1)
    assert torch.equal(resample(image, np.eye(2), [0, 0], (6, 7)), image)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_gradient_reaches_the_image(rng, ndim):
    image = torch.from_numpy(rng.random((1, *SHAPE[:ndim]))).requires_grad_()
    result = resample(image, np.eye(ndim), [0.3] * ndim, SHAPE[:ndim], fill="edge")
    result.sum().backward()
    assert image.grad.sum().item() == pytest.approx(result.numel(), rel=1e-5)
    torch.testing.assert_close(resample(image.detach(), np.eye(ndim), [0.3] * ndim, SHAPE[:ndim], fill="edge"), result)


@pytest.mark.parametrize("ndim", [2, 3])
def test_equal_coefficients_shift(rng, ndim):
    image = torch.from_numpy(rng.random((1, *SHAPE[:ndim]), dtype=np.float32))
    control = np.full((ndim, *GRID[:ndim]), 2.0)
    shifted = resample(image, np.eye(ndim), np.zeros(ndim), OUT[:ndim], displacement=control)
    torch.testing.assert_close(shifted, resample(image, np.eye(ndim), np.full(ndim, 2.0), OUT[:ndim]))


def test_the_spline_is_the_cubic_b_spline(rng):
    coefficients = rng.normal(size=7)
    size, spans = 21, 4
    knots = (np.arange(-3, spans + 4)) * (size - 1) / spans
    index = rng.uniform(0, size - 1, 50)
    expected = BSpline(knots, coefficients, 3)(index)
    control = np.broadcast_to(coefficients[:, None], (1, 7, 4))
    found = spline_at(np.stack([index, index], axis=1), control, (size, size))
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
def test_spline_on_the_grid_equals_spline_at_its_points(rng, ndim):
    coefficients = rng.normal(size=(2, *GRID[:ndim]))
    points = np.stack(np.meshgrid(*map(np.arange, SHAPE[:ndim]), indexing="ij"), axis=-1).reshape(-1, ndim)
    dense = spline_grid(torch.from_numpy(coefficients), SHAPE[:ndim]).flatten(1).T
    np.testing.assert_allclose(dense.numpy(), spline_at(points.astype(float), coefficients, SHAPE[:ndim]), atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_move_back_and_forth(rng, ndim):
    matrix, offset = oblique_map(rng, ndim)
    control = rng.normal(scale=0.3, size=(ndim, *GRID[:ndim]))
    out = torch.from_numpy(rng.uniform(0, 6, (20, ndim)))
    there = out.numpy() @ matrix.T + offset + spline_at(out.numpy(), control, OUT[:ndim])
    back = resample_points(torch.from_numpy(there), matrix, offset, OUT[:ndim], displacement=control)
    np.testing.assert_allclose(back.numpy(), out.numpy(), atol=0.002)


def test_affine_points_are_exact_and_absent_ones_stay_absent(rng):
    matrix, offset = oblique_map(rng, 3)
    out = torch.from_numpy(rng.uniform(-20, 20, (4, 3)))
    there = torch.from_numpy(out.numpy() @ matrix.T + offset)
    there[1, 2] = torch.nan
    back = resample_points(there, matrix, offset, OUT)
    assert torch.isnan(back[1]).all()
    np.testing.assert_allclose(back[[0, 2, 3]].numpy(), out[[0, 2, 3]].numpy(), atol=1e-10)
    assert resample_points(torch.zeros(0, 3), matrix, offset, OUT, displacement=np.zeros((3, 4, 4, 4))).shape == (0, 3)


def test_a_displacement_that_is_too_steep_is_an_error_not_a_wrong_point():
    control = np.zeros((2, 4, 8))
    control[1] = 1.5 * (8 / 5) * (np.arange(8) - 3.5)  # 1.5 voxels per voxel
    with pytest.raises(SettingError, match="displacement: too steep to be inverted"):
        resample_points(torch.tensor([[4.0, 4.5]]), np.eye(2), [0, 0], (9, 9), displacement=control)


@pytest.mark.parametrize("ndim", [2, 3])
def test_lipschitz_bounds_every_pair_of_points(rng, ndim):
    coefficients = rng.normal(size=(ndim, *GRID[:ndim]))
    spacing = np.array([3.0, 0.7, 1.2])[:ndim]
    a, b = rng.uniform(0, 12, (2, 500, ndim))
    change = np.linalg.norm(spline_at(a, coefficients, (13,) * ndim) - spline_at(b, coefficients, (13,) * ndim), axis=1)
    ratio = change / np.linalg.norm((a - b) * spacing, axis=1)
    bound = spline_lipschitz(coefficients, (13,) * ndim, spacing)
    assert bound / 20 < ratio.max() <= bound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": np.eye(3)}, r"matrix: expected shape \(2, 2\)"),
        ({"offset": [0, 0, 0]}, "offset: expected 2 numbers"),
        ({"offset": [0, np.nan]}, "offset: expected finite"),
        ({"shape": (4,)}, "shape: expected 2 positive sizes"),
        ({"shape": (4, 0)}, "shape: expected 2 positive sizes"),
        ({"order": 3}, "order: expected 0"),
        ({"displacement": np.zeros((2, 3, 4))}, "displacement: expected"),
        ({"fill": "wrap"}, 'fill: expected a number or "edge"'),
        ({"fill": (1.0, 2.0, 3.0)}, "fill: expected one number or one for each of 2 channels"),
        ({"image": torch.zeros(2, 4, 4, dtype=torch.uint8), "order": 0, "fill": -1}, "fill: expected whole numbers"),
        ({"image": torch.zeros(2, 4, 4, dtype=torch.int64), "order": 0, "fill": 0.5}, "fill: expected whole numbers"),
        ({"image": torch.zeros(2, 4, 4, dtype=torch.complex64)}, "image: expected real numbers"),
        ({"image": torch.zeros(2, 0, 4)}, "image: expected at least one voxel"),
        ({"image": torch.zeros(4, 4)}, "ndim: expected 2 or 3"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"image": torch.zeros(2, 4, 4), "matrix": np.eye(2), "offset": [0, 0], "shape": (4, 4)} | change
    with pytest.raises(SettingError, match=message) as caught:
        resample(
            arguments.pop("image"),
            arguments.pop("matrix"),
            arguments.pop("offset"),
            arguments.pop("shape"),
            **arguments,
        )
    assert "\n" not in str(caught.value)


def test_a_flat_matrix_has_no_way_back():
    with pytest.raises(SettingError, match="matrix: expected an invertible"):
        resample_points(torch.zeros(1, 2), np.ones((2, 2)), [0, 0], (4, 4))

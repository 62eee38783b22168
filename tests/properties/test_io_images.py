"""What is written is what is read, for any affine, type and window."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image

WITH_AFFINE = [".nii", ".nii.gz", ".mha", ".mhd", ".ome.tif", ".tiff", ".zarr"]
TYPES = ["uint8", "int16", "uint16", "int32", "float32", "float64"]


@st.composite
def spaces(draw, ndim):
    """Oblique, mirrored, anisotropic; any shape, one voxel thick as well."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rotation = np.linalg.qr(numbers.normal(size=(3, 3)))[0]
    mirror = np.diag(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    spacing = np.diag(numbers.uniform(0.1, 5.0, 3))
    affine = np.column_stack([(rotation @ mirror @ spacing)[:, :ndim], numbers.uniform(-300, 300, 3)])
    shape = draw(st.tuples(*[st.integers(1, 7)] * ndim))
    return Space(shape, np.vstack([affine, np.eye(ndim + 1)[-1]]))


@st.composite
def images(draw, ndim, types=tuple(TYPES)):
    space = draw(spaces(ndim))
    dtype = np.dtype(draw(st.sampled_from(types)))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.sampled_from([1, 1, 2, 3])), *space.shape)
    low, high = (-1e6, 1e6) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return numbers.uniform(low, high, shape).astype(dtype), space


@st.composite
def windows(draw, shape):
    bounds = [sorted((draw(st.integers(0, size)), draw(st.integers(0, size)))) for size in shape]
    return tuple(slice(*pair) for pair in bounds)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("suffix", WITH_AFFINE)
@given(data=st.data())
def test_values_and_affine_come_back(suffix, ndim, data):
    array, space = data.draw(images(ndim))
    with tempfile.TemporaryDirectory() as folder:
        path = write_image(Path(folder) / f"image{suffix}", array, space)
        image = open_image(path, ndim=ndim)
        found = image.read()
        assert image.has_orientation
        assert image.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert image.space.is_close(space, tolerance=1e-3)
        window = data.draw(windows(space.shape))
        np.testing.assert_array_equal(image.read(window), array[(slice(None), *window)])


@pytest.mark.parametrize("ndim", [2, 3])
@given(data=st.data())
def test_npy_keeps_values(ndim, data):
    array, space = data.draw(images(ndim))
    with tempfile.TemporaryDirectory() as folder:
        path = write_image(Path(folder) / "image.npy", array, space)
        image = open_image(path, ndim=ndim, spacing=space.spacing)
        np.testing.assert_array_equal(image.read(), array)
        np.testing.assert_allclose(image.space.spacing, space.spacing)
        window = data.draw(windows(space.shape))
        np.testing.assert_array_equal(image.read(window), array[(slice(None), *window)])


@given(data=st.data())
def test_png_keeps_values(data):
    array, space = data.draw(images(2, types=("uint8", "uint16")))
    with tempfile.TemporaryDirectory() as folder:
        path = write_image(Path(folder) / "image.png", array, space)
        np.testing.assert_array_equal(read_image(path).array, array)
        window = data.draw(windows(space.shape))
        np.testing.assert_array_equal(open_image(path).read(window), array[(slice(None), *window)])

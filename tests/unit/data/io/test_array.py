"""NumPy's zip files: which array is the image, and what is never loaded."""

import numpy as np
import pytest

from voxelry.core.errors import FileError
from voxelry.io import open_image, read_image

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("beside", [{}, {"case": "a", "id": 3, "scores": np.arange(9.0)}])
def test_the_only_image_is_read(save, beside, tmp_path):
    save(tmp_path / "a.npz", image=np.asfortranarray(VOLUME), **beside)
    image = open_image(tmp_path / "a.npz")
    np.testing.assert_array_equal(image.read()[0], VOLUME)
    window = (slice(1, 3), slice(0, 2), slice(2, 5))
    np.testing.assert_array_equal(image.read(window)[0], VOLUME[window])
    assert (image.dtype, image.format, image.metadata["dataset"]) == (np.int16, "npz", "image")


def test_arrays_without_names_and_of_bools(tmp_path):
    np.savez(tmp_path / "a.npz", VOLUME > 30)
    image = read_image(tmp_path / "a.npz").array
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0], VOLUME > 30)


def test_one_of_several_is_chosen(tmp_path):
    np.savez(tmp_path / "a.npz", image=VOLUME, label=VOLUME > 3)
    with pytest.raises(
        FileError, match=r"holds 2 arrays .*\(choose one: .*--option dataset=image elsewhere; there are image, label\)"
    ):
        open_image(tmp_path / "a.npz")
    np.testing.assert_array_equal(read_image(tmp_path / "a.npz", dataset="label").array[0], VOLUME > 3)
    with pytest.raises(FileError, match="no array 'mask'"):
        open_image(tmp_path / "a.npz", dataset="mask")


def test_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", image=VOLUME, notes=np.array([[None]], dtype=object))
    np.testing.assert_array_equal(read_image(tmp_path / "a.npz", dataset="image").array[0], VOLUME)
    with pytest.raises(FileError, match="pickled Python objects"):
        open_image(tmp_path / "a.npz", dataset="notes")


def test_a_file_cut_short_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", VOLUME)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:150])
    with pytest.raises(FileError, match="can't be read"):
        open_image(tmp_path / "b.npz")

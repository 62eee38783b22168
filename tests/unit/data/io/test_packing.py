"""Arrays that are packed as netCDF does it, and axes that have scales."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.label_grid import Reference, open_labels
from voxelry.io import open_image, write_image

STORED = np.arange(-12, 12, dtype=np.int16).reshape(2, 3, 4)


def hdf5(path, array=STORED, **attributes):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=array).attrs.update(attributes)
    return path


def zarr(path, array=STORED, **attributes):
    write_image(path, array[None], Space.from_spacing(array.shape))
    document = json.loads((path / "0/zarr.json").read_text())
    (path / "0/zarr.json").write_text(json.dumps(document | {"attributes": attributes}))
    return path


def scaled_axes(path, coordinates, array=STORED, **units):
    """As netCDF keeps an array: an axis is called after a scale, which may hold coordinates with a unit."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=array)
        for axis, (name, values) in enumerate(coordinates.items()):
            scale = file.create_dataset(name, data=values)
            scale.make_scale(name)
            if name in units:
                scale.attrs["units"] = units[name]
            data.dims[axis].attach_scale(scale)
    return path


@pytest.mark.parametrize(("make", "name"), [(hdf5, "a.h5"), (hdf5, "a.nc"), (zarr, "a.zarr")])
class TestPacked:
    def test_scale_and_offset(self, make, name, tmp_path):
        image = open_image(make(tmp_path / name, scale_factor=0.25, add_offset=-3.0))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image.read()[0], STORED * 0.25 - 3.0)
        window = (slice(1, 2), slice(0, 2), slice(1, 4))
        np.testing.assert_array_equal(image.read(window)[0], STORED[window] * 0.25 - 3.0)

    @pytest.mark.parametrize("attribute", ["_FillValue", "missing_value"])
    def test_nothing_is_nan(self, make, name, attribute, tmp_path):
        image = open_image(make(tmp_path / name, scale_factor=2.0, **{attribute: -12}))
        expected = STORED * 2.0
        expected[0, 0, 0] = np.nan
        np.testing.assert_array_equal(image.read()[0], expected)

    def test_labels_keep_their_numbers(self, make, name, tmp_path):
        path = make(tmp_path / name, STORED + np.int16(12), _FillValue=99)
        assert open_image(path).dtype == np.float32
        image = write_image(tmp_path / "a.mha", STORED[None], Space.from_spacing(STORED.shape))
        np.testing.assert_array_equal(open_labels(path, Reference.of_file(image, {})).read(), STORED + 12)

    def test_unsigned_bytes(self, make, name, tmp_path):
        image = open_image(make(tmp_path / name, STORED.astype(np.int8), _Unsigned="true", _FillValue=-1))
        expected = STORED.astype(np.int8).view(np.uint8).astype(np.float32)
        expected[expected == 255] = np.nan
        np.testing.assert_array_equal(image.read()[0], expected)

    @pytest.mark.parametrize("attributes", [{}, {"scale_factor": 1.0, "add_offset": 0.0}])
    def test_what_is_not_packed_stays(self, make, name, attributes, tmp_path):
        image = open_image(make(tmp_path / name, **attributes))
        assert image.dtype == np.int16
        assert image.order is not None
        np.testing.assert_array_equal(image.read()[0], STORED)

    @pytest.mark.parametrize("value", [0.0, "much", [1.0, 2.0]])
    def test_a_factor_that_is_no_number_is_refused(self, make, name, value, tmp_path):
        with pytest.raises(FileError, match=r"its attribute scale_factor is .*, expected a number"):
            open_image(make(tmp_path / name, scale_factor=value))


def test_whole_numbers_beyond_float32_are_kept(tmp_path):
    ids = np.array([[2**24 + 1, 5], [6, 7]], np.int32)
    np.testing.assert_array_equal(
        open_image(hdf5(tmp_path / "a.h5", ids, _FillValue=5)).read()[0, 0], [2**24 + 1, np.nan]
    )


class TestScalesOfAxes:
    def test_names_and_spacing(self, tmp_path):
        places = {"x": [0.0, 0.5], "z": [3.0, 1.0, -1.0], "y": np.arange(4) * 100.0}
        image = open_image(scaled_axes(tmp_path / "a.nc", places, x="mm", y="um", z="mm"))
        assert image.space.spacing == pytest.approx((2.0, 0.1, 0.5))
        np.testing.assert_array_equal(image.read()[0], STORED.transpose(1, 2, 0))

    def test_names_alone(self, tmp_path):
        image = open_image(scaled_axes(tmp_path / "a.nc", {"x": np.zeros(2), "z": np.zeros(3), "y": np.arange(4.0)}))
        assert image.shape == (1, 3, 4, 2)
        assert image.space.spacing == (1, 1, 1)

    @pytest.mark.parametrize(
        ("places", "units", "fault"),
        [
            ([0.0, 1.0, 3.0], {"y": "mm"}, "its coordinates y aren't evenly spaced"),
            ([0.0, 2.0, 4.0], {}, "its coordinates y are 2 apart, in no unit of length"),
            ([0.0, 2.0, 4.0], {"y": "degrees_north"}, "units of y: 'degrees_north' is no unit of length"),
            ([0.0, 2.0, 4.0], {"y": "mm"}, "says in which unit some axes are, not along z, x"),
        ],
    )
    def test_what_is_not_understood_is_refused_unless_the_spacing_is_told(self, places, units, fault, tmp_path):
        path = scaled_axes(tmp_path / "a.nc", {"z": np.zeros(2), "y": places, "x": np.zeros(4)}, **units)
        with pytest.raises(FileError, match=fault):
            open_image(path)
        assert open_image(path, spacing=[3, 2, 1]).space.spacing == (3, 2, 1)

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
import trimesh
from PIL import Image as Pillow

from voxelry.core.errors import DataError, FileError
from voxelry.core.space import Space
from voxelry.data.crops.dataset import CropDataset
from voxelry.data.dataset import VolumeDataset
from voxelry.data.doctor.inspect import inspect
from voxelry.data.label_grid import Reference, class_numbers, fit, open_labels, place, whole_numbers
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.engine.index import build_index
from voxelry.io import open_image, write_image
from voxelry.io.meshes import write_mesh
from voxelry.ops.surface import Mesh

FILE = Path("ids.nii.gz")
AS_IT_IS = Preprocess(orientation=None, normalise=None)


def slanted(ndim: int, scale: float = 1.0) -> Space:
    """Turned, mirrored and anisotropic, of 4 x 5 x 6 voxels or 5 x 6."""
    turn, tilt = np.deg2rad(25), np.deg2rad(-40)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    rotation = rotation @ np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    steps = rotation @ np.diag([-5.0, 0.7, 0.9])[:, ::-1] * scale
    affine = np.vstack(
        [np.column_stack([steps[:, 3 - ndim :], np.array([-3.0, 12.0, 5.0]) * scale]), np.eye(ndim + 1)[-1]]
    )
    return Space((4, 5, 6)[3 - ndim :], affine)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_order_and_direction_of_axes_is_turned_back(ndim, scale):
    space = slanted(ndim, scale)
    values = np.arange(np.prod(space.shape)).reshape(space.shape)
    for axes in permutations(range(ndim)):
        for flips in product((False, True), repeat=ndim):
            stored = np.flip(values.transpose(axes), [axis for axis, flip in enumerate(flips) if flip])
            placement = place(space.reorder(axes, flips), space)
            assert placement is not None
            np.testing.assert_array_equal(placement.turn(stored), values)
            window = tuple(slice(1, size - 2) for size in space.shape)
            np.testing.assert_array_equal(placement.read(stored.__getitem__, window), values[window])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_voxels_elsewhere_are_not_the_same_at_any_scale(ndim, scale):
    space = slanted(ndim, scale)
    off_plane = space.affine.copy()
    off_plane[:3, -1] += 0.5 * scale
    for grid in (
        space.crop((0.5,) * ndim, space.shape),
        space.crop((1, *[0] * (ndim - 1)), space.shape),
        space.resize([size * 2 for size in space.shape]),
        space.with_spacing([step * 1.1 for step in space.spacing]),
        Space(space.shape, off_plane),
    ):
        assert place(grid, space) is None
    assert place(space.crop((0.05,) * ndim, space.shape), space) is not None


def test_what_the_user_says_of_the_spacing_counts_where_the_files_disagree():
    space = slanted(3)
    other = space.with_spacing(1.0)
    for spacing, fits in ((None, False), (2.0, True)):
        reference = Reference(FILE, space, True, spacing)
        assert (fit(other, True, reference) is not None) == fits
    assert fit(other, False, Reference(FILE, space, True)) is not None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 1, 2], np.float32) * np.float32(0.9999999), [0, 1, 2]),
        (np.array([-0.0004, -1.0, 3.0004]), [0, 0, 3]),
        (np.array([0, -1, 7], np.int8), [0, 0, 7]),
        (np.array([False, True]), [0, 1]),
        (np.array([0, 2**63 - 1], np.uint64), [0, 2**63 - 1]),
        (np.array([5, 2**64 - 2, 2**64 - 1], np.uint64), [5, 2**64 - 2, 2**64 - 1]),
        (np.zeros(0, np.float32), []),
    ],
)
def test_values_become_whole_numbers(values, expected):
    assert whole_numbers(values, FILE).tolist() == expected


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.array([1.002]), "value 1.002, expected whole numbers"),
        (np.array([1.0, np.nan]), "value nan, expected whole numbers"),
        (np.array([np.inf]), "value inf, expected whole numbers"),
        (np.array([0, -1000], np.int16), "label value -1000, .*is it an image"),
        (np.array([2.0**24], np.float32), "ids from 16777216 as float32"),
    ],
)
def test_other_values_are_refused(values, fault):
    with pytest.raises(DataError, match=f"ids.nii.gz: {fault}"):
        whole_numbers(values, FILE)


def test_a_class_is_no_id():
    with pytest.raises(DataError, match=r"label value 9223372036854775813, expected a class"):
        class_numbers(np.array([2**63 + 5], np.uint64), FILE)


@pytest.fixture
def turned(tmp_path):
    """An image whose brighter voxels are two objects, and its labels in other axes, with the largest ids."""
    space = slanted(3).crop((0, 0, 0), (10, 12, 14))
    ids = np.zeros(space.shape, np.uint64)
    ids[2:5, 3:7, 4:9], ids[6:9, 3:7, 4:9] = 2**64 - 2, 2**64 - 1
    axes, flips = (2, 0, 1), (True, False, True)
    write_image(tmp_path / "volumes/a.nii.gz", (ids > 0)[None].astype(np.float32), space)
    for kind, values in (("labels", ids > 0), ("instances", ids)):
        stored = np.ascontiguousarray(np.flip(values.transpose(axes), (0, 2)))[None]
        write_image(tmp_path / f"{kind}/a.nii.gz", stored, space.reorder(axes, flips))
    return tmp_path


def test_labels_along_other_axes_are_the_same_for_training_index_and_doctor(turned, tmp_path):
    dataset = VolumeDataset(find_cases(turned), preprocess=AS_IT_IS)
    dataset.check()
    sample = dataset[0]
    assert torch.equal(sample.labels > 0, sample.image[0] > 0)
    assert sample.boxes.tolist() == [[1.5, 2.5, 3.5, 4.5, 6.5, 8.5], [5.5, 2.5, 3.5, 8.5, 6.5, 8.5]]
    assert inspect(turned).findings == []
    build_index(turned, tmp_path / "a.sqlite", crop_size=(10, 12, 14))
    crops = CropDataset(tmp_path / "a.sqlite", normalise=None)
    assert crops.record(0).instance.tolist() == [2**64 - 2, 2**64 - 1]
    assert torch.equal(crops[0].masks, sample.masks)
    assert torch.equal(crops[0].masks > 0, crops[0].image[0] > 0)
    assert torch.equal(crops[0].boxes, sample.boxes)


def test_a_mask_in_colours_is_refused_with_the_way_out(tmp_path):
    space = Space.from_spacing((5, 6))
    write_image(tmp_path / "a.png", np.zeros((1, 5, 6), np.uint8), space)
    write_image(tmp_path / "colours.png", np.zeros((3, 5, 6), np.uint8), space)
    with pytest.raises(DataError, match=r"colours.png: 3 channels, .*save each colour as its own number"):
        open_labels(tmp_path / "colours.png", Reference.of_file(tmp_path / "a.png", {}))


@pytest.mark.parametrize("name", ["ids.jpg", "ids.JPEG"])
def test_labels_in_jpeg_are_refused(tmp_path, name):
    ids = np.zeros((16, 16), np.uint8)
    ids[3:9, 4:12] = 200
    Pillow.fromarray(ids).save(tmp_path / name)
    space = Space.from_spacing((16, 16), 1.0)
    with pytest.raises(DataError, match=rf"{name}: JPEG changes values, .* save labels as PNG or TIFF$"):
        open_labels(tmp_path / name, Reference(tmp_path / "image.png", space, False))


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_of_a_palette_the_numbers_are_the_classes(tmp_path, suffix):
    numbers = np.array([[0, 1, 2], [7, 0, 1]], np.uint8)
    picture = Pillow.fromarray(numbers).convert("P")
    picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10] + [90] * 759)
    picture.putdata(numbers.ravel().tolist())
    picture.save(tmp_path / f"labels{suffix}")
    image = write_image(tmp_path / "image.png", np.zeros((3, 2, 3), np.uint8), Space.from_spacing((2, 3)))
    assert open_image(tmp_path / f"labels{suffix}").channels == 3
    file = open_labels(tmp_path / f"labels{suffix}", Reference.of_file(image, {}))
    np.testing.assert_array_equal(file.read(), numbers)
    np.testing.assert_array_equal(file.read((slice(1, 2), slice(0, 2))), numbers[1:, :2])


def write_notes(path, array, notes):
    """An array with notes beside it, in the format of the suffix."""
    if path.suffix == ".npz":
        np.savez(path, data=array, **notes)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=array).attrs.update(notes)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, imagej=True, metadata={"axes": "ZYX", "spacing": 4.0})
    else:
        write_image(path, array[None], Space.from_spacing(array.shape))
        metadata = json.loads((path / "zarr.json").read_text())
        del metadata["attributes"]["ome"], metadata["attributes"]["voxelry"]
        (path / "zarr.json").write_text(json.dumps(metadata))
        stored = json.loads((path / "0/zarr.json").read_text())
        (path / "0/zarr.json").write_text(json.dumps(stored | {"attributes": notes}))


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr", ".tif"])
@pytest.mark.parametrize("told", [False, True])
def test_notes_of_labels_give_way_to_the_grid_of_their_image(tmp_path, suffix, told):
    numbers = np.zeros((4, 5, 6), np.uint16)
    numbers[1:3, 1:4, 2:5] = 7
    notes, options = {"resolution": [40.0, 4.0, 4.0]}, {"spacing": [4.0, 0.5, 0.5]} if told else {}
    folder = tmp_path / "data"
    for kind in ("volumes", "labels", "instances"):
        (folder / kind).mkdir(parents=True)
        write_notes(folder / kind / f"a{suffix}", numbers, notes)
    if not told:
        (folder / f"volumes/a{suffix}").rename(tmp_path / f"other{suffix}")
        write_image(folder / "volumes/a.mha", numbers[None], Space.from_spacing(numbers.shape, (4.0, 0.5, 0.5)))
    with pytest.raises(FileError, match="spacing"):
        open_image(folder / f"labels/a{suffix}")
    sample = VolumeDataset(find_cases(folder, options=options), preprocess=AS_IT_IS)[0]
    assert sample.space.spacing == (4.0, 0.5, 0.5)
    np.testing.assert_array_equal(sample.labels, numbers)
    assert inspect(folder, options=options).findings == []
    build_index(folder, tmp_path / "a.sqlite", crop_size=(4, 5, 6), options=options)
    crop = CropDataset(tmp_path / "a.sqlite", normalise=None)[0]
    assert crop.space.spacing == (4.0, 0.5, 0.5)
    np.testing.assert_array_equal(crop.masks > 0, numbers > 0)


def test_a_palette_of_ids_is_indexed(tmp_path):
    numbers = np.zeros((8, 9), np.uint8)
    numbers[2:5, 3:7] = 3
    picture = Pillow.fromarray(numbers).convert("P")
    picture.putdata(numbers.ravel().tolist())
    (tmp_path / "instances").mkdir()
    picture.save(tmp_path / "instances/a.png")
    write_image(tmp_path / "volumes/a.png", numbers[None] * 50, Space.from_spacing((8, 9)))
    build_index(tmp_path, tmp_path / "a.sqlite", crop_size=8)
    crop = CropDataset(tmp_path / "a.sqlite", normalise=None)[0]
    np.testing.assert_array_equal(crop.masks > 0, numbers[:, :8] == 3)


@pytest.mark.parametrize("suffix", [".ply", ".stl"])
def test_a_closed_surface_is_a_label(suffix, tmp_path, rng):
    """A box of whole voxels on a slanted grid; read whole, in a window, and through a data set."""
    space = slanted(3)
    low, high = np.array([1.0, 1.0, 2.0]) - 0.5, np.array([3.0, 4.0, 5.0]) - 0.5
    corners = np.array(list(product(*zip(low, high, strict=True))))
    write_image(
        tmp_path / "volumes" / "a.nii.gz", np.random.default_rng(0).random((1, *space.shape), np.float32), space
    )
    surface = trimesh.convex.convex_hull(space.to_world(corners))
    path = tmp_path / "labels" / f"a{suffix}"
    path.parent.mkdir()
    write_mesh(path, Mesh(np.asarray(surface.vertices), np.asarray(surface.faces)))
    expected = np.zeros(space.shape, np.int64)
    expected[1:3, 1:4, 2:5] = 1
    file = open_labels(path, Reference.of_file(tmp_path / "volumes" / "a.nii.gz", {}))
    np.testing.assert_array_equal(file.read(), expected)
    window = (slice(1, 4), slice(0, 2), slice(3, 6))
    np.testing.assert_array_equal(file.read(window), expected[window])
    sample = VolumeDataset(find_cases(tmp_path), need=("labels",), preprocess=AS_IT_IS)[0]
    np.testing.assert_array_equal(sample.labels, expected)
    assert inspect(tmp_path).ok
    write_image(tmp_path / "instances" / "a.nii.gz", expected[None].astype(np.uint8), space)
    with pytest.raises(DataError, match=rf"a\{suffix}: an index reads labels voxel by voxel"):
        build_index(tmp_path, tmp_path / "index.sqlite", crop_size=4)


def test_surfaces_that_cannot_be_labels(tmp_path):
    path = write_mesh(tmp_path / "a.ply", Mesh(np.eye(3), np.array([[0, 1, 2]])))
    with pytest.raises(DataError, match=r"a\.ply: expected a closed surface"):
        open_labels(path, Reference(Path("a.nii.gz"), slanted(3), oriented=True))
    with pytest.raises(DataError, match=r"a\.ply: a surface is in mm .* its image a\.npy has to be a volume"):
        open_labels(path, Reference(Path("a.npy"), slanted(3), oriented=False))

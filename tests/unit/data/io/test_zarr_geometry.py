"""Axes, units and transforms of OME-Zarr, version by version."""

import json

import numpy as np
import pytest
import tensorstore

from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image
from voxelry.io.images.zarr_labels import write_labels

ARRAY = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
AXES = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx")]
SCALE = {"type": "scale", "scale": [1, 2.0, 0.5, 0.25]}
SHIFT = {"type": "translation", "translation": [0, 10.0, 20.0, 30.0]}
TURN = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.6, -0.8], [0, 0, 0.8, 0.6]]
SHEAR = [[1, 0, 0, 0, 0], [0, 2, 0, 0, 1], [0, 0.5, 0.5, 0, 2], [0, 0, 0, 0.25, 3]]


def put_array(folder, array):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    tensorstore.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result().write(array).result()


def put(root, transform, *, axes=AXES, array=ARRAY, systems=None, onward=None, version="0.6"):
    put_array(root / "0", array)
    level = {"input": {"path": "0"}, "output": {"name": "physical"}} | transform
    multiscale = {
        "coordinateSystems": [{"name": "physical", "axes": axes}, *(systems or [])],
        "datasets": [{"path": "0", "coordinateTransformations": [level]}],
    }
    if onward is not None:
        multiscale["coordinateTransformations"] = onward
    put_group(root, {"version": version, "multiscales": [multiscale]})
    return root


def put_group(root, ome):
    (root / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}))


def affine(root, **settings):
    """Index (z, y, x) to x, y, z in µm."""
    return np.round(open_image(root, **settings).space.affine[:3] * 1e3, 9)


STRAIGHT = [[0, 0, 0.25, 0], [0, 0.5, 0, 0], [2, 0, 0, 0]]
MOVED = [[0, 0, 0.25, 30], [0, 0.5, 0, 20], [2, 0, 0, 10]]


class TestTransforms:
    @pytest.mark.parametrize(
        ("transform", "expected"),
        [
            ({"type": "identity"}, [[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]),
            (SCALE, STRAIGHT),
            ({"type": "sequence", "transformations": [SCALE, SHIFT]}, MOVED),
            (
                {"type": "sequence", "transformations": [SHIFT, SCALE]},
                [[0, 0, 0.25, 7.5], [0, 0.5, 0, 10], [2, 0, 0, 20]],
            ),
            ({"type": "rotation", "rotation": TURN}, [[0, 0.8, 0.6, 0], [0, 0.6, -0.8, 0], [1, 0, 0, 0]]),
            (
                {"type": "sequence", "transformations": [SCALE, {"type": "rotation", "rotation": TURN}, SHIFT]},
                [[0, 0.4, 0.15, 30], [0, 0.3, -0.2, 20], [2, 0, 0, 10]],
            ),
            ({"type": "affine", "affine": SHEAR}, [[0, 0, 0.25, 3], [0.5, 0.5, 0, 2], [2, 0, 0, 1]]),
            (
                {
                    "type": "byDimension",
                    "transformations": [
                        {"input_axes": [0], "output_axes": [0], "transformation": {"type": "identity"}},
                        {
                            "input_axes": [3, 1],
                            "output_axes": [3, 1],
                            "transformation": {"type": "scale", "scale": [0.25, 2]},
                        },
                        {"inputAxes": [2], "outputAxes": [2], "transformation": {"type": "scale", "scale": [0.5]}},
                    ],
                },
                STRAIGHT,
            ),
        ],
    )
    @pytest.mark.parametrize("how", ["objects", "names"])
    def test_linear_transforms(self, transform, expected, how, tmp_path):
        references = {} if how == "objects" else {"input": "0", "output": "physical"}
        root = put(tmp_path / "a.zarr", transform | references)
        np.testing.assert_allclose(affine(root), expected)
        np.testing.assert_array_equal(read_image(root).array, ARRAY)
        window = (slice(1, 2), slice(0, 2), slice(3, 5))
        np.testing.assert_array_equal(open_image(root).read(window), ARRAY[:, 1:2, :2, 3:])

    def test_channels_last(self, tmp_path):
        transform = {"type": "scale", "scale": [2.0, 0.5, 0.25, 1]}
        root = put(tmp_path / "a.zarr", transform, axes=AXES[1:] + AXES[:1], array=np.moveaxis(ARRAY, 0, -1))
        np.testing.assert_allclose(affine(root), STRAIGHT)
        np.testing.assert_array_equal(read_image(root).array, ARRAY)

    def test_axes_in_another_order(self, tmp_path):
        """Stored as c, x, y, z: mapAxis says which is which."""
        order = {"type": "mapAxis", "mapAxis": [0, 3, 2, 1]}
        root = put(
            tmp_path / "a.zarr",
            {"type": "sequence", "transformations": [order, SCALE]},
            array=ARRAY.transpose(0, 3, 2, 1),
        )
        np.testing.assert_allclose(affine(root), STRAIGHT)
        np.testing.assert_array_equal(read_image(root).array, ARRAY)

    def test_numbers_in_an_array_beside_the_image(self, tmp_path):
        root = put(tmp_path / "a.zarr", {"type": "affine", "path": "coordinateTransformations/shear"})
        put_array(root / "coordinateTransformations" / "shear", np.array(SHEAR, dtype=np.float64))
        (root / "coordinateTransformations" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
        np.testing.assert_allclose(affine(root), [[0, 0, 0.25, 3], [0.5, 0.5, 0, 2], [2, 0, 0, 1]])

    def test_from_pixels_to_the_only_other_system(self, tmp_path):
        pixels = [{"name": name, "type": "array"} for name in ("dim_0", "dim_1", "dim_2", "dim_3")]
        onward = [SCALE | {"input": {"name": "physical"}, "output": {"name": "world"}}]
        systems = [{"name": "world", "axes": AXES}]
        root = put(tmp_path / "a.zarr", {"type": "identity"}, axes=pixels, systems=systems, onward=onward)
        np.testing.assert_allclose(affine(root), STRAIGHT)

    @pytest.mark.parametrize(
        ("transform", "expected"),
        [
            ({"type": "displacements", "path": "field"}, "type 'displacements' isn't understood .*known are identity"),
            ({"type": "scale", "scale": [1, 2]}, r"type 'scale': expected numbers of shape \(4,\), got \(2,\)"),
            ({"type": "scale", "scale": [1, 0, 1, 1]}, "flatten spatial axes"),
            ({"type": "rotation", "rotation": (2 * np.eye(4)).tolist()}, "its rotation changes lengths"),
            ({"type": "mapAxis", "mapAxis": [0, 1, 1, 2]}, "is no order of 4 axes"),
            ({"type": "affine", "affine": np.ones((4, 5)).tolist()}, "mix them with others"),
            ({"type": "affine", "path": "../b"}, "is missing"),
            ({"type": "scale"}, "has no numbers"),
            ({"type": "scale", "scale": [1, 1, 1, 1], "output": {"name": "moon"}}, "system 'moon', which isn't there"),
            ({"type": "byDimension", "transformations": [{"input": ["x"], "output": ["x"]}]}, "expected their numbers"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, transform, expected, tmp_path):
        with pytest.raises(FileError, match=expected):
            open_image(put(tmp_path / "a.zarr", transform))


class TestUnitsAndVersions:
    @pytest.mark.parametrize("version", ["0.7", "1.0", "banana"])
    def test_unknown_versions_are_refused(self, version, tmp_path):
        root = put(tmp_path / "a.zarr", SCALE, version=version)
        with pytest.raises(FileError, match=r"OME-Zarr version .*expected 0\.1 to 0\.6 .*its own path"):
            open_image(root)
        assert open_image(root / "0", channel_axis=0).shape == (2, 3, 4, 5)  # a plain array, as the refusal says

    @pytest.mark.parametrize("version", ["0.6", "0.6.dev3", "0.6rc0"])
    def test_drafts_of_a_known_version(self, version, tmp_path):
        np.testing.assert_allclose(affine(put(tmp_path / "a.zarr", SCALE, version=version)), STRAIGHT)

    def test_units(self, tmp_path):
        furlongs = [AXES[0], *(axis | {"unit": "furlong"} for axis in AXES[1:])]
        root = put(tmp_path / "a.zarr", SCALE, axes=furlongs)
        with pytest.raises(FileError, match=r"unit of axis 'z': 'furlong' is no unit.*spacing="):
            open_image(root)
        assert open_image(root, spacing=[3, 2, 1]).space.spacing == (3, 2, 1)
        partly = [AXES[0], {"name": "z", "type": "space"}, *AXES[2:]]
        with pytest.raises(FileError, match="says the unit of some axes, not of z"):
            open_image(put(tmp_path / "b.zarr", SCALE, axes=partly))

    def test_axes_that_say_their_direction(self, tmp_path):
        directions = ("inferior-to-superior", "anterior-to-posterior", "right-to-left")
        axes = [AXES[0]]
        for axis, value in zip(AXES[1:], directions, strict=True):
            axes.append(axis | {"orientation": {"type": "anatomical", "value": value}})
        root = put(tmp_path / "a.zarr", {"type": "sequence", "transformations": [SCALE, SHIFT]}, axes=axes)
        np.testing.assert_allclose(affine(root), [[0, 0, -0.25, -30], [0, -0.5, 0, -20], [2, 0, 0, 10]])
        assert open_image(root).has_orientation


class TestWritten:
    OBLIQUE = Space(
        (3, 4, 5),
        np.array([[0.0, 0.0, -0.5, 7.0], [1.8, -1.6, 0.0, -11.0], [2.4, 1.2, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]]),
    )

    @pytest.mark.parametrize("version", ["0.5", "0.6"])
    def test_the_version_that_is_asked_for(self, version, tmp_path):
        path = write_image(tmp_path / "a.zarr", ARRAY, self.OBLIQUE, version=version, channel_names=["a", "b"])
        group = json.loads((path / "zarr.json").read_text())
        assert group["attributes"]["ome"]["version"] == version
        image = open_image(path)
        np.testing.assert_allclose(image.space.affine, self.OBLIQUE.affine, atol=1e-12)
        assert image.metadata["channel_names"] == ["a", "b"]
        del group["attributes"]["voxelry"]  # as another program sees it
        (path / "zarr.json").write_text(json.dumps(group))
        foreign = open_image(path).space
        if version == "0.6":
            np.testing.assert_allclose(foreign.affine, self.OBLIQUE.affine, atol=1e-9)
        np.testing.assert_allclose(foreign.spacing, self.OBLIQUE.spacing)

    def test_other_versions_and_formats(self, tmp_path):
        for name, version in (("a.zarr", "0.4"), ("a.nii.gz", "0.6")):
            with pytest.raises(SettingError, match=r"version: expected 0\.5 or 0\.6 of a \.zarr"):
                write_image(tmp_path / name, ARRAY, self.OBLIQUE, version=version)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("version", ["0.5", "0.6"])
    def test_labels_inside_an_image_have_its_version(self, version, tmp_path):
        path = write_image(tmp_path / "a.zarr", ARRAY, self.OBLIQUE, version=version)
        labels = write_labels(path / "labels" / "cells", ARRAY[0].astype(np.uint32), self.OBLIQUE)
        for group in (labels, labels.parent):
            assert json.loads((group / "zarr.json").read_text())["attributes"]["ome"]["version"] == version
        found = open_image(labels)
        np.testing.assert_array_equal(found.read()[0], ARRAY[0])
        np.testing.assert_allclose(found.space.affine, self.OBLIQUE.affine, atol=1e-12)


def test_groups_without_images_are_no_choice(tmp_path):
    """bioformats2raw keeps a group of metadata beside its images."""
    put(tmp_path / "a.zarr" / "0", SCALE)
    put_group(tmp_path / "a.zarr", {"version": "0.5", "bioformats2raw.layout": 3})
    (tmp_path / "a.zarr" / "OME").mkdir()
    put_group(tmp_path / "a.zarr" / "OME", {"version": "0.5", "series": ["0"]})
    np.testing.assert_allclose(affine(tmp_path / "a.zarr"), STRAIGHT)
    put(tmp_path / "a.zarr" / "1", SCALE)
    with pytest.raises(FileError, match=r"holds 2 images.*--option .dataset=.0.. elsewhere; there are 0, 1\)"):
        open_image(tmp_path / "a.zarr")
    np.testing.assert_allclose(affine(tmp_path / "a.zarr", dataset="1"), STRAIGHT)


@pytest.mark.parametrize("moved", [False, True])
def test_a_coarser_level_added_to_a_file_of_ours_lies_where_its_voxels_are(tmp_path, moved):
    oblique = np.array([[0.1, 0.4, -0.9, 5.0], [0.0, 1.1, 0.3, -7.0], [3.0, 0.0, 0.2, 40.0], [0, 0, 0, 1]])
    array = np.zeros((1, 3, 8, 8), np.uint16)
    path = write_image(tmp_path / "image.ome.zarr", array, Space(array.shape[1:], oblique))
    document = json.loads((path / "zarr.json").read_text())
    levels = document["attributes"]["ome"]["multiscales"][0]["datasets"]
    coarse = json.loads(json.dumps(levels[0])) | {"path": "coarse"}
    scale = next(one for one in coarse["coordinateTransformations"] if one["type"] == "scale")["scale"]
    shift = [0.0] * len(scale)
    for axis in (-2, -1):  # the mean of two voxels lies between them
        shift[axis] = 0.5 * scale[axis] if moved else 0.0
        scale[axis] *= 2
    others = [one for one in coarse["coordinateTransformations"] if one["type"] == "scale"]
    coarse["coordinateTransformations"] = [*others, {"type": "translation", "translation": shift}]
    whole = next((one["translation"] for one in levels[0]["coordinateTransformations"] if one["type"] == "translation"),
                 [0.0] * len(scale))  # fmt: skip
    shift[:] = [own + more for own, more in zip(whole, shift, strict=True)]
    levels.append(coarse)
    (path / "zarr.json").write_text(json.dumps(document))
    put_array(path / "coarse", array[..., ::2, ::2].reshape((1, 3, 4, 4)[-len(scale) :]))
    fine, found = open_image(path).space, open_image(path, dataset="coarse").space
    place = np.array([2.0, 3.0, 1.0])
    np.testing.assert_allclose(
        found.to_world(place), fine.to_world(place * [1, 2, 2] + 0.5 * moved * np.array([0, 1, 1])), atol=1e-9
    )
    np.testing.assert_array_equal(fine.affine, oblique)

import csv
import json

import numpy as np
import pytest

from voxelry.core.atomic import staged
from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.io import open_image, read_image, write_image
from voxelry.io.images.zarr_labels import write_labels
from voxelry.ops.instances import Instances, from_labels
from voxelry.tasks.segment.outputs import read_masks, write_instances, write_label_volume, write_masks, write_table
from voxelry.tasks.segment.predict import InstancePrediction


def oblique(shape, spacing=(3.0, 1.5, 0.7), origin=(10.0, -20.0, 5.0)):
    """Rotated, mirrored, anisotropic."""
    straight = Space.from_spacing(shape, spacing[-len(shape) :], origin)
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = straight.affine.copy()
    affine[:3, :-1] = turn @ affine[:3, :-1] * np.where(np.arange(len(shape)) == 0, -1, 1)
    return Space(shape, affine)


def prediction(space, name="case"):
    """Three instances; the second and the third share voxels, the third has the better score."""
    size = space.shape
    labels = np.zeros(size, dtype=int)
    labels[(slice(1, 3),) * len(size)] = 1
    labels[(slice(4, 7),) * len(size)] = 2
    two = from_labels(labels)
    window = (slice(5, 9),) * len(size)
    crops = [*two.crops, (window, np.ones((4,) * len(size), dtype=bool))]
    box = [4.5] * len(size) + [8.5] * len(size)
    return InstancePrediction.from_instances(
        name,
        space,
        Instances(np.concatenate([two.boxes, [box]]), [0.5, 0.6, 0.75], [1, 2, 1], crops),
    )


def pyramid(path, shape, *, version="0.5", unit="micrometer", levels=3, translate=True):
    """An OME-Zarr image `(c, z, y, x)` with several levels, halved along y and x and now and then z."""
    import zarr

    form = 3 if version == "0.5" else 2
    group = zarr.open_group(path, mode="w", zarr_format=form)
    factors = [(1, *((2**k if axis or k > 1 else 1) for axis in range(len(shape)))) for k in range(levels)]
    datasets = []
    for k, factor in enumerate(factors):
        size = (2, *(-(-length // step) for length, step in zip(shape, factor[1:], strict=True)))
        names = {"dimension_names": ["c", *"zyx"[-len(shape) :]]} if form == 3 else {}
        array = group.create_array(str(k), shape=size, dtype="uint16", chunks=size, **names)
        array[:] = k
        scale = [1.0, *(0.5 * step * (1 + axis) for axis, step in enumerate(factor[1:]))]
        transforms = [{"type": "scale", "scale": scale}]
        if translate:
            start = [0.0, *(7 + 0.5 * (1 + axis) * (step - 1) / 2 for axis, step in enumerate(factor[1:]))]
            transforms.append({"type": "translation", "translation": start})
        datasets.append({"path": str(k), "coordinateTransformations": transforms})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": letter, "type": "space", "unit": unit} for letter in "zyx"[-len(shape) :]]
    content = {"multiscales": [{"name": "image", "axes": axes, "datasets": datasets}]}
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", **content}
    else:
        content["multiscales"][0]["version"] = version
        group.attrs.update(content)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".ome.tif", ".tif", ".mha", ".zarr"])
@pytest.mark.parametrize("shape", [(10, 12, 14), (12, 14)])
def test_a_label_volume_lies_where_its_image_lies(tmp_path, suffix, shape):
    space = oblique(shape)
    written = write_image(tmp_path / f"image{suffix}", np.ones((1, *shape), dtype=np.float32), space)
    file = open_image(written)
    found = prediction(file.space)
    path = write_label_volume(tmp_path / f"labels{suffix}", found)
    back = read_image(path)
    assert back.space.is_close(file.space, 1e-3)
    assert back.space.is_close(space, 1e-2)
    np.testing.assert_array_equal(back.array[0], found.label_volume)
    assert set(np.unique(back.array)) == {0, 1, 2, 3}
    assert back.array.dtype == np.uint16  # which ImageJ knows as whole numbers


@pytest.mark.parametrize("shape", [(10, 12, 14), (13, 14)])
@pytest.mark.parametrize("translate", [True, False])
def test_labels_inside_an_image_have_its_levels_and_its_grid(tmp_path, shape, translate):
    import yaozarrs

    image = pyramid(tmp_path / "image.zarr", shape, translate=translate)
    file = open_image(image)
    found = prediction(file.space)
    first = write_instances(found, tmp_path / "out", format=".zarr", image=image, inside=True, class_names={1: "cell"})
    assert first[0] == image / "labels" / "instances"
    write_label_volume(image / "labels" / "others", found)
    yaozarrs.validate_zarr_store(image)
    listing = json.loads((image / "labels" / "zarr.json").read_text())["attributes"]["ome"]
    assert listing == {"version": "0.5", "labels": ["instances", "others"]}
    document = json.loads((first[0] / "zarr.json").read_text())["attributes"]["ome"]
    original = json.loads((image / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    (multiscale,) = document["multiscales"]
    assert multiscale["axes"] == original["axes"][1:]
    assert len(multiscale["datasets"]) == len(original["datasets"])
    for level, other in zip(multiscale["datasets"], original["datasets"], strict=True):
        steps = {step["type"]: step[step["type"]] for step in level["coordinateTransformations"]}
        wanted = {step["type"]: step[step["type"]][1:] for step in other["coordinateTransformations"]}
        assert steps["scale"] == wanted["scale"]
        assert steps["translation"] == wanted.get("translation", [0.0] * len(shape))
        # the level of the labels has the shape of the level of the image
        one, two = (open_image(root, dataset=level["path"]).space for root in (first[0], image))
        assert one.shape == two.shape
    label = document["image-label"]
    assert (label["version"], label["source"]) == ("0.5", {"image": "../../"})
    assert [entry["label-value"] for entry in label["properties"]] == [1, 2, 3]
    assert [entry["score"] for entry in label["properties"]] == pytest.approx([0.5, 0.6, 0.75])
    assert [entry["class"] for entry in label["properties"]] == ["cell", "2", "cell"]
    assert label["properties"][0]["box"] == [0.5] * len(shape) + [2.5] * len(shape)
    assert len({tuple(entry["rgba"]) for entry in label["colors"]}) == 3
    back = read_image(first[0])
    np.testing.assert_array_equal(back.array[0], found.label_volume)
    assert back.space.is_close(file.space, 1e-6)
    # the image itself still opens as it did
    assert open_image(image).space.is_close(file.space, 1e-9)


@pytest.mark.parametrize("translate", [True, False])
def test_coarser_levels_ask_the_nearest_voxel_of_the_finer_one(tmp_path, translate, rng):
    shape = (9, 150, 140)
    image = pyramid(tmp_path / "image.zarr", shape, translate=translate)
    ids = rng.integers(0, 9, shape).astype(np.uint16)
    path = write_labels(tmp_path / "ids.zarr", ids, open_image(image).space, image=image)
    levels = [read_image(path, dataset=str(level)).array[0] for level in range(3)]
    np.testing.assert_array_equal(levels[0], ids)
    # voxel 1 of the coarser level spans 2 and 3 (its centre is between them: the later one) or lies at 2
    for finer, coarser, steps in ((levels[0], levels[1], (1, 2, 2)), (levels[1], levels[2], (4, 2, 2))):
        chosen = [
            np.minimum(np.arange(size) * step + (step // 2 if translate else 0), limit - 1)
            for size, step, limit in zip(coarser.shape, steps, finer.shape, strict=True)
        ]
        np.testing.assert_array_equal(coarser, finer[np.ix_(*chosen)])
    source = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["image-label"]["source"]
    assert source == {"image": "../image.zarr/"}


def test_the_source_is_where_it_will_be_seen_from(tmp_path):
    image = pyramid(tmp_path / "images" / "image.zarr", (10, 12, 14), translate=True)
    ids = np.ones((10, 12, 14), np.uint16)
    with staged(tmp_path / "out" / ".aside" / "0", tmp_path / "out"):
        path = write_labels(tmp_path / "out" / ".aside" / "0" / "ids.zarr", ids, open_image(image).space, image=image)
    source = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["image-label"]["source"]["image"]
    assert source == "../../images/image.zarr/"
    assert (tmp_path / "out" / "ids.zarr" / source).resolve() == image.resolve()


def test_an_old_image_gets_its_labels_beside_it(tmp_path):
    image = pyramid(tmp_path / "old.zarr", (10, 12, 14), version="0.4")
    found = prediction(open_image(image).space)
    path = write_label_volume(tmp_path / "labels.zarr", found, image=image)
    assert open_image(path).metadata["levels"] == ["0", "1", "2"]
    with pytest.raises(FileError, match=r"old.zarr: labels inside it would have to be OME-Zarr 0.4"):
        write_label_volume(image / "labels" / "instances", found)
    assert not (image / "labels" / "instances").exists()
    with pytest.raises(FileError, match=r"its finest level has shape \(10, 12, 14\), the labels \(11, 12, 14\)"):
        write_label_volume(tmp_path / "wrong.zarr", prediction(oblique((11, 12, 14))), image=image)
    with pytest.raises(FileError, match="expected an OME-Zarr image"):
        write_label_volume(tmp_path / "wrong.zarr", found, image=tmp_path)
    assert not (tmp_path / "wrong.zarr").exists()
    with pytest.raises(SettingError, match="dtype: expected an unsigned integer"):
        write_labels(tmp_path / "wrong.zarr", found.label_volume, found.space, dtype=np.int32)


def test_an_image_of_our_own_writer_takes_labels(tmp_path):
    space = oblique((10, 12, 14))
    image = write_image(tmp_path / "image.zarr", np.ones((1, 10, 12, 14), dtype=np.float32), space)
    path = write_label_volume(image / "labels" / "instances", prediction(space))
    assert open_image(path).space.is_close(space, 1e-9)
    assert open_image(image).space.is_close(space, 1e-9)


def test_a_failed_write_leaves_nothing(tmp_path):
    found = prediction(oblique((10, 12, 14)))

    def blocks():
        yield (slice(0, 10), slice(0, 12), slice(0, 14)), np.ones((10, 12, 14), dtype=np.uint16)
        raise OSError("disk full")

    with pytest.raises(FileError, match="disk full"):
        write_labels(tmp_path / "a.zarr", blocks(), found.space)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(10, 12, 14), (12, 14)])
def test_the_table_is_in_the_world(tmp_path, shape):
    space = oblique(shape)
    found = prediction(space)
    path = write_table(tmp_path / "instances.csv", found)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == found.columns()
    size = "volume_mm3" if len(shape) == 3 else "area_mm2"
    for row, entry in zip(rows, found.table(), strict=True):
        assert {name: float(value) for name, value in row.items()} == pytest.approx(entry, rel=1e-5)
    assert [int(row["voxels"]) for row in rows] == [2 ** len(shape), 3 ** len(shape), 4 ** len(shape)]
    assert float(rows[0][size]) == pytest.approx(2 ** len(shape) * np.prod(space.spacing))
    centre = space.to_world(np.full(len(shape), 1.5))
    assert [float(rows[0][f"centroid_{axis}_mm"]) for axis in "xyz"] == pytest.approx(centre.tolist(), rel=1e-5)
    # the box in the world holds all corners of the box in the image, and touches them
    edges = [[0.5, 2.5]] * len(shape)
    corners = space.to_world(np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, len(shape)))
    for place, axis in enumerate("xyz"):
        assert float(rows[0][f"box_low_{axis}_mm"]) == pytest.approx(corners[:, place].min(), rel=1e-5)
        assert float(rows[0][f"box_high_{axis}_mm"]) == pytest.approx(corners[:, place].max(), rel=1e-5)
    assert not any(name.endswith("_um") for name in rows[0])


def test_microscopes_get_micrometres():
    space = Space.from_spacing((10, 12, 14), (0.001, 0.0002, 0.0002))
    row = prediction(space).table()[0]
    assert row["volume_um3"] == pytest.approx(8 * 0.04)
    assert row["volume_mm3"] == pytest.approx(8 * 0.04e-9)
    assert row["centroid_z_um"] == pytest.approx(1.5)
    assert row["box_high_x_um"] - row["box_low_x_um"] == pytest.approx(0.4)
    assert "volume_um3" not in prediction(space).table(micrometres=False)[0]


@pytest.mark.parametrize("shape", [(10, 12, 14), (12, 14)])
def test_overlapping_masks_are_kept(tmp_path, shape):
    found = prediction(oblique(shape), name="overlap")
    back = read_masks(write_masks(tmp_path / "instances.json", found, class_names={1: "cell"}))
    assert back.name == "overlap"
    assert back.space.is_close(found.space, 1e-9)
    for name in ("boxes", "scores", "classes", "label_volume"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    for (window, mask), (wanted, truth) in zip(back.crops, found.crops, strict=True):
        assert window == wanted
        np.testing.assert_array_equal(mask, truth)
    assert (found.label_volume == 2).sum() < found.crops[1][1].sum()
    entries = json.loads((tmp_path / "instances.json").read_text())["instances"]
    assert [entry.get("class_name") for entry in entries] == ["cell", None, "cell"]
    (tmp_path / "torn.json").write_text((tmp_path / "instances.json").read_text()[:-20])
    with pytest.raises(FileError, match="expected a file of voxelry instances"):
        read_masks(tmp_path / "torn.json")
    with pytest.raises(FileError, match=r"none\.json: can't be read"):
        read_masks(tmp_path / "none.json")


@pytest.mark.parametrize("format", [".nii.gz", ".zarr"])
def test_what_lies_wholly_under_others_is_in_none_of_the_files(tmp_path, format):
    found = prediction(oblique((10, 12, 14)))
    hidden = found.instances.take([1, 0, 2, 1])  # the second under the last, which is the same and has its score
    scores = np.array([0.9, 0.5, 0.75, 0.6])
    crowd = Instances(hidden.boxes, scores, hidden.classes, hidden.crops)
    labels, table, masks = write_instances(
        InstancePrediction.from_instances("crowd", found.space, crowd), tmp_path, format=format
    )
    ids = np.unique(read_image(labels).array)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ids.tolist() == [0, 1, 2, 3]
    assert [int(row["id"]) for row in rows] == [1, 2, 3]
    assert [float(row["score"]) for row in rows] == pytest.approx([0.9, 0.5, 0.75])
    assert len(read_masks(masks)) == 3


@pytest.mark.parametrize("format", [".nii.gz", ".zarr"])
def test_no_instances_give_files_all_the_same(tmp_path, format):
    space = oblique((10, 12, 14))
    none = InstancePrediction.from_instances("empty", space, Instances.empty(3))
    labels, table, masks = write_instances(none, tmp_path, format=format)
    assert read_image(labels).array.max() == 0
    assert table.read_text().splitlines() == [",".join(none.columns())]
    assert len(read_masks(masks)) == 0


def test_a_prediction_moves_to_the_grid_of_the_image():
    """Halved, reversed and transposed: every object keeps its place in the world."""
    fine = oblique((24, 20, 22))
    coarse = fine.resize((12, 10, 11)).reorder((2, 0, 1), (True, False, True))
    ids = np.zeros(coarse.shape, dtype=int)
    ids[2:5, 3:6, 4:9], ids[6:9, 8:11, 1:3] = 1, 2
    found = InstancePrediction.from_instances("case", coarse, from_labels(ids, scores=[0.5, 0.75]))
    moved = found.on(fine)
    wanted = ids[::-1, :, ::-1].transpose(1, 2, 0).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(moved.label_volume, wanted)
    np.testing.assert_allclose(moved.boxes, from_labels(wanted).boxes, atol=1e-4)
    np.testing.assert_allclose(moved.world_boxes(), found.world_boxes(), atol=1e-3)
    np.testing.assert_allclose(fine.to_world(moved.centroids()), coarse.to_world(found.centroids()), atol=1e-6)
    back = moved.on(coarse)
    np.testing.assert_array_equal(back.label_volume, ids)
    assert found.on(coarse) is found


def test_instances_that_leave_the_grid_are_empty_not_wrong():
    space = Space.from_spacing((10, 12, 14))
    found = prediction(space)
    moved = found.on(space.crop((4, 4, 4), (4, 4, 4)))
    assert [int(mask.sum()) for _, mask in moved.crops] == [0, 27, 27]
    np.testing.assert_array_equal(moved.label_volume, found.label_volume[4:8, 4:8, 4:8])


def test_bad_predictions_are_named():
    space = Space.from_spacing((10, 12, 14))
    with pytest.raises(SettingError, match="instances: expected rank 3, got 2"):
        InstancePrediction.from_instances("case", space, Instances.empty(2))
    with pytest.raises(SettingError, match="label_volume: expected shape"):
        InstancePrediction.from_instances("case", space, Instances.empty(3), np.zeros((2, 2, 2), dtype=np.int32))
    with pytest.raises(SettingError, match="instances: expected boxes"):
        Instances(np.zeros((1, 6)), [0.5], [1, 1], [])
    with pytest.raises(SettingError, match="labels: expected integer instance ids"):
        from_labels(np.zeros((3, 3)))

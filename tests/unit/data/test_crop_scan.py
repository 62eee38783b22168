from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import zarr

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.crops import scan as crop_scan
from voxelry.data.crops.reader import CropReader, Stored
from voxelry.data.crops.scan import QUANTILES, find_objects, intensities, scan_folder
from voxelry.data.crops.selection import parse_selection
from voxelry.io import open_image, write_image


def stored(path, **options) -> Stored:
    return Stored.of(open_image(path, **options), options)


def test_volumes_come_with_their_instances_and_split(write_volumes):
    root = write_volumes()
    for part, name in (("train", "a"), ("val", "b")):
        for folder in ("volumes", "instances"):
            (root / part / folder).mkdir(parents=True)
            (root / folder / f"{name}.nii.gz").rename(root / part / folder / f"{name}.nii.gz")
    for folder in ("volumes", "instances"):
        (root / folder / "c.nii.gz").unlink()
        (root / folder).rmdir()
    rows = list(scan_folder(root).rows)
    assert [(row.name, row.split) for row in rows] == [("a", "train"), ("b", "validation")]
    assert rows[0].label == root / "train" / "instances" / "a.nii.gz"
    assert [row.name for row in scan_folder(root, criteria=parse_selection(["split=validation"])).rows] == ["b"]
    with pytest.raises(SettingError, match="a folder has no column 'quality'"):
        scan_folder(root, criteria=parse_selection(["quality>3"]))


def test_images_and_masks_are_pairs(write_volumes):
    root = write_volumes(("a", "b"), suffix=".tif")
    (root / "volumes").rename(root / "images")
    (root / "instances").rename(root / "masks")
    rows = list(scan_folder(root).rows)
    assert [(row.image.name, row.label.parent.name) for row in rows] == [("a.tif", "masks"), ("b.tif", "masks")]
    (root / "masks" / "b.tif").unlink()
    with pytest.raises(DataError, match=r"b\.tif: no labels for this image"):
        scan_folder(root)


def test_a_container_may_hold_its_labels(tmp_path, rng):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = rng.integers(0, 9, (4, 5, 6))
        file["label"] = np.ones((4, 5, 6), np.uint8)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["volume"] = rng.integers(0, 9, (4, 5, 6))
    for source in (tmp_path, tmp_path / "a.h5"):
        first = next(scan_folder(source).rows)
        assert open_image(first.image, **first.options).metadata["dataset"] == "raw"
        assert open_image(first.label, **first.label_options).metadata["dataset"] == "label"
    (second,) = scan_folder(tmp_path / "b.h5").rows
    assert (open_image(second.image, **second.options).metadata["dataset"], second.label) == ("volume", None)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_of_an_ome_zarr_are_found(tmp_path, rng, version):
    path = write_image(
        tmp_path / "a.zarr", rng.integers(0, 9, (1, 8, 9, 10)).astype(np.uint8), Space.from_spacing((8, 9, 10))
    )
    ids = write_image(
        path / "labels" / "nuclei.zarr", np.ones((1, 8, 9, 10), np.uint8), Space.from_spacing((8, 9, 10))
    ).rename(path / "labels" / "nuclei")
    if version == "0.5":
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"labels": ["nuclei"]}}}
        (path / "labels" / "zarr.json").write_text(json.dumps(group))
    else:
        (path / "labels" / ".zgroup").write_text('{"zarr_format": 2}')
        (path / "labels" / ".zattrs").write_text('{"labels": ["nuclei"]}')
    (row,) = scan_folder(path).rows
    assert row.label_options["dataset"] == "labels/nuclei"
    assert open_image(row.label, **row.label_options).space.shape == (8, 9, 10)
    assert ids.is_dir()


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(SettingError, match="layout: expected auto or one of volumes"):
        scan_folder(tmp_path, "cubes")


@pytest.mark.parametrize("slab", [1, 1 << 22])
@pytest.mark.parametrize("suffix", [".nii.gz", ".zarr", ".ome.tif"])
def test_objects_are_found_in_slabs_of_any_size(write_volumes, objects, oblique, monkeypatch, slab, suffix):
    monkeypatch.setattr(crop_scan, "_SLAB", slab)
    root = write_volumes(("a",), suffix=suffix)
    found = find_objects(stored(root / "instances" / f"a{suffix}"), oblique.shape, CropReader())
    assert found.instance.tolist() == sorted(objects)
    for number, box, volume in zip(found.instance.tolist(), found.boxes, found.volume, strict=True):
        assert box.tolist() == [p.start - 0.5 for p in objects[number]] + [p.stop - 0.5 for p in objects[number]]
        assert volume == np.prod([part.stop - part.start for part in objects[number]])


@pytest.mark.parametrize("slab", [1, 1 << 22])
def test_an_instance_has_the_class_of_most_of_its_voxels(write_volumes, oblique, monkeypatch, slab, tmp_path):
    monkeypatch.setattr(crop_scan, "_SLAB", slab)
    root = write_volumes(("a",), suffix=".zarr")
    classes = np.zeros((1, *oblique.shape), np.uint8)
    classes[0, :7] = 1
    classes[0, 7:9] = 3
    classes[0, 9:12, :, :18] = 2  # of object 5, rows 7 to 12: more 2 than 3
    classes[0, 18:] = 4
    path = write_image(tmp_path / "classes.zarr", classes, oblique)
    found = find_objects(stored(root / "instances" / "a.zarr"), oblique.shape, CropReader(), stored(path))
    assert dict(zip(found.instance.tolist(), found.classes.tolist(), strict=True)) == {2: 1, 5: 2, 9: 4, 11: 1}


def test_ids_are_whole_and_not_negative(tmp_path):
    space = Space.from_spacing((4, 5, 6))
    for values, fault in (([-2.0], r"label value -2, expected classes or ids from 1"), ([0.5], "expected whole")):
        path = write_image(tmp_path / "ids.nii.gz", np.full((1, 4, 5, 6), values, np.float32), space)
        with pytest.raises(DataError, match=fault) as caught:
            find_objects(stored(path), space.shape, CropReader())
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path = write_image(tmp_path / "ids.nii.gz", np.full((1, 4, 5, 6), 3.0, np.float32), space)
    assert find_objects(stored(path), space.shape, CropReader()).instance.tolist() == [3]
    path = write_image(tmp_path / "ids.nii.gz", np.full((1, 4, 5, 6), -1, np.int16), space)
    assert len(find_objects(stored(path), space.shape, CropReader())) == 0


def test_no_object_is_no_row(tmp_path):
    path = write_image(tmp_path / "ids.tif", np.zeros((1, 5, 6), np.uint8), Space.from_spacing((5, 6)))
    found = find_objects(stored(path), (5, 6), CropReader())
    assert found.boxes.shape == (0, 4)


def test_intensities_are_those_of_all_voxels(tmp_path, rng):
    values = rng.normal(5, 2, (2, 8, 9, 10)).astype(np.float32)
    values[1, 0, 0, 0] = np.nan
    path = write_image(tmp_path / "a.nii.gz", values, Space.from_spacing((8, 9, 10)))
    first, second = intensities(stored(path), (8, 9, 10), CropReader())
    np.testing.assert_allclose(first["quantiles"], np.percentile(values[0], QUANTILES), rtol=1e-6)
    assert first["mean"] == pytest.approx(values[0].mean(), rel=1e-6)
    assert second["deviation"] == pytest.approx(np.nanstd(values[1]), rel=1e-6)


def test_a_large_image_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(crop_scan, "_SAMPLE", 1000)
    array = zarr.create_array(tmp_path / "a.zarr", shape=(256, 128, 640), chunks=(64, 64, 64), dtype="uint16")
    array[:] = np.broadcast_to(np.arange(640, dtype=np.uint16), array.shape)
    (found,) = intensities(stored(tmp_path / "a.zarr"), (256, 128, 640), CropReader())
    assert found["quantiles"][QUANTILES.index(50)] == pytest.approx(320, rel=0.15)
    assert found["quantiles"][-1] == 639
    assert intensities(stored(tmp_path / "a.zarr"), (256, 128, 640), CropReader()) == [found]

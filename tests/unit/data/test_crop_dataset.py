from __future__ import annotations

import logging
import sqlite3

import h5py
import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.collate import collate
from voxelry.data.crops.build import build_crop_index
from voxelry.data.crops.dataset import CropDataset, split_crops
from voxelry.data.crops.index import CropIndex
from voxelry.data.crops.settings import CropSettings
from voxelry.data.loader import Loading, evaluation_loader, training_loader
from voxelry.io import read_image, write_image
from voxelry.ops.masks import mask_boxes
from voxelry.phantoms.nuclei import make_nuclei

SIZE = (8, 12, 14)


@pytest.fixture
def make(write_volumes, tmp_path):
    """A dataset over new volumes: `make(settings of the index, format, **settings of the dataset)`."""

    def build(names=("a", "b", "c"), suffix=".zarr", channels=1, index=None, **settings) -> CropDataset:
        root = write_volumes(names, suffix=suffix, channels=channels)
        build_crop_index(root, tmp_path / "i.sqlite", CropSettings(**({"crop_size": SIZE} | (index or {}))))
        return CropDataset(tmp_path / "i.sqlite", **settings)

    return build


def crop_of(dataset: CropDataset, number: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Pixels and ids of a crop, straight from the files, and where it starts."""
    record = dataset.record(number)
    window = tuple(slice(a, a + b) for a, b in zip(record.start, SIZE, strict=True))
    image = read_image(record.file.image.path).array[(slice(None), *window)]
    return image, read_image(record.file.label.path).array[0][window], record.start


@pytest.mark.parametrize("suffix", [".nii.gz", ".zarr", ".ome.tif"])
def test_a_sample_is_a_window_of_its_files(make, suffix):
    dataset = make(suffix=suffix, normalise=None)
    for number in range(len(dataset)):
        sample = dataset[number]
        image, ids, start = crop_of(dataset, number)
        np.testing.assert_array_equal(sample.image.numpy(), image.astype(np.float32))
        present = np.unique(ids[ids > 0])
        assert len(sample.boxes) == len(sample.classes) == len(present) > 0
        for place, label in enumerate(present, 1):
            np.testing.assert_array_equal(sample.masks.numpy() == place, ids == label)
        torch.testing.assert_close(sample.boxes, mask_boxes(sample.masks, len(present)))
        whole = dataset.record(number).file.space
        corner = np.array([0.25, 3.0, 5.0])
        np.testing.assert_allclose(sample.space.to_world(corner), whole.to_world(corner + start), atol=1e-9)
        assert sample.masks.dtype == sample.classes.dtype == torch.int64
        assert sample.image.dtype == sample.boxes.dtype == torch.float32


def test_crops_of_an_image_share_one_scale(make):
    dataset = make(("a",), normalise="minmax")
    array = read_image(dataset.files[0].image.path).array
    for number in range(len(dataset)):
        image, _, _ = crop_of(dataset, number)
        expected = (image.astype(np.float64) - array.min()) / (array.max() - array.min())
        np.testing.assert_allclose(dataset[number].image.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["percentile", "zscore", "window"])
def test_other_scales_are_those_of_the_whole_image(make, method):
    dataset = make(("a",), channels=2, normalise=method, window=(100, 3000) if method == "window" else None)
    array = read_image(dataset.files[0].image.path).array.astype(np.float64)
    image, _, _ = crop_of(dataset, 0)
    for channel in range(2):
        low, high = {
            "percentile": np.percentile(array[channel], (0.5, 99.5)),
            "zscore": array[channel].mean() + 3 * array[channel].std() * np.array([-1, 1]),
            "window": (100, 3000),
        }[method]
        expected = np.clip((image[channel].astype(np.float64) - low) / (high - low), 0, 1)
        np.testing.assert_allclose(dataset[0].image[channel].numpy(), expected, atol=1e-5)


def test_objects_that_do_not_count_are_background(make):
    dataset = make(("a",), index={"min_volume": 2})
    for number in range(len(dataset)):
        _, ids, _ = crop_of(dataset, number)
        masks = dataset[number].masks.numpy()
        assert ((masks > 0) == np.isin(ids, [2, 5, 9])).all()


def test_boxes_of_the_index_are_those_of_the_object(make, write_volumes, tmp_path):
    inner, outer = make(("a",), boxes="masks"), CropDataset(tmp_path / "i.sqlite", boxes="index")
    for number in range(len(inner)):
        torch.testing.assert_close(inner[number].boxes, outer[number].boxes)  # cuboids: the same


def test_known_boxes_without_labels_are_delivered(write_volumes, tmp_path):
    root = write_volumes(("a",))
    with sqlite3.connect(root / "s.db") as connection:
        connection.execute("CREATE TABLE annotations (file_path TEXT)")
        connection.execute("CREATE TABLE boxes (file_path, instance_id, z1, y1, x1, z2, y2, x2, class)")
        connection.execute("INSERT INTO annotations VALUES ('volumes/a.nii.gz')")
        connection.execute("INSERT INTO boxes VALUES ('volumes/a.nii.gz', 4, 5.5, 2.5, 3.5, 9.5, 8.5, 6.5, 3)")
    connection.close()
    build_crop_index(root / "s.db", tmp_path / "i.sqlite", CropSettings(SIZE))
    dataset = CropDataset(tmp_path / "i.sqlite", margin=2, augment=lambda sample, _: sample)
    sample = dataset[0]
    assert sample.masks is None
    assert sample.boxes.tolist() == [[5.5, 2.5, 3.5, 7.5, 8.5, 6.5]]
    assert sample.classes.tolist() == [3]
    assert dataset[1].boxes.tolist() == [[-0.5, 2.5, 3.5, 1.5, 8.5, 6.5]]


@pytest.mark.parametrize("pad", ["edge", "zero"])
def test_a_crop_larger_than_its_volume_is_filled(write_volumes, tmp_path, pad):
    root = write_volumes(("a",))
    build_crop_index(root, tmp_path / "i.sqlite", CropSettings((24, 24, 14), pad=pad))
    dataset = CropDataset(tmp_path / "i.sqlite", normalise=None)
    sample = dataset[0]
    assert sample.image.shape == (1, 24, 24, 14)
    assert sample.masks.shape == (24, 24, 14)
    array = read_image(root / "volumes" / "a.nii.gz").array
    expected = array[0, 19, :, :14] if pad == "edge" else 0
    np.testing.assert_array_equal(sample.image[0, 23].numpy(), np.broadcast_to(expected, (24, 14)))
    assert not sample.masks[20:].any()


def test_augmentation_depends_on_seed_epoch_and_index_alone(make):
    dataset = make(augment=Augment(rotation=20, shift=2), margin=3)
    first = dataset.sample(3, epoch=0)
    assert first.image.shape == (1, *SIZE)
    dataset.sample(5, epoch=1)
    torch.testing.assert_close(dataset.sample(3, epoch=0).image, first.image)
    assert not torch.equal(dataset.sample(3, epoch=1).image, first.image)
    assert int(first.masks.max()) == len(first.boxes) == len(first.classes)


def test_a_margin_shows_what_lies_around(make):
    seen = []
    dataset = make(("a",), normalise=None, margin=(1, 2, 3), augment=lambda sample, _: seen.append(sample) or sample)
    number = next(one for one in range(len(dataset)) if dataset.record(one).start == (8, 0, 0))
    sample = dataset[number]
    array = read_image(dataset.files[0].image.path).array
    np.testing.assert_array_equal(sample.image[0].numpy(), array[0, 8:16, 0:12, 0:14])
    assert seen[0].image.shape == (1, 10, 16, 20)
    np.testing.assert_array_equal(seen[0].image[0, :, 2:, 3:].numpy(), array[0, 7:17, 0:14, 0:17])
    np.testing.assert_allclose(seen[0].space.to_world(np.zeros(3)), dataset.files[0].space.to_world([7.0, -2, -3]))


def test_images_are_chosen_by_split_name_and_column(make, tmp_path):
    dataset = make()
    index = CropIndex(tmp_path / "i.sqlite")
    assert {dataset.record(n).file.name for n in range(len(dataset))} == {"a", "b", "c"}
    assert [file.name for file in CropDataset(index, names=["b"]).files] == ["b"]
    assert [file.name for file in CropDataset(index, where={"name": ["a", "c"]}).files] == ["a", "c"]
    with pytest.raises(DataError, match="has no image 'd'"):
        CropDataset(index, names=["d"])
    with pytest.raises(DataError, match="no crop of split 'test'"):
        CropDataset(index, split="test")
    with pytest.raises(SettingError, match="no column 'colour'"):
        CropDataset(index, where=["colour=1"])


def test_images_are_split_whole(make, tmp_path):
    make()
    parts = split_crops(tmp_path / "i.sqlite", fractions=(0.4, 0.3, 0.3))
    assert sorted(name for names in parts.values() for name in names) == ["a", "b", "c"]
    assert all(parts.values())


def test_statistics_are_asked_for_where_they_are_needed(make, tmp_path):
    make(index={"statistics": False}, normalise="window", window=(0, 4000))
    with pytest.raises(DataError, match="has no statistics of a, which normalise=percentile needs"):
        CropDataset(tmp_path / "i.sqlite")


def test_an_index_of_other_contents_is_refused(make, oblique):
    dataset = make()
    dataset.check()
    write_image(dataset.files[0].image.path, np.zeros((1, *oblique.shape), np.uint16), oblique)
    with pytest.raises(DataError, match=r"i\.sqlite is stale: .*a\.zarr"):
        dataset.check()


@pytest.mark.parametrize("setting", [{"fill": "mirror"}, {"boxes": "all"}, {"on_error": "stop"}, {"normalise": "log"}])
def test_settings_out_of_range_are_refused(make, tmp_path, setting):
    make(("a",))
    with pytest.raises(SettingError, match=f"{next(iter(setting))}: expected one of"):
        CropDataset(tmp_path / "i.sqlite", **setting)


def break_page(path, page: int) -> None:
    """Overwrite the compressed bytes of a page of a TIFF file."""
    with tifffile.TiffFile(path) as file:
        spans = list(zip(file.pages[page].dataoffsets, file.pages[page].databytecounts, strict=True))
    data = bytearray(path.read_bytes())
    for offset, count in spans:
        data[offset : offset + count] = bytes(count)
    path.write_bytes(data)


def break_chunk(path) -> None:
    """Cut the only chunk of an OME-Zarr of ours short."""
    chunk = next(file for file in sorted((path / "0" / "c").rglob("*")) if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:100])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("suffix", [".ome.tif", ".zarr"])
def test_a_fault_in_the_middle_is_reported_once_and_skipped(make, caplog, suffix, workers):
    dataset = make(suffix=suffix, normalise=None)
    good = {number: dataset[number] for number in range(len(dataset))}
    broken = dataset.files[1].image.path
    dataset.reader.close()
    break_chunk(broken) if suffix == ".zarr" else break_page(broken, 10)
    starts = [dataset.record(number) for number in range(len(dataset))]
    bad = {
        number
        for number, record in enumerate(starts)
        if record.file.image.path == broken and (suffix == ".zarr" or record.start[0] <= 10 < record.start[0] + SIZE[0])
    }
    assert bad
    with caplog.at_level(logging.WARNING, logger="voxelry.data.crops.dataset"):
        loader = DataLoader(
            dataset, batch_size=2, collate_fn=collate, num_workers=workers, timeout=60 if workers else 0
        )
        for _ in range(2):
            images = torch.cat([batch.image for batch in loader])
            assert len(images) == len(dataset)
            for number, image in enumerate(images):
                instead = number
                while instead in bad:
                    instead = (instead + 1) % len(dataset)
                torch.testing.assert_close(image, good[instead].image)
    assert len(dataset.faults) == 1
    assert str(broken) in dataset.faults[0]
    assert ("page 10 can't be decoded" if suffix == ".ome.tif" else "chunk 0/0/0/0 can't be read") in dataset.faults[0]
    assert len(caplog.records) == (1 if workers == 0 else 0)  # else a worker logged it, to its own standard error


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_stops_where_that_is_asked_for(make, workers):
    dataset = make(("a",), suffix=".ome.tif", on_error="raise")
    break_page(dataset.files[0].image.path, 10)
    with pytest.raises((FileError, DataError), match=r"a\.ome\.tif: page 10 can't be decoded") as caught:
        list(DataLoader(dataset, collate_fn=collate, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_files_that_are_gone_are_skipped_whole(make, monkeypatch):
    dataset = make(suffix=".nii.gz", normalise=None)
    expected = dataset.sample(next(n for n in range(len(dataset)) if dataset.record(n).file.name == "b"), 0)
    dataset.files[0].image.path.unlink()
    opened = []
    read = dataset.reader.read
    monkeypatch.setattr(dataset.reader, "read", lambda stored, *rest: opened.append(stored) or read(stored, *rest))
    torch.testing.assert_close(dataset[0].image, expected.image)
    assert len(opened) == 3  # the lost one once, not once per crop; then image and labels of the next
    for file in dataset.files[1:]:
        file.image.path.unlink()
    with pytest.raises(DataError, match=r"none of its .* crops can be read"):
        dataset[0]


def test_loaders_take_it(make):
    dataset = make(augment=Augment(rotation=10))
    taken = iter(training_loader(dataset, Loading(batch_size=2, num_workers=0), seed=0))
    batches = [next(taken) for _ in range(len(dataset))]
    assert all(len(batch.boxes) == len(batch.classes) == 2 for batch in batches)
    assert batches[0].masks.shape == (2, *SIZE)
    both = [
        {name for batch, _ in zip(loader, range(2), strict=False) for name in batch.names}
        for loader in (
            training_loader(dataset, Loading(batch_size=2, num_workers=0, rank=rank, world_size=2), seed=0)
            for rank in range(2)
        )
    ]
    assert not both[0] & both[1]
    seen = [name for batch in evaluation_loader(dataset, Loading(num_workers=0)) for name in batch.names]
    assert len(set(seen)) == len(dataset)


@pytest.mark.slow
def test_workers_of_a_fork_server_read_zarr(make):
    dataset = make(("a",), suffix=".zarr", normalise=None)
    assert dataset.start_method == "forkserver"
    first = dataset[0]
    loader = evaluation_loader(dataset, Loading(num_workers=1))
    torch.testing.assert_close(next(iter(loader)).image[0], first.image)


def test_images_of_rank_two_go_the_same_way(tmp_path, rng):
    space = Space.from_spacing((30, 40), (0.5, 0.7))
    ids = np.zeros((1, 30, 40), np.uint8)
    ids[0, 4:9, 30:37] = 3
    image = rng.integers(0, 99, (3, 30, 40)).astype(np.uint8)
    write_image(tmp_path / "d" / "images" / "a.ome.tif", image, space)
    write_image(tmp_path / "d" / "masks" / "a.ome.tif", ids, space)
    build_crop_index(tmp_path / "d", tmp_path / "i.sqlite", CropSettings((16, 20)))
    dataset = CropDataset(tmp_path / "i.sqlite", normalise=None)
    sample = dataset[0]
    np.testing.assert_array_equal(sample.image.numpy(), image[:, :16, 20:])
    assert sample.boxes.tolist() == [[3.5, 9.5, 8.5, 16.5]]
    assert sample.space.spacing == pytest.approx((0.5, 0.7))


def test_volumes_and_labels_in_one_container(tmp_path):
    for number in range(3):
        nuclei = make_nuclei(number, shape=(24, 40, 40))
        (tmp_path / "d").mkdir(exist_ok=True)
        with h5py.File(tmp_path / "d" / f"stack_{number}.h5", "w") as file:
            for name, values in (("raw", nuclei.image[0] * 255), ("label", nuclei.masks)):
                stored = file.create_dataset(name, data=values.numpy().astype(np.uint8))
                stored.attrs["element_size_um"] = (0.28, 0.13, 0.13)
    build_crop_index(tmp_path / "d", tmp_path / "i.sqlite", CropSettings((16, 24, 24), min_volume=20))
    dataset = CropDataset(tmp_path / "i.sqlite")
    assert [file.name for file in dataset.files] == ["stack_0", "stack_1", "stack_2"]
    sample = dataset[len(dataset) - 1]
    assert sample.space.spacing[0] == pytest.approx(0.28e-3)
    assert 0 <= sample.image.min() < sample.image.max() <= 1
    assert int(sample.masks.max()) == len(sample.boxes) > 0


def test_real_nuclei_and_cells(shared_data, tmp_path):
    build_crop_index(shared_data / "go_nuclear", tmp_path / "i.sqlite", CropSettings((32, 48, 48), min_volume=20))
    dataset = CropDataset(tmp_path / "i.sqlite")
    assert [file.name for file in dataset.files] == ["1135_mini", "1136_mini", "1137_mini"]
    sample = dataset[len(dataset) - 1]
    assert sample.space.spacing[0] == pytest.approx(0.28371839e-3)
    assert 0 <= sample.image.min() < sample.image.max() <= 1
    assert int(sample.masks.max()) == len(sample.boxes) > 0

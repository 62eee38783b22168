"""HDF5 files that hold an image and its instances."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from voxelry.core.errors import DataError
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            ids = np.zeros((6, 8, 10), dtype=np.uint16)
            ids[1:3, 2:5, 3:9] = 7
            ids[4:, 6:, :2] = 300
            for dataset, values in (("raw", rng.integers(0, 255, ids.shape)), ("label", ids), ("other/seg", ids * 2)):
                stored = file.create_dataset(dataset, data=values)
                stored.attrs["element_size_um"] = (0.3, 0.1, 0.1)
    return tmp_path


def test_files_are_recognised_and_read_with_instances_and_spacing(folder):
    dataset = VolumeDataset(find_cases(folder), need=("masks", "labels"))
    assert [case.name for case in dataset.cases] == ["a", "b"]
    sample = dataset[0]
    np.testing.assert_allclose(sample.space.spacing, (3e-4, 1e-4, 1e-4))
    assert sample.boxes.tolist() == [[0.5, 1.5, 2.5, 2.5, 4.5, 8.5], [3.5, 5.5, -0.5, 5.5, 7.5, 1.5]]
    assert sample.classes is None


def test_other_names_of_datasets_are_options(folder):
    (case, _) = find_cases(folder, "hdf5", options={"dataset": "label", "label_dataset": "other/seg"})
    assert case.options == {"dataset": "label"}
    sample = VolumeDataset([case], need=("masks",)).read(case)
    assert sample.image.max() == 300
    assert len(sample.boxes) == 2


def test_a_case_without_labels_has_none(folder):
    with h5py.File(folder / "c.h5", "w") as file:
        file["anything"] = np.zeros((4, 5, 6), dtype=np.uint8)
    last = find_cases(folder)[-1]
    assert last.instances is None
    assert VolumeDataset([last], need=("masks",))[0].image.shape == (1, 4, 5, 6)


def test_the_cache_knows_a_file_s_datasets_apart(folder, tmp_path):
    first, *_ = find_cases(folder)
    (second, _) = find_cases(folder, options={"label_dataset": "other/seg"})
    samples = [VolumeDataset([case], need=("masks",), cache=tmp_path / "cache")[0] for case in (first, second)]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    assert all(len(sample.boxes) == 2 for sample in samples)


def test_points_are_not_looked_for_in_hdf5(folder):
    with pytest.raises(DataError, match=r"a\.h5: an HDF5 file has no landmarks"):
        find_cases(folder, need_landmarks=True)

"""A dataset of one's own in a training: any suffix, its own reader, its own keywords."""

import sys

import numpy as np
import pytest
import torch

from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import ConfigError, DataError, SettingError
from voxelry.data.dataset import VolumeDataset
from voxelry.data.preprocess import Preprocess
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data

MODULE = """
import numpy as np, torch
from voxelry.data.dataset import VolumeDataset
from voxelry.data.pairs import PairDataset

class Raw(VolumeDataset):
    def __init__(self, cases, *, scale=1.0, **settings):
        super().__init__(cases, **settings)
        self.scale = scale

    def read_volume(self, path):
        return torch.from_numpy(self.scale * np.fromfile(path, "<f4").reshape(1, 8, 8, 8))

class Other:
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "data" / "volumes").mkdir(parents=True)
    for number in range(5):
        values = np.linspace(0.1, 0.1 * (number + 2), 512, dtype="<f4")
        values.tofile(tmp_path / "data" / "volumes" / f"case.{number}.myformat")
    return tmp_path / "data"


def splits(folder, *overrides, experiment="pretrain_3d"):
    config = compose_training([f"experiment={experiment}", f"data.root={folder}", *overrides])
    return build_data(config.data, ndim=3, recipe=recipe_of_config(config), seed=0)


def test_any_suffix_is_read_by_ones_own_reader_and_stays_in_its_range(folder):
    found = splits(folder, "data._target_=mine.Raw", "data.cache=null")
    assert type(found.train).__name__ == "Raw"
    assert sorted(name for names in found.names.values() for name in names) == [f"case.{n}" for n in range(5)]
    sample = found.train[0]
    assert float(sample.image.min()) == pytest.approx(0.1)
    assert float(sample.image.max()) == pytest.approx(0.1 * (int(sample.name[-1]) + 2))
    assert found.preprocess.settings()["keep_range"] is True  # and so a prediction's image stays as it is, too


def test_keys_added_to_the_group_are_its_keywords_and_other_values_are_normalised(folder):
    found = splits(folder, "data._target_=mine.Raw", "+data.scale=100.0", "data.cache=null")
    assert found.train.scale == found.test.scale == 100.0
    sample = found.train[0]
    assert (float(sample.image.min()), float(sample.image.max())) == (0.0, 1.0)
    np.testing.assert_allclose(sample.levels[0, 0], 10.0, rtol=1e-5)


def test_a_suffix_chooses_among_the_files(folder):
    (folder / "volumes" / "README.txt").write_text("about these data")
    with pytest.raises(DataError, match=r"README.txt: Raw.read_volume: .*"):
        splits(folder, "data._target_=mine.Raw", "data.cache=memory", "data.split.fractions=[0.8,0.1,0.1]")
    found = splits(folder, "data._target_=mine.Raw", "data.suffix=.myformat")
    assert sum(map(len, found.names.values())) == 5
    with pytest.raises(DataError, match=r"no file \*\.other"):
        splits(folder, "data._target_=mine.Raw", "data.suffix=.other")


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["data._target_=mine.Nothing"], "data._target_: mine.Nothing can't be imported"),
        (["data._target_=nowhere.Raw"], "data._target_: nowhere.Raw can't be imported: .*No module named 'nowhere'"),
        (["data._target_=mine.Other"], "expected a child of voxelry.data.dataset.VolumeDataset, got mine.Other"),
        (["data._target_=mine.Raw", "+data.colour=1"], "data: mine.Raw: .*unexpected keyword argument 'colour'"),
        (["data.suffix=.raw"], "data.suffix: expected with data._target_"),
    ],
)
def test_what_can_t_be_is_one_line(folder, overrides, fault):
    with pytest.raises(ConfigError, match=fault):
        splits(folder, *overrides)


def test_pairs_need_a_class_for_pairs(folder):
    with pytest.raises(ConfigError, match=r"expected a child of voxelry.data.pairs.PairDataset, got mine.Raw"):
        splits(folder, "data=pairs", "data._target_=mine.Raw", experiment="translate_3d")


def test_a_layout_that_names_its_files_itself_is_refused(folder):
    with pytest.raises(SettingError, match="layout: expected volumes or images with a reader of one's own, got chest"):
        splits(folder, "data._target_=mine.Raw", "data.layout=chest")


def test_in_python_the_folder_is_enough(folder):
    class Mine(VolumeDataset):
        def read_volume(self, path):
            return torch.from_numpy(np.fromfile(path, "<f4").reshape(1, 8, 8, 8))

    dataset = Mine.from_folder(folder, preprocess=Preprocess(image_size=4))
    assert len(dataset) == 5
    assert dataset[0].image.shape == (1, 4, 4, 4)
    assert float(dataset[0].image.max()) < 0.2
    assert len(Mine.from_folder(folder / "volumes", suffix=".0.myformat")) == 1

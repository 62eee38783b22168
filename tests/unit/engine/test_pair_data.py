"""Pairs and degraded volumes as a run gets them, from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from voxelry.bundle.registry import recipe_named
from voxelry.core.errors import ConfigError, DataError
from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.parts import Splits
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data
from voxelry.io import write_image
from voxelry.phantoms import write_phantoms


def built(root: Path, data: str, *overrides: str, ndim: int = 3, **settings: Any) -> Splits:
    chosen = [f"data={data}", f"data.root={root}", "data.split.fractions=[0.5,0.25,0.25]", *overrides]
    config = compose_training(["task=pretrain", *chosen])
    augment = OmegaConf.create(Augment(rotation=10).settings())
    return build_data(config.data, ndim=ndim, recipe=recipe_named("pretrain"), augment=augment, **settings)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    return write_phantoms(tmp_path / "phantoms", 4, seed=0, ndim=3, shape=(16, 20, 18))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    space = Space.from_spacing((8, 9, 10), (2.0, 1.0, 1.0))
    for number in range(4):
        pixels = np.random.default_rng(number).random((1, *space.shape)).astype(np.float32)
        for folder, offset in (("A", 0.0), ("B", 3.0)):
            write_image(tmp_path / "pairs" / folder / f"{number}.nii.gz", pixels + offset, space)
    return tmp_path / "pairs"


def test_degraded_volumes(volumes):
    splits = built(volumes, "degraded")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [2, 1, 1]
    for part in (splits.train, splits.validation):
        sample = part[0]
        assert sample.image.shape == sample.target.shape
        assert not torch.equal(sample.image, sample.target)
    held_out = splits.validation[0].image
    assert torch.equal(splits.validation.sample(0, epoch=1).image, held_out)
    still = splits.unaltered(0)
    assert torch.equal(still.image, splits.unaltered(0).image)
    assert torch.equal(still.target, splits.train.preprocessed(0).image)
    assert splits.preprocess.normalise == "percentile"


def test_pairs(folders):
    splits = built(folders, "pairs", "data.preprocess.intensity=shared", "data.preprocess.outside=keep")
    sample = splits.unaltered(0)
    assert torch.allclose(sample.target - sample.image, torch.tensor(3.0) / (sample.levels[0, 1] - sample.levels[0, 0]))
    assert sum(len(names) for names in splits.names.values()) == 4
    moved = splits.train[0]
    assert moved.image.shape == moved.target.shape


def test_patches_and_a_cache_on_disk(folders, tmp_path):
    splits = built(folders, "pairs", "data.patches={size: 4, context: true}", f"data.cache={tmp_path / 'cache'}")
    assert splits.train[0].context.shape == (4, 4, 4, 4)
    assert splits.validation[0].context is None
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 4


def test_faults_show_before_the_training(folders):
    shape = (8, 9, 11)
    write_image(folders / "A" / "2.nii.gz", np.ones((1, *shape)), Space.from_spacing(shape, (2.0, 1.0, 1.0)))
    with pytest.raises(DataError, match=r"A/2.nii.gz: shape \(8, 9, 11\), but .*B/2.nii.gz has \(8, 9, 10\)"):
        built(folders, "pairs")
    (folders / "B" / "2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"A/2.nii.gz: unpaired"):
        built(folders, "pairs")


def test_refused(folders, volumes):
    with pytest.raises(DataError, match="an image of rank 3, but ndim=2 is configured"):
        built(folders, "pairs", ndim=2)
    with pytest.raises(ConfigError, match="pairs or degrade, got both"):
        built(volumes, "degraded", "+data.pairs={resample: true}")

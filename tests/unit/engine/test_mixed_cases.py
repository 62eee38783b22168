"""What a folder of one's own is like: images of unlike sizes, some grey and some in colour, some too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import voxelry
from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import ConfigError, DataError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.patches import window_size
from voxelry.data.preprocess import Preprocess
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data
from voxelry.engine.train import build_task, train
from voxelry.io import write_image
from voxelry.tasks import volumes as source

SIZES = [(20, 24, 18), (17, 30, 22), (24, 19, 26), (21, 21, 21)]


def write_case(root: Path, name: str, array: np.ndarray, spacing: tuple[float, ...], suffix: str) -> None:
    """An image with two points and a class in a corner of it."""
    shape = array.shape[1:]
    space = Space.from_spacing(shape, spacing)
    write_image(root / "volumes" / f"{name}{suffix}", array, space)
    labels = np.zeros((1, *shape), dtype=np.uint8)
    labels[(0, *[slice(2, 9)] * len(shape))] = 1
    for folder in ("labels", "instances"):
        write_image(root / folder / f"{name}{suffix}", labels, space)
    rows = [",".join(map(str, [point, *[place] * len(shape)])) for point, place in (("first", 3), ("second", 7))]
    (root / "landmarks").mkdir(exist_ok=True)
    axes = ["z", "y", "x"][-len(shape) :]
    text = "\n".join([f"name,{','.join(axes)}", *rows])
    (root / "landmarks" / f"{name}.csv").write_text(f"# coordinateSystem = index\n{text}\n")


@pytest.fixture
def volumes(tmp_path, rng) -> Path:
    for number, shape in enumerate(SIZES):
        array = rng.random((1, *shape), dtype=np.float32)
        write_case(tmp_path / "data", f"case {number}", array, (2.5, 0.8, 0.8 + 0.1 * number), ".nii.gz")
    return tmp_path / "data"


@pytest.fixture
def pictures(tmp_path, rng) -> Path:
    for number, shape in enumerate([(40, 50), (36, 64), (48, 48), (50, 40)]):
        array = rng.integers(0, 255, (1 if number % 2 else 3, *shape), dtype=np.uint8)
        write_case(tmp_path / "data", f"{number}", array, (1.0, 1.0), ".png")
    return tmp_path / "data"


def built(experiment: str, root: Path, *overrides: str):
    config = compose_training(
        [f"experiment={experiment}", f"data.root={root}", "data.split.fractions=[0.5,0.25,0.25]", *overrides]
    )
    return build_data(config.data, ndim=config.ndim, recipe=recipe_of_config(config), augment=config.augment)


@pytest.mark.parametrize(
    "experiment", ["landmarks_3d", "pretrain_3d", "pretrain_mae_3d", "translate_3d", "segment_3d", "reconstruct_3d"]
)
def test_volumes_of_unlike_sizes_make_a_batch(experiment, volumes):
    splits = built(experiment, volumes)
    samples = [splits.train.sample(index, epoch=0) for index in range(2)]
    batch = getattr(splits.train, "collate", collate)(samples)
    assert len(batch) == 2


@pytest.mark.parametrize(
    ("experiment", "windowed"), [("pretrain_3d", True), ("pretrain_mae_3d", True), ("landmarks_3d", False)]
)
def test_a_run_that_learns_from_windows_measures_on_windows_where_nothing_is_asked_of_whole_images(
    experiment, windowed, volumes
):
    splits = built(experiment, volumes, "data.patches={size: [16, 40, 16], margin: 2}", "data.cache=null")
    assert splits.train[0].space.shape == (16, 40, 16)
    held_out, whole = splits.validation[0], splits.validation.preprocessed(0)
    expected = (16, whole.space.shape[1], 16) if windowed else whole.space.shape  # no more than there is
    assert held_out.space.shape == expected
    first = whole.space.to_index(held_out.space.to_world(np.zeros(3)))
    np.testing.assert_allclose(first, (np.subtract(whole.space.shape, expected)) // 2, atol=1e-6)
    assert held_out.image[0, 0, 0, 0] == whole.image[(0, *np.round(first).astype(int))]


def test_grey_and_coloured_pictures_are_learned_from_as_grey_ones(pictures, tmp_path, quick_training, caplog):
    overrides = [f"data.root={pictures}", f"output_dir={tmp_path / 'run'}", *quick_training, "trainer.max_steps=1"]
    with caplog.at_level("INFO", logger="voxelry"):
        run = train(compose_training(["experiment=landmarks_2d", *overrides]))
    assert "all are taken as grey (data.preprocess.channels=1)" in caplog.text
    model = voxelry.load(run.bundle)
    assert model.bundle.preprocess.channels == 1
    for picture in sorted((pictures / "volumes").iterdir()):
        assert model.predict(picture).index.shape == (2, 2)


def test_other_numbers_of_channels_are_refused(pictures, rng):
    write_case(pictures, "4", rng.integers(0, 255, (4, 40, 40), dtype=np.uint8), (1.0, 1.0), ".tif")
    with pytest.raises(DataError, match=r"1.png: 1 channels, but .*0.png has 3; .*data.options={channel: 0}"):
        built("landmarks_2d", pictures)


def test_a_volume_among_pictures_is_refused(pictures, rng):
    write_case(pictures, "4", rng.random((1, 9, 9, 9), dtype=np.float32), (1.0, 1.0, 1.0), ".nii.gz")
    with pytest.raises(DataError, match=r"4.nii.gz: an image of rank 3, but ndim=2 is configured"):
        built("landmarks_2d", pictures)


def test_large_images_are_learned_from_in_windows(volumes, monkeypatch, caplog):
    monkeypatch.setattr(source, "MOST_VOXELS", 2 * 16**3)
    with caplog.at_level("INFO", logger="voxelry"):
        splits = built("landmarks_3d", volumes)
    assert "in windows of 16 x 16 x 16" in caplog.text
    assert splits.train.sample(0, epoch=0).space.shape == (16, 16, 16)
    assert splits.validation[0].space.shape in SIZES  # measured on the whole
    whole = built("landmarks_3d", volumes, "data.patches=null")
    assert whole.train.patches is None


def test_a_task_trained_on_windows_predicts_in_tiles(volumes, monkeypatch, tmp_path, quick_training):
    monkeypatch.setattr(source, "MOST_VOXELS", 2 * 16**3)
    config = compose_training(["experiment=landmarks_3d", f"data.root={volumes}", *quick_training])
    learner, _ = build_task(config, recipe_of_config(config), built("landmarks_3d", volumes, *quick_training))
    bundle = write_bundle(tmp_path / "bundle", learner, Preprocess(), record={}, card="")
    task = voxelry.load(bundle).task
    assert task.tile_size == (16, 16, 16)
    assert task.presence


def test_another_word_for_patches(volumes):
    with pytest.raises(ConfigError, match=r"data.patches: expected auto, null or a mapping .* got 'none'"):
        built("landmarks_3d", volumes, "data.patches=none")


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [
        ((30, 40, 50), 60_000, (30, 40, 50)),
        ((30, 512, 512), 2**19, (30, 128, 128)),
        ((512, 512, 300), 2**19, (80, 80, 80)),
        ((2048, 1024), 2**18, (512, 512)),
        ((1, 4096), 100, (1, 96)),
    ],
)
def test_windows_keep_short_axes_whole(shape, most, expected):
    assert window_size(shape, most) == expected

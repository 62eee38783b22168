"""The commands in Python: the same settings, the same files, the same refusals."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import voxelry
from voxelry.core.errors import ConfigError, DataError, SettingError
from voxelry.engine.compose import compose_training, settle, typed
from voxelry.engine.configs import OWN


def test_a_mapping_says_what_would_be_typed():
    given = {
        "experiment": "segment_3d",
        "backbone": None,
        "ndim": 2,
        "optimizer.lr": 1e-5,
        "task.tile_size": np.float32(2.5),
        "data.batch_size": np.int64(3),
        "resume": True,
        "data.cache": None,
        "data.root": Path("a folder"),
        "pretrained": "~/runs",
        "task.tile_overlap": (0, 2),
        "data.options": {"spacing": [5, 0.7, 1e-4]},
        "+data.scanner": 3,
    }
    typed = (
        "experiment=segment_3d backbone=null ndim=2 optimizer.lr=1e-5 task.tile_size=2.5 data.batch_size=3 resume=true "
        "data.cache=null data.root=a\\ folder pretrained=~/runs task.tile_overlap=[0,2] "
        "data.options={spacing:[5,0.7,1e-4]} +data.scanner=3"
    )
    assert compose_training([given]) == compose_training(shlex.split(typed))
    config = compose_training(["experiment=segment_3d", "ndim=2", {"ndim": 3, "seed": 1}, "seed=2"])
    assert (config.ndim, config.seed) == (3, 2)  # the last one counts


@pytest.mark.parametrize(
    "settings",
    [
        ["experiment=landmarks_3d", "data.root=DIR", "model=unet_tiny", "data.patches={size:12,context:true}"],
        ["experiment=segment_3d", "backbone=vitdet", "data.root=DIR", "data.slices={a: 1}", "data.slices.a=2"],
        ["backbone=null", "data.root=DIR", "launcher=ray", "launcher.env.A=b", "+data.own=3", "seed=4"],
        ["experiment=landmarks_2d", "model.width=8", "~model.width", "data.root=DIR"],
    ],
)
def test_values_are_set_in_entries_that_were_put_together_before_as_hydra_sets_them(settings):
    with initialize_config_module(OWN, version_base="1.3"):
        expected = compose("train", overrides=settle(settings))
    for _ in range(2):
        found = compose_training(settings)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
        assert OmegaConf.is_struct(found)
        found.data.root = found.trainer = "changed"  # it is nobody else's


@pytest.mark.parametrize(
    "text",
    ["", "a,b", "it's", 'say "so"', "both ' and \"", "C:\\new\\", "\\'", "{not: a mapping}", "null", "12", "x=y"],
)
def test_a_text_stays_as_it_is(text):
    given = {"data.root": text, "data.options": {"dataset": [text, {"inner": text}]}, "ndim": 2}
    read = [OverridesParser.create().parse_override(one) for one in settle(typed(given))]
    assert {one.key_or_group: one.value() for one in read} == given


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"task.sigma": object()}, "task.sigma: expected a number, a word, a list or a mapping, got object"),
        ({"experiment": "landmark_3d"}, "experiment: expected one of .*, got 'landmark_3d'; did you mean"),
        ("sigma", "sigma: expected KEY=VALUE"),
    ],
)
def test_a_setting_that_can_t_be_is_refused(setting, fault):
    with pytest.raises(ConfigError, match=fault):
        voxelry.train(setting)


def test_what_a_constructor_says_of_its_settings_is_an_error_of_ours(phantoms, tmp_path):
    with pytest.raises(SettingError, match=r"^sigma_unit: expected one of mm, voxel"):
        voxelry.train(
            "experiment=landmarks_3d", {"data.root": phantoms, "output_dir": tmp_path, "task.sigma_unit": "m"}
        )


def test_train_predict_and_evaluate(phantoms, quick_training, tmp_path):
    run = voxelry.train(
        "experiment=landmarks_3d",
        *quick_training,
        {
            "data.root": phantoms,
            "data.preprocess.image_size": 16,
            "output_dir": tmp_path / "run",
            "trainer.max_steps": 1,
        },
    )
    assert not run.interrupted
    scan = phantoms / "volumes" / "case_000.nii.gz"
    model = voxelry.load(run.bundle, "cpu")

    done = voxelry.predict(tmp_path / "run", [scan, phantoms / "volumes" / "case_001.nii.gz"], tmp_path, format="csv")
    assert [path.name for path in done.written] == ["case_000.csv", "case_001.csv"]
    assert voxelry.read_landmarks(done.written[0]).world == pytest.approx(model.predict(scan).world, abs=1e-3)

    found = voxelry.evaluate(model, phantoms, tmp_path / "evaluation")
    assert len(found.rows) == len(found.predictions) == 4
    assert found.summary["mre_mm"] > 0
    assert (tmp_path / "evaluation" / "report.html").is_file()

    read, two = voxelry.read_image(scan), tmp_path / "two"
    voxelry.write_image(two / "volumes" / scan.name, np.concatenate([read.array, read.array]), read.space)
    shutil.copytree(phantoms / "landmarks", two / "landmarks")
    with pytest.raises(DataError, match=r"two/volumes/case_000.nii.gz: 2 channels, but the model takes 1"):
        voxelry.evaluate(model, two, tmp_path / "no")

    with pytest.raises(DataError, match="inputs: expected at least one image or folder"):
        voxelry.predict(model, [], tmp_path)
    with pytest.raises(SettingError, match="steps: expected with a model for"):
        voxelry.predict(model, scan, tmp_path, steps=3)
    with pytest.raises(SettingError, match="slice: expected no input beside it"):
        voxelry.predict(model, scan, tmp_path, slice=scan)

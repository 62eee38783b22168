"""`data.unlabelled`: a pretraining and the training that begins with it, in one command."""

import json

import pytest
import yaml

from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import ConfigError, DataError
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data
from voxelry.engine.train_command import train
from voxelry.engine.unlabelled import pretrained_first


@pytest.fixture
def settings(phantoms, tmp_path, quick_training):
    return [
        "experiment=landmarks_3d",
        f"data.root={phantoms}",
        f"data.unlabelled={phantoms}",
        f"output_dir={tmp_path / 'run'}",
        *quick_training,
        "data.preprocess.image_size=16",
        "trainer.max_minutes=4",
        "trainer.max_steps=1",
    ]


def bundle(folder):
    return yaml.safe_load((folder / "bundle" / "config.yaml").read_text())


def test_a_pretraining_comes_first_without_the_cases_that_are_measured(settings, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("voxelry.engine.unlabelled.train", lambda config: seen.append(config) or _ends(config))
    from voxelry.engine import unlabelled

    real = unlabelled.compose_training
    monkeypatch.setattr(unlabelled, "compose_training", lambda given: real([*given, "trainer.max_steps=1"]))
    run = train(*settings)
    place = tmp_path / "run" / "pretrain"
    [pretraining] = seen
    assert pretraining.name == "pretrain_3d"
    assert pretraining.trainer.max_minutes == 2
    assert pretraining.data.preprocess.align == "auto", "images are seen as the training sees them"
    listed = json.loads((place / "cases.json").read_text())
    final = bundle(tmp_path / "run")
    measured = {*final["data"]["validation"], *final["data"]["test"]}
    assert measured
    assert not measured & {name for names in listed.values() for name in names}
    assert run.summary["cases"] == len(final["data"]["test"])
    assert final["data"]["earlier"][0]["train"] == bundle(place)["data"]["train"]

    again = pretrained_first([*settings, "resume=true"])
    assert len(seen) == 1, "what has been pretrained is used"
    assert f"pretrained='{place}'" in again
    assert again[-1] == "trainer.max_minutes=2.0"
    with pytest.raises(ConfigError, match="holds an earlier run"):
        pretrained_first(settings)


def _ends(config):
    from voxelry.engine.train import train

    return train(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--multirun", "seed=0,1"], r"data\.unlabelled: pretrains for a single run"),
        (["pretrained=runs/other"], r"data\.unlabelled: expected without pretrained"),
        (
            ["experiment=reconstruct_3d"],
            r"data\.unlabelled: expected with a U-Net for landmarks, or with backbone=unet",
        ),
        (["optimizer.lr=abc"], r"optimizer\.lr: expected"),
        (["data.patch_sise=3"], r"data\.patch_sise: no such setting"),
        (["experiment=segment_3d"], r"data\.unlabelled: expected with a U-Net for landmarks, or with backbone=unet"),
    ],
)
def test_what_can_not_be_pretrained_is_refused_before_anything_is_trained(settings, overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pretrained_first([*settings, *overrides])
    assert not (tmp_path / "run").exists()


def test_images_that_are_all_measured_are_refused(settings, phantoms, tmp_path):
    only = [*settings, "data.split.fractions=[0.5,0.5,0]"]
    held_out = [f"case_{number:03d}" for number in range(4)]
    (tmp_path / "some" / "volumes").mkdir(parents=True)
    names = compose_training(only)
    splits = build_data(names.data, ndim=3, seed=names.seed, recipe=recipe_of_config(names))
    for name in splits.names["validation"]:
        assert name in held_out
        file = next((phantoms / "volumes").glob(f"{name}.*"))
        (tmp_path / "some" / "volumes" / f"other_{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="some: all images are those that the training is measured on"):
        pretrained_first([*only, f"data.unlabelled={tmp_path / 'some'}"])


def test_without_a_folder_nothing_changes():
    assert pretrained_first(["seed=3", "data.unlabelled=null"]) == ["seed=3", "data.unlabelled=null"]

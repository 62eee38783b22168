"""The seeds' configuration files, as they stand in their documents."""

import json

import pytest

from voxelry.core.errors import ConfigError, FileError
from voxelry.engine.compose import compose_training
from voxelry.interop.seed_config import translate

PRETRAINING = {
    "gpu": 0,
    "experiment_path": "ddpm_pretraining/ddpm_pretraining_experiments",
    "is_3d": True,
    "model": {
        "unet": {
            "channel_mults": [1, 2, 4],
            "attn_res": 16,
            "num_head_channels": 4,
            "res_blocks": 2,
            "self_condition": True,
        },
        "beta_schedule": {"train": {"schedule": "linear", "n_timestep": 500, "linear_start": 1e-4, "linear_end": 0.02}},
        "lr": 1e-4,
        "optimizer": "adamw",
        "loss_type": "l2",
        "use_ema": True,
        "iterations": 10000,
        "freq_metrics": 1000,
        "freq_checkpoint": 2000,
    },
    "dataset": {
        "name": "volume3d",
        "path": "datasets/",
        "image_size": 64,
        "image_channels": 1,
        "batch_size": 2,
        "grad_accumulation": 4,
        "num_workers": 2,
        "pin_memory": True,
    },
}
DOWNSTREAM = {
    "gpu": 0,
    "experiment_path": "downstream_task/landmarks_experiments_3d",
    "is_3d": True,
    "model": {"name": "ddpm", "lr": 1e-5, "optimizer": "AdamW", "epochs": 200},
    "dataset": {
        "name": "volume3d",
        "path": "datasets/",
        "image_size": [64, 64, 64],
        "image_channels": 1,
        "sigma": 2,
        "batch_size": 1,
        "grad_accumulation": 16,
    },
}


@pytest.fixture
def write(tmp_path):
    def as_file(content, name="config_3d.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return as_file


def changed(content, **parts):
    return {**content, **{key: {**content.get(key, {}), **value} for key, value in parts.items()}}


def test_the_pretraining_file_composes(write):
    (translation,) = translate(write(PRETRAINING))
    config = compose_training(translation.overrides)
    assert config.ndim == 3
    assert (config.model.width, config.model.multipliers) == (64, [1, 2, 4])
    assert (config.model.head_dim, config.model.heads, config.model.groups) == (16, 4, 2)
    assert config.model.self_condition is True
    assert (config.task.n_timestep, config.task.loss_type) == (500, "l2")
    assert (config.trainer.max_steps, config.trainer.validate_every, config.trainer.checkpoint_every) == (
        10000,
        1000,
        2000,
    )
    assert config.trainer.ema == 0.995
    assert (config.optimizer.lr, config.data.batch_size, config.trainer.grad_accumulation) == (1e-4, 2, 4)
    assert config.data.preprocess.image_size == 64
    assert any("attn_res" in note and "width of an attention head" in note for note in translation.notes)


def test_the_downstream_file_composes(write):
    (translation,) = translate(write(DOWNSTREAM))
    config = compose_training(translation.overrides)
    assert (config.task.sigma, config.task.sigma_unit) == (2, "voxel")
    assert config.trainer.max_epochs == 200
    assert config.optimizer.lr == pytest.approx(1e-4)
    assert config.data.preprocess.image_size == [64, 64, 64]
    assert config.data.layout == "volumes"
    assert any("times 10" in note for note in translation.notes)


def test_fine_tuning_and_scratch_are_two_runs(write):
    protocol = {"scratch": {"apply": "true"}, "finetuning": {"apply": "true", "path": "weights/last_ema_model.pt"}}
    runs = translate(write(changed(DOWNSTREAM, training_protocol=protocol)))
    finetuning, scratch = (compose_training(run.overrides) for run in runs)
    assert finetuning.pretrained == "weights/last_ema_model.pt"
    assert finetuning.optimizer.lr == pytest.approx(1e-5)
    assert scratch.pretrained is None
    assert finetuning.output_dir != scratch.output_dir


def test_words_for_true_and_losses_of_the_original(write):
    content = changed(PRETRAINING, model={"use_ema": "false", "continue_training": "true"})
    config = compose_training(translate(write(content))[0].overrides)
    assert config.trainer.ema is None
    assert config.resume is True
    content = changed(
        DOWNSTREAM, model={"loss": "MSELoss", "scheduler": "ReduceLROnPlateau"}, dataset={"training_samples": 25}
    )
    config = compose_training(translate(write(content))[0].overrides)
    assert config.task.loss == "MSELoss"
    assert config.learning_rate._target_.endswith("Plateau")
    assert config.data.training_samples == 25


def test_what_is_not_known_is_told(write):
    (translation,) = translate(write(changed(PRETRAINING, model={"weather": 3})))
    assert "model.weather ignored: no such setting" in translation.notes
    assert any(note.startswith("gpu=0 ignored") for note in translation.notes)


def test_the_only_dataset_of_a_folder_is_found(write, tmp_path):
    (tmp_path / "datasets" / "spine" / "volumes").mkdir(parents=True)
    content = changed(PRETRAINING, dataset={"path": str(tmp_path / "datasets")})
    config = compose_training(translate(write(content))[0].overrides)
    assert config.data.root == str(tmp_path / "datasets" / "spine")
    (tmp_path / "datasets" / "heart" / "volumes").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"several datasets \(heart, spine\)"):
        translate(write(content))


@pytest.mark.parametrize(
    ("content", "error", "fault"),
    [
        ("{", FileError, "line 1: not JSON"),
        ("[]", FileError, "expected an object"),
        ({"model": {}}, ConfigError, "dataset: expected an object"),
        ({"model": {}, "dataset": {}}, ConfigError, "expected unet and beta_schedule"),
        (changed(DOWNSTREAM, model={"name": "mocov3"}), ConfigError, "expected ddpm, got 'mocov3'"),
        (changed(DOWNSTREAM, model={"optimizer": "lion"}), ConfigError, "model.optimizer: expected one of adamw"),
        (changed(DOWNSTREAM, training_protocol={"finetuning": {"apply": True}}), ConfigError, "finetuning.path"),
    ],
)
def test_a_file_that_can_t_be_used_is_named(write, content, error, fault):
    path = write(content)
    with pytest.raises(error, match=fault) as caught:
        translate(path)
    assert str(path) in str(caught.value)


def test_yaml_is_read_without_its_tags(write, tmp_path):
    assert translate(write("model: {unet: {}}\ndataset: {}\n", "config.yaml"))
    path = write(f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n", "config.yml")
    with pytest.raises(FileError, match="not plain YAML"):
        translate(path)
    assert not (tmp_path / "made").exists()

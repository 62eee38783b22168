"""The originals' configuration files, as they stand in their documents."""

import json

import pytest
import torch
from hydra.utils import instantiate

from voxelry.core.errors import ConfigError, FileError
from voxelry.engine.compose import compose_training
from voxelry.engine.schedules import Plateau
from voxelry.interop.legacy.config import translate
from voxelry.interop.legacy.options import read_original_options

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


def test_the_pretraining_protocol_is_the_original_s(write):
    (translation,) = translate(write(PRETRAINING))
    config = compose_training(translation.overrides)
    assert config.learning_rate._target_.endswith("Constant")
    assert not config.augment
    assert (config.trainer.gradient_clip_val, config.trainer.gradient_clip_algorithm) == (1.0, "value")
    assert config.trainer.close_epochs
    assert config.trainer.keep_every == 2000
    assert any(note.startswith("not carried over: ") for note in translation.notes)


def test_the_downstream_file_composes(write):
    (translation,) = translate(write(DOWNSTREAM))
    config = compose_training(translation.overrides)
    assert (config.task.sigma, config.task.sigma_unit) == (2, "voxel")
    assert config.trainer.max_epochs == 200
    assert config.optimizer.lr == pytest.approx(1e-4)
    assert config.data.preprocess.image_size == [64, 64, 64]
    assert config.data.layout == "volumes"
    assert (config.model.width, config.model.multipliers, config.model.head_dim) == (64, [1, 2, 4, 8], 32)
    assert any("times 10" in note for note in translation.notes)


def test_the_downstream_protocol_is_the_original_s(write):
    config = compose_training(translate(write(DOWNSTREAM))[0].overrides)
    assert (config.trainer.validate_every, config.trainer.checkpoint_every) == ("epoch", "epoch")
    assert (config.trainer.ema, config.trainer.gradient_clip_val) == (None, None)
    assert config.trainer.patience == 43  # 2 (16 + 5) + 1
    schedule = instantiate(config.learning_rate)
    assert isinstance(schedule, Plateau)
    assert (schedule.patience, schedule.reduce, schedule.minimum, schedule.threshold) == (21, 0.5, 0.0, 1e-4)
    assert config.data.training_choice == "first"
    assert config.task.original_metrics


@pytest.mark.parametrize(
    ("name", "is_3d", "moved", "scale"),
    [
        ("chest", False, 0.5, 0.0),
        ("hand", False, 0.5, 0.02),
        ("cephalo", False, 0.5, 0.02),
        ("volume3d", True, None, None),
    ],
)
def test_there_is_no_augmentation_that_the_original_had_not(write, name, is_3d, moved, scale):
    content = {**changed(DOWNSTREAM, dataset={"name": name, "image_size": 64}), "is_3d": is_3d}
    augment = compose_training(translate(write(content))[0].overrides).augment
    assert (augment.get("movement_probability"), augment.get("scale")) == (moved, scale)
    assert augment.get("intensity_probability", 0) == 0


@pytest.mark.parametrize("is_3d", [True, False])
def test_pretraining_and_landmarks_have_one_split(write, is_3d):
    files = [{**content, "is_3d": is_3d} for content in (PRETRAINING, changed(DOWNSTREAM, dataset={"image_size": 64}))]
    first, second = (compose_training(translate(write(content))[0].overrides) for content in files)
    assert first.data.split == second.data.split


def test_volumes_that_are_divided_already_stay_so(write, tmp_path):
    (tmp_path / "datasets" / "volume3d" / "train" / "volumes").mkdir(parents=True)
    content = changed(DOWNSTREAM, dataset={"path": str(tmp_path / "datasets")})
    assert compose_training(translate(write(content))[0].overrides).data.split.fractions is None


def test_folders_tell_data_size_samples_and_start(write):
    contents = [
        changed(
            DOWNSTREAM,
            dataset={"name": name, "training_samples": samples, "image_size": size},
            training_protocol=protocol,
        )
        for name in ("chest", "hand")
        for samples in (5, "10", "all")
        for size in ([64, 64], [64, 96])
        for protocol in (
            {"scratch": {"apply": True}},
            {"finetuning": {"apply": True, "path": "runs/chest/linear_500/size64_ch1"}},
            {"finetuning": {"apply": True, "path": "runs/hand/linear_500/size64_ch1"}},
        )
    ]
    contents += [changed(PRETRAINING, dataset={"name": name}) for name in ("chest", "hand")]
    found = {folder(translate(write({**content, "is_3d": False}))[0]) for content in contents}
    assert len(found) == len(contents)
    start = "downstream_task/landmarks_experiments_3d/chest/size64x96_ch1_samples10/ddpm"
    assert f"{start}/random" in found
    assert f"{start}/pretrained/runs-hand-linear_500-size64_ch1" in found
    assert "ddpm_pretraining/ddpm_pretraining_experiments/hand/linear_500/size64_ch1" in found


def folder(translation):
    """Where a run goes, without composing all of its configuration."""
    given = dict(override.split("=", 1) for override in translation.overrides)
    samples = given.get("data.training_samples", "")
    return given["output_dir"].strip("'").replace("${data.training_samples}", samples)


def test_the_number_of_samples_in_a_folder_is_that_of_the_command_line(write):
    (translation,) = translate(write(DOWNSTREAM))
    config = compose_training([*translation.overrides, "data.training_samples=7"])
    assert "size64x64x64_ch1_samples7/" in config.output_dir


def test_two_folders_of_volumes_have_two_folders_of_runs(write, tmp_path):
    folders = []
    for name in ("spine", "heart"):
        (tmp_path / name / "sets" / name / "volumes").mkdir(parents=True)
        content = changed(DOWNSTREAM, dataset={"path": str(tmp_path / name / "sets")})
        folders.append(folder(translate(write(content))[0]))
    assert "/spine/" in folders[0]
    assert "/heart/" in folders[1]


def test_fine_tuning_and_scratch_are_two_runs(write):
    protocol = {"scratch": {"apply": "true"}, "finetuning": {"apply": "true", "path": "weights/last_ema_model.pt"}}
    runs = translate(write(changed(DOWNSTREAM, training_protocol=protocol)))
    finetuning, scratch = (compose_training(run.overrides) for run in runs)
    assert finetuning.pretrained == "weights/last_ema_model.pt"
    assert finetuning.optimizer.lr == pytest.approx(1e-5)
    assert scratch.pretrained is None
    assert finetuning.output_dir != scratch.output_dir


def test_the_fine_tuning_that_is_advised_keeps_the_learning_rate_and_has_a_folder_of_its_own(write):
    path = write(DOWNSTREAM)
    (scratch,) = translate(path)
    assert any("pretrained=PATH" in note for note in scratch.notes)
    options, rest = read_original_options(["pretrained=runs/first", "seed=1"])
    (tuned,) = translate(path, options)
    configs = [compose_training(run) for run in (scratch.overrides, [*tuned.overrides, *rest])]
    assert (configs[1].pretrained, configs[1].seed) == ("runs/first", 1)
    assert configs[1].optimizer.lr == pytest.approx(1e-5)
    assert configs[0].output_dir != configs[1].output_dir
    protocol = {"finetuning": {"apply": True, "path": ""}}
    assert len(translate(write(changed(DOWNSTREAM, training_protocol=protocol)), options)) == 1
    with pytest.raises(ConfigError, match="each of them has its own learning rate"):
        read_original_options(["pretrained=null,runs/first"])


def test_inference_only_trains_nothing(write):
    protocol = {"apply": "false", "finetuning": {"apply": True, "path": "weights.pt"}}
    content = changed(DOWNSTREAM, training_protocol=protocol)
    (measurement,) = translate(write(content))
    assert measurement.measure == "test"
    content["inference_protocol"] = {"apply": True, "use_validation_set_for_inference": "true"}
    (measurement,) = translate(write(content))
    assert measurement.measure == "validation"
    (trained, measured) = translate(write({**content, "training_protocol": {"scratch": {"apply": True}}}))
    assert (trained.measure, measured.measure) == ("", "validation")
    options, rest = read_original_options(["-p", "best.pt", "seed=2"])
    assert (str(options.load_path), rest) == ("best.pt", ["seed=2"])
    assert [run.measure for run in translate(write(DOWNSTREAM), options)] == ["test"]
    neither = {"apply": False, "scratch": {"apply": False}, "finetuning": {"apply": False, "path": ""}}
    assert "/random" in folder(translate(write({**content, "training_protocol": neither}))[0])
    content["inference_protocol"] = {"apply": False}
    with pytest.raises(ConfigError, match="both are false"):
        translate(write(content))
    with pytest.raises(ConfigError, match=r"--load_path: .* is a file of the pretraining"):
        translate(write(PRETRAINING), options)


def test_a_network_in_a_downstream_file_stays_downstream(write):
    unet = {"channel_mults": [1, 2], "attn_res": 8, "self_condition": True}
    (translation,) = translate(write(changed(DOWNSTREAM, model={"unet": unet})))
    config = compose_training(translation.overrides)
    assert config.task._target_.endswith("LandmarkTask")
    assert (config.model.multipliers, config.model.head_dim, config.model.self_condition) == ([1, 2], 8, False)
    assert any(note.startswith("model.unet.self_condition ignored") for note in translation.notes)


def test_a_gpu_is_one_gpu(write, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for content, device in ((DOWNSTREAM, [0]), (PRETRAINING, [0]), ({**DOWNSTREAM, "gpu": "1"}, [1])):
        assert compose_training(translate(write(content))[0].overrides).trainer.devices == device
    with pytest.raises(ConfigError, match="gpu: expected 0 to 1, got 2"):
        translate(write({**DOWNSTREAM, "gpu": 2}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert compose_training(translate(write(DOWNSTREAM))[0].overrides).trainer.devices == 1


def test_schedules_of_the_originals(write):
    for name, ours in ((None, "Constant"), ("CosineAnnealingLR", "Cosine"), ("ReduceLROnPlateau", "Plateau")):
        content = changed(DOWNSTREAM, model={"scheduler": name})
        assert compose_training(translate(write(content))[0].overrides).learning_rate._target_.endswith(ours)
    with pytest.raises(ConfigError, match="expected ReduceLROnPlateau"):
        translate(write(changed(DOWNSTREAM, model={"scheduler": "StepLR"})))


def test_words_for_true_and_losses_of_the_original(write):
    content = changed(PRETRAINING, model={"use_ema": "false", "continue_training": "true"})
    config = compose_training(translate(write(content))[0].overrides)
    assert config.trainer.ema is None
    assert config.resume is True
    content = changed(DOWNSTREAM, model={"loss_function": "MSELoss"}, dataset={"training_samples": 25})
    config = compose_training(translate(write(content))[0].overrides)
    assert config.task.loss == "MSELoss"
    assert config.data.training_samples == 25


def test_what_is_not_known_is_told(write):
    (translation,) = translate(write(changed(PRETRAINING, model={"weather": 3})))
    assert "model.weather ignored: no such setting" in translation.notes
    assert any(note.startswith("gpu -> trainer.devices=1") for note in translation.notes)


def test_what_is_not_known_of_a_protocol_is_told(write):
    content = {**DOWNSTREAM, "training_protocol": {"aply": True}, "inference_protocol": {"samples": 3}}
    notes = translate(write(content))[0].notes
    assert "training_protocol.aply ignored: no such setting" in notes
    assert "inference_protocol.samples ignored: no such setting" in notes


def test_the_only_dataset_of_a_folder_is_found(write, tmp_path):
    (tmp_path / "datasets" / "spine" / "volumes").mkdir(parents=True)
    content = changed(PRETRAINING, dataset={"path": str(tmp_path / "datasets")})
    config = compose_training(translate(write(content))[0].overrides)
    assert config.data.root == str(tmp_path / "datasets" / "spine")
    (tmp_path / "datasets" / "heart" / "volumes").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"several datasets \(heart, spine\)"):
        translate(write(content))


def test_what_a_file_leaves_out_is_as_in_the_original_s_own_files_and_told(write):
    (translation,) = translate(write({"model": {"name": "ddpm"}, "dataset": {"name": "chest"}}))
    config = compose_training(translation.overrides)
    assert config.optimizer.lr == pytest.approx(1e-4)  # 1e-5, and ten times as much from scratch
    assert (config.trainer.max_epochs, config.trainer.grad_accumulation, config.data.batch_size) == (200, 8, 2)
    assert (config.task.sigma, config.data.preprocess.image_size, config.model.width) == (5, 256, 256)
    assert "model.lr not given: 1e-05, as in the original's own files" in translation.notes
    (translation,) = translate(write({"model": {"unet": {}}, "dataset": {"name": "chest"}}))
    config = compose_training(translation.overrides)
    assert (config.optimizer.lr, config.trainer.max_steps, config.trainer.validate_every) == (1e-4, 30000, 2000)
    assert (config.data.batch_size, config.task.n_timestep, config.task.linear_end) == (4, 500, 0.02)
    assert "model.iterations not given: 30000, as in the original's own files" in translation.notes


def test_numbers_may_be_text_or_have_a_point(write):
    content = changed(PRETRAINING, dataset={"image_size": 16.0, "batch_size": "3"}, model={"lr": "1e-3"})
    content["model"] |= {"beta_schedule": {"train": {"n_timestep": 20.0, "schedule": "Cosine"}}}
    (translation,) = translate(write(content))
    config = compose_training(translation.overrides)
    assert (config.data.preprocess.image_size, config.data.batch_size, config.optimizer.lr) == (16, 3, 1e-3)
    assert (config.task.schedule, config.task.n_timestep) == ("cosine", 20)
    assert config.output_dir.endswith("/cosine_20/size16_ch1")


def test_weights_of_two_studies_or_versions_have_folders_of_their_own(write):
    long = [f"{study}/out/pre/chest/linear_500/size64_ch1/last_ema_model.pt" for study in ("a", "b", "/a", "/b")]
    names = [*long, "runs/v1.0", "runs/v1.1", "runs/v1"]
    options = [read_original_options([f"pretrained={name}"])[0] for name in names]
    assert len({folder(translate(write(DOWNSTREAM), option)[0]) for option in options}) == len(names)
    near, far = (read_original_options([f"pretrained={name}"])[0] for name in ("runs/x.pt", "./runs/x.pt"))
    assert folder(translate(write(DOWNSTREAM), near)[0]) == folder(translate(write(DOWNSTREAM), far)[0])


def test_a_series_in_one_file_says_how_it_runs(write):
    with pytest.raises(ConfigError, match=r"give data\.training_samples=5 beside"):
        translate(write(changed(DOWNSTREAM, dataset={"training_samples": [5, 10]})))
    config = compose_training(translate(write(changed(DOWNSTREAM, dataset={"training_samples": "All"})))[0].overrides)
    assert config.data.training_samples == "all"


def test_a_gpu_may_be_named_in_any_of_the_usual_ways(write, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for gpu, device in (([1], [1]), ([0, 1], [0]), ("1,0", [1]), ("cuda:1", [1]), ("cuda", [0])):
        overrides = translate(write({**DOWNSTREAM, "gpu": gpu}))[0].overrides
        assert [line for line in overrides if line.startswith("trainer.devices")] == [f"trainer.devices={device}"]
    for gpu in ("cpu", -1):
        overrides = translate(write({**DOWNSTREAM, "gpu": gpu}))[0].overrides
        assert {"trainer.accelerator=cpu", "trainer.devices=1"} <= set(overrides)
    for gpu in ([], True, "first", ""):
        with pytest.raises(ConfigError, match="gpu: expected a number such as 0"):
            translate(write({**DOWNSTREAM, "gpu": gpu}))


def test_another_dataset_than_the_named_one_is_not_taken(write, tmp_path):
    (tmp_path / "datasets" / "spine" / "volumes").mkdir(parents=True)
    content = changed(PRETRAINING, dataset={"path": str(tmp_path / "datasets"), "name": "heart"})
    with pytest.raises(ConfigError, match="holds no heart; expected one of its datasets: spine"):
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
        (changed(DOWNSTREAM, model={"lr": "fast"}), ConfigError, "model.lr: expected a number, got 'fast'"),
        (changed(DOWNSTREAM, model={"lr": True}), ConfigError, "model.lr: expected a number, got True"),
        (changed(DOWNSTREAM, model={"lr": "nan"}), ConfigError, "model.lr: expected a number, got 'nan'"),
        (changed(DOWNSTREAM, dataset={"sigma": True}), ConfigError, "dataset.sigma: expected a number, got True"),
        (changed(DOWNSTREAM, model={"unet": [1, 2]}), ConfigError, "model.unet: expected an object"),
        ({**DOWNSTREAM, "training_protocol": True}, ConfigError, "training_protocol.scratch: expected an object"),
        (
            changed(PRETRAINING, model={"beta_schedule": {"train": None}}),
            ConfigError,
            "beta_schedule.train: expected an",
        ),
        (changed(PRETRAINING, model={"loss_type": 2}), ConfigError, "model.loss_type: expected a word, got 2"),
        (
            changed(DOWNSTREAM, dataset={"training_samples": 2.5}),
            ConfigError,
            "dataset.training_samples: expected a whole number from 1 on, got 2.5",
        ),
        (
            changed(DOWNSTREAM, training_protocol={"scratch": {"apply": False}, "finetuning": {"apply": False}}),
            ConfigError,
            "expected apply: true in scratch or in finetuning",
        ),
        (changed(DOWNSTREAM, training_protocol={"finetuning": {"apply": True}}), ConfigError, "finetuning.path"),
        ({**DOWNSTREAM, "is_3d": "yes"}, ConfigError, "is_3d: expected true or false, got 'yes'"),
        (changed(DOWNSTREAM, training_protocol={"apply": "no"}), ConfigError, "training_protocol.apply: expected true"),
        (changed(PRETRAINING, model={"use_ema": "on"}), ConfigError, "model.use_ema: expected true or false"),
        (changed(PRETRAINING, model={"iterations": 0}), ConfigError, "model.iterations: expected a whole number from"),
        (changed(PRETRAINING, model={"unet": {"attn_res": [16]}}), ConfigError, "model.unet.attn_res: expected a"),
        (changed(PRETRAINING, model={"unet": {"channel_mults": "1,2"}}), ConfigError, "channel_mults: expected a list"),
        (changed(PRETRAINING, dataset={"path": None}), ConfigError, "dataset.path: expected a name"),
        (changed(PRETRAINING, dataset={"image_size": [16, 16]}), ConfigError, "image_size: expected one number or 3"),
        ({**PRETRAINING, "experiment_path": "${HOME}/runs"}, ConfigError, "experiment_path: expected a name, without"),
        (changed(PRETRAINING, dataset={"name": "chest"}), ConfigError, "is_3d: dataset.name=chest is a collection"),
    ],
)
def test_a_file_that_can_t_be_used_is_named(write, content, error, fault):
    path = write(content)
    with pytest.raises(error, match=fault) as caught:
        translate(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["007", "1e3", "null", "True", "nan", "it's", "a=b,c", "weights_2", "data\\win", "end\\"]
)
def test_a_name_stays_a_name(write, name):
    content = changed(PRETRAINING, dataset={"path": name})
    assert compose_training(translate(write(content))[0].overrides).data.root == name


def test_yaml_is_read_without_its_tags(write, tmp_path):
    assert translate(write("model: {unet: {}}\ndataset: {}\n", "config.yaml"))
    path = write(f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n", "config.yml")
    with pytest.raises(FileError, match="not plain YAML"):
        translate(path)
    assert not (tmp_path / "made").exists()

"""Fast-DDPM's configuration files run as they are: the published ones, and the 3-D one of the original."""

import math

import numpy as np
import pytest
import yaml

from voxelry.core.errors import ConfigError
from voxelry.core.space import Space
from voxelry.diffusion.schedules import Schedule
from voxelry.engine.compose import compose_training
from voxelry.interop.legacy.fast_ddpm_config import data_set, translate
from voxelry.interop.legacy.fast_ddpm_options import Options, read_options
from voxelry.interop.legacy.overrides import read_settings
from voxelry.io import write_image

PUBLISHED = {
    "data": {
        "dataset": "PMUB",  # as all three published files say, whatever their images are
        "train_dataroot": "data/LD_FD_CT_train",
        "sample_dataroot": "data/LD_FD_CT_test",
        "val_dataroot": "data/PMUB-val",
        "image_size": 256,
        "channels": 1,
        "logit_transform": False,
        "uniform_dequantization": False,
        "gaussian_dequantization": False,
        "random_flip": True,
        "rescaled": True,
        "num_workers": 8,
    },
    "model": {
        "type": "sg",
        "in_channels": 2,
        "out_ch": 1,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
        "var_type": "fixedsmall",
        "ema_rate": 0.999,
        "ema": True,
        "resamp_with_conv": True,
    },
    "diffusion": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_diffusion_timesteps": 1000},
    "training": {
        "batch_size": 16,
        "n_epochs": 10000,
        "n_iters": 5000000,
        "snapshot_freq": 100000,
        "validation_freq": 2000,
    },
    "sampling": {"batch_size": 32, "ckpt_id": [100000], "last_only": True},
    "sampling_fid": {"batch_size": 1},
    "optim": {
        "weight_decay": 0.0,
        "optimizer": "Adam",
        "lr": 0.00002,
        "beta1": 0.9,
        "amsgrad": False,
        "eps": 0.00000001,
    },
}
SEED = """
data:
    dataset: "BRATS"
    image_size: 128
    depth: 64
    channels: 1
model:
    type: "sg"
    in_channels: 2
    out_ch: 1
    ch: 64
    ch_mult: [1, 2, 4]
training:
    batch_size: 1
"""


LDFDCT = ("--dataset", "LDFDCT")


@pytest.fixture
def read(tmp_path):
    def translated(content, *arguments):
        path = tmp_path / "fast_ddpm.yml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        options, rest = read_options(arguments)
        assert not rest
        return translate(path, read_settings(path), options)

    return translated


def changed(part, **values):
    return {**PUBLISHED, part: {**PUBLISHED[part], **values}}


def test_the_published_file_composes(read):
    config = compose_training(read(PUBLISHED, *LDFDCT).overrides)
    assert (config.ndim, config.task.mode, config.task.objective) == (2, "diffusion", "epsilon")
    assert (config.model.width, config.model.multipliers) == (128, [1, 1, 2, 2, 4, 4])
    assert config.model.attention == ["none", "none", "none", "none", "full", "none"]
    assert config.model.middle_attention == "full"
    assert (config.task.schedule, config.task.n_timestep) == ("linear", 1000)
    assert (config.task.linear_start, config.task.linear_end) == (1e-4, 0.02)
    assert (config.task.spacing, config.task.steps) == ("fast_ddpm_uniform", 10)
    assert (config.data.layout, config.data.root) == ("ldfdct", "data/LD_FD_CT_train")
    assert config.data.roots == {"validation": None, "test": "data/LD_FD_CT_test"}
    assert (config.data.preprocess.image_size, config.data.preprocess.window) == ([256, 256], [0, 255])
    assert (config.data.batch_size, config.data.num_workers) == (16, 8)
    assert (config.trainer.max_epochs, config.trainer.ema) == (10000, 0.999)
    assert (config.trainer.checkpoint_every, config.trainer.validate_every) == (100000, 2000)
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert config.optimizer.lr == 2e-5
    assert config.learning_rate._target_.endswith("Constant")
    assert list(config.augment.flip) == [0, 0.5]
    assert (config.seed, config.output_dir) == (1244, "runs/fast_ddpm")


def test_every_key_is_accounted_for(read):
    notes = "\n".join(read(PUBLISHED, *LDFDCT).notes)
    silent = {"optim.weight_decay", "optim.beta1", "optim.amsgrad", "optim.eps"}  # what PyTorch does anyway
    silent |= {"model.resamp_with_conv", "model.ema_rate"}
    for part, section in PUBLISHED.items():
        for key in section if isinstance(section, dict) else ():
            name = f"{part}.{key}"
            assert name in notes or name in silent or part.startswith("sampling"), name
    assert "sampling ignored: a trained bundle is used by voxelry predict" in notes
    assert "loss: a mean over the voxels" in notes
    assert "training.n_iters ignored: n_epochs decides" in notes
    assert "data.val_dataroot ignored: data/PMUB-val holds no pairs of this kind" in notes


def test_every_option_of_the_command_line_is_accounted_for(read):
    given = ["--exp", "E", "--doc", "D", "--comment", "first", "--verbose", "debug", "--seed", "7", "--eta", "0.5"]
    given += ["--fid", "--interpolation", "--sequence", "-i", "pictures", "--ni", "--use_pretrained"]
    given += ["--resume_training", "--sample_type", "generalized", "--scheduler_type", "non-uniform"]
    translation = read(PUBLISHED, *LDFDCT, "--timesteps", "20", *given)
    config = compose_training(translation.overrides)
    assert (config.output_dir, config.seed, config.resume) == ("E/logs/D", 7, True)
    assert (config.task.spacing, config.task.steps) == ("fast_ddpm_non_uniform", 20)
    assert (config.task.sampler, config.task.eta) == ("ddim", 0.5)
    notes = "\n".join(translation.notes)
    for flag in (flag for flag in [*LDFDCT, "--timesteps", *given] if flag.startswith("--")):
        assert flag in notes or flag == "--dataset", flag
    noisy = compose_training(read(PUBLISHED, *LDFDCT, "--sample_type", "ddpm_noisy", "--eta", "0.5").overrides)
    assert (noisy.task.sampler, noisy.task.eta) == ("ddpm", 0.0)  # which has no eta there, either


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["--scheduler_type", "cosine"], "--scheduler_type: invalid choice: 'cosine'"),
        (["--timesteps", "many"], "--timesteps: invalid int value: 'many'"),
        (["--sample", "--interpolation"], "--interpolation: the original names this sampler and doesn't define it"),
        (["--timesteps", "0"], "--timesteps: expected at least 1, got 0"),
        (["--exp"], "--exp: expected one argument"),
    ],
)
def test_an_option_that_can_t_be_is_one_line(given, fault):
    with pytest.raises(ConfigError, match=fault):
        read_options(given)


def test_our_overrides_and_the_originals_options_stand_side_by_side():
    options, rest = read_options(["data.root=x", "--doc", "d", "trainer.max_steps=5", "--multirun"])
    assert (options.doc, rest) == ("d", ["data.root=x", "trainer.max_steps=5", "--multirun"])
    assert str(options.folder) == "exp/logs/d"
    assert Options().folder is None
    assert str(Options(sample=True, fid=True, exp="e").images) == "e/image_samples/Fast-DDPM_experiments/images_fid"
    assert str(Options(sample=True).images) == "images"


def test_the_plan_is_that_of_the_original(read):
    from voxelry.tasks.translate.paths import make_path

    config = compose_training(read(PUBLISHED, *LDFDCT).overrides)
    settings = {name: config.task[name] for name in ("objective", "schedule", "n_timestep", "linear_start")}
    plan = make_path("diffusion", settings | {"spacing": config.task.spacing, "steps": config.task.steps}).plan
    assert plan.steps == (0, 99, 199, 299, 399, 499, 599, 699, 799, 899, 999)
    assert plan.trained == plan.steps


def test_the_seeds_volumes_take_the_originals_values_for_what_they_leave_out(read):
    translation = read(SEED)
    config = compose_training([*translation.overrides, "data.root=DATA"])
    assert (config.ndim, config.data.layout) == (3, "ab")
    assert config.data.preprocess.image_size == [64, 128, 128]
    assert (config.model.width, config.model.multipliers) == (64, [1, 2, 4])
    assert config.model.attention == ["none", "none", "none"]
    assert (config.data.batch_size, config.task.schedule) == (1, "linear")
    assert config.augment.flip == 0.5  # along all three axes, as the document's transform_3d_augment
    assert any("give data.root=FOLDER" in note for note in translation.notes)


def test_slices_on_both_sides_become_thick_slices_in_a_volume(read):
    content = {
        "data": {"dataset": "PMUB", "train_dataroot": "x", "image_size": 64},
        "model": {"type": "sr", "ch_mult": [1]},
    }
    assert compose_training(read(content).overrides).data.layout == "pmub"
    volumes = {**content, "data": {**content["data"], "depth": 32}}
    config = compose_training(read(volumes).overrides)
    assert (config.data.pairs.resample, config.data.layout) == (True, "ab")


def write_pairs(root, values=((0, 255), (0, 255)), names=("1_ld.png", "1_fd.png"), shape=(8, 8), dtype=np.uint8):
    for name, (low, high) in zip(names, values, strict=True):
        array = np.linspace(low, high, math.prod(shape)).reshape(1, *shape).astype(dtype)
        write_image(root / name, array, Space.from_spacing(shape))
    return root


def test_the_published_files_name_one_data_set_and_mean_the_folders(read, tmp_path):
    low_dose = write_pairs(tmp_path / "LD_FD_CT_train")
    brats = write_pairs(tmp_path / "train2D", ((-1, 1), (-1, 1)), ("A/1.npy", "B/1.npy"), dtype=np.float32)
    for root, layout, window, augment in ((low_dose, "ldfdct", [0, 255], True), (brats, "ab", [-1, 1], False)):
        content = changed("data", train_dataroot=str(root))
        config = compose_training(read(content).overrides)
        assert (config.data.layout, config.data.preprocess.window) == (layout, window)
        assert bool(config.augment) is augment  # random_flip is in all the files, and looked at in none
    with pytest.raises(ConfigError, match=r"data.dataset: PMUB, which the published .* give --dataset BRATS or"):
        read(PUBLISHED)
    with pytest.raises(ConfigError, match=r"--dataset PMUB: has two conditions, but model.type sg has one"):
        read(PUBLISHED, "--dataset", "PMUB")


def test_ct_that_is_not_in_bytes_is_in_hounsfield_units(tmp_path):
    root = write_pairs(tmp_path / "ct", ((-1000, 900), (-1000, 900)), ("A/1.npy", "B/1.npy"), (4, 8, 8), np.int16)
    data = {"dataset": "LDFDCT", "depth": 4, "train_dataroot": str(root)}
    assert data_set(tmp_path / "f.yml", data, "sg", Options()).window == (-1024, 3071)


def test_a_validation_folder_of_the_same_kind_is_used(read, tmp_path):
    train, other = (str(write_pairs(tmp_path / name)) for name in ("train", "other"))
    config = compose_training(read(changed("data", train_dataroot=train, val_dataroot=other)).overrides)
    assert config.data.roots.validation == other


def test_what_differs_from_pytorch_is_taken_over(read):
    optim = {"weight_decay": 0.01, "beta1": 0.5, "amsgrad": True, "eps": "1e-6", "grad_clip": 0.5}
    config = compose_training(read(changed("optim", **optim), *LDFDCT).overrides)
    assert (config.optimizer.weight_decay, config.optimizer.amsgrad, config.optimizer.eps) == (0.01, True, 1e-6)
    assert config.optimizer.betas == [0.5, 0.999]
    assert config.trainer.gradient_clip_val == 0.5
    config = compose_training(read(changed("model", resamp_with_conv=False, ema=False), *LDFDCT).overrides)
    assert (config.model.down, config.model.up, config.trainer.ema) == ("average", "nearest", None)
    never = compose_training(read(changed("training", validation_freq=5000000000), *LDFDCT).overrides)
    assert never.trainer.validate_every == compose_training(["experiment=translate_2d"]).trainer.validate_every


def test_numbers_as_text_and_images_that_are_not_square_are_understood(read):
    content = changed("data", image_size=[128, "64"], depth=None)
    content["optim"] = {**content["optim"], "lr": "2e-5"}
    content["model"] = {**content["model"], "ch": 32.0, "attn_resolutions": None}
    config = compose_training(read(content, *LDFDCT).overrides)
    assert (config.ndim, config.data.preprocess.image_size, config.model.width) == (2, [128, 64], 32)
    assert config.optimizer.lr == 2e-5
    assert set(config.model.attention) == {"none"}


@pytest.mark.parametrize("name", ["linear", "quad", "sigmoid", "alpha_cosine", "alpha_sigmoid", "alpha_linear"])
def test_every_schedule_of_the_original_is_there(read, name):
    config = compose_training(read(changed("diffusion", beta_schedule=name), *LDFDCT).overrides)
    schedule = Schedule.from_name(config.task.schedule, steps=config.task.n_timestep)
    assert len(schedule) == 1000


def test_what_is_not_known_is_told(read):
    translation = read({**changed("training", weather=3), "colour": 1, "extra": {"a": 1}}, *LDFDCT)
    assert "training.weather ignored: no such setting" in translation.notes
    assert "colour ignored: no such setting" in translation.notes
    assert "extra ignored: no such setting" in translation.notes


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (changed("model", type="bayesian"), r"model.type: expected sg \(one condition\) or sr \(two\), got 'bayesian'"),
        (changed("data", dataset="CIFAR10"), "data.dataset: expected one of BRATS, LDFDCT, PMUB, got 'CIFAR10'"),
        (changed("diffusion", beta_schedule="const"), "diffusion.beta_schedule: expected one of linear, quad"),
        ({**PUBLISHED, "optim": [1]}, "optim: expected keys with values below it"),
        (changed("optim", lr=True), "optim.lr: expected a number, got True"),
        (changed("model", ch="wide"), "model.ch: expected a whole number from 1 on, got 'wide'"),
        (changed("model", ch_mult="1,2"), "model.ch_mult: expected a list of whole numbers"),
        (changed("model", ema="on"), "model.ema: expected true or false, got 'on'"),
        (changed("training", batch_size=0), "training.batch_size: expected a whole number from 1 on, got 0"),
        (changed("data", image_size=[8, 8, 8]), "data.image_size: expected one number or two"),
        (changed("optim", optimizer="RMSProp"), "optim.optimizer: expected one of adamw, adam, sgd, got 'RMSProp'"),
    ],
)
def test_what_there_is_not_is_an_error(read, content, fault):
    given = () if content["data"]["dataset"] == "CIFAR10" else LDFDCT
    with pytest.raises(ConfigError, match=f"fast_ddpm.yml: {fault}"):
        read(content, *given)


def test_a_part_that_is_none_is_an_error(read):
    with pytest.raises(ConfigError, match="data: expected keys with values below it, got None"):
        read({**PUBLISHED, "data": None})

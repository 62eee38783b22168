"""Fast-DDPM's configuration files run as they are: the published ones, and the 3-D one of the seed."""

import pytest
import yaml

from voxelry.core.errors import ConfigError
from voxelry.engine.compose import compose_training
from voxelry.interop.seed_config import translate

PUBLISHED = {
    "data": {
        "dataset": "LDFDCT",
        "train_dataroot": "data/LD_FD_CT_train",
        "sample_dataroot": "data/LD_FD_CT_test",
        "val_dataroot": "data/LD_FD_CT_test",
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


@pytest.fixture
def read(tmp_path):
    def translated(content):
        path = tmp_path / "fast_ddpm.yml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        (translation,) = translate(path)
        return translation

    return translated


def changed(part, **values):
    return {**PUBLISHED, part: {**PUBLISHED[part], **values}}


def test_the_published_file_composes(read):
    config = compose_training(read(PUBLISHED).overrides)
    assert (config.ndim, config.task.mode, config.task.objective) == (2, "diffusion", "epsilon")
    assert (config.model.width, config.model.multipliers) == (128, [1, 1, 2, 2, 4, 4])
    assert config.model.attention == ["none", "none", "none", "none", "full", "none"]
    assert config.model.middle_attention == "full"
    assert (config.task.schedule, config.task.n_timestep) == ("linear", 1000)
    assert (config.task.linear_start, config.task.linear_end) == (1e-4, 0.02)
    assert (config.task.spacing, config.task.steps) == ("fast_ddpm_uniform", 10)
    assert (config.data.layout, config.data.root) == ("ldfdct", "data/LD_FD_CT_train")
    assert (config.data.preprocess.image_size, config.data.preprocess.window) == ([256, 256], [0, 255])
    assert (config.data.batch_size, config.data.num_workers) == (16, 8)
    assert (config.trainer.max_epochs, config.trainer.ema) == (10000, 0.999)
    assert (config.trainer.checkpoint_every, config.trainer.validate_every) == (100000, 2000)
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert config.optimizer.lr == 2e-5
    assert config.augment.flip > 0
    assert config.output_dir == "runs/fast_ddpm"


def test_every_key_is_accounted_for(read):
    notes = "\n".join(read(PUBLISHED).notes)
    silent = {"optim.weight_decay", "optim.beta1", "optim.amsgrad", "optim.eps"}  # what PyTorch does anyway
    silent |= {"model.resamp_with_conv", "model.ema_rate"}
    for part, section in PUBLISHED.items():
        for key in section if isinstance(section, dict) else ():
            name = f"{part}.{key}"
            assert name in notes or name in silent or part.startswith("sampling"), name
    assert "sampling ignored: a trained bundle is used by voxelry predict" in notes
    assert "loss: a mean over the voxels" in notes
    assert "training.n_iters ignored: n_epochs decides" in notes


def test_the_plan_is_that_of_the_original(read):
    from voxelry.tasks.translate.paths import make_path

    config = compose_training(read(PUBLISHED).overrides)
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
    assert "flip" not in config.augment
    assert any("give data.root=FOLDER" in note for note in translation.notes)


def test_slices_on_both_sides_become_thick_slices_in_a_volume(read):
    content = {
        "data": {"dataset": "PMUB", "train_dataroot": "x", "image_size": 64},
        "model": {"type": "sr", "ch_mult": [1]},
    }
    assert compose_training(read(content).overrides).data.layout == "pmub"
    volumes = {**content, "data": {**content["data"], "dataset": "BRATS", "depth": 32}}
    assert compose_training(read(volumes).overrides).data.pairs.resample is True


def test_folders_of_the_parts_make_one_root_with_a_split(read):
    translation = read(changed("data", train_dataroot="d/train", val_dataroot="d/val", sample_dataroot="d/test"))
    assert compose_training(translation.overrides).data.root == "d"
    notes = read(PUBLISHED).notes
    assert any(note.startswith("data.sample_dataroot ignored: cases are held out") for note in notes)


def test_what_differs_from_pytorch_is_taken_over(read):
    optim = {"weight_decay": 0.01, "beta1": 0.5, "amsgrad": True, "eps": "1e-6", "grad_clip": 0.5}
    config = compose_training(read(changed("optim", **optim)).overrides)
    assert (config.optimizer.weight_decay, config.optimizer.amsgrad, config.optimizer.eps) == (0.01, True, 1e-6)
    assert config.optimizer.betas == [0.5, 0.999]
    assert config.trainer.gradient_clip_val == 0.5
    config = compose_training(read(changed("model", resamp_with_conv=False, ema=False)).overrides)
    assert (config.model.down, config.model.up, config.trainer.ema) == ("average", "nearest", None)


def test_what_is_not_known_is_told(read):
    translation = read({**changed("training", weather=3), "colour": 1, "extra": {"a": 1}})
    assert "training.weather ignored: no such setting" in translation.notes
    assert "colour ignored: no such setting" in translation.notes
    assert "extra ignored: no such setting" in translation.notes


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (changed("model", type="bayesian"), r"model.type: expected sg \(one condition\) or sr \(two\), got 'bayesian'"),
        (changed("data", dataset="CIFAR10"), "data.dataset: expected one of BRATS, LDFDCT, PMUB, got 'CIFAR10'"),
        (changed("diffusion", beta_schedule="const"), "diffusion.beta_schedule: expected one of linear, quad"),
        (changed("optim", optimizer="RMSProp"), "optim.optimizer: expected one of adamw, adam, sgd, got 'RMSProp'"),
    ],
)
def test_what_there_is_not_is_an_error(read, content, fault):
    with pytest.raises(ConfigError, match=f"fast_ddpm.yml: {fault}"):
        read(content)

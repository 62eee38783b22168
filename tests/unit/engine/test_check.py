"""Settings that can't be are refused in one line that names them as they are typed."""

import pytest
import torch
from omegaconf import OmegaConf

from voxelry.core.errors import ConfigError
from voxelry.engine.check import check_settings, drop_defaults
from voxelry.engine.compose import compose_training, settle


@pytest.fixture(scope="module")
def configured():
    """Configurations by experiment, composed once."""
    found: dict = {}

    def configuration(experiment: str):
        if experiment not in found:
            found[experiment] = compose_training([f"experiment={experiment}", "data.root=nowhere"])
        return found[experiment].copy()

    return configuration


def changed(config, name, value):
    OmegaConf.update(config, name, value, force_add=True)
    return config


@pytest.mark.parametrize(
    ("experiment", "name", "value", "fault"),
    [
        ("landmarks_3d", "trainer.precision", "fp16", "expected one of auto, 32-true, 16-mixed"),
        ("landmarks_3d", "trainer.precision", "64-true", "expected one of auto, 32-true, 16-mixed"),
        ("landmarks_3d", "trainer.validate_every", 0, "expected a whole number from 1"),
        ("landmarks_3d", "trainer.ema", 2, "expected a decay from 0 to below 1, or null"),
        ("landmarks_3d", "trainer.max_steps", 1000.0, "expected a whole number from 1"),
        ("landmarks_3d", "trainer.max_minutes", float("nan"), "expected a number above 0"),
        ("landmarks_3d", "trainer.grad_accumulation", None, "expected a whole number from 1"),
        ("landmarks_3d", "trainer.logger", "wandb", "expected one of csv, tensorboard"),
        ("landmarks_3d", "data.batch_size", 0, "expected a whole number from 1"),
        ("landmarks_3d", "data.batch_size", True, "expected a whole number from 1"),
        ("landmarks_3d", "data.num_workers", -1, "expected a whole number from 0, or null"),
        ("landmarks_3d", "data.training_samples", "few", "expected all or a whole number from 1"),
        ("landmarks_3d", "data.split.fractions", [0.5, 0.2], "that sum to 1"),
        ("landmarks_3d", "data.preprocess.image_size", "big", "expected a whole number, a list or null"),
        ("landmarks_3d", "data.preprocess.clip", -1.0, "expected no number below 0"),
        ("landmarks_3d", "data.preprocess", None, "expected a mapping"),
        ("landmarks_3d", "optimizer.lr", "abc", "expected a number from 0"),
        ("landmarks_3d", "optimizer.weight_decay", None, "expected a number"),
        ("landmarks_3d", "learning_rate.warmup", 2, "expected a fraction"),
        ("landmarks_3d", "model.width", 0, "expected a number above 0"),
        ("landmarks_3d", "model.width", "wide", "expected a whole number"),
        ("landmarks_3d", "task.sigma", float("inf"), "expected a number"),
        ("landmarks_3d", "augment.rotation", "abc", "expected a number or a list"),
        ("landmarks_3d", "ndim", 4, "expected 2 or 3"),
        ("landmarks_3d", "seed", -1, "expected a whole number from 0"),
        ("reconstruct_3d", "task.weights.mask", -1.0, "expected no number below 0"),
        ("landmarks_3d", "data.foo", 1, "no such setting; expected one of"),
        ("landmarks_3d", "data.image_size", 32, "no such setting; the nearest is data.preprocess.image_size"),
        ("landmarks_3d", "data.preprocess.spacin", 1, "no such setting; the nearest is data.preprocess.spacing"),
        ("landmarks_3d", "data.options.spacin", 1, "no such setting; the nearest is data.options.spacing"),
        ("landmarks_3d", "data.point_options.axes", "zyx", "no such setting"),
        ("landmarks_3d", "trainer.max_stepz", 1, "no such setting; the nearest is trainer.max_steps"),
        ("landmarks_3d", "trainer.lr", 1, "no such setting; the nearest is optimizer.lr"),
        ("landmarks_3d", "trainr.max_steps", 1, "no such setting; the nearest is trainer"),
        ("landmarks_3d", "augment.rotaton", 1, "no such setting; the nearest is augment.rotation"),
        ("landmarks_3d", "optimizer.beta", [0.9, 0.9], "no such setting; the nearest is optimizer.betas"),
        ("landmarks_3d", "launcher.foo", 1, "no such setting"),
        ("reconstruct_3d", "adapter", {"ranks": 2}, "no such setting; the nearest is adapter.rank"),
        ("segment_3d", "model.anchors.sizes", [8, 16], "expected a list of lists or null"),
        ("landmarks_3d", "model.multipliers", [1, 0], "expected a number above 0"),
        ("segment_3d", "task.class_names", [1, 2], "expected a list of words or null"),
        ("translate_3d", "task.spacing", [-1, 10], "expected a word, or a list of time steps from 0"),
        ("landmarks_3d", "data.split.seed", -1, "expected a whole number from 0, or null"),
        ("reconstruct_3d", "adapter.rank", 0, "expected at least 1"),
        ("reconstruct_3d", "data.slices.augment.rotatio", 1, "the nearest is data.slices.augment.rotation"),
        ("segment_3d", "backbone.backbone.stem_strid", 1, "the nearest is backbone.backbone.stem_stride"),
        ("segment_3d", "model.box.scor_thresh", 0.1, "the nearest is model.box.score_thresh"),
        ("segment_3d", "model.rpn_nms_thresh", 0.5, "the nearest is model.rpn.nms_thresh"),
        ("segment_3d", "model.anchor_sizes", [[8]], "the nearest is model.anchors.sizes"),
        ("segment_3d", "model.min_size", 64, "the nearest is model.transform.min_size"),
        ("segment_3d", "model.mask", 1, "expected a mapping or null"),
        ("segment_3d", "task.loss_weights.maks", 1, "the nearest is task.loss_weights.mask"),
        ("pretrain_mae_3d", "model.encoder.embd_dim", 9, "the nearest is model.encoder.embed_dim"),
        ("translate_3d", "data.degrade.steps", [{"name": "gaussia"}], "did you mean 'gaussian'"),
        ("landmarks_3d", "model._target_", "no.such", "expected the name of a class"),
        ("landmarks_3d", "task._target_", "os.system", "expected the class of one of landmarks"),
    ],
)
def test_a_setting_that_can_not_be_is_named(configured, experiment, name, value, fault):
    with pytest.raises(ConfigError) as caught:
        check_settings(changed(configured(experiment), name, value))
    told = str(caught.value)
    assert told.startswith((name, name.partition(".")[0]))
    assert fault in told


@pytest.mark.parametrize(
    ("experiment", "name", "value"),
    [
        ("landmarks_3d", "task.sigma", [1, 2, 3]),
        ("landmarks_3d", "model.eps", 1e-6),
        ("landmarks_3d", "optimizer.betas", [0.9, 0.99]),
        ("landmarks_3d", "data.patches", {"size": [64, 64, 64], "foreground": 0.5}),
        ("landmarks_3d", "data.preprocess.window", [-1000, 2000]),
        ("landmarks_3d", "trainer.devices", [0]),
        ("landmarks_3d", "data.split.seed", None),
        ("translate_3d", "task.spacing", [0, 10, 20]),
        ("landmarks_3d", "augment.fill", -1000),
        ("landmarks_3d", "launcher._target_", "voxelry.engine.train.train_process"),
        ("pretrain_3d", "task.diffusion_range", [-1, 1]),
        ("segment_3d", "model.anchors.sizes", [[12], [24]]),
        ("segment_3d", "model.mask", None),
        ("segment_3d", "task.voxel_size", [0.001, 0.001, 0.001]),
        ("reconstruct_3d", "data.slices.organs", [[1, 2]]),
        ("reconstruct_3d", "adapter", {"name": "liver", "rank": 4, "alpha": 8, "head_rate": None}),
        ("translate_3d", "task.growing", [[0.0, 4], [0.3, 2]]),
    ],
)
def test_a_setting_that_can_be_is_taken(configured, experiment, name, value):
    check_settings(changed(configured(experiment), name, value))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["data.options={spacing:", "[5,", "1,", "1]}"], ["++data.options={spacing: [5, 1, 1]}"]),
        (['data.options={"spacing": [5,1,1]}'], ["++data.options={spacing: [5,1,1]}"]),
        (["data.root=2024", "output_dir=1e5", "seed=2"], ["++data.root='2024'", "++output_dir='1e5'", "++seed=2"]),
        (["launcher.env={A: b}", "seed=1"], ["++launcher.env={A: b}", "++seed=1"]),
        (["data.root=/my study (1), ü"], ["++data.root='/my study (1), ü'"]),
        (["--cfg", "job", "-m", "+model.eps=1e-6"], ["--cfg", "job", "-m", "++model.eps=1e-6"]),
        (
            ["model=unet_tiny,unet_small", "hydra/launcher=basic"],
            ["model=unet_tiny,unet_small", "hydra/launcher=basic"],
        ),
    ],
)
def test_arguments_mean_what_they_say(typed, expected):
    assert settle(typed) == expected


@pytest.mark.parametrize(
    ("typed", "fault"),
    [
        ("foo", "foo: expected KEY=VALUE"),
        ("model=unet_smal", "did you mean .unet_small"),
        ("trainer=null", "trainer: expected one of default, gpu"),
        ("data.options={spacing: [5,1}", r"data\.options: can't read"),
    ],
)
def test_arguments_that_can_not_be_read_are_named(typed, fault):
    with pytest.raises(ConfigError, match=fault):
        settle([typed])


def test_mappings_of_a_default_without_keys_take_any_that_there_are():
    config = compose_training(
        ["experiment=segment_3d", "data.root=x", "data.options={spacing: [5,1,1]}", "task.loss_weights={mask: 2}"]
    )
    check_settings(config)
    assert config.data.options.spacing == [5, 1, 1]
    assert config.task.loss_weights.mask == 2


def test_margins_of_crops_may_differ_by_axis():
    config = compose_training(["experiment=segment_3d", "data=crops", "data.index=x", "data.margin=[1,2,3]"])
    check_settings(config)
    with pytest.raises(ConfigError, match=r"data\.margin: expected a whole number from 0, or one per axis"):
        check_settings(changed(config, "data.margin", [1, -2, 3]))


def own_optimizer(params, lr, **more):
    """Somebody's own, which hands keywords on."""
    return torch.optim.SGD(params, lr=lr, weight_decay=more["weight_decay"], nesterov=more["own"])


def test_keywords_that_something_of_ones_own_hands_on_are_taken(configured):
    config = changed(configured("landmarks_3d"), "optimizer._target_", f"{__name__}.own_optimizer")
    check_settings(changed(config, "optimizer.own", False))


class OwnNetwork(torch.nn.Module):
    """A network of somebody's own, which knows nothing of a U-Net's settings."""

    def __init__(self, ndim: int, in_channels: int, out_channels: int, width: int = 8):
        super().__init__()


def test_defaults_that_a_target_of_one_s_own_doesn_t_take_are_left_out(configured):
    given = ["model._target_", f"{__name__}.OwnNetwork"], ["optimizer._target_", "torch.optim.Rprop"]
    config = configured("landmarks_3d")
    for name, value in given:
        changed(config, name, value)
    lines = drop_defaults(config)
    assert [line.partition(" takes no ")[0] for line in lines] == [
        f"model: {__name__}.OwnNetwork",
        "optimizer: torch.optim.Rprop",
    ]
    assert "multipliers" in lines[0]
    assert lines[1].endswith("no weight_decay, fused; the group's settings of that name are left out")
    assert OmegaConf.to_container(config.model) == {"_target_": f"{__name__}.OwnNetwork", "width": 16}
    assert set(config.optimizer) == {"_target_", "_partial_", "lr"}
    check_settings(config)
    assert drop_defaults(config) == []


def test_what_was_typed_for_a_target_of_one_s_own_is_not_left_out(configured):
    config = changed(configured("landmarks_3d"), "model._target_", f"{__name__}.OwnNetwork")
    changed(config, "model.multipliers", [3, 1, 4])
    drop_defaults(config)
    with pytest.raises(ConfigError, match=r"^model\.multipliers: no such setting"):
        check_settings(config)
    assert drop_defaults(configured("landmarks_3d")) == []


def test_an_image_s_own_orientation_needs_the_nearest_grid(configured):
    config = changed(configured("landmarks_3d"), "data.preprocess.orientation", None)
    with pytest.raises(ConfigError, match=r"^data\.preprocess\.align: .* with it, data\.preprocess\.align=nearest$"):
        check_settings(config)
    check_settings(changed(config, "data.preprocess.align", "nearest"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("data.root=~/x", "HOME/x"),
        ("output_dir=~", "HOME"),
        ("pretrained=~/a b/c", "HOME/a b/c"),
        ("data.root=a~b", "a~b"),
        ("data.root='~/x'", "~/x"),
    ],
)
def test_a_path_may_begin_at_home(given, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose_training(["data.root=nowhere", given])
    found = OmegaConf.select(config, given.partition("=")[0])
    assert found == expected.replace("HOME", str(tmp_path))
    assert settle(["pretrained=null,~/a,~/b"]) == [f"++pretrained=null,{tmp_path}/a,{tmp_path}/b"]


def test_flags_between_overrides_come_first_with_their_values():
    given = ["seed=1", "--multirun", "seed=2,3", "--cfg", "job"]
    assert settle(given) == ["--multirun", "--cfg", "job", "++seed=1", "++seed=2,3"]

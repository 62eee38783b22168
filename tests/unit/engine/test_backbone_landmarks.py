"""Landmarks on a backbone instead of a U-Net: trained, bundled, started from other networks."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import voxelry
from voxelry.backbones.hiera import Hiera
from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.pretrained import read_pretrained
from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import CheckpointError, ConfigError
from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.engine.compose import compose_training
from voxelry.engine.train import train
from voxelry.models.mae import MaskedAutoencoder
from voxelry.models.networks import NETWORKS
from voxelry.phantoms import write_phantoms
from voxelry.tasks.pretrain.masked import MaskedPretrainTask

HIERA = {"input_size": 32, "embed_dim": 8, "stages": [1, 1], "q_pool": 1, "mask_unit_size": 2}


@pytest.fixture(scope="module")
def torsos(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("torsos") / "flat", 4, seed=5, ndim=2, shape=(40, 48))


@pytest.fixture(scope="module")
def configured(torsos, tmp_path_factory, quick_training):
    def make(*overrides: str):
        quick = [override for override in quick_training if not override.startswith("model")]
        places = [f"data.root={torsos}", f"output_dir={tmp_path_factory.mktemp('run')}"]
        model = ["data.preprocess.image_size=32", "model=backbone_heatmaps", "model.width=8", "trainer.max_steps=1"]
        return compose_training(["experiment=landmarks_2d", *quick, *places, *model, *overrides])

    return make


@pytest.fixture(scope="module")
def run(configured):
    """A training on a residual backbone."""
    return train(configured(*RESNET))


PUBLISHED = {"hiera_2d": "hiera", "resnet_fpn_2d_basicblock": "resnet_fpn", "maskrcnn_2d": "resnet_fpn"}
RESNET = ("backbone=resnet_fpn_small", "backbone.backbone.width=4", "backbone.out_channels=8")
SMALL_HIERA = (
    "backbone=hiera",
    "backbone.out_channels=8",
    *(f"backbone.backbone.{key}={json.dumps(value, separators=(',', ':'))}" for key, value in HIERA.items()),
    "backbone.backbone.mask_unit_attention=[true,false]",
)


def test_a_run_leaves_a_bundle_that_answers_as_its_network(run, torsos, tmp_path):
    model = voxelry.load(run.bundle, "cpu")
    network = model.task.network
    assert NETWORKS.name_of(type(network)) == "backbone_heatmaps"
    assert network.backbone.backbone.name == "resnet"
    found = model.predict(sorted((torsos / "volumes").iterdir())[0])
    assert found.world.shape == (network.out_channels, 3)
    assert run.summary["mre_mm"] > 0
    again = voxelry.load(
        write_bundle(tmp_path / "again", model.task, model.bundle.preprocess, record={}, card=""), "cpu"
    )
    image = torch.rand(1, 1, 37, 32)
    with torch.no_grad():
        assert torch.equal(again.task.network(image), network(image))


def test_a_masked_autoencoder_starts_its_backbone(configured, run, tmp_path, caplog):
    autoencoder = MaskedAutoencoder(
        ndim=2,
        encoder={"name": "hiera", **HIERA, "embed_dim": 12},
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
    )
    task = MaskedPretrainTask(autoencoder)
    preprocess = voxelry.load(run.bundle).bundle.preprocess
    bundle = write_bundle(tmp_path / "mae", task, preprocess, record={}, card="")
    config = configured(*SMALL_HIERA, f"pretrained={bundle}", "optimizer.lr=0", "trainer.ema=null")
    with caplog.at_level("INFO", logger="voxelry"):
        tuned = train(config)
    assert "tensors matched" in caplog.text
    hiera = voxelry.load(tuned.bundle, "cpu").task.network.backbone.backbone
    assert hiera.settings()["embed_dim"] == 12
    for name, value in autoencoder.encoder.state_dict().items():
        assert torch.equal(hiera.state_dict()[name], value), name


def test_what_fits_nowhere_and_no_backbone_are_refused(configured, run):
    with pytest.raises(ConfigError, match="backbone: expected one, such as"):
        train(configured())
    with pytest.raises(
        CheckpointError, match="holds a backbone_heatmaps; expected a U-Net, or model=backbone_heatmaps"
    ):
        train(configured("model=unet_tiny", "~model.width", f"pretrained={run.bundle}"))


@pytest.fixture
def check_published(configured, tmp_path):
    """Weights as they are published bring the backbone of landmarks and of instances."""

    def check(weights, case, entry, ndim):
        save_file(weights, tmp_path / "published.safetensors")
        published = read_pretrained(tmp_path / "published.safetensors", ndim=ndim)
        channels = 1 if entry == "hiera" else 3
        image, space = torch.zeros(channels, *(32,) * ndim), Space.from_spacing((32,) * ndim)
        boxes = torch.tensor([[4.5] * ndim + [20.5] * ndim])
        sample = Sample(image, space, "case", landmarks=torch.zeros(2, ndim), boxes=boxes)
        segment = compose_training([f"experiment=segment_{ndim}d", "data.root=nowhere", f"backbone={entry}"])
        for config in (configured(f"backbone={entry}", f"ndim={ndim}"), segment):
            network, _ = recipe_of_config(config).network(config, [sample], published)
            backbone = network.backbone.backbone if entry == "hiera" else network.backbone
            prefix = "backbone." if case == "maskrcnn_2d" else ""
            for name, value in backbone.state_dict().items():
                assert torch.equal(value, published.weights[prefix + name]), name

    return check


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("case", "entry"), list(PUBLISHED.items()))
def test_published_weights_bring_the_backbone(golden, check_published, case, entry, ndim):
    recorded = load_file(golden / f"{case}.safetensors")
    weights = {name.removeprefix("weight."): value for name, value in recorded.items() if name.startswith("weight.")}
    check_published(weights, case, entry, ndim)


@pytest.mark.parametrize("ndim", [2, 3])
def test_weights_made_here_bring_the_backbone(check_published, ndim):
    """Our Hiera has the names of the original's tensors."""
    network = Hiera(ndim=2, in_channels=1, input_size=32, embed_dim=8, stages=[1, 1, 1], q_pool=2, mask_unit_size=4)
    check_published(network.state_dict(), "hiera_2d", "hiera", ndim)

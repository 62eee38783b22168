"""A masked autoencoder through the engine: trained, bundled, used, gone on from."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import voxelry
from voxelry.backbones.build import build_backbone
from voxelry.bundle.pretrained import Pretrained
from voxelry.bundle.registry import recipe_of
from voxelry.core.errors import CheckpointError
from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.engine.compose import compose_training
from voxelry.engine.train import train
from voxelry.io import read_image
from voxelry.models.unet import UNet
from voxelry.tasks.pretrain.masked_recipe import MaskedPretrainRecipe

SMALL = (
    "model.encoder.embed_dim=8",
    "model.encoder.stages=[1,1]",
    "model.encoder.q_pool=1",
    "model.encoder.mask_unit_size=2",
    "model.decoder_dim=16",
    "model.decoder_depth=1",
    "model.decoder_heads=2",
)


@pytest.fixture
def trained(phantoms, tmp_path, quick_training):
    def run(*overrides: str, name: str = "run"):
        quick = [override for override in quick_training if not override.startswith("model")]
        places = [f"data.root={phantoms}", f"output_dir={tmp_path / name}", "data.preprocess.image_size=16"]
        return train(compose_training(["experiment=pretrain_mae_3d", *quick, *SMALL, *places, *overrides]))

    return run


@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_a_bundle_that_completes_images(trained, phantoms, tmp_path):
    run = trained("trainer.max_steps=1")
    assert {"val_loss", "psnr", "ssim"} <= set(run.summary)
    assert "Reconstruction of hidden units" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    model = voxelry.load(run.bundle)
    path = sorted((phantoms / "volumes").iterdir())[0]
    prediction = model.predict(path)
    assert prediction.hidden.any()
    written = recipe_of(model.task).write(prediction, model.sample(path), tmp_path / "out", "nii.gz")
    image = read_image(written)
    assert written.name == f"{prediction.name}_reconstruction.nii.gz"
    assert image.space.is_close(prediction.space)
    np.testing.assert_allclose(image.array, prediction.reconstruction.numpy(), atol=1e-6)


def test_a_run_starts_from_another(trained):
    first = trained("trainer.max_steps=1", name="first")
    again = trained("trainer.max_steps=1", "optimizer.lr=0", f"pretrained={first.bundle}", name="again")
    old, new = voxelry.load(first.bundle).task, voxelry.load(again.bundle).task
    for name, value in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_network_of_another_kind_can_not_be_gone_on_from():
    config = compose_training(["experiment=pretrain_mae_3d", "data.root=nowhere", *SMALL])
    unet = Pretrained("unet", {}, UNet(ndim=3, width=8, multipliers=(1, 2)).state_dict(), (0.0, 1.0), "unet")
    dataset = [Sample(torch.zeros(1, 16, 16, 16), Space.from_spacing((16, 16, 16)), "case")]
    with pytest.raises(CheckpointError, match="unet: none of its weights fits"):
        MaskedPretrainRecipe().network(config, dataset, unet)


def test_a_published_hiera_starts_the_encoder():
    config = compose_training(["experiment=pretrain_mae_3d", "data.root=nowhere", *SMALL])
    encoder = build_backbone({**OmegaConf.to_container(config.model.encoder), "ndim": 3})
    published = Pretrained("hiera", encoder.settings(), encoder.state_dict(), (0.0, 1.0), "published")
    dataset = [Sample(torch.zeros(1, 16, 16, 16), Space.from_spacing((16, 16, 16)), "case")]
    network, report = MaskedPretrainRecipe().network(config, dataset, published)
    assert set(report.matched) == set(encoder.state_dict())
    assert torch.equal(network.encoder.patch_embed.proj.weight, encoder.patch_embed.proj.weight)

"""torchvision's and detectron2's backbones, rebuilt from their weights, give the originals' outputs to 1e-5."""

import pytest
import torch

from voxelry.backbones import FPN, ResNet, ViT, ViTDet
from voxelry.core.errors import CheckpointError
from voxelry.interop import from_reference, infer_case

RESNETS = ["resnet_fpn_2d_basicblock", "resnet_fpn_2d_bottleneck"]
SOURCES = {**dict.fromkeys(RESNETS, "torchvision-resnet-fpn"), "vitdet_2d": "detectron2-vitdet"}


def levels_of(tensors):
    """The levels that the original gave, by name."""
    found = {key.removeprefix("output.").removeprefix("fpn."): value for key, value in tensors.items()
             if key.startswith("output.") and "body" not in key and "feat" not in key}  # fmt: skip
    assert len(found) >= 3
    return found


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_levels(reference, name):
    case, weights, tensors = reference(name)
    for given in (case, {}):  # what the case says is also read from the weights
        network = from_reference(SOURCES[name], given, weights)
        assert not network.training
        found, expected = network(tensors["input.x"]), levels_of(tensors)
        assert list(found) == sorted(expected)
        for level in expected:
            assert_close(found[level], expected[level])


@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_body_of_a_resnet(reference, name):
    case, weights, tensors = reference(name)
    found = from_reference(SOURCES[name], case, weights).backbone(tensors["input.x"])
    for level in ("p2", "p3"):
        assert_close(found[level], tensors[f"output.body.{level}"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_features_of_a_vit(reference, checkpointing):
    case, weights, tensors = reference("vitdet_2d")
    network = from_reference("detectron2-vitdet", case, weights)
    network.vit.checkpointing = checkpointing
    assert_close(network.vit.features(tensors["input.x"]), tensors["output.last_feat"])


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("depth", [1, 5, 16])
@torch.no_grad()
def test_lifted_weights_give_the_2d_result_in_every_plane(reference, name, depth):
    case, weights, tensors = reference(name)
    network = from_reference(SOURCES[name], case, weights, ndim=3)
    volume = tensors["input.x"].unsqueeze(2).repeat(1, 1, depth, 1, 1)
    found = network(volume)
    for level, expected in levels_of(tensors).items():
        assert found[level].shape[2] == -(-depth // network.strides[level][0])
        assert_close(found[level], expected.unsqueeze(2).expand_as(found[level]))


@torch.no_grad()
def test_lifted_with_sizes_of_its_own_along_the_new_axis(reference):
    case, weights, tensors = reference("vitdet_2d")
    given = {**case, "patch_size": [2, 8, 8], "img_size": [16, 64, 64], "window_size": [2, 3, 3]}
    given["pyramid"] = {**case["pyramid"], "scale_factors": [2.0, 1.0, 0.5]}
    weights = {key: value for key, value in weights.items() if not key.startswith("simfp_1")}
    network = from_reference("detectron2-vitdet", given, weights, ndim=3)
    assert network.strides == {"p2": (1, 4, 4), "p3": (2, 8, 8), "p4": (4, 16, 16)}
    found = network(tensors["input.x"].unsqueeze(2).repeat(1, 1, 8, 1, 1))
    for level, features in found.items():
        assert_close(features, tensors[f"output.{level}"].unsqueeze(2).expand_as(features))


@torch.no_grad()
def test_lifted_resnet_with_strides_per_axis(reference):
    case, weights, tensors = reference(RESNETS[0])
    uneven = {"stem_stride": [1, 2, 2], "stage_strides": [1, [1, 2, 2], 2, 2]}
    network = from_reference("torchvision-resnet-fpn", {**case, **uneven}, weights, ndim=3)
    assert network.strides["p3"] == (2, 8, 8)
    found = network(tensors["input.x"].unsqueeze(2).repeat(1, 1, 6, 1, 1))["p3"]
    assert_close(found, tensors["output.fpn.p3"].unsqueeze(2).expand(-1, -1, 3, -1, -1))


@pytest.mark.parametrize("name", SOURCES)
def test_architecture_is_read_from_the_tensors(reference, name):
    case, weights, _ = reference(name)
    found = infer_case(SOURCES[name], weights)
    shown = set(case) & set(found)
    assert len(shown) >= 5
    assert {key: found[key] for key in shown} == {key: case[key] for key in shown}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.backbone."])
@torch.no_grad()
def test_weights_of_a_whole_detector(reference, name, prefix):
    case, weights, tensors = reference(name)
    state = {f"{prefix}{key}": value for key, value in weights.items()}
    state |= {f"{prefix.removesuffix('backbone.')}rpn.head.conv.weight": torch.zeros(1)}
    found = from_reference(SOURCES[name], case, state)(tensors["input.x"])
    for level, expected in levels_of(tensors).items():
        assert_close(found[level], expected)


@torch.no_grad()
def test_names_before_torchvision_14(reference):
    case, weights, tensors = reference(RESNETS[1])
    old = {key.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if key.startswith("fpn") else key: value
           for key, value in weights.items()}  # fmt: skip
    assert "fpn.inner_blocks.0.weight" in old
    assert_close(from_reference("torchvision-resnet-fpn", case, old)(tensors["input.x"])["p2"],
                 tensors["output.fpn.p2"])  # fmt: skip


@pytest.mark.parametrize("name", RESNETS)
@torch.no_grad()
def test_bare_resnet(reference, name):
    _, weights, tensors = reference(name)
    bare = {key.removeprefix("body."): value for key, value in weights.items() if key.startswith("body.")}
    bare |= {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    network = from_reference("torchvision-resnet-fpn", {}, bare)
    assert isinstance(network, ResNet)
    found = network(tensors["input.x"])
    for level in ("p2", "p3"):
        assert_close(found[level], tensors[f"output.body.{level}"])
    # a level of one's own choice and name; the stage behind it is not made
    found = from_reference("torchvision-resnet-fpn", {"return_layers": {"layer1": "0"}}, bare)(tensors["input.x"])
    assert list(found) == ["0"]
    assert_close(found["0"], tensors["output.body.p2"])


@torch.no_grad()
def test_frozen_batch_norm(reference):
    case, weights, tensors = reference(RESNETS[0])
    counted = from_reference("torchvision-resnet-fpn", {**case, "norm_layer": "FrozenBatchNorm2d"}, weights)
    frozen = {key: value for key, value in weights.items() if "num_batches" not in key}
    shown = from_reference("torchvision-resnet-fpn", {}, frozen)
    for network in (counted, shown):
        assert network.settings()["backbone"]["norm"] == "frozen_batch"
        assert_close(network.train()(tensors["input.x"])["p3"], tensors["output.fpn.p3"])
    trainable = from_reference("torchvision-resnet-fpn", {"norm_layer": "BatchNorm2d"}, frozen)
    assert_close(trainable(tensors["input.x"])["p3"], tensors["output.fpn.p3"])


@torch.no_grad()
def test_vit_without_a_pyramid(reference):
    case, weights, tensors = reference("vitdet_2d")
    plain = {key.removeprefix("net."): value for key, value in weights.items() if key.startswith("net.")}
    plain |= {"cls_token": torch.zeros(1, 1, 32), "norm.weight": torch.ones(32)}
    network = from_reference("detectron2-vitdet", {key: case[key] for key in case if key != "pyramid"}, plain)
    assert type(network) is ViT
    assert_close(network(tensors["input.x"])["p3"], tensors["output.last_feat"])


@torch.no_grad()
def test_pyramid_on_an_odd_grid_leaves_the_rest_out_as_detectron2(reference):
    case, weights, tensors = reference("vitdet_2d")
    network = from_reference("detectron2-vitdet", case, weights)
    found = network(tensors["input.x"][:, :, :60, :41])
    assert found["p3"].shape[2:] == (7, 5)
    assert found["p4"].shape[2:] == (3, 2)


def test_rebuilt_networks_are_described(reference):
    for name, kind in (("resnet_fpn_2d_bottleneck", FPN), ("vitdet_2d", ViTDet)):
        case, weights, _ = reference(name)
        network = from_reference(SOURCES[name], case, weights)
        assert type(network) is kind
        kind(**network.settings()).load_state_dict(network.state_dict())


def test_cases_that_do_not_fit(reference):
    case, weights, _ = reference(RESNETS[0])
    with pytest.raises(CheckpointError, match="don't fit the case"):
        from_reference("torchvision-resnet-fpn", {**case, "block": "Bottleneck"}, weights)
    with pytest.raises(CheckpointError, match="block: expected one of BasicBlock, Bottleneck, got 'Dense'"):
        from_reference("torchvision-resnet-fpn", {**case, "block": "Dense"}, weights)
    with pytest.raises(CheckpointError, match="extra: expected one of LastLevelMaxPool, None"):
        from_reference("torchvision-resnet-fpn", {**case, "extra": "LastLevelP6P7"}, weights)
    with pytest.raises(CheckpointError, match="expected layer1 to layer4, got layer7"):
        from_reference("torchvision-resnet-fpn", {**case, "return_layers": {"layer7": "p2"}}, weights)
    vit_case, vit_weights, _ = reference("vitdet_2d")
    with pytest.raises(CheckpointError, match="pos_embed has 17 places, expected 64"):
        from_reference("detectron2-vitdet", {**vit_case, "pretrain_img_size": 64}, vit_weights)
    with pytest.raises(CheckpointError, match="pyramid: expected norm LN"):
        from_reference("detectron2-vitdet", {**vit_case, "pyramid": {"norm": "GN"}}, vit_weights)
    with pytest.raises(CheckpointError, match=r"expected a tensor named patch_embed\.proj\.weight"):
        from_reference("detectron2-vitdet", {}, weights)
    with pytest.raises(CheckpointError, match="expected a tensor named"):
        from_reference("torchvision-resnet-fpn", {}, vit_weights)
    volumes = {key: value.unsqueeze(-1) if value.ndim == 4 else value for key, value in weights.items()}
    with pytest.raises(CheckpointError, match="3-D and can't make a 2-D"):
        from_reference("torchvision-resnet-fpn", case, volumes, ndim=2)

"""What leads the original's flows: pointmaps, their normalisation, and tokens of several inputs."""

import pytest
import torch

from voxelry.core.errors import CheckpointError, DataError, SettingError
from voxelry.interop import from_reference
from voxelry.interop.weights.sam3d.condition import FUSER, POINTS
from voxelry.models.sam3d.condition import ConditionFuser, PointEmbedder, TokenEmbedder
from voxelry.ops.object_crop import crop_object
from voxelry.ops.pointmaps import (
    REMAPS,
    PointScaling,
    remap_points,
    resize_linear,
    resize_nearest,
    resize_pointmap,
    resize_weights,
    restore_points,
)

SCALINGS = {
    "ssi": {"method": "scene"},
    "object_scene": {},
    "object_quantile": {"size": "range"},
    "object_norm_median": {"size": "object", "factor": 2.5},
    "object_clip": {"clip": 0.9},
    "apparent_scene": {"method": "apparent_size", "clip": 1.4},
    "apparent_object": {"method": "apparent_size", "size": "object", "factor": 1.7},
    "disparity_scene": {"method": "disparity", "log_shift": 0.2},
    "disparity_object": {"method": "disparity", "size": "object", "clip": 0.5},
}
TINY = {"image_size": 8, "patch_size": 4, "channels": 32}


def test_point_embedder(reference, assert_close):
    case, weights, tensors = reference("sam3d_point_patch_embed")
    xyz, points = tensors["input.xyz"], tensors["input.points"]
    for name in case["remap_outputs"]:
        network = from_reference("sam3d-point-patch-embed", {**case["args"], "remap_output": name}, weights)
        with torch.no_grad():
            assert_close(network(xyz), tensors[f"output.tokens.{name}"])
        assert_close(remap_points(points, name), tensors[f"output.remap.{name}"])
        assert_close(restore_points(remap_points(points, name), name), tensors[f"output.inverse.{name}"])
        if name == "exp":
            with torch.no_grad():
                found = network(xyz, tensors["input.valid_mask"])
            assert_close(found, tensors["output.tokens_valid_mask.exp"])
    with torch.no_grad():
        assert_close(network(xyz, drop=True), tensors["output.tokens_forced_dropout"])


@pytest.mark.parametrize("name", ["sam3d_embedder_fuser", "sam3d_embedder_fuser_compressed"])
def test_fuser(reference, assert_close, name):
    case, weights, tensors = reference(name)
    network = from_reference("sam3d-embedder-fuser", case, weights)
    given = {key.removeprefix("input."): each for key, each in tensors.items() if key.startswith("input.")}
    with torch.no_grad():
        assert_close(network(given), tensors["output.tokens"])
        assert_close(network(given, case["force_drop"]), tensors["output.tokens_dropped"])


@pytest.mark.parametrize("name", SCALINGS)
def test_normalisers(reference, assert_close, name):
    _, _, tensors = reference("sam3d_pointmap")
    scaling, points = PointScaling(**SCALINGS[name]), tensors["input.pointmap"]
    scale, shift = scaling.measure(points, tensors["input.mask"][0])
    found = scaling.normalise(points, scale, shift)
    assert_close(scale, tensors[f"output.{name}.scale"])
    torch.testing.assert_close(shift, tensors[f"output.{name}.shift"])
    assert_close(found, tensors[f"output.{name}.pointmap"])
    assert_close(scaling.restore(found, scale, shift), tensors[f"output.{name}.denormalized"])


def test_given_scales_and_nothing_of_the_object(reference, assert_close):
    _, _, tensors = reference("sam3d_pointmap")
    points, scale, shift = (tensors[f"input.{name}"] for name in ("pointmap", "scale", "shift"))
    assert_close(PointScaling().normalise(points, scale, shift), tensors["output.object_override.pointmap"])
    scaling = PointScaling(factor=1.5)
    scale, shift = scaling.measure(points, tensors["input.mask_background"][0])
    assert_close(scale, tensors["output.object_no_valid.scale"])
    assert torch.equal(shift, tensors["output.object_no_valid.shift"])
    assert_close(scaling.normalise(points, scale, shift), tensors["output.object_no_valid.pointmap"])


@pytest.mark.parametrize(("name", "shape"), [("to_image", (24, 30)), ("smaller", (16, 20)), ("larger", (36, 45))])
def test_resizing_as_the_original(reference, assert_close, name, shape):
    _, _, tensors = reference("sam3d_pointmap")
    found = resize_pointmap(tensors["input.small_pointmap"], shape, fill="zero")
    assert_close(found, tensors[f"output.resize_{name}.pointmap"])
    assert_close(resize_linear(tensors["input.image"], shape), tensors[f"output.resize_{name}.image"])
    assert torch.equal(resize_nearest(tensors["input.image_mask"], shape), tensors[f"output.resize_{name}.mask"])


def test_cutting_an_object_out_as_the_original(reference, assert_close):
    case, _, tensors = reference("sam3d_pointmap")
    settings = {"box": case["crop"]["box_size_factor"], "margin": case["crop"]["padding_factor"]}
    given = (tensors[f"input.{name}"] for name in ("image", "image_mask", "image_pointmap"))
    found = crop_object(*given, **settings)
    for name, each in zip(("image", "mask", "pointmap"), found, strict=True):
        assert_close(each, tensors[f"output.crop.{name}"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_crop_is_a_square_with_the_object_in_the_middle(ndim):
    mask = torch.zeros((9, 12, 14)[:ndim])
    mask[(slice(2, 5), slice(7, 12), slice(0, 5))[:ndim]] = 1
    points = torch.ones(3, *mask.shape)
    image, own, known = crop_object(mask[None] + 1, mask, points, box=2.0, margin=0.25)
    assert own.shape == (8 + 2 * 2,) * ndim  # twice the 4 pixels from the first to the last, and a quarter around
    assert own.sum() == mask.sum()
    assert torch.equal(image[0] == 2, own == 1)
    assert known.isnan().any(dim=0).sum() == 12**ndim - 8**ndim  # the margin
    assert (known == 0).any()  # beyond the image
    assert crop_object(mask[None], mask)[2] is None
    with pytest.raises(DataError, match="empty mask"):
        crop_object(mask[None], 0 * mask)
    with pytest.raises(DataError, match="more than 2 pixels"):
        crop_object(mask[None], mask * (torch.arange(mask.shape[-1]) == (7 if ndim == 2 else 0)))
    with pytest.raises(SettingError, match="margin"):
        crop_object(mask[None], mask, margin=-1)


def test_scales_look_only_at_what_they_are_taken_of():
    points = torch.rand(3, 6, 6) - 0.5
    empty = torch.zeros(6, 6)
    for settings in ({"method": "scene"}, {"method": "apparent_size"}):
        scale, _ = PointScaling(**settings).measure(points, empty)
        assert not torch.equal(scale, torch.ones(3))
    for settings in ({}, {"size": "range"}, {"method": "apparent_size", "size": "object"}):
        scale, shift = PointScaling(**settings, factor=1.5).measure(points, empty)
        assert torch.equal(scale, torch.full((3,), 1.5))
        assert torch.equal(shift, torch.zeros(3))
    line = torch.stack((torch.arange(11.0), torch.zeros(11), torch.zeros(11)))
    scale, shift = PointScaling(size="range").measure(line, torch.ones(11))
    assert shift.tolist() == [5, 0, 0]
    torch.testing.assert_close(scale, torch.full((3,), 2 * (5 - 1.0)))  # distances 0, 1, 1, ..., 5, 5
    behind = PointScaling(method="apparent_size", clip=1.0)
    found = behind.normalise(torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, -2.0]]), torch.ones(3), torch.zeros(3))
    assert found.isnan().all(dim=0).tolist() == [True, False]
    own, mask = torch.rand(3, 6, 6) + 0.5, torch.ones(6, 6)
    shifts = [
        PointScaling(method="disparity", size="object", log_shift=value).measure(own, mask)[1] for value in (0, 2)
    ]
    assert torch.equal(*shifts)


def test_resizing_whole_maps_is_the_same_either_way():
    points = torch.randn(3, 9, 12)
    for shape in ((4, 20), (9, 12), (3, 3)):
        known, zero = (resize_pointmap(points, shape, fill=fill) for fill in ("known", "zero"))
        torch.testing.assert_close(known, zero)
    assert torch.equal(resize_weights(4, 4), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(resize_weights(7, 3).sum(dim=1), torch.ones(3, dtype=torch.float64))
    line = torch.full((3, 6), 5.0)
    line[1, 2] = torch.nan
    assert (
        torch.isnan(resize_pointmap(line, (12,), fill="zero")).any(dim=0).tolist()
        == [False] * 4 + [True] * 2 + [False] * 6
    )
    with pytest.raises(SettingError, match="fill"):
        resize_pointmap(line, (12,), fill="nearest")


@pytest.mark.parametrize("settings", SCALINGS.values())
def test_scaling_goes_there_and_back(settings):
    scaling, mask = PointScaling(**settings), torch.zeros(6, 5)
    mask[2:5, 1:4] = 1
    points = torch.rand(3, 12, 10) + 0.5
    points[1, 3, 3] = torch.nan
    scale, shift = scaling.measure(points, mask)
    restored = scaling.restore(scaling.normalise(points, scale, shift), scale, shift)
    known = torch.isfinite(restored)
    assert not known[:, 3, 3].any()
    assert known.any()
    torch.testing.assert_close(restored[known], points[known])


def test_embedders_go_out_and_come_back(scrambled):
    network = scrambled(PointEmbedder(**TINY))
    exported = POINTS.export(network)
    assert {"point_proj.weight", "blocks.0.attn.qkv.bias", "pos_embed_window"} <= set(exported)
    again = from_reference("sam3d-point-patch-embed", {}, exported)
    xyz = torch.randn(2, 3, 8, 8)
    xyz[0, 1, 2, 3] = torch.nan
    found = again(xyz)
    assert torch.equal(found, network(xyz))
    assert torch.isfinite(found).all()
    xyz[0, 0, 2, 3] = 7.0  # the point is unknown all the same
    assert torch.equal(again(xyz), found)
    assert torch.isfinite(again(torch.full_like(xyz, torch.nan))).all()


def test_a_fuser_tells_inputs_apart(scrambled):
    inputs = [[("image", "cropped"), ("rgb_image", "full")], [("mask", None)]]
    fuser = scrambled(ConditionFuser([TokenEmbedder(5, 8), TokenEmbedder(3, 16)], inputs))
    given = {"image": torch.randn(2, 4, 5), "rgb_image": torch.randn(2, 4, 5), "mask": torch.randn(2, 6, 3)}
    tokens = fuser(given)
    assert tokens.shape == (2, 14, 16)
    assert not torch.allclose(fuser({"image": given["image"]}), fuser({"rgb_image": given["image"]}))
    assert torch.equal(fuser(given, drop=["rgb_image"])[:, 4:8], torch.zeros(2, 4, 16))
    assert torch.equal(fuser({"mask": given["mask"]}), tokens[:, 8:])
    case = {"embedders": [{"channels": 5, "embed_dim": 8, "inputs": inputs[0]},
                          {"channels": 3, "embed_dim": 16, "inputs": inputs[1]}]}  # fmt: skip
    assert torch.equal(from_reference("sam3d-embedder-fuser", case, FUSER.export(fuser))(given), tokens)
    with pytest.raises(CheckpointError, match="expected the case to have embedders"):
        from_reference("sam3d-embedder-fuser", {}, FUSER.export(fuser))
    with pytest.raises(SettingError, match="expected image, rgb_image, mask, got depth"):
        fuser({"depth": given["mask"]})


def test_faults():
    for settings, word in (
        ({"patch_size": 3}, "patch_size"),
        ({"remap": "log"}, "remap"),
        ({"dropout": 2.0}, "dropout"),
    ):
        with pytest.raises(SettingError, match=word):
            PointEmbedder(**{**TINY, **settings})
    for call in (remap_points, restore_points):
        with pytest.raises(SettingError, match="remap"):
            call(torch.zeros(1, 3), "log")
    with pytest.raises(SettingError, match="method"):
        PointScaling(method="mean")
    with pytest.raises(SettingError, match="size"):
        PointScaling(size="all")
    with pytest.raises(SettingError, match="left_out"):
        PointScaling(left_out=0.5)
    assert torch.isnan(remap_points(torch.tensor([[0.0, 0.0, -2.0]]), "exp")[0, 2])  # why linear is the default
    assert len(REMAPS) == 5

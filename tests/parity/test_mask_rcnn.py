"""torchvision's Mask R-CNN, rebuilt from its weights: every step of it, its detections and its five losses."""

import itertools
import json
import re

import pytest
import torch
from safetensors import safe_open

from voxelry.core.errors import CheckpointError
from voxelry.interop import from_reference, infer_case
from voxelry.models.mask_rcnn.anchors import Anchors
from voxelry.ops.boxes import convert

SOURCE = "torchvision-maskrcnn"


@pytest.fixture(scope="module")
def reference(golden):
    with safe_open(golden / "maskrcnn_2d.safetensors", "pt") as file:
        case = json.loads(file.metadata()["case"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {key.removeprefix("weight."): value for key, value in tensors.items() if key.startswith("weight.")}
    return case, weights, tensors


@pytest.fixture(scope="module")
def network(reference):
    case, weights, _ = reference
    return from_reference(SOURCE, case, weights)


@pytest.fixture(scope="module")
def given(reference):
    """Images, boxes, classes and (overlapping) masks."""
    tensors = reference[2]
    targets = [f"input.target.{index}" for index in range(2)]
    return (
        [tensors[f"input.image.{index}"] for index in range(2)],
        [ours(tensors[f"{target}.boxes"]) for target in targets],
        [tensors[f"{target}.labels"] for target in targets],
        [tensors[f"{target}.masks"] for target in targets],
    )


def ours(boxes):
    return convert(boxes, "torchvision", "voxelry", ndim=2)


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * max(1.0, expected.detach().abs().max().item())


def test_transform(network, given, reference):
    tensors = reference[2]
    batch = network.transform(given[0], given[1], given[3], draw=True)
    assert_close(batch.image, tensors["transform.images"])
    assert [list(shape) for shape in batch.shapes] == tensors["transform.sizes"].tolist()
    for index in range(2):
        assert torch.equal(batch.boxes[index], ours(tensors[f"transform.target.{index}.boxes"]))


def test_anchors_and_proposals(network, reference):
    tensors = reference[2]
    batch = network.transform([tensors["input.image.0"], tensors["input.image.1"]])
    with torch.no_grad():
        features = network.backbone(batch.image)
        levels = list(features.values())
        strides, _ = network.steps(batch, features)
        objectness, deltas = network.rpn.head(levels)
        proposals = network.rpn(levels, strides, batch.shapes)
    anchors = Anchors.of(network.rpn.shapes, levels, strides)
    assert torch.equal(anchors.boxes(torch.arange(len(anchors))), ours(tensors["anchors.0"]))
    for level in range(3):
        assert_close(objectness[level], tensors[f"output.objectness.{level}"])
        per_anchor = tensors[f"output.deltas.{level}"].unflatten(1, (-1, 2, 2)).flip(3)  # x first there
        assert_close(deltas[level], per_anchor.flatten(1, 3))
    for index in range(2):
        assert_close(proposals[index][0], ours(tensors[f"output.proposals.{index}"]))


def test_detections(network, given, reference, torchvision_paste):
    tensors = reference[2]
    for index, found in enumerate(network.detect(given[0])):
        assert_close(found.boxes, ours(tensors[f"output.boxes.{index}"]))
        assert_close(found.scores, tensors[f"output.scores.{index}"])
        assert torch.equal(found.classes, tensors[f"output.labels.{index}"])
        assert found.masks.shape == (20, 28, 28)
        pasted = torchvision_paste(found.masks[:, None], found.boxes, given[0][index].shape[1:])
        assert (pasted - tensors[f"output.masks.{index}"].float()).abs().max() <= 5e-4  # kept as float16


LOSSES = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


def test_losses(network, given, reference):
    found = network.losses(*given)
    assert list(found) == list(LOSSES)
    for name, value in found.items():
        assert value.item() == pytest.approx(reference[2][f"loss.{name}"].item(), rel=1e-6)


def test_ids_give_the_losses_of_single_masks_that_do_not_overlap(network, given):
    images, boxes, classes, masks = given
    assert int(masks[0].sum(dim=0).max()) > 1  # which ids couldn't tell
    assert int(masks[1].sum(dim=0).max()) == 1
    second = [images[1:], boxes[1:], classes[1:]]
    ids = (masks[1] * torch.arange(1, len(masks[1]) + 1)[:, None, None]).sum(dim=0)
    expected = network.losses(*second, masks[1:])
    assert network.losses(*second, [ids]) == expected


def published(weights, version):
    """The weights under the names of older releases."""
    renames = [(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.")]
    renames += [(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.")]
    renames += [(r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}.")]
    found = {}
    for name, value in weights.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if "num_batches_tracked" not in name:
            found[f"{version}{name}"] = value
    return found


@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_older_releases(reference, network, given, prefix):
    case, weights, _ = reference
    old = from_reference(SOURCE, {**case, "norm_eps": 1e-5}, published(weights, prefix))
    for found, expected in zip(old.detect(given[0]), network.detect(given[0]), strict=True):
        assert_close(found.boxes, expected.boxes)
        assert_close(found.masks, expected.masks)
    assert infer_case(SOURCE, published(weights, prefix))["norm_eps"] == 0.0


def test_what_the_weights_show(reference):
    case, weights, _ = reference
    found = infer_case(SOURCE, weights)
    for name in ("num_classes", "box_head", "mask_head", "box_output_size"):
        assert found[name] == case[name]
    assert (found["layers"], found["block"], found["fpn_channels"]) == ([1, 1], "BasicBlock", 24)
    assert found["anchors"]["sizes"] == [[32], [64], [128]]


def convolutional(weights, rng):
    """Weights with the heads of the second published version: two, four and four convolutions, normalised."""
    found = {name: value for name, value in weights.items() if not name.startswith("roi_heads.box_head")}
    found["rpn.head.conv.1.0.weight"] = torch.randn(24, 24, 3, 3, generator=rng) * 0.05
    found["rpn.head.conv.1.0.bias"] = torch.zeros(24)
    for part, widths in (("box_head", [24, 20, 20]), ("mask_head", [24, 16, 16])):
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            stem = f"roi_heads.{part}.{index}"
            found.pop(f"{stem}.0.bias", None)
            found[f"{stem}.0.weight"] = torch.randn(after, before, 3, 3, generator=rng) * 0.1
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                found[f"{stem}.1.{name}"] = torch.full((after,), value)
            found[f"{stem}.1.num_batches_tracked"] = torch.tensor(0)
    found["roi_heads.box_head.5.weight"] = torch.randn(48, 20 * 49, generator=rng) * 0.05
    found["roi_heads.box_head.5.bias"] = torch.zeros(48)
    return found


def test_heads_of_the_second_version(reference, given):
    case, weights, _ = reference
    case = {key: value for key, value in case.items() if key not in ("box_head", "mask_head", "box_output_size")}
    network = from_reference(SOURCE, case, convolutional(weights, torch.Generator().manual_seed(1)))
    settings = network.settings()
    assert (settings["box"]["head"], settings["rpn"]["depth"], settings["mask"]["norm"]) == ("conv", 2, "batch")
    assert (settings["box"]["convs"], settings["box"]["output_size"]) == ([20, 20], 7)
    head = network.box_branch.head
    x = torch.randn(2, 24, 7, 7)
    expected = x
    for conv in head.convs:  # the normalisation was left without effect, but for its constant
        expected = torch.relu(conv.conv(expected) / (1 + 1e-5) ** 0.5)
    assert_close(head(x), torch.relu(head.fc(expected.flatten(1))))
    assert all(torch.isfinite(value) for value in network.losses(*given).values())


def test_without_masks(reference, given):
    case, weights, _ = reference
    kept = {name: value for name, value in weights.items() if ".mask_" not in name}
    network = from_reference(SOURCE, case, kept)
    assert network.mask_branch is None
    assert network.detect(given[0])[0].masks is None
    assert set(network.losses(*given[:3])) == set(LOSSES) - {"loss_mask"}


@pytest.mark.parametrize("ratios", [[1.0], [0.5, 1.0, 2.0]])
def test_lifted_weights_see_in_every_plane_what_they_saw_in_the_plane(reference, network, ratios):
    case, weights, tensors = reference
    anchors = {**case["anchors"], "aspect_ratios_z": ratios}
    lifted = from_reference(SOURCE, {**case, "anchors": anchors}, weights, ndim=3)
    assert lifted.num_anchors == 3 * len(ratios)
    flat = tensors["transform.images"][:, :, :64, :96]
    volume = flat.unsqueeze(2).repeat(1, 1, 32, 1, 1)
    with torch.no_grad():
        plane, solid = network.backbone(flat), lifted.backbone(volume)
        objectness, deltas = network.rpn.head(list(plane.values()))
        scores, moves = lifted.rpn.head(list(solid.values()))
        for level in range(3):
            expected = objectness[level].repeat_interleave(len(ratios), dim=1).unsqueeze(2)
            assert_close(scores[level], expected.expand_as(scores[level]))
            found = moves[level].unflatten(1, (3, len(ratios), 2, 3))
            assert not found[:, :, :, :, 0].any()  # at rest along z
            planar = deltas[level].unflatten(1, (3, 1, 2, 2)).unsqueeze(5)
            assert_close(found[:, :, :, :, 1:], planar.expand_as(found[:, :, :, :, 1:]))
        regions = torch.tensor([[8.0, 10.0, 30.0, 40.0], [0.0, 5.0, 60.0, 90.0]])
        deep = torch.tensor([[8.0, 8.0, 10.0, 24.0, 30.0, 40.0], [4.0, 0.0, 5.0, 28.0, 60.0, 90.0]])
        index = torch.tensor([0, 1])
        scales = [(0.25, 0.25), (0.125, 0.125)]
        two = [plane[name] for name in network.roi_levels[:1]]
        three = [solid[name] for name in lifted.roi_levels[:1]]
        logits, shifts = network.box_branch(two, scales[:1], regions, index)
        found, turns = lifted.box_branch(three, [(0.25,) * 3], deep, index)
        assert_close(found, logits)
        assert_close(turns[:, :, [1, 2, 4, 5]], shifts)
        assert not turns[:, :, [0, 3]].any()
        masks = network.mask_branch.head(network.mask_branch.pool(two, scales[:1], regions, index), index + 1)
        solids = lifted.mask_branch.head(lifted.mask_branch.pool(three, [(0.25,) * 3], deep, index), index + 1)
        assert_close(solids, masks.unsqueeze(1).expand_as(solids))


def solid(weights, rng):
    """Weights of the same network in 3-D, as the original names them."""
    found = {}
    for name, value in weights.items():
        shape = list(value.shape)
        if value.ndim == 4:
            shape.append(shape[-1])
        if name.endswith("fc6.weight"):
            shape[1] *= 7
        if "bbox_pred" in name:
            shape[0] = shape[0] // 4 * 6
        found[name] = value if shape == list(value.shape) else 0.05 * torch.randn(shape, generator=rng)
    return found


def test_weights_of_the_original_in_3d(reference):
    case, weights, _ = reference
    theirs = solid(weights, torch.Generator().manual_seed(2))
    network = from_reference(SOURCE, {**case, "skip_resize": True, "bbox_reg_weights": [1, 2, 3, 4, 5, 6]}, theirs)
    assert network.ndim == 3
    assert network.settings()["box"]["reg_weights"] == [[3, 2, 1], [6, 5, 4]]
    assert network.settings()["box"]["output_size"] == 7
    rows = [2, 1, 0, 5, 4, 3]  # x, y, z centres and sizes there, z, y, x here
    expected = theirs["rpn.head.bbox_pred.weight"].unflatten(0, (3, 6))[:, rows].flatten(0, 1)
    assert torch.equal(network.rpn.head.deltas.weight, expected)
    bias = theirs["roi_heads.box_predictor.bbox_pred.bias"].unflatten(0, (3, 6))[:, rows].flatten(0, 1)
    assert torch.equal(network.box_branch.predictor.deltas.bias, bias)
    assert torch.equal(network.box_branch.head.fc6.weight, theirs["roi_heads.box_head.fc6.weight"])
    assert len(network.detect(torch.randn(1, 3, 16, 32, 32))) == 1
    with pytest.raises(CheckpointError, match="3-D and can't make a 2-D"):
        from_reference(SOURCE, case, theirs, ndim=2)


def test_weights_that_do_not_fit(reference):
    case, weights, _ = reference
    with pytest.raises(CheckpointError, match=r"expected a tensor named rpn\.head\.cls_logits\.weight"):
        from_reference(SOURCE, case, {"conv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="2-D and can't make a 1-D"):
        from_reference(SOURCE, case, weights, ndim=1)
    without = {key: value for key, value in weights.items() if "fc7" not in key}
    with pytest.raises(CheckpointError, match=r"box_branch\.head\.fc7\.weight is missing"):
        from_reference(SOURCE, case, without)
    with pytest.raises(CheckpointError, match="anchors: expected sizes"):
        from_reference(SOURCE, {**case, "anchors": None}, weights)
    with pytest.raises(CheckpointError, match="roi_levels: expected some of"):
        from_reference(SOURCE, {**case, "roi_levels": ["7"]}, weights)
    with pytest.raises(CheckpointError, match="bbox_reg_weights: expected 4 numbers"):
        from_reference(SOURCE, {**case, "bbox_reg_weights": [1.0]}, weights)

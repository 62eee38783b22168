"""Mask R-CNN as a whole, small and real, in both ranks."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from voxelry.backbones import FPN, ResNet
from voxelry.core.errors import DataError, SettingError
from voxelry.models.mask_rcnn import Detections, MaskRCNN, heads
from voxelry.models.mask_rcnn.detections import select
from voxelry.models.mask_rcnn.roi_pool import region_levels
from voxelry.models.mask_rcnn.settings import BoxSettings, MaskSettings, nested

LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def tiny(ndim, *, levels=("p2", "p3"), extra=None, **settings):
    body = ResNet(ndim=ndim, layers=(1,) * len(levels), levels=levels, width=8, norm="group")
    settings = {
        "anchor_sizes": [[8], [16], [24]][: len(levels) + (extra is not None)],
        "anchor_ratios": (1.0,),
        "anchor_z_ratios": (1.0,),
        "box_channels": 32,
        "mask_convs": (8, 8),
        "box_output_size": 3,
        "mask_output_size": 4,
        **settings,
    }
    return MaskRCNN(FPN(body, out_channels=8, extra=extra), **nested(settings))


def phantom(ndim, size=32, batch=1, spans=((3, 12), (18, 26))):
    """Two bright cubes in noise, with boxes, classes and ids."""
    shape = (size,) * ndim
    image = 0.1 * torch.randn(batch, 1, *shape)
    masks = torch.zeros(batch, *shape, dtype=torch.int64)
    boxes = []
    for row in range(batch):
        rows = []
        for index, (first, last) in enumerate(spans):
            window = (slice(first, last),) * ndim
            image[row, 0][window] += 1 + index
            masks[row][window] = index + 1
            rows.append([first - 0.5] * ndim + [last - 0.5] * ndim)
        boxes.append(torch.tensor(rows))
    return image, boxes, [torch.tensor([1, 2])] * batch, masks


@pytest.mark.parametrize("ndim", [2, 3])
def test_losses_and_gradients(ndim):
    network = tiny(ndim, num_classes=3, extra="maxpool")
    losses = network.losses(*phantom(ndim, batch=2))
    assert set(losses) == LOSSES
    assert all(value.shape == () and torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    without = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert without == []
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [1, 1 << 20])  # region by region, all together
@pytest.mark.parametrize("ndim", [2, 3])
def test_mask_logits_are_those_of_a_transposed_convolution(ndim, part, dtype, monkeypatch):
    monkeypatch.setattr(heads, "_PART", part)
    head = heads.MaskHead(6, 3, MaskSettings(convs=(5,), upsample=(3, 2, 1)[-ndim:]), ndim=ndim)
    head.logits.bias.requires_grad_(False)
    torch.nn.init.normal_(head.logits.weight)
    x, classes = torch.randn(4, 6, *(5, 4, 3)[-ndim:], requires_grad=True), torch.tensor([1, 2, 1, 0])
    learned = [x, *(weight for weight in head.parameters() if weight.requires_grad)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        every = head.logits(torch.relu(head.finer(head.convs(x))))
        found, expected = head(x, classes), every[torch.arange(4), classes]
    grad = torch.randn(expected.shape).to(expected.dtype)
    pairs = [(found, expected), *zip(*(torch.autograd.grad(y, learned, grad) for y in (found, expected)), strict=True)]
    for one, other in pairs:
        tolerance = (2e-2 if dtype == torch.bfloat16 else 1e-5) * other.abs().max().item()
        assert (one - other).abs().max() <= tolerance


@pytest.mark.parametrize("ndim", [2, 3])
def test_images_without_objects_train(ndim):
    network = tiny(ndim, num_classes=3)
    image, boxes, classes, masks = phantom(ndim, batch=2)
    none = [torch.zeros(0, 2 * ndim)] * 2
    alone = network.losses(image, none, [torch.zeros(0, dtype=torch.int64)] * 2, torch.zeros_like(masks))
    assert all(torch.isfinite(value) for value in alone.values())
    assert {name for name, value in alone.items() if value == 0} == {"loss_box_reg", "loss_rpn_box_reg", "loss_mask"}
    sum(alone.values()).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert network.rpn.head.objectness.weight.grad.abs().sum() > 0
    mixed = network.losses(image, [boxes[0], none[1]], [classes[0], classes[1][:0]], masks)
    assert all(torch.isfinite(value) and value > 0 for value in mixed.values())


@pytest.mark.parametrize("ndim", [2, 3])
def test_detections_of_an_untrained_network(ndim):
    network = tiny(ndim, num_classes=4, box_score_thresh=0.0, box_detections_per_img=7).eval()
    found = network.detect(phantom(ndim, batch=2)[0])
    assert len(found) == 2
    for detections in found:
        assert isinstance(detections, Detections)
        assert len(detections) == 7
        assert (detections.scores[:-1] >= detections.scores[1:]).all()
        assert detections.classes.min() >= 1
        assert detections.classes.max() <= 3
        assert detections.masks.shape == (7, *(8,) * ndim)
        assert (detections.masks >= 0).all()
        assert (detections.masks <= 1).all()
        assert (detections.boxes >= -0.5).all()
        assert (detections.boxes <= 31.5).all()
        assert not detections.boxes.requires_grad


def test_nothing_found_is_empty():
    network = tiny(3, box_score_thresh=1.0).eval()
    (found,) = network.detect(torch.zeros(1, 1, 16, 16, 16))
    assert found.boxes.shape == (0, 6)
    assert found.masks.shape == (0, 8, 8, 8)
    assert len(found.to("cpu")) == 0


def test_images_of_unlike_sizes():
    network = tiny(3, box_score_thresh=0.0).eval()
    found = network.detect([torch.randn(1, 20, 32, 16), torch.randn(1, 12, 9, 40)])
    for detections, shape in zip(found, [(20, 32, 16), (12, 9, 40)], strict=True):
        assert len(detections) > 0
        assert (detections.boxes[:, 3:] <= torch.tensor(shape) - 0.5).all()


@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_settings_build_it_again(head):
    network = tiny(3, box_head=head, box_convs=(6, 5), anchor_sizes=[[(4, 8, 8)], [9]], size_divisible=(4, 8, 8)).eval()
    settings = json.loads(json.dumps(network.settings()))
    again = MaskRCNN(**settings).eval()
    assert again.settings() == network.settings()
    again.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 16, 24, 24)
    assert torch.equal(again.detect(image)[0].boxes, network.detect(image)[0].boxes)


def test_flat_names_are_read_into_the_parts():
    flat = {
        "backbone": {"name": "fpn"}, "num_classes": 3, "min_size": 64, "size_divisible": [2, 4, 4], "image_mean": None,
        "anchor_sizes": [[8]], "anchor_z_ratios": [1.0], "round_anchors": True, "rpn_depth": 2, "rpn_nms_thresh": 0.6,
        "rpn_pre_nms_top_n_test": 40, "box_low": 0.0, "box_head": "conv", "box_score_thresh": 0.1,
        "bbox_reg_weights": [10.0, 5.0], "mask_branch": True, "mask_convs": [8], "mask_chunk": 4, "sampling_ratio": 1,
        "canonical_size": 24.0, "roi_levels": None, "torchvision_rules": True,
    }  # fmt: skip
    parts = nested(flat)
    assert parts == {
        "backbone": {"name": "fpn"},
        "num_classes": 3,
        "transform": {"min_size": 64, "size_divisible": [2, 4, 4], "image_mean": None},
        "anchors": {"sizes": [[8]], "z_ratios": [1.0], "rounded": True},
        "rpn": {"depth": 2, "nms_thresh": 0.6, "pre_nms_top_n_test": 40},
        "low": 0.0,
        "box": {"head": "conv", "score_thresh": 0.1, "reg_weights": [10.0, 5.0]},
        "mask": {"convs": [8], "chunk": 4},
        "regions": {"sampling_ratio": 1, "canonical_size": 24.0, "levels": None},
        "torchvision_rules": True,
    }
    assert nested(parts) == parts
    assert nested(flat | {"mask_branch": False})["mask"] is None


def test_default_anchors_follow_the_strides():
    network = tiny(3, anchor_sizes=None, anchor_ratios=(0.5, 1.0, 2.0), anchor_z_ratios=(0.5, 1.0, 2.0))
    assert network.rpn.shapes.sizes == [[(32, 32, 32)], [(64, 64, 64)]]
    assert network.num_anchors == 9
    assert network.rpn.head.deltas.out_channels == 54


@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_change_nothing(checkpointing):
    torch.manual_seed(1)
    whole = tiny(3, num_classes=3, box_score_thresh=0.0, box_detections_per_img=9)
    settings = whole.settings()
    settings["mask"] |= {"chunk": 2, "checkpointing": checkpointing}
    parts = MaskRCNN(**settings)
    parts.load_state_dict(whole.state_dict())
    sample = phantom(3)
    for network in (whole, parts):
        torch.manual_seed(2)
        sum(network.losses(*sample).values()).backward()
    for (name, weight), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.allclose(weight.grad, other.grad, rtol=1e-4, atol=1e-6), name
    found, expected = parts.eval().detect(sample[0])[0], whole.eval().detect(sample[0])[0]
    assert torch.allclose(found.masks, expected.masks, atol=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_half_precision_keeps_boxes_whole(ndim):
    network = tiny(ndim, num_classes=3)
    image, *rest = phantom(ndim)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = network.losses(image, *rest)
        found = network.eval().detect(image)[0]
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())
    assert found.boxes.dtype == found.scores.dtype == found.masks.dtype == torch.float32


def test_one_seed_gives_one_loss():
    network = tiny(3, num_classes=3, rpn_batch_size_per_image=8, box_batch_size_per_image=8)
    sample = phantom(3)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(network.losses(*sample)["loss_objectness"].item())
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("ndim", [2, 3])
def test_regions_sampled_for_the_losses(ndim):
    branch = tiny(ndim, num_classes=3, box_batch_size_per_image=4).box_branch
    truth = torch.tensor([[4.0] * ndim + [12.0] * ndim, [20.0] * ndim + [28.0] * ndim])
    proposals = torch.cat((truth + 0.1, torch.tensor([[30.0] * ndim + [40.0] * ndim]).repeat(9, 1)))
    regions = branch.sample([proposals], [truth], [torch.tensor([2, 1])])
    assert len(regions.boxes) == 4
    positive = regions.classes > 0  # a quarter of four
    assert int(positive.sum()) == 1
    chosen = truth[regions.matched[positive]]
    assert regions.classes[positive].tolist() == [2 if chosen[0, 0] == 4 else 1]
    centre = (chosen - regions.boxes[positive])[:, :ndim] / 8 * 10
    assert torch.allclose(regions.deltas[positive][:, :ndim], centre, atol=1e-4)
    assert not regions.deltas[~positive].any()


def test_regions_are_read_from_the_level_of_their_size():
    cubes = torch.tensor([[0.0] * 3 + [side] * 3 for side in (1.0, 27.9, 28.0, 55.9, 56.0, 500.0)])
    scales = [(1 / step,) * 3 for step in (2, 4, 8)]
    # a region of 224 voxels has stride 16, so one of 28 has stride 2
    assert region_levels(cubes, scales, 224, 4).tolist() == [0, 0, 0, 0, 1, 2]
    flat = [(1.0, 1 / step, 1 / step) for step in (2, 4, 8)]  # mean octaves 2/3, 4/3, 2
    assert region_levels(cubes, flat, 224, 4).tolist() == [0, 0, 0, 1, 2, 2]


DEGENERATE = [
    ([1.0, 2.0, 3.0, 9.0, 9.0, float("nan")], "image 1, box 2: .*nan.* is not finite"),
    ([1.0, 2.0, 3.0, 9.0, float("inf"), 9.0], "image 1, box 2: .*inf.* is not finite"),
    ([1.0, 2.0, 3.0, 9.0, 2.0, 9.0], r"image 1, box 2: \(1, 2, 3, 9, 2, 9\) has no volume"),
    ([5.0, 5.0, 5.0, 4.0, 9.0, 9.0], "image 1, box 2: .* has no volume"),
    ([40.0, 2.0, 3.0, 49.0, 9.0, 9.0], "image 1, box 2: .* is outside the image of 32×32×32 voxels"),
]


@pytest.mark.parametrize(("box", "named"), DEGENERATE)
def test_boxes_that_cannot_be_learnt(box, named):
    image, boxes, classes, masks = phantom(3)
    boxes = [torch.stack((boxes[0][0], torch.tensor(box)))]
    with pytest.raises(DataError, match=named) as caught:
        tiny(3, num_classes=3).losses(image, boxes, classes, masks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"boxes": []}, "boxes: expected one entry for each of 1 images, got 0"),
        ({"boxes": [torch.zeros(2, 4)]}, r"expected boxes of shape \(K, 6\), got \(2, 4\)"),
        ({"classes": [torch.tensor([1, 3])]}, "image 1, box 2: class 3 is not in 1 to 2"),
        ({"classes": [torch.tensor([0, 1])]}, "image 1, box 1: class 0"),
        ({"classes": [torch.tensor([1])]}, "expected 2 whole classes"),
        ({"masks": torch.zeros(1, 32, 32, 31, dtype=torch.int64)}, "expected masks as ids of shape"),
        ({"masks": torch.zeros(1, 32, 32, 32)}, "expected whole masks"),
        ({"masks": None}, "masks: expected them for the mask branch"),
    ],
)
def test_fields_that_do_not_fit(changes, named):
    image, boxes, classes, masks = phantom(3)
    fields = {"boxes": boxes, "classes": classes, "masks": masks, **changes}
    with pytest.raises(DataError, match=named):
        tiny(3, num_classes=3).losses(image, **fields)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_classes": 1}, "num_classes: expected at least 2"),
        ({"box_head": "tree"}, r"box\.head: expected one of mlp, conv"),
        (
            {"box_suppression": "soft"},
            r"box\.suppression: expected one of nms, soft_nms, wbc, got 'soft'; did you mean",
        ),
        ({"box_loss": "l1"}, r"box\.loss: expected one of smooth_l1, giou, got 'l1'"),
        ({"anchor_sizes": [[8]]}, r"anchors\.sizes: expected 2 levels as the backbone, got 1"),
        ({"roi_levels": ["p7"]}, r"regions\.levels: expected some of p2, p3"),
        ({"mask_chunk": 0}, r"mask\.chunk: expected at least 1"),
        ({"mask_norm": "none"}, "norm: expected one of"),
        ({"box_output_size": (3, 3)}, "output_size: expected 1 or 3 values"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(SettingError, match=named):
        tiny(3, **settings)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("suppression", "count", "score"), [("nms", 2, 0.9), ("soft_nms", 3, 0.9), ("wbc", 2, 0.8)])
def test_what_becomes_of_boxes_that_overlap(ndim, suppression, count, score):
    """Two boxes of class 1, one moved by a tenth of a side, and one of class 2 at the same place."""
    boxes = torch.tensor([[0.0] * ndim + [10.0] * ndim]).repeat(3, 1)
    boxes[1, [0, ndim]] += 1.0
    logits = torch.tensor([[0.1, 0.9, 1e-6], [0.3, 0.7, 1e-6], [0.2, 1e-6, 0.8]]).log()
    settings = BoxSettings(suppression=suppression, nms_thresh=0.5)
    found = select(logits, torch.zeros(3, 3, 2 * ndim), boxes, (20,) * ndim, settings)
    assert len(found) == count
    assert sorted(set(found.classes.tolist())) == [1, 2]
    assert (found.scores.diff() <= 0).all()
    of_first = found.classes == 1
    assert found.scores[of_first][0].item() == pytest.approx(score, abs=0.02)
    low = found.boxes[of_first][0, 0].item()
    assert 0.3 < low < 0.5 if suppression == "wbc" else low == 0.0  # between the two, nearer to the better
    if suppression == "soft_nms":
        overlap = 9 / 11
        assert found.scores[of_first][1].item() == pytest.approx(0.7 * math.exp(-(overlap**2) / 0.5), rel=1e-4)
    nothing = select(logits[:0], torch.zeros(0, 3, 2 * ndim), boxes[:0], (20,) * ndim, settings)
    assert len(nothing) == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_box_loss_may_be_of_the_overlap(ndim):
    """A region that is its object, moved by half a side: an IoU of a third, and a hull that is the union."""
    branch = tiny(ndim, box_loss="giou").box_branch
    truth = torch.tensor([[4.0] * ndim + [12.0] * ndim])
    torch.nn.init.zeros_(branch.predictor.deltas.weight)
    features, scales = [torch.rand(1, 8, *(size,) * ndim) for size in (16, 8)], [(1 / step,) * ndim for step in (2, 4)]

    def loss():
        return branch.losses(features, scales, [truth[:0]], [truth], [torch.tensor([1])])[1]["loss_box_reg"]

    assert loss().item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        branch.predictor.deltas.bias.unflatten(0, (2, -1))[:, 0] = 5.0  # half a side, times the weight of centres
    assert loss().item() == pytest.approx(2 / 3, abs=1e-5)
    loss().backward()
    assert branch.predictor.deltas.bias.grad.isfinite().all()


def test_levels_need_as_many_channels():
    with pytest.raises(SettingError, match="expected as many channels on every level"):
        MaskRCNN(ResNet(ndim=2, layers=(1, 1), levels=("p2", "p3"), width=8))


def test_a_single_level_without_a_pyramid():
    body = {"name": "resnet", "ndim": 3, "layers": [1], "levels": ["p2"], "width": 8}
    network = MaskRCNN(body, anchors={"sizes": [[8]]}, box={"channels": 16, "score_thresh": 0.0}, mask=None).eval()
    found = network.detect(torch.randn(1, 1, 16, 16, 16))
    assert found[0].masks is None
    assert len(found[0]) > 0


def test_learns_one_phantom():
    torch.manual_seed(2)
    body = ResNet(ndim=3, layers=(1,), levels=("p2",), width=16, norm="group", stem_kernel=3, pool_stride=None)
    network = MaskRCNN(
        FPN(body, out_channels=16, extra=None),
        num_classes=3,
        anchors={"sizes": [[8]], "ratios": (1.0,), "z_ratios": (1.0,)},
        rpn={"post_nms_top_n_train": 32, "nms_thresh": 0.5},
        box={"batch_size_per_image": 32, "positive_fraction": 0.5, "output_size": 4, "channels": 64},
        mask={"output_size": 5, "convs": (16,)},
    )
    image, boxes, classes, masks = phantom(3, size=24, spans=((2, 10), (13, 20)))
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [90], 0.2)
    history = []
    for _ in range(120):
        loss = sum(network.losses(image, boxes, classes, masks).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        history.append(loss.item())
    assert sum(history[-20:]) < sum(history[:5])  # a quarter on average
    (found,) = network.eval().detect(image)
    best = [int(torch.where(found.classes == kind)[0][0]) for kind in (1, 2)]
    assert (found.boxes[best] - boxes[0]).abs().max() < 1
    assert (found.masks[best].mean(dim=(1, 2, 3)) > 0.8).all()


@pytest.mark.parametrize("shape", [(20, 28), (12, 20, 16)])
@torch.no_grad()
def test_resized_and_normalised_images_are_answered_in_their_own_voxels(shape):
    plain = tiny(len(shape), box_score_thresh=0.0).eval()
    settings = {"min_size": 2 * min(shape), "max_size": 100, "image_mean": [0.5], "image_std": [0.25]}
    resizing = tiny(len(shape), box_score_thresh=0.0, **settings).eval()
    resizing.load_state_dict(plain.state_dict())
    image = torch.rand(1, 1, *shape)
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    seen = F.interpolate((image - 0.5) / 0.25, scale_factor=2.0, mode=mode, align_corners=False)
    (expected,), (found,) = plain.detect(seen), resizing.detect(image)
    assert len(found) > 0
    # a voxel of the image spans two of what is seen: index i of the image is seen at 2 i + 0.5
    torch.testing.assert_close(found.boxes, (expected.boxes - 0.5) / 2)
    torch.testing.assert_close(found.masks, expected.masks)
    assert json.loads(json.dumps(resizing.settings()))["transform"]["min_size"] == settings["min_size"]


def test_means_are_one_per_channel():
    with pytest.raises(SettingError, match="image_mean, image_std: expected 1 of each, one per channel, got 3"):
        tiny(2, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))

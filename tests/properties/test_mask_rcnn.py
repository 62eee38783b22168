"""Laws of the detector: the order of axes, of images, and of what is one plane repeated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelry.backbones import FPN, ResNet
from voxelry.models.inflate import inflate
from voxelry.models.mask_rcnn import MaskRCNN

STRIDES = (2, 1, 2)
ANCHORS = ((4, 9, 12), (10, 6, 8))
POOLED, MASKED, FINER = (2, 3, 4), (4, 3, 5), (1, 2, 2)
SHAPE = (20, 16, 28)


def detector(ndim, order=None):
    """A small detector in which no two axes are alike; with `order`, its axes are those of the other, reordered."""
    order = list(range(ndim)) if order is None else list(order)

    def axes(values):
        return tuple(values[-ndim:][axis] for axis in order)

    body = ResNet(
        ndim=ndim,
        layers=(1, 1),
        levels=("p2", "p3"),
        width=8,
        norm="group",
        stem_stride=axes(STRIDES),
        stem_kernel=axes((3, 5, 7)),
        stage_strides=(1, axes((1, 2, 2)), 2, 2),
    )
    return MaskRCNN(
        FPN(body, out_channels=8, extra="maxpool"),
        num_classes=3,
        anchors={"sizes": [[axes(size) for size in ANCHORS]] * 3, "ratios": (1.0,), "z_ratios": (1.0,)},
        transform={"size_divisible": axes((8, 4, 2))},
        box={
            "channels": 16,
            "output_size": axes(POOLED),
            "reg_weights": (axes((10.0, 8.0, 6.0)), axes((5.0, 4.0, 3.0))),
            "score_thresh": 0.0,
            "detections_per_img": 12,
        },
        mask={"convs": (8,), "output_size": axes(MASKED), "upsample": axes(FINER)},
    ).eval()


def spread_out(network, seed):
    """Weights large enough for scores and boxes that differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if name.startswith(("rpn.head.", "box_branch.predictor.", "mask_branch.head.logits.")):
            scale = 0.02 if "deltas" in name else 0.3
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    return network


def reorder(weight, name, order):
    """A weight with its spatial axes, or its rows and columns that stand for axes, in another order."""
    ndim = len(order)
    if "deltas." in name:  # rows: centres by axis, then sizes by axis, of each anchor or class
        rows = weight.unflatten(0, (-1, 2, ndim))[:, :, list(order)]
        weight = rows.flatten(0, 2)
    if name.endswith("fc6.weight"):
        grid = weight.unflatten(1, (-1, *POOLED[-ndim:]))
        return grid.permute(0, 1, *(2 + axis for axis in order)).flatten(1)
    return weight.permute(0, 1, *(2 + axis for axis in order)) if weight.ndim == 2 + ndim else weight


@settings(max_examples=8)
@given(ndim=st.sampled_from([2, 3]), seed=st.integers(0, 1000), data=st.data())
def test_reordered_axes_reorder_the_detections(ndim, seed, data):
    order = data.draw(st.permutations(range(ndim)))
    network = spread_out(detector(ndim), seed)
    other = detector(ndim, order)
    other.load_state_dict({name: reorder(value, name, order) for name, value in network.state_dict().items()})
    image = torch.randn(1, 1, *SHAPE[-ndim:], generator=torch.Generator().manual_seed(seed))
    (expected,) = network.detect(image)
    (found,) = other.detect(image.permute(0, 1, *(2 + axis for axis in order)))
    assert len(found) == len(expected) > 0
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    columns = [*order, *(ndim + axis for axis in order)]
    near = (found.boxes[:, None] - expected.boxes[None, :, columns]).abs().amax(dim=2)  # ties may change places
    same = (found.classes[:, None] == expected.classes) & (near < 1e-3)
    assert same.any(dim=1).all()
    assert same.any(dim=0).all()
    turned = expected.masks.permute(0, *(1 + axis for axis in order))
    assert torch.allclose(found.masks, turned[same.int().argmax(dim=1)], atol=1e-3)


@settings(max_examples=6)
@given(ndim=st.sampled_from([2, 3]), seed=st.integers(0, 1000), count=st.integers(2, 3))
def test_an_image_in_a_batch_is_found_as_it_is_alone(ndim, seed, count):
    network = spread_out(detector(ndim), seed)
    images = torch.randn(count, 1, *SHAPE[-ndim:], generator=torch.Generator().manual_seed(seed))
    together = network.detect(images)
    for found, image in zip(together, images, strict=True):
        (alone,) = network.detect(image[None])
        assert torch.allclose(found.scores, alone.scores, atol=1e-5)
        assert torch.allclose(found.boxes, alone.boxes, atol=1e-3)
        assert torch.allclose(found.masks, alone.masks, atol=1e-4)


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), depth=st.sampled_from([8, 16]))
def test_a_volume_of_one_plane_repeated_scores_as_the_plane(seed, depth):
    torch.manual_seed(seed)

    def make(ndim):
        body = ResNet(ndim=ndim, layers=(1, 1), levels=("p2", "p3"), width=8, norm="batch")
        return MaskRCNN(FPN(body, out_channels=8), anchors={"sizes": [[8]] * 3, "z_ratios": (1.0,)}, mask=None).eval()

    flat, solid = spread_out(make(2), seed), make(3)
    lifted = inflate(solid, flat.state_dict())
    own = solid.state_dict()
    solid.load_state_dict({name: lifted[name] if lifted[name].shape == own[name].shape else own[name] for name in own})
    plane = torch.randn(1, 1, 24, 32)
    with torch.no_grad():
        expected = flat.rpn.head(list(flat.backbone(plane).values()))[0]
        volume = plane.unsqueeze(2).repeat(1, 1, depth, 1, 1)
        found = solid.rpn.head(list(solid.backbone(volume).values()))[0]
    for level, wanted in zip(found, expected, strict=True):
        assert torch.allclose(level, wanted.unsqueeze(2).expand_as(level), atol=1e-4)


@settings(max_examples=6)
@given(ndim=st.sampled_from([2, 3]), seed=st.integers(0, 1000), order=st.permutations(range(3)))
def test_losses_do_not_care_about_the_order_of_objects(ndim, seed, order):
    generator = torch.Generator().manual_seed(seed)
    # where all anchors and regions are sampled, none are drawn
    settings = detector(ndim).settings()
    for part in ("rpn", "box"):
        settings[part]["batch_size_per_image"] = 10**6
    network = spread_out(MaskRCNN(**settings), seed)
    shape = SHAPE[-ndim:]
    low = torch.stack([torch.randint(0, size - 8, (3,), generator=generator) for size in shape], dim=1)
    boxes = torch.cat((low - 0.5, low + 6.5), dim=1) + 0.1 * torch.rand(3, 2 * ndim, generator=generator)
    masks = torch.zeros(3, *shape, dtype=torch.int64)
    for mask, corner in zip(masks, low, strict=True):
        mask[tuple(slice(int(first), int(first) + 7) for first in corner)] = 1
    classes = torch.tensor([1, 2, 1])
    image = torch.randn(1, 1, *shape, generator=generator)
    with torch.no_grad():
        expected = network.losses(image, [boxes], [classes], [masks])
        found = network.losses(image, [boxes[order]], [classes[order]], [masks[order]])
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-4)

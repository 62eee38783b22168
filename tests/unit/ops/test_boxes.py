"""Boxes: worked numbers, column orders, half precision, and boxes that are none."""

import math

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.ops.boxes import (
    ORDERS,
    clip,
    convert,
    decode,
    encode,
    giou,
    iou,
    paired_iou,
    pyramid_level,
    valid,
    volume,
)

nan, inf = math.nan, math.inf


def cube(low, high, ndim):
    return torch.tensor([[float(low)] * ndim + [float(high)] * ndim])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_iou_of_half_overlapping_cubes(ndim):
    moved = cube(0, 2, ndim) + torch.tensor(([1.0] + [0.0] * (ndim - 1)) * 2)
    assert iou(cube(0, 2, ndim), moved).item() == pytest.approx(1 / 3)
    assert giou(cube(0, 2, ndim), moved).item() == pytest.approx(1 / 3)  # the hull is the union


def test_giou_of_boxes_apart():
    """Two unit squares at the ends of a strip of ten: a fifth of it is covered."""
    far = torch.tensor([[0.0, 9.0, 1.0, 10.0]])
    assert giou(cube(0, 1, 2), far).item() == pytest.approx(-0.8)
    assert paired_iou(cube(0, 1, 2), far).item() == 0


def test_volume_is_a_product_of_extents():
    assert volume(torch.tensor([[0.0, 1.0, 2.0, 2.0, 4.0, 6.5]])).item() == 27
    assert volume(torch.tensor([[3, 3, 0, 5]])).item() == 0  # inverted
    assert volume(torch.tensor([[0.0, 0.0, -2.0, -2.0]])).item() == 0  # inverted twice isn't 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_boxes_in_half_precision(dtype):
    """41³ and 600³ overflow float16; halves of the cube overlap by a third all the same."""
    for size in (48, 600):
        boxes = torch.tensor([[0.0, 0, 0, size, size, size], [size / 2, 0, 0, 1.5 * size, size, size]]).to(dtype)
        assert torch.isfinite(volume(boxes)).all()
        assert volume(boxes).dtype == torch.float32
        assert_close(iou(boxes, boxes), iou(boxes.float(), boxes.float()), rtol=0, atol=0)
        assert iou(boxes, boxes)[0, 1].item() == pytest.approx(1 / 3)


def test_integers_and_doubles_keep_their_precision():
    assert iou(torch.tensor([[0, 0, 3, 1]]), torch.tensor([[0, 0, 1, 1]])).dtype == torch.float64
    assert iou(torch.tensor([[0, 0, 3, 1]], dtype=torch.int16), cube(0, 1, 2)).item() == pytest.approx(1 / 3)
    assert iou(cube(0, 1, 2).double(), cube(0, 1, 2)).dtype == torch.float64


BROKEN = torch.tensor(
    [
        [0.0, 0.0, 0.0, 5.0],  # flat
        [4.0, 4.0, 1.0, 1.0],  # inverted
        [nan, 0.0, 5.0, 5.0],
        [0.0, 0.0, nan, 5.0],
        [-inf, 0.0, inf, 5.0],
    ]
)


def test_a_broken_box_overlaps_nothing_not_even_itself():
    boxes = torch.cat([BROKEN, cube(0, 5, 2)])
    expected = torch.zeros(6, 6)
    expected[5, 5] = 1
    assert torch.equal(iou(boxes, boxes), expected)
    assert valid(boxes).tolist() == [True, False, False, False, False, True]
    assert valid(boxes, min_size=1).tolist() == [False] * 5 + [True]
    assert giou(boxes[:, None], boxes).isfinite().all()


def test_the_gradient_of_giou_is_a_number_everywhere():
    boxes = torch.cat([BROKEN[:2], cube(0, 5, 2), cube(7, 9, 2)]).requires_grad_()
    giou(boxes, cube(1, 6, 2)).sum().backward()
    assert boxes.grad.isfinite().all()
    assert boxes.grad[2:].abs().sum() > 0


def test_empty_sets_of_boxes():
    none, one = torch.zeros(0, 6), cube(0, 1, 3)
    assert iou(none, one).shape == (0, 1)
    assert giou(one[:, None], none).shape == (1, 0)
    assert volume(none).shape == valid(none).shape == (0,)
    assert clip(none, (3, 3, 3)).shape == encode(none, none).shape == decode(none, none).shape == (0, 6)
    assert decode(torch.zeros(0, 4, 6), none).shape == (0, 4, 6)
    assert pyramid_level(none, k_min=2, k_max=5).shape == (0,)


def test_many_pairs_are_the_same_in_parts(monkeypatch):
    boxes = torch.rand(50, 6)
    boxes[:, 3:] += boxes[:, :3]
    whole = iou(boxes, boxes[:30])
    monkeypatch.setattr("voxelry.ops.boxes._PAIRS", 100)
    assert torch.equal(iou(boxes, boxes[:30]), whole)


def test_clip_to_the_edge_of_the_image():
    boxes = torch.tensor([[-3.0, 2.0, 9.0, 30.0]])
    assert clip(boxes, (6, 8)).tolist() == [[-0.5, 2.0, 5.5, 7.5]]
    assert clip(boxes, (6, 8), low=0.0).tolist() == [[0.0, 2.0, 6.0, 8.0]]
    assert volume(clip(boxes + 50, (6, 8))).item() == 0


def test_each_axis_has_its_own_size():
    """Depth, height and width differ, so that a swapped axis shows."""
    far = torch.tensor([[-99.0] * 3 + [99.0] * 3])
    assert clip(far, (4, 8, 16)).tolist() == [[-0.5, -0.5, -0.5, 3.5, 7.5, 15.5]]


def test_encode_by_hand():
    reference, target = torch.tensor([[0.0, 0.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 5.0, 4.0]])
    expected = torch.tensor([[1.0, 0.0, math.log(2), 0.0]])  # centre 1 to 3, extent 2 to 4, of the first axis
    assert_close(encode(target, reference), expected)
    weighted = encode(target, reference, weights=((10.0, 20.0), 5.0))
    assert_close(weighted, expected * torch.tensor([10.0, 20.0, 5.0, 5.0]))


def test_decode_several_classes_and_hold_growth():
    reference = torch.tensor([[0.0, 0.0, 2.0, 4.0], [1.0, 1.0, 2.0, 2.0]])
    deltas = torch.zeros(2, 3, 4)
    deltas[:, 1, 2:] = 50.0
    boxes = decode(deltas, reference)
    assert_close(boxes[:, 0], reference)
    assert_close(boxes[0, 1, 2:] - boxes[0, 1, :2], torch.tensor([125.0, 250.0]))
    assert_close(decode(deltas[:, 1], reference), boxes[:, 1])


def test_decode_of_half_precision_is_wide():
    reference = torch.tensor([[3000.5, 4000.5, 3010.5, 4020.5]])
    assert_close(decode(torch.zeros(1, 4, dtype=torch.float16), reference), reference)


def test_encoding_what_is_no_box_gives_nan_for_that_row_alone():
    deltas = encode(torch.cat([BROKEN, cube(0, 5, 2)]), cube(0, 5, 2).expand(6, 4))
    assert deltas[:5].isnan().all()
    assert deltas[5].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("voxelry", [1, 2, 3, 11, 12, 13]),
        ("monai", [1, 2, 3, 11, 12, 13]),
        ("torchvision", [3, 2, 1, 13, 12, 11]),
        ("medvision", [3, 2, 1, 13, 12, 11]),
        ("nndetection", [1, 2, 11, 12, 3, 13]),
    ],
)
def test_column_orders_of_a_volume(order, expected):
    box = torch.tensor([[1, 2, 3, 11, 12, 13]])
    assert convert(box, "voxelry", order, ndim=3).tolist() == [expected]
    assert convert(torch.tensor([expected]), order, "voxelry", ndim=3).tolist() == box.tolist()


def test_column_orders_of_an_image():
    box = torch.tensor([[1, 2, 11, 12]])
    found = {order: convert(box, "voxelry", order, ndim=2).tolist()[0] for order in ORDERS}
    swapped = [2, 1, 12, 11]
    straight = [1, 2, 11, 12]
    assert found == {
        "voxelry": straight,
        "torchvision": swapped,
        "medvision": swapped,
        "monai": straight,
        "nndetection": straight,
    }


def test_levels_of_the_pyramid():
    sides = torch.tensor([10.0, 111.9, 112.0, 223.0, 224.0, 448.0, 5000.0])
    for ndim in (2, 3):
        boxes = torch.cat([torch.zeros(7, ndim), sides[:, None].expand(7, ndim)], dim=1)
        assert pyramid_level(boxes, k_min=2, k_max=5).tolist() == [2, 2, 3, 3, 4, 5, 5]
        assert pyramid_level(boxes, k_min=0, k_max=3, canonical_scale=20, canonical_level=1).tolist() == [
            *(0, 3, 3, 3, 3, 3, 3)
        ]


def test_a_broken_box_is_read_from_the_finest_level():
    assert pyramid_level(BROKEN, k_min=2, k_max=5).tolist() == [2] * 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: volume(torch.zeros(3, 5)), "lows then highs"),
        (lambda: iou(torch.zeros(1, 4), torch.zeros(1, 6)), "one rank"),
        (lambda: clip(torch.zeros(1, 4), (3, 3, 3)), "shape: expected"),
        (lambda: decode(torch.zeros(2, 4), torch.zeros(3, 4)), "deltas: expected"),
        (lambda: encode(torch.zeros(1, 4), torch.zeros(1, 4), ((1.0,) * 3, 1.0)), "weights, centre"),
        (lambda: convert(torch.zeros(1, 4), "coco", "voxelry", ndim=2), "got 'coco'"),
        (lambda: convert(torch.zeros(1, 4), "monai", "voxelry", ndim=3), "6 columns"),
        (lambda: pyramid_level(torch.zeros(1, 4), k_min=3, k_max=2), "k_min <= k_max"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(SettingError, match=message):
        call()

"""Suppression and clustering: every version against a plain loop, worked numbers, and boxes that are none."""

import math

import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.ops import nms as module
from voxelry.ops.boxes import iou, paired_iou
from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.nms import batched_nms, cluster, nms, soft_nms, weighted_box_clustering

nan, inf = math.nan, math.inf


@pytest.fixture(params=["numba", "torch"])
def version(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 16)  # several blocks for a few boxes
    with backend(request.param):
        yield request.param


def crowd(count, ndim, *, grid=False, stretch=None):
    """Boxes that overlap a lot; on a grid, with ties of scores and of IoUs."""
    draw = torch.randint(0, 12, (count, 2, ndim)).float() if grid else torch.rand(count, 2, ndim) * 12
    low, extent = draw[:, 0], draw[:, 1] / 2 + 1
    boxes = torch.cat([low, low + extent], dim=1)
    if stretch is not None:
        boxes = boxes * torch.tensor(stretch * 2)
    return boxes, torch.randint(0, 9, (count,)) / 10 if grid else torch.rand(count)


def plain_owners(boxes, scores, threshold, groups):
    """The definition: by falling score, the first kept box that overlaps too much, or the box itself."""
    overlap, kept, owner = iou(boxes, boxes), [], [-1] * len(boxes)
    for index in sorted(range(len(boxes)), key=lambda k: (-scores[k].item(), k)):
        above = [k for k in kept if overlap[k, index] > torch.tensor(threshold) and groups[k] == groups[index]]
        owner[index] = above[0] if above else index
        if not above:
            kept.append(index)
    return kept, owner


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("grid", [False, True])
def test_the_plain_loop_keeps_the_same(version, ndim, grid, threshold):
    boxes, scores = crowd(90, ndim, grid=grid)
    groups = torch.randint(-1, 2, (90,))
    kept, owner = plain_owners(boxes, scores, threshold, groups * 0)
    assert nms(boxes, scores, threshold).tolist() == kept
    assert cluster(boxes, scores, threshold).tolist() == owner
    kept, owner = plain_owners(boxes, scores, threshold, groups)
    assert batched_nms(boxes, scores, groups, threshold).tolist() == kept
    assert cluster(boxes, scores, threshold, groups=groups).tolist() == owner


@pytest.mark.parametrize("stretch", [[50.0, 1.0, 1.0], [1.0, 50.0, 1.0], [1.0, 1.0, 0.02]])
def test_any_axis_may_be_the_long_one(version, stretch):
    boxes, scores = crowd(80, 3, stretch=stretch)
    boxes[7] = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]) * boxes.max()  # one that reaches over all others
    kept, _ = plain_owners(boxes, scores, 0.2, [0] * 80)
    assert nms(boxes, scores, 0.2).tolist() == kept


def test_one_of_two_by_hand(version):
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [20.0, 20.0, 21.0, 21.0]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    assert nms(boxes, scores, 0.49).tolist() == [1, 2]
    assert nms(boxes, scores, 0.5).tolist() == [1, 0, 2]  # IoU 1/2 isn't above 1/2
    assert cluster(boxes, scores, 0.49).tolist() == [1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_an_iou_of_the_threshold_is_not_above_it_in_any_type(version, dtype):
    boxes = torch.tensor([[0, 0, 1, 10], [0, 0, 1, 3]]).to(dtype)
    scores = torch.tensor([0.5, 0.25])
    assert nms(boxes, scores, 0.3).tolist() == [0, 1]
    assert nms(boxes, scores, 0.299).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_what_float32_keeps(version, dtype):
    """Boxes of 50³ to 700³ voxels, whose volumes are far beyond float16."""
    low = torch.rand(120, 3) * 400
    boxes = torch.cat([low, low + 50 + torch.rand(120, 3) * 650], dim=1).to(dtype)
    scores = torch.rand(120).to(dtype)
    for threshold in (0.1, 0.5):
        assert torch.equal(nms(boxes, scores, threshold), nms(boxes.float(), scores.float(), threshold))
    kept, _ = plain_owners(boxes.double(), scores, 0.3, [0] * 120)
    assert nms(boxes, scores, 0.3).tolist() == kept


def test_what_is_no_detection_is_never_returned(version):
    boxes = torch.tensor(
        [
            [0.0, 0.0, 4.0, 4.0],
            [nan, 0.0, 4.0, 4.0],
            [0.0, 0.0, inf, 4.0],
            [0.0, 0.0, 4.0, 4.0],  # NaN score
            [2.0, 2.0, 2.0, 2.0],  # a point: kept
            [3.0, 3.0, 1.0, 1.0],  # inverted: kept, suppresses nothing
            [0.0, 0.0, 4.0, 4.0],
        ]
    )
    scores = torch.tensor([0.5, 0.9, 0.9, nan, 0.8, 0.95, -inf])
    assert nms(boxes, scores, 0.0).tolist() == [5, 4, 0]
    assert cluster(boxes, scores, 0.0).tolist() == [0, -1, -1, -1, 4, 5, 0]
    taken, _ = soft_nms(boxes, scores)
    assert taken.tolist() == [5, 4, 0]
    assert len(weighted_box_clustering(boxes[1:4], scores[1:4], 0.5)[0]) == 0


def test_no_boxes(version):
    boxes, scores = torch.zeros(0, 6), torch.zeros(0)
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(nms(boxes, scores, 0.5), none)
    assert torch.equal(cluster(boxes, scores, 0.5), none)
    for separate in ("exact", "offset", "torchvision"):
        assert torch.equal(batched_nms(boxes, scores, none, 0.5, separate=separate), none)
    assert [part.shape for part in soft_nms(boxes, scores)] == [(0,), (0,)]
    assert [part.shape for part in weighted_box_clustering(boxes, scores, 0.5)] == [(0, 6), (0,)]


def test_groups_never_meet_and_negative_coordinates_do_not_matter(version):
    """An offset by the largest coordinate lets the second group's negative boxes reach into the first."""
    boxes = torch.tensor([[4.0, 4.0, 10.0, 10.0], [-7.0, -7.0, -1.0, -1.0]])
    scores, groups = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    assert batched_nms(boxes, scores, groups, 0.3).tolist() == [0, 1]
    assert batched_nms(boxes, scores, groups, 0.3, separate="offset").tolist() == [0]


def test_torchvision_moves_groups_apart_only_while_there_are_few(version):
    """At 3e6 the offset rounds coordinates to quarters, and an IoU of 0.519 becomes 0.5."""
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.519], [0.0, 0.0, 3e6, 1.0]])
    scores, groups = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 1, 0])
    assert batched_nms(boxes, scores, groups, 0.51).tolist() == [0, 2]
    assert batched_nms(boxes, scores, groups, 0.51, separate="torchvision").tolist() == [0, 1, 2]
    more = torch.cat([boxes, torch.zeros(1000, 4)])
    scores, groups = torch.cat([scores, torch.zeros(1000)]), torch.cat([groups, torch.zeros(1000, dtype=torch.int64)])
    assert batched_nms(more, scores, groups, 0.51, separate="torchvision")[:2].tolist() == [0, 2]


def test_inputs_may_be_views_and_want_gradients(version):
    boxes, scores = crowd(40, 3)
    kept = nms(boxes, scores, 0.2)
    flipped = boxes.T.contiguous().T.requires_grad_()
    assert torch.equal(nms(flipped, scores.expand(2, 40)[0].clone().requires_grad_(), 0.2), kept)


def plain_soft_nms(boxes, scores, weaken, min_score):
    left, order = {k: scores[k].item() for k in range(len(boxes))}, []
    scores = dict(left)
    while left:
        best = max(left, key=lambda k: (left[k], -k))
        if left[best] <= min_score:
            break
        order.append(best)
        scores[best] = left.pop(best)
        for k in left:
            left[k] *= weaken(paired_iou(boxes[best], boxes[k]).item())
    return order, [scores[k] for k in order]


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_soft_nms_is_the_plain_loop(version, method, grid):
    boxes, scores = crowd(60, 3, grid=grid)
    if method == "gaussian":
        expected = plain_soft_nms(boxes, scores, lambda u: math.exp(-(u * u) / 0.2), 0.05)
    else:
        expected = plain_soft_nms(boxes, scores, lambda u: 1 - u if u > 0.25 else 1, 0.05)
    taken, left = soft_nms(boxes, scores, method=method, sigma=0.2, threshold=0.25, min_score=0.05)
    assert taken.tolist() == expected[0]
    assert_close(left, torch.tensor(expected[1]))
    assert left.dtype == torch.float32
    assert 0 < len(taken) < 60


def test_soft_nms_by_hand(version):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5], [5.0, 5.0, 6.0, 6.0]]).double()
    scores = torch.tensor([0.9, 0.8, 0.5]).double()
    taken, left = soft_nms(boxes, scores)
    assert taken.tolist() == [0, 2, 1]
    assert_close(left, torch.tensor([0.9, 0.5, 0.8 * math.exp(-0.5)]).double())
    taken, left = soft_nms(boxes, scores, method="linear")
    assert_close(left, torch.tensor([0.9, 0.5, 0.4]).double())


CLUSTER = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0], [9.0, 9.0, 11.0, 11.0]])


def test_weighted_box_clustering_by_hand(version):
    """Weights 1 and 1/2 from the IoUs; the score is (0.8 + 0.2) / 1.5, and the high of the last axis 3.6."""
    scores = torch.tensor([0.8, 0.4, 0.5])
    boxes, found = weighted_box_clustering(CLUSTER, scores, 0.3)
    assert_close(found, torch.tensor([2 / 3, 0.5]))
    assert_close(boxes, torch.tensor([[0.0, 0.0, 4.0, 3.6], [9.0, 9.0, 11.0, 11.0]]))


def test_clusters_of_low_score_are_left_out(version):
    _, found = weighted_box_clustering(CLUSTER, torch.tensor([0.8, 0.4, 0.5]), 0.3, min_score=0.6)
    assert_close(found, torch.tensor([2 / 3]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, s: nms(b, s, 1.5), "threshold: expected an IoU"),
        (lambda b, s: nms(b, s, nan), "threshold: expected an IoU"),
        (lambda b, s: nms(b, s[:2], 0.5), "scores"),
        (lambda b, s: nms(b[0], s, 0.5), "scores"),
        (lambda b, s: nms(b[:, :3], s, 0.5), "lows then highs"),
        (lambda b, s: batched_nms(b, s, s, 0.5), "groups: expected 3 integers"),
        (lambda b, s: batched_nms(b, s, s.long(), 0.5, separate="no"), "separate: expected"),
        (lambda b, s: soft_nms(b, s, method="hard"), "method: expected"),
        (lambda b, s: soft_nms(b, s, sigma=0), "sigma: expected"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(SettingError, match=message):
        call(torch.zeros(3, 4), torch.zeros(3))

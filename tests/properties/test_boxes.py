"""Laws of boxes, of suppression, of matching and of pasted masks that hold for every input."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from voxelry.ops.boxes import ORDERS, clip, convert, decode, encode, giou, iou, valid, volume
from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.masks import mask_boxes, mask_crops, paste_mask
from voxelry.ops.matching import match
from voxelry.ops.nms import batched_nms, cluster, nms, soft_nms, weighted_box_clustering
from voxelry.ops.rle import decode_rle, encode_rle

ndims = st.sampled_from([2, 3])
counts = st.integers(1, 25)


@st.composite
def box_lists(draw, ndim=ndims, count=counts):
    """Boxes on a grid of quarters, so that sums are exact and equal IoUs are common."""
    ndim, count = draw(ndim), draw(count)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    low = rng.integers(-20, 60, (count, ndim)) / 4
    extent = rng.integers(1, 40, (count, ndim)) / 4
    return torch.from_numpy(np.concatenate([low, low + extent], axis=1)).float()


def rank(boxes):
    return boxes.shape[1] // 2


def permuted(boxes, order):
    return boxes[:, [*order, *(axis + rank(boxes) for axis in order)]]


def mirrored(boxes, axis):
    moved = boxes.clone()
    moved[:, axis], moved[:, rank(boxes) + axis] = -boxes[:, rank(boxes) + axis], -boxes[:, axis]
    return moved


def scores_of(boxes):
    return torch.from_numpy(np.random.default_rng(len(boxes)).permutation(len(boxes)) + 1.0) / len(boxes)


def every_giou(boxes, others):
    return giou(boxes[:, None], others)


@given(boxes=box_lists(), data=st.data())
def test_overlap_does_not_care_about_the_order_of_axes_nor_mirrors(boxes, data):
    order = data.draw(st.permutations(range(rank(boxes))))
    axis = data.draw(st.integers(0, rank(boxes) - 1))
    for overlap in (iou, every_giou):
        assert_close(overlap(permuted(boxes, order), permuted(boxes, order)), overlap(boxes, boxes))
        assert_close(overlap(mirrored(boxes, axis), mirrored(boxes, axis)), overlap(boxes, boxes))


@given(boxes=box_lists())
def test_overlap_is_symmetric_bounded_and_one_with_itself(boxes):
    overlap = iou(boxes, boxes)
    assert torch.equal(overlap, overlap.T)
    assert torch.equal(overlap.diagonal(), torch.ones(len(boxes)))
    assert overlap.min() >= 0
    assert overlap.max() <= 1
    assert (every_giou(boxes, boxes) <= overlap).all()
    assert (every_giou(boxes, boxes) > -1).all()


@given(boxes=box_lists(ndim=st.just(2)))
def test_a_volume_constant_along_z_gives_the_result_of_the_plane(boxes):
    depth = torch.tensor([[-0.5, 7.5]]).expand(len(boxes), 2)
    lifted = torch.cat([depth[:, :1], boxes[:, :2], depth[:, 1:], boxes[:, 2:]], dim=1)
    scores = scores_of(boxes)
    assert_close(iou(lifted, lifted), iou(boxes, boxes))
    assert_close(every_giou(lifted, lifted), every_giou(boxes, boxes))
    assert torch.equal(nms(lifted, scores, 0.3), nms(boxes, scores, 0.3))
    assert torch.equal(soft_nms(lifted, scores)[0], soft_nms(boxes, scores)[0])
    settings = {"high": 0.5, "low": 0.3, "low_quality": True}
    assert torch.equal(match(lifted[:4], lifted, **settings), match(boxes[:4], boxes, **settings))


@given(targets=box_lists(count=st.just(9)), data=st.data())
def test_decoding_undoes_encoding(targets, data):
    references = data.draw(box_lists(ndim=st.just(rank(targets)), count=st.just(9)))
    weights = ((10.0, 5.0, 2.0)[: rank(targets)], 5.0)
    assert_close(decode(encode(targets, references, weights), references, weights), targets, atol=1e-4, rtol=1e-5)
    assert not encode(targets, targets).any()


@given(boxes=box_lists(), scale=st.sampled_from([0.25, 0.5, 2.0, 64.0]))
def test_codes_and_overlaps_do_not_depend_on_the_voxel_size(boxes, scale):
    other = boxes.roll(1, dims=0)
    assert_close(encode(boxes * scale, other * scale), encode(boxes, other))
    assert torch.equal(iou(boxes * scale, other * scale), iou(boxes, other))
    assert torch.equal(nms(boxes * scale, scores_of(boxes), 0.4), nms(boxes, scores_of(boxes), 0.4))


@given(boxes=box_lists(), source=st.sampled_from(ORDERS), target=st.sampled_from(ORDERS))
def test_conversions_come_back_and_lead_to_one_place(boxes, source, target):
    ndim = rank(boxes)
    there = convert(boxes, source, target, ndim=ndim)
    assert torch.equal(convert(there, target, source, ndim=ndim), boxes)
    through = convert(convert(boxes, source, "monai", ndim=ndim), "monai", target, ndim=ndim)
    assert torch.equal(through, there)


@given(boxes=box_lists(), size=st.integers(1, 12))
def test_clipping_stays_inside_takes_nothing_inside_and_twice_is_once(boxes, size):
    shape = (size,) * rank(boxes)
    cut = clip(boxes, shape)
    assert cut.min() >= -0.5
    assert cut.max() <= size - 0.5
    assert torch.equal(clip(cut, shape), cut)
    assert (volume(cut) <= volume(boxes)).all()
    image = torch.tensor([[-0.5] * rank(boxes) + [size - 0.5] * rank(boxes)])
    inside = (boxes >= -0.5).all(dim=1) & (boxes <= size - 0.5).all(dim=1)
    assert torch.equal(cut[inside], boxes[inside])
    assert torch.equal(valid(cut, 1e-6), iou(boxes, image)[:, 0] > 0)


@given(boxes=box_lists(), threshold=st.sampled_from([0.0, 0.2, 0.5, 0.8]), data=st.data())
def test_what_suppression_promises(boxes, threshold, data):
    """No two kept boxes overlap too much, and each suppressed one has a better kept one that does."""
    scores = scores_of(boxes)
    kept, owner = nms(boxes, scores, threshold), cluster(boxes, scores, threshold)
    overlap = iou(boxes, boxes)
    assert not ((overlap[kept][:, kept] > threshold) & ~torch.eye(len(kept), dtype=torch.bool)).any()
    assert sorted(owner.unique().tolist()) == sorted(kept.tolist())
    gone = torch.nonzero(owner != torch.arange(len(boxes)))[:, 0]
    assert (overlap[gone, owner[gone]] > threshold).all()
    assert (scores[owner[gone]] > scores[gone]).all()
    with backend("torch"):
        assert torch.equal(nms(boxes, scores, threshold), kept)
    order = torch.tensor(data.draw(st.permutations(range(len(boxes)))))
    assert torch.equal(order[nms(boxes[order], scores[order], threshold)], kept)
    assert torch.equal(nms(boxes[kept], scores[kept], threshold), torch.arange(len(kept)))


@given(boxes=box_lists(), count=st.integers(1, 4))
def test_groups_are_separate_suppressions(boxes, count):
    scores, groups = scores_of(boxes), torch.arange(len(boxes)) % count
    parts = [torch.nonzero(groups == group)[:, 0] for group in range(count)]
    expected = torch.cat([part[nms(boxes[part], scores[part], 0.3)] for part in parts])
    found = batched_nms(boxes, scores, groups, 0.3)
    assert sorted(found.tolist()) == sorted(expected.tolist())
    assert (scores[found].diff() <= 0).all()


@given(boxes=box_lists(), threshold=st.sampled_from([0.2, 0.5]))
def test_clusters_of_one_are_the_boxes_and_clusters_lie_among_theirs(boxes, threshold):
    scores = scores_of(boxes).float()
    new_boxes, new_scores = weighted_box_clustering(boxes, scores, threshold)
    owner = cluster(boxes, scores, threshold)
    assert len(new_boxes) == len(owner.unique())
    assert new_scores.max() <= scores.max() + 1e-6
    assert new_scores.min() >= scores.min() - 1e-6
    assert new_boxes.min() >= boxes.min() - 1e-4
    doubled = weighted_box_clustering(boxes.repeat(2, 1), scores.repeat(2), threshold)
    assert_close(doubled[1], new_scores)
    assert_close(doubled[0], new_boxes)


@given(boxes=box_lists(), chunk=st.integers(1, 200))
def test_matching_in_parts_is_matching_at_once(boxes, chunk):
    truths = boxes[::3] + 0.25
    settings = {"high": 0.6, "low": 0.3, "low_quality": True}
    matches = match(truths, boxes, **settings)
    assert torch.equal(match(truths, boxes, **settings, chunk=chunk), matches)
    assert torch.equal(match(truths, list(boxes.split(3)), **settings), matches)
    touched = (iou(truths, boxes) > 0).any(dim=1)
    best = iou(truths, boxes).argmax(dim=1)
    assert (matches[best[touched]] >= 0).all()


@given(ndim=ndims, seed=st.integers(0, 2**31), data=st.data())
def test_pasting_does_not_care_about_the_order_of_axes(ndim, seed, data):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 9, ndim), dtype=np.float32)
    low = rng.random(ndim) * 12 - 3
    box = np.concatenate([low, low + rng.random(ndim) * 9])
    shape = tuple(rng.integers(4, 12, ndim).tolist())
    order = data.draw(st.permutations(range(ndim)))
    crop, window = paste_mask(mask, box, shape)
    moved = np.concatenate([low[order], box[ndim:][order]])
    other, place = paste_mask(mask.transpose(order), moved, [shape[axis] for axis in order])
    np.testing.assert_allclose(other, crop.transpose(order), atol=1e-5)
    assert crop.size == 0 or place == tuple(window[axis] for axis in order)
    assert crop.size == 0 or (mask.min() <= crop.min() and crop.max() <= mask.max())


@given(ndim=ndims, seed=st.integers(0, 2**31))
def test_painted_masks_have_the_boxes_they_came_from(ndim, seed):
    """Solid masks on boxes of whole voxels, apart from each other: box to voxels to box."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 3, (3, ndim)) + np.arange(3)[:, None] * 8
    stops = starts + rng.integers(1, 6, (3, ndim))
    boxes = torch.from_numpy(np.concatenate([starts, stops], axis=1) - 0.5).float()
    labels = torch.zeros((26,) * ndim, dtype=torch.int32)
    for number, (window, inside) in enumerate(mask_crops(torch.ones(3, *(5,) * ndim), boxes, labels.shape), start=1):
        labels[window][torch.from_numpy(inside)] = number
    assert torch.equal(mask_boxes(labels, 3), boxes)


@given(boxes=box_lists(count=st.integers(1, 6)))
def test_runs_hold_every_crop(boxes):
    shape = (14,) * rank(boxes)
    masks = torch.rand(len(boxes), *(6,) * rank(boxes), generator=torch.Generator().manual_seed(0))
    for window, inside in mask_crops(masks, boxes, shape):
        whole, back = np.zeros(shape, bool), np.zeros(shape, bool)
        whole[window] = inside
        found, crop = decode_rle(encode_rle(inside, window, shape))
        back[found] = crop
        np.testing.assert_array_equal(back, whole)

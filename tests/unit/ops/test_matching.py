"""Matching against the whole matrix of IoUs, in parts; and the draw of anchors for a loss."""

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.ops.boxes import iou
from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.matching import BACKGROUND, BETWEEN, match, sample_balanced


def matched_at_once(truths, anchors, high, low, low_quality):
    """torchvision's matcher, on the whole matrix."""
    quality = iou(truths, anchors)
    best, choice = quality.max(dim=0)
    matches = torch.where(best < high, BETWEEN, choice)
    matches[best < low] = BACKGROUND
    if low_quality:
        anchors_of_record = torch.where(quality == quality.max(dim=1, keepdim=True).values)[1]
        matches[anchors_of_record] = choice[anchors_of_record]
    return matches


def integer_boxes(count, ndim, largest):
    """On a grid, so that many IoUs are equal."""
    low = torch.randint(0, 25, (count, ndim)).float()
    return torch.cat([low, low + torch.randint(2, largest, (count, ndim))], dim=1)


@pytest.mark.parametrize("name", ["numba", "torch"])
@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_parts_match_as_the_whole_matrix_does(ndim, low_quality, chunk, name):
    with backend(name):
        check_parts(ndim, low_quality, chunk)


def check_parts(ndim, low_quality, chunk):
    """The whole and its parts, with one truth and several."""
    anchors = integer_boxes(400, ndim, 9)
    for count in (1, 7):
        truths = integer_boxes(count, ndim, 12)
        expected = matched_at_once(truths, anchors, 0.5, 0.3, low_quality)
        settings = {"high": 0.5, "low": 0.3, "low_quality": low_quality, "chunk": chunk, "allow_disjoint": True}
        assert torch.equal(match(truths, anchors, **settings), expected)
        levels = (part for part in anchors.split([300, 0, 99, 1]))
        assert torch.equal(match(truths, levels, **settings), expected)


def test_matches_by_hand():
    truths = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    anchors = torch.tensor(
        [
            [0.0, 0.0, 10.0, 8.0],  # 0.8
            [0.0, 0.0, 10.0, 5.0],  # 0.5
            [0.0, 0.0, 10.0, 2.0],  # 0.2
            [20.0, 20.0, 30.0, 22.0],  # 0.2, but the best of the second truth
            [20.0, 28.0, 30.0, 30.0],  # and another as good
            [50.0, 50.0, 60.0, 60.0],
        ]
    )
    plain = match(truths, anchors, high=0.7, low=0.3, low_quality=False)
    assert plain.tolist() == [0, BETWEEN, BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND]
    rescued = match(truths, anchors, high=0.7, low=0.3, low_quality=True)
    assert rescued.tolist() == [0, BETWEEN, BACKGROUND, 1, 1, BACKGROUND]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_iou_at_the_bound_is_matched(dtype):
    truths, anchors = torch.tensor([[0, 0, 10, 10]]).to(dtype), torch.tensor([[0, 0, 10, 7], [0, 0, 10, 3]]).to(dtype)
    assert match(truths, anchors, high=0.7, low=0.3, low_quality=False).tolist() == [0, BETWEEN]


def test_a_low_quality_anchor_takes_the_truth_it_overlaps_most():
    """The only anchor of the small truth overlaps the large one more, and answers for that."""
    truths = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 9.0, 10.0, 10.0]])
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [30.0, 30.0, 31.0, 31.0]])
    assert match(truths, anchors, high=0.7, low=0.3, low_quality=True).tolist() == [0, BACKGROUND]


def test_a_truth_without_an_anchor():
    truths = torch.tensor([[0.0, 0.0, 10.0, 10.0], [80.0, 80.0, 90.0, 90.0]])
    anchors = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 1.0]])
    settings = {"high": 0.7, "low": 0.3, "low_quality": True}
    assert match(truths, anchors, **settings).tolist() == [0, BACKGROUND]
    assert match(truths, anchors, **settings, allow_disjoint=True).tolist() == [0, 0]


def test_broken_truths_match_nothing():
    truths = torch.tensor([[float("nan"), 0.0, 5.0, 5.0], [3.0, 3.0, 1.0, 1.0], [0.0, 0.0, 5.0, 5.0]])
    anchors = torch.tensor([[0.0, 0.0, 5.0, 5.0], [float("nan")] * 4, [4.0, 4.0, 9.0, 9.0]])
    assert match(truths, anchors, high=0.7, low=0.3, low_quality=True).tolist() == [2, BACKGROUND, BACKGROUND]


def test_no_truths_and_no_anchors():
    some, none = torch.rand(5, 6), torch.zeros(0, 6)
    for low_quality in (False, True):
        settings = {"high": 0.7, "low": 0.3, "low_quality": low_quality, "allow_disjoint": True}
        assert match(none, some, **settings).tolist() == [BACKGROUND] * 5
        assert match(some, none, **settings).tolist() == match(some, [], **settings).tolist() == []


def test_memory_stays_that_of_a_part():
    """200,000 anchors against 400 truths would be 320 MB."""
    grid = torch.cartesian_prod(*[torch.arange(0.0, size) * 4 for size in (50, 80, 50)])
    anchors = torch.cat([grid - 3, grid + 3], dim=1)
    centre = torch.rand(400, 3) * 200
    truths = torch.cat([centre - 5, centre + 5], dim=1)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            made = function(*arguments, **(keywords or {}))
            if isinstance(made, torch.Tensor) and made._base is None:
                largest = max(largest, made.numel())
            return made

    with Watch():
        matches = match(truths, anchors, high=0.3, low=0.2, low_quality=True, chunk=100_000)
    assert (matches >= 0).sum() > 100
    assert 200_000 <= largest < 1_300_000  # the anchors themselves, nothing like 80 million pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 0.8}, "low <= high"),
        ({"chunk": 0}, "chunk: expected"),
        ({"anchors": torch.rand(3, 4)}, "anchors: expected"),
    ],
)
def test_what_cannot_be_matched_is_named(change, message):
    settings = {"anchors": torch.rand(3, 6), "high": 0.7, "low": 0.3, "low_quality": True, **change}
    with pytest.raises(SettingError, match=message):
        match(torch.rand(2, 6), **settings)


LABELS = torch.tensor([0, 1, -1, 0, 2, 0, -1, 1, 0, 0])


@pytest.mark.parametrize(
    ("size", "fraction", "positives", "negatives"),
    [(4, 0.5, 2, 2), (5, 0.5, 2, 3), (8, 0.5, 3, 5), (100, 1.0, 3, 5), (4, 0.0, 0, 4), (0, 0.5, 0, 0)],
)
def test_how_many_are_drawn(size, fraction, positives, negatives):
    positive, negative = sample_balanced(LABELS, size, fraction)
    assert (len(positive), len(negative)) == (positives, negatives)
    assert (LABELS[positive] >= 1).all()
    assert (LABELS[negative] == 0).all()
    assert positive.tolist() == sorted(set(positive.tolist()))
    assert negative.tolist() == sorted(set(negative.tolist()))


def test_the_draw_is_torchvisions_permutation_of_positives_then_of_negatives():
    labels = torch.randint(-1, 2, (500,))
    torch.manual_seed(3)
    found = sample_balanced(labels, 64, 0.25)
    torch.manual_seed(3)
    positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
    first, second = torch.randperm(len(positive))[:16], torch.randperm(len(negative))[:48]
    assert torch.equal(found[0], positive[first].sort().values)
    assert torch.equal(found[1], negative[second].sort().values)
    again = sample_balanced(labels, 64, 0.25, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found[0], again[0])


@pytest.mark.parametrize("arguments", [(LABELS[None], 4, 0.5), (LABELS, -1, 0.5), (LABELS, 4, 1.5)])
def test_what_cannot_be_drawn_is_named(arguments):
    with pytest.raises(SettingError, match="expected"):
        sample_balanced(*arguments)

import math
import os
import subprocess
import sys

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.ops.kernels.dispatch import backend, choose
from voxelry.ops.roi_align import roi_align, roi_masks

CPU = ["numba", "torch"]


def ramp(shape, axis, dtype=torch.float32):
    """Features whose value is the index along one axis, `(1, 1, *shape)`."""
    values = torch.arange(shape[axis], dtype=dtype)
    return values.reshape([-1 if other == axis else 1 for other in range(len(shape))]).expand(1, 1, *shape)


def sampled(features, boxes, batch, bins, scale, ratio, aligned):
    """One sample after another, one corner after another, as the formula reads."""
    shape, ndim = features.shape[2:], features.ndim - 2
    out = features.new_zeros(len(boxes), features.shape[1], *bins)
    for k, (box, image) in enumerate(zip(boxes.tolist(), batch.tolist(), strict=True)):
        low = [box[axis] * scale[axis] - aligned / 2 for axis in range(ndim)]
        side = [box[ndim + axis] * scale[axis] - aligned / 2 - low[axis] for axis in range(ndim)]
        side = side if aligned else [max(length, 1.0) for length in side]
        count = [ratio or max(math.ceil(length / n), 0) for length, n in zip(side, bins, strict=True)]
        for place in torch.cartesian_prod(*(torch.arange(n) for n in bins)).tolist():
            total = 0
            for sample in torch.cartesian_prod(*(torch.arange(n) for n in count)).tolist():
                point = [low[a] + (place[a] + (sample[a] + 0.5) / count[a]) * side[a] / bins[a] for a in range(ndim)]
                if any(not -1 <= value <= size for value, size in zip(point, shape, strict=True)):
                    continue
                point = [min(max(value, 0), size - 1) for value, size in zip(point, shape, strict=True)]
                for corner in torch.cartesian_prod(*[torch.arange(2)] * ndim).tolist():
                    cell = [min(int(v) + c, size - 1) for v, c, size in zip(point, corner, shape, strict=True)]
                    part = [v - int(v) if c else 1 - v + int(v) for v, c in zip(point, corner, strict=True)]
                    total = total + math.prod(part) * features[(image, slice(None), *cell)]
            out[(k, slice(None), *place)] = total / max(math.prod(count), 1)
    return out


def test_the_version_follows_the_device_and_can_be_forced():
    assert choose(torch.zeros(1)) == "numba"
    assert choose(torch.zeros(1, device="meta")) == "torch"
    with backend("torch"):
        assert choose(torch.zeros(1)) == "torch"
        with backend("triton"):
            assert choose(torch.zeros(1)) == "triton"
        assert choose(torch.zeros(1)) == "torch"
    with pytest.raises(SettingError, match=r"numba, triton, torch, got 'cuda'"), backend("cuda"):
        pass


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("shape", [(9, 7), (8, 9, 10)])
def test_a_ramp_gives_the_centres_of_the_bins(shape, name):
    ndim = len(shape)
    box = torch.tensor([[1.0] * ndim + [5.0] * ndim])
    for axis in range(ndim):
        with backend(name):
            found = roi_align(ramp(shape, axis), box, torch.zeros(1, dtype=torch.int64), 4)
        expected = ramp((4,) * ndim, axis) + 1.5
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("shape", [(9, 7), (5, 9, 6)])
def test_each_axis_has_its_scale_and_its_bins(shape, ratio, aligned, name):
    ndim = len(shape)
    features = torch.randn(2, 9, *shape, dtype=torch.float64)
    boxes = torch.rand(5, 2 * ndim, dtype=torch.float64) * 20 - 4
    boxes[:4, ndim:] = boxes[:4, :ndim] + torch.rand(4, ndim, dtype=torch.float64) * 25  # the last may be inverted
    batch = torch.tensor([1, 0, 0, 1, 1])
    bins, scale = (2, 3, 4)[:ndim], (0.25, 0.5, 0.75)[:ndim]
    expected = sampled(features, boxes, batch, bins, scale, ratio, aligned)
    with backend(name):
        found = roi_align(features, boxes, batch, bins, scale=scale, sampling_ratio=ratio, aligned=aligned)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CPU)
def test_gradient_in_double_precision(name):
    features = torch.randn(2, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.5, -1, 0, 2, 5, 1.5], [1, 1, 1, 1.2, 4, 9], [-3, 0, 0, 1, 1, 1]])
    batch = torch.tensor([0, 1, 1])
    with backend(name):
        for ratio in (0, 2):
            assert torch.autograd.gradcheck(
                lambda x, n=ratio: roi_align(x, boxes, batch, 2, sampling_ratio=n), features
            )


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype, name):
    features = torch.randn(1, 3, 8, 9, 10).to(dtype).requires_grad_()
    boxes = torch.tensor([[1.0, 1, 1, 6, 7, 8]])
    batch = torch.zeros(1, dtype=torch.int64)
    with backend(name), torch.autocast("cpu", torch.bfloat16):
        found = roi_align(features, boxes, batch, 3)
        exact = roi_align(features.detach().float(), boxes, batch, 3)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))
    found.float().sum().backward()
    assert features.grad.dtype == dtype
    assert features.grad.float().sum().item() == pytest.approx(3 * 27, rel=1e-2)


def test_backward_is_the_same_to_the_bit_on_any_number_of_threads():
    features = torch.randn(2, 20, 6, 7, 8)
    boxes = torch.rand(40, 6) * 4
    boxes[:, 3:] += 3
    batch = torch.arange(40) % 2
    weight = torch.randn(40, 20, 3, 3, 3)
    before, grads = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 1):
            torch.set_num_threads(threads)
            leaf = features.clone().requires_grad_()
            (roi_align(leaf, boxes, batch, 3) * weight).sum().backward()
            grads.append(leaf.grad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@pytest.mark.parametrize("name", CPU)
def test_any_memory_layout(name):
    features = torch.randn(2, 10, 5, 6, 7)
    boxes, batch = torch.tensor([[0.0, 1, 1, 4, 5, 6]] * 2), torch.tensor([0, 1])
    with backend(name):
        expected = roi_align(features, boxes, batch, 2)
        last = features.to(memory_format=torch.channels_last_3d)
        assert torch.equal(roi_align(last, boxes, batch, 2), expected)
        cut = torch.cat((features, features), dim=4)[..., 7:]
        assert torch.equal(roi_align(cut, boxes, batch, 2), expected)


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("shape", [(9, 7), (8, 9, 7)])
def test_channels_of_the_answer_lie_beside_each_other_where_asked(shape, name):
    ndim = len(shape)
    boxes = torch.tensor([[1.0] * ndim + [5.0] * ndim, [2.5] * ndim + [6.0] * ndim])
    features = torch.randn(1, 11, *shape).movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    grad = torch.randn(2, 11, *(3,) * ndim)
    found = []
    with backend(name):
        for channels_last in (False, True):
            answer = roi_align(features, boxes, torch.zeros(2, dtype=torch.int64), 3, channels_last=channels_last)
            assert answer.movedim(1, -1).is_contiguous() == channels_last
            found.append((answer, torch.autograd.grad(answer, features, grad)[0]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7)])
def test_no_boxes(shape, name):
    features = torch.randn(2, 3, *shape, requires_grad=True)
    none = torch.zeros(0, 2 * len(shape)), torch.zeros(0, dtype=torch.int64)
    with backend(name):
        for ratio in (0, 2):
            found = roi_align(features, *none, 4, sampling_ratio=ratio)
            assert found.shape == (0, 3, *[4] * len(shape))
            (grad,) = torch.autograd.grad(found.sum(), features)
            assert torch.equal(grad, torch.zeros_like(features))
        masks = roi_masks(torch.zeros(2, *shape, dtype=torch.int64), none[1], *none, 4)
        assert masks.shape == (0, *[4] * len(shape))


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_outside_give_zeros_and_huge_ones_end(ratio, name):
    features = torch.ones(1, 2, 5, 6, requires_grad=True)
    boxes = torch.tensor([[50.0, 0, 60, 3], [0, -40, 3, -30], [-1e30, -1e30, 1e30, 1e30], [-1e38, 0, 1e38, 2]])
    with backend(name):
        found = roi_align(features, boxes, torch.zeros(4, dtype=torch.int64), 3, sampling_ratio=ratio, scale=3.0)
        masks = roi_masks(torch.ones(1, 5, 6, dtype=torch.int64), torch.ones(4), boxes, torch.zeros(4).long(), 3)
    assert torch.count_nonzero(found[:2]) == 0
    assert torch.count_nonzero(masks[:2]) == 0
    assert found.isfinite().all()
    assert masks.isfinite().all()
    found.sum().backward()
    assert features.grad.isfinite().all()


def test_the_outermost_cell_reaches_one_cell_further():
    features = torch.ones(1, 1, 4, 4)
    batch = torch.zeros(1, dtype=torch.int64)
    for low, expected in ((-1.5, 1.0), (-1.6, 0.0), (3.5, 1.0), (3.6, 0.0)):  # one sample, half a voxel from the low
        found = roi_align(features, torch.tensor([[low, 1, low + 1, 2]]), batch, 1, sampling_ratio=1)
        assert found.item() == expected


@pytest.mark.parametrize("name", CPU)
def test_the_edge_may_go_on_for_ever(name):
    features, batch = ramp((4, 4), 0), torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[-6.0, 0, 12, 2]])
    with backend(name):
        for ratio in (0, 3):
            found = roi_align(features, box, batch, (3, 1), sampling_ratio=ratio, outside="edge")
            assert found.flatten()[[0, 2]].tolist() == [0, 3]
    with pytest.raises(SettingError, match=r"boxes: expected bins of at most 4096 cells"):
        roi_align(features, box * 1e4, batch, 2, sampling_ratio=0, outside="edge")
    with pytest.raises(SettingError, match=r'outside: expected "zero" or "edge"'):
        roi_align(features, box, batch, 2, outside="wrap")


@pytest.mark.parametrize("shape", [(11, 12), (9, 10, 11)])
def test_masks_are_the_aligned_dense_masks(shape, rng):
    ndim = len(shape)
    masks = torch.from_numpy(rng.integers(0, 4, (2, *shape)))
    low = torch.from_numpy(rng.uniform(-3, 8, (12, ndim)).astype("float32"))
    boxes = torch.cat((low, low + torch.from_numpy(rng.uniform(0, 15, (12, ndim)).astype("float32"))), dim=1)
    ids, batch = torch.arange(12) % 5, torch.arange(12) % 2  # id 4 has no voxel
    dense = torch.stack([masks[image] == number for image, number in zip(batch, ids, strict=True)])
    expected = roi_align(dense[:, None].float(), boxes, torch.arange(12), 5, sampling_ratio=0)[:, 0]
    for name in CPU:
        with backend(name):
            found = roi_masks(masks, ids, boxes, batch, 5)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert torch.equal(found[ids == 4], torch.zeros_like(found[ids == 4]))


def test_masks_of_every_integer_type():
    masks = torch.zeros(1, 6, 6, dtype=torch.int64)
    masks[0, 2:4, 2:4] = 7
    box, zero = torch.tensor([[2.0, 2, 4, 4]]), torch.zeros(1, dtype=torch.int64)
    expected = roi_masks(masks, zero + 7, box, zero, 2)
    assert expected[0].tolist() == [[1.0, 0.5], [0.5, 0.25]]
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(roi_masks(masks.to(dtype), zero + 7, box, zero, 2), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[0.0, 0, 1, 1], [0, float("nan"), 1, 1]])}, r"boxes: expected finite numbers, box 1"),
        ({"boxes": torch.full((2, 4), float("inf"))}, r"boxes: expected finite numbers, box 0"),
        ({"boxes": torch.zeros(2, 6)}, r"boxes: expected shape \(K, 4\)"),
        ({"batch_index": torch.tensor([0, 3])}, r"batch_index: expected 0 to 0, got 3 for box 1"),
        ({"batch_index": torch.zeros(1, dtype=torch.int64)}, r"batch_index: expected 2 integers"),
        ({"output_size": (0, 3)}, r"output_size: expected positive"),
        ({"output_size": (3, 3, 3)}, r"output_size: expected 1 or 2 values"),
        ({"scale": 0.0}, r"scale: expected positive"),
        ({"features": torch.zeros(1, 2, 4, 4, dtype=torch.int64)}, r"features: expected floating-point"),
        ({"features": torch.zeros(1, 2, 0, 4)}, r"features: expected at least one cell"),
        ({"features": torch.zeros(1, 2, 4)}, r"ndim: expected 2 or 3"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(change, message):
    given = {
        "features": torch.zeros(1, 2, 4, 4),
        "boxes": torch.tensor([[0.0, 0, 2, 2]] * 2),
        "batch_index": torch.zeros(2, dtype=torch.int64),
        "output_size": 2,
    }
    with pytest.raises(SettingError, match=message) as caught:
        roi_align(**(given | change))
    assert "\n" not in str(caught.value)


def test_masks_that_do_not_fit():
    box, zero = torch.tensor([[0.0, 0, 2, 2]]), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(SettingError, match=r"masks: expected integer"):
        roi_masks(torch.zeros(1, 4, 4), zero, box, zero, 2)
    with pytest.raises(SettingError, match=r"ids: expected one per box"):
        roi_masks(torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(2), box, zero, 2)


TRITON = """
import torch
from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.roi_align import roi_align
torch.manual_seed(0)
for shape, bins, ratio, aligned, kind in (
    ((3, 4, 5), (2, 1, 2), 2, False, torch.float32),
    ((2, 3, 9), (1, 2, 1), 0, True, torch.float64),
    ((4, 5), (2, 2), 0, False, torch.bfloat16),
):
    ndim = len(shape)
    values = torch.randn(2, 3, *shape).to(kind)
    low = torch.rand(3, ndim) * 4 - 2
    boxes = torch.cat((low, low + torch.rand(3, ndim) * 5), dim=1)
    batch = torch.tensor([1, 0, 1])
    results = []
    for name in ("torch", "triton", "triton"):
        leaf = values.clone().requires_grad_()
        with backend(name):
            out = roi_align(leaf, boxes, batch, bins, scale=0.75, sampling_ratio=ratio, aligned=aligned)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(kind)
        (out * weight).sum().backward()
        results.append((out.detach(), leaf.grad))
    for reference, found, again in zip(*results, strict=True):
        torch.testing.assert_close(found, reference, atol=1e-2 if kind == torch.bfloat16 else 1e-5, rtol=1e-2)
        assert torch.equal(found, again)
        assert found.abs().sum() > 0
print("the same")
"""


def test_triton_in_the_interpreter():
    pytest.importorskip("triton", reason="triton has no package for this platform")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRITON], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "the same", done.stderr


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("ratio", [0, 2])
def test_what_cannot_be_read_is_zero_where_values_are_not_looked_at(name, ratio, monkeypatch):
    monkeypatch.setattr("voxelry.ops.roi_align._may_look", lambda x: False)
    boxes = torch.tensor(
        [[1.0, 1.0, 4.0, 4.0], [math.nan, 1.0, 4.0, 4.0], [1.0, 1.0, math.inf, 4.0], [1.0, 1.0, 4.0, 4.0]]
    )
    batch = torch.tensor([0, 0, 0, 7])
    with backend(name):
        found = roi_align(torch.ones(1, 2, 8, 8), boxes, batch, 3, sampling_ratio=ratio)
    torch.testing.assert_close(found, torch.tensor([1.0, 0, 0, 0])[:, None, None, None].expand(4, 2, 3, 3))

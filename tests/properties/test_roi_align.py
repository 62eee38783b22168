import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelry.ops.kernels.dispatch import backend
from voxelry.ops.roi_align import roi_align, roi_masks


@st.composite
def problems(draw, ndims=(2, 3)):
    """Features, boxes with some outside, their images, bins, scales, sampling."""
    rank = draw(st.sampled_from(ndims))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    bins = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    scale = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5]), min_size=rank, max_size=rank))
    images, count = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    features = torch.randn(images, draw(st.integers(1, 9)), *shape, generator=generator, dtype=torch.float64)
    low = torch.rand(count, rank, generator=generator, dtype=torch.float64) * 14 - 3
    high = low + torch.rand(count, rank, generator=generator, dtype=torch.float64) * 12 - 1
    batch = torch.randint(images, (count,), generator=generator)
    how = {"sampling_ratio": draw(st.integers(0, 3)), "aligned": draw(st.booleans())}
    return features, torch.cat((low, high), dim=1), batch, bins, scale, how


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


@given(problem=problems(), data=st.data(), name=st.sampled_from(["numba", "torch"]))
def test_permuted_axes_permute_the_output(problem, data, name):
    features, boxes, batch, bins, scale, how = problem
    rank = len(bins)
    order = data.draw(st.permutations(range(rank)))
    axes = [0, 1, *(2 + axis for axis in order)]
    columns = [*order, *(rank + axis for axis in order)]
    with backend(name):
        expected = roi_align(features, boxes, batch, bins, scale=scale, **how).permute(axes)
        turned = roi_align(
            features.permute(axes), boxes[:, columns], batch, [bins[a] for a in order],
            scale=[scale[a] for a in order], **how,
        )  # fmt: skip
    close(turned, expected)


@given(problem=problems((2,)), depth=st.integers(2, 6), bins_z=st.integers(1, 3))
def test_a_volume_constant_along_z_gives_the_plane(problem, depth, bins_z):
    features, boxes, batch, bins, scale, how = problem
    volume = features.unsqueeze(2).expand(-1, -1, depth, -1, -1)
    ends = torch.tensor([0.0, depth - 1.0], dtype=boxes.dtype).expand(len(boxes), 2)
    lifted = torch.cat((ends[:, :1], boxes[:, :2], ends[:, 1:], boxes[:, 2:]), dim=1)
    expected = roi_align(features, boxes, batch, bins, scale=scale, **how)
    found = roi_align(volume, lifted, batch, (bins_z, *bins), scale=(1.0, *scale), **how)
    close(found, expected.unsqueeze(2).expand_as(found))


@given(problem=problems(), name=st.sampled_from(["numba", "torch"]))
def test_together_is_as_one_by_one(problem, name):
    features, boxes, batch, bins, scale, how = problem
    with backend(name):
        together = roi_align(features, boxes, batch, bins, scale=scale, **how)
        for k, image in enumerate(batch.tolist()):
            zero = torch.zeros(1, dtype=torch.int64)
            alone = roi_align(features[image : image + 1], boxes[k : k + 1], zero, bins, scale=scale, **how)
            close(alone[0], together[k])


@given(problem=problems())
def test_forward_and_backward_are_those_of_the_reference(problem):
    features, boxes, batch, bins, scale, how = problem
    results = {}
    for name in ("torch", "numba", "again"):
        leaf = features.clone().requires_grad_()
        with backend("torch" if name == "torch" else "numba"):
            out = roi_align(leaf, boxes, batch, bins, scale=scale, **how)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
        (grad,) = torch.autograd.grad(out, leaf, weight)
        results[name] = out.detach(), grad
    for reference, found, again in zip(results["torch"], results["numba"], results["again"], strict=True):
        close(found, reference)
        assert torch.equal(found, again)


@given(problem=problems())
def test_constant_features_give_the_constant_where_every_sample_is_inside(problem):
    features, boxes, batch, bins, scale, how = problem
    rank = len(bins)
    ends = torch.tensor([size - 1 for size in features.shape[2:]], dtype=boxes.dtype)
    low = torch.minimum(boxes[:, :rank].clamp(min=0), ends)
    inner = torch.cat((low, torch.maximum(ends, low + 1)), dim=1) / torch.tensor(scale * 2, dtype=boxes.dtype)
    found = roi_align(torch.ones_like(features), inner, batch, bins, scale=scale, sampling_ratio=how["sampling_ratio"])
    close(found, torch.ones_like(found))


@given(problem=problems(), name=st.sampled_from(["numba", "torch"]))
def test_the_masks_of_all_ids_fill_the_box(problem, name):
    features, boxes, batch, bins, _, _ = problem
    masks = (features[:, 0] > 0).long()
    with backend(name):
        parts = [roi_masks(masks, torch.full_like(batch, number), boxes, batch, bins) for number in (0, 1)]
        whole = roi_masks(torch.zeros_like(masks), torch.zeros_like(batch), boxes, batch, bins)
    torch.testing.assert_close(parts[0] + parts[1], whole, atol=1e-5, rtol=0)
    assert bool((whole <= 1 + 1e-5).all())

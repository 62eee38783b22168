"""Batches of samples of unlike sizes."""

import pytest
import torch

from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.sample import Sample


def sample(shape, *, channels=1, name="a", **parts):
    image = torch.rand(channels, *shape)
    return Sample(image, Space.from_spacing(shape, (3.0, 0.5, 1.0)[: len(shape)]), name, **parts)


@pytest.mark.parametrize("ndim", [2, 3])
def test_smaller_images_are_padded_behind_their_last_voxels(ndim):
    small, large = (5, 2, 6)[:ndim], (4, 3, 9)[:ndim]
    labels = torch.ones(small, dtype=torch.int64)
    points = torch.tensor([[1.0] * ndim, [4.0, *[2.5] * (ndim - 1)]])
    first = sample(small, labels=labels, landmarks=points, name="small")
    second = sample(large, labels=torch.ones(large, dtype=torch.int64), landmarks=points, name="large")
    batch = collate([first, second])
    size = (5, 3, 9)[:ndim]
    assert batch.image.shape == (2, 1, *size)
    inside = tuple(slice(length) for length in small)
    assert torch.equal(batch.image[(0, slice(None), *inside)], first.image)
    assert torch.equal(batch.image[0, :, :, -1], batch.image[0, :, :, small[1] - 1])  # the border goes on
    assert batch.labels[0].sum() == labels.sum()
    assert batch.spaces[0].shape == size
    assert batch.spaces[0].to_world([1] * ndim) == pytest.approx(first.space.to_world([1] * ndim))
    assert torch.equal(batch.landmarks[0, 0], points[0])
    # (4, 2.5) lies beyond the small image, and padding doesn't bring it in
    assert batch.landmarks[0, 1].isnan().all()


def test_one_shape_is_left_alone():
    samples = [sample((3, 4, 5)), sample((3, 4, 5), name="b")]
    batch = collate(samples)
    assert torch.equal(batch.image, torch.stack([one.image for one in samples]))
    assert batch.spaces == [one.space for one in samples]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sample((4, 4), name="b"), "b: an image of rank 2 can't share a batch with a of rank 3"),
        (sample((4, 4, 4), channels=3, name="b"), r"b: 3 channels .* a, which has 1 .*data.preprocess.channels=1"),
        (sample((4, 4, 4), name="b", target=torch.zeros(2, 4, 4, 4)), "b: a target of 2 channels"),
        (sample((4, 4, 4), name="b", landmarks=torch.zeros(2, 3)), "b: 2 landmarks, but a has 0"),
    ],
)
def test_refused(other, message):
    with pytest.raises(DataError, match=message):
        collate([sample((4, 4, 4)), other])

"""The steps before the network: sizes, boxes, masks and the numbers drawn."""

import pytest
import torch
import torch.nn.functional as F

from voxelry.core.errors import DataError, SettingError
from voxelry.models.mask_rcnn.settings import TransformSettings
from voxelry.models.mask_rcnn.transform import Transform, resize_boxes


def image(*shape):
    return torch.randn(1, *shape)


def test_sizes_are_those_of_a_worked_example():
    transform = Transform(
        TransformSettings(min_size=64, max_size=96, image_mean=(0.0,), image_std=(1.0,), size_divisible=32), ndim=2
    )
    batch = transform([image(60, 80), image(90, 50)])
    assert batch.shapes == [(64, 85), (96, 53)]  # the first by its shortest side, the second by its longest
    assert batch.originals == [(60, 80), (90, 50)]
    assert batch.image.shape == (2, 1, 96, 96)
    assert batch.image[0, :, 64:].abs().sum() == 0
    assert batch.image[1, :, :, 53:].abs().sum() == 0


def test_a_limit_alone_makes_images_smaller_only_and_keeps_thin_ones():
    transform = Transform(TransformSettings(max_size=16, size_divisible=1), ndim=3)
    assert transform.resized_shape((8, 12, 10)) == (8, 12, 10)
    assert transform.resized_shape((2, 64, 32)) == (1, 16, 8)
    assert transform([image(2, 64, 32)]).shapes == [(1, 16, 8)]


def test_a_volume_is_padded_only():
    transform = Transform(TransformSettings(size_divisible=(1, 4, 8)), ndim=3)
    assert transform.skip_resize
    assert transform.skip_normalize
    given = [image(3, 5, 9), image(2, 8, 7)]
    batch = transform(given)
    assert batch.image.shape == (2, 1, 3, 8, 16)
    assert torch.equal(batch.image[0, :, :, :5, :9], given[0])
    assert torch.equal(batch.image[1, :, :2, :, :7], given[1])
    assert batch.image.abs().sum() == pytest.approx(float(given[0].abs().sum() + given[1].abs().sum()))


def test_normalises_each_channel():
    transform = Transform(TransformSettings(image_mean=(1.0, 2.0), image_std=(2.0, 4.0), skip_normalize=False), ndim=2)
    found = transform([torch.ones(2, 32, 32)]).image
    assert found[0, :, 0, 0].tolist() == [0.0, -0.25]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("low", [0.0, -0.5])
def test_the_edges_of_the_image_stay_its_edges(ndim, low):
    transform = Transform(
        TransformSettings(fixed_size=(8, 30, 5)[-ndim:], skip_resize=False, size_divisible=1), ndim=ndim, low=low
    )
    shape = (4, 20, 10)[-ndim:]
    box = torch.tensor([[low] * ndim + [size + low for size in shape]])
    batch = transform([image(*shape)], [box])
    assert batch.shapes == [(8, 30, 5)[-ndim:]]
    assert torch.allclose(batch.boxes[0], torch.tensor([[low] * ndim + [s + low for s in batch.shapes[0]]]))
    back = resize_boxes(batch.boxes[0], batch.shapes[0], shape, low=low)
    assert torch.allclose(back, box, atol=1e-5)


def test_ids_and_single_masks_are_resampled_alike():
    transform = Transform(TransformSettings(min_size=13, max_size=40, skip_resize=False, size_divisible=1), ndim=3)
    ids = torch.randint(0, 4, (8, 10, 9))
    single = torch.stack([ids == 1, ids == 2, ids == 3]).to(torch.uint8)
    boxes = [torch.zeros(3, 6)] * 2
    batch = transform([image(8, 10, 9)] * 2, boxes, [ids, single])
    assert batch.masks[0].dtype == torch.int64
    assert batch.masks[0].shape == batch.shapes[0] == (13, 16, 14)
    for index in range(3):
        assert torch.equal(batch.masks[0] == index + 1, batch.masks[1][index] == 1)
    empty = transform([image(8, 10, 9)], [torch.zeros(0, 6)], [single[:0]])
    assert empty.masks[0].shape == (0, 13, 16, 14)


def test_large_ids_survive():
    transform = Transform(TransformSettings(min_size=6, skip_resize=False, size_divisible=1), ndim=2)
    ids = torch.full((3, 3), 2**24 - 1)
    assert transform([image(3, 3)], None, [ids]).masks[0].unique().tolist() == [2**24 - 1]


def test_sizes_are_drawn_from_torchs_generator_one_per_image():
    transform = Transform(TransformSettings(min_size=(16, 24, 32), skip_resize=False, size_divisible=1), ndim=2)
    images = [image(8, 8) for _ in range(6)]
    torch.manual_seed(5)
    expected = [(16, 24, 32)[int(torch.empty(1).uniform_(0.0, 3.0).item())] for _ in images]
    after = torch.rand(1)
    torch.manual_seed(5)
    batch = transform(images, draw=True)
    assert torch.equal(torch.rand(1), after)
    assert [shape[0] for shape in batch.shapes] == expected
    assert len(set(expected)) > 1
    assert transform(images).shapes == [(32, 32)] * 6


def test_resizing_is_linear_between_voxel_centres():
    transform = Transform(TransformSettings(min_size=8, max_size=100, skip_resize=False, size_divisible=1), ndim=3)
    given = image(4, 5, 6)
    expected = F.interpolate(given[None], size=(8, 10, 12), mode="trilinear", align_corners=False)
    assert torch.allclose(transform([given]).image, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_size": 0}, r"^transform\.min_size: expected positive whole numbers, got 0"),
        ({"min_size": "abc"}, r"^transform\.min_size: expected positive whole numbers, got 'abc'"),
        ({"min_size": [16, 2.5]}, r"^transform\.min_size: expected positive whole numbers, got"),
        ({"max_size": 40.5}, r"^transform\.max_size: expected positive whole numbers, got 40.5"),
        ({"min_size": []}, "expected positive whole numbers"),
        ({"max_size": -1}, "expected positive whole numbers"),
        ({"skip_resize": False}, "min_size: expected a size to resize to"),
        ({"size_divisible": (1, 2)}, "size_divisible: expected 1 or 3 values"),
        ({"fixed_size": (1, 2)}, "fixed_size: expected 1 or 3 values"),
        ({"image_mean": (0.0,) * 3, "image_std": (1.0, 0.0, 1.0)}, "no deviation of 0"),
        ({"image_mean": (1.0,)}, "expected as many of both"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(SettingError, match=named):
        Transform(TransformSettings(**settings), ndim=3)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (torch.zeros(1, 4, 4), "image 2: expected floating point with a channel and 3 spatial axes"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.int16), r"got torch\.int16"),
        (torch.zeros(2, 4, 4, 4), "expected 3 channels"),
    ],
)
def test_bad_images_are_named(given, named):
    transform = Transform(TransformSettings(image_mean=(0.0,) * 3, image_std=(1.0,) * 3), ndim=3)
    with pytest.raises(DataError, match=named):
        transform([torch.zeros(3, 4, 4, 4), given])

"""Images of other voxels than those learned from are found in as well, and answered on their own grid."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.sample import Sample
from voxelry.metrics.instances import instance_metrics
from voxelry.models.mask_rcnn.detections import Detections
from voxelry.tasks.segment import SegmentTask
from voxelry.tasks.segment.rescale import (
    assumption,
    boxes_on,
    common_object_size,
    common_size,
    has_voxel_size,
    learned_grid,
    size_of_objects,
)

LEARNED = (0.002, 0.001, 0.001)  # mm


class Balls(nn.Module):
    """Finds bright balls, but only those whose diameter is some 10 µm in voxels of 2×1×1 µm."""

    ndim, num_classes = 3, 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.backbone = SimpleNamespace(strides={"p2": (1, 1, 1)})
        self.seen: list[tuple[int, ...]] = []

    def detect(self, image):
        from scipy import ndimage

        self.seen.append(tuple(image.shape[2:]))
        bright, _ = ndimage.label(image[0, 0].numpy() > 0)
        boxes, masks = [], []
        for number, window in enumerate(ndimage.find_objects(bright), start=1):
            size = [part.stop - part.start for part in window]
            if all(abs(found - wanted) <= 2 for found, wanted in zip(size, (5, 10, 10), strict=True)):
                boxes.append([part.start - 0.5 for part in window] + [part.stop - 0.5 for part in window])
                mask = torch.from_numpy((bright[window] == number).astype(np.float32))
                masks.append(nn.functional.interpolate(mask[None, None], (10, 10, 10), mode="trilinear")[0, 0])
        count = len(boxes)
        return [
            Detections(
                torch.tensor(boxes).reshape(-1, 6),
                torch.full((count,), 0.9),
                torch.ones(count, dtype=torch.int64),
                torch.stack(masks) if masks else torch.zeros(0, 10, 10, 10),
            )
        ]


def balls(spacing) -> Sample:
    """Four balls of 10 µm in a volume of 48×40×44 µm, in voxels of any size (mm)."""
    shape = tuple(round(length / step) for length, step in zip((0.048, 0.04, 0.044), spacing, strict=True))
    axes = [(np.arange(size) + 0.5) * step * 1e3 for size, step in zip(shape, spacing, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    masks = np.zeros(shape, dtype=np.int64)
    for number, centre in enumerate([(9, 9, 9), (30, 10, 33), (14, 31, 12), (38, 30, 33)], start=1):
        masks[np.linalg.norm(places - centre, axis=-1) < 5] = number
    image = torch.from_numpy((masks > 0).astype(np.float32))[None]
    return Sample(image, Space.from_spacing(shape, spacing), "balls", "balls.tif", masks=torch.from_numpy(masks))


def task(**settings) -> SegmentTask:
    return SegmentTask(Balls(), score_threshold=0.5, **{"voxel_size": LEARNED} | settings).eval()  # type: ignore[arg-type]


def placed(space: Space, shape, spacing) -> Space:
    """An oblique grid with a mirrored axis."""
    angle = math.radians(20)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1, -1, 1]) @ space.affine[:3, :3]
    affine[:3, 3] = (3, -4, 5)
    return Space(shape, affine)


@pytest.mark.parametrize(
    "spacing", [LEARNED, (0.001, 0.0005, 0.0005), (0.002, 0.0005, 0.002), (0.0032, 0.0016, 0.0016)]
)
@pytest.mark.parametrize("tile_size", [None, (12, 24, 24)])
def test_objects_of_other_voxels_are_found_and_lie_on_the_image_s_grid(spacing, tile_size):
    sample = balls(spacing)
    sample = sample.replace(space=placed(sample.space, sample.space.shape, spacing))
    used = task(tile_size=tile_size, tile_overlap=0.5)
    (found,) = used.predict(collate([sample]))
    assert found.space.is_close(sample.space)
    measured = instance_metrics(found.instances, sample.masks.numpy())
    assert measured["f1_50"] == 1.0
    assert measured["mean_iou_50"] > (0.8 if max(spacing) < 0.0025 else 0.6)
    if tile_size is not None:
        assert max(np.ravel(used.network.seen)) <= 24


def test_voxels_are_taken_as_they_are_where_no_size_is_wanted():
    (found,) = task(voxel_size=None).predict(collate([balls((0.001, 0.0005, 0.0005))]))
    assert not len(found)


@pytest.mark.parametrize(
    ("spacing", "seen", "told"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "has no voxel size; taken to be 2×1×1 µm"),
        ((0.0022, 0.0009, 0.001), (0.0022, 0.0009, 0.001), ""),
        ((0.002, 0.0005, 0.001), (0.002, 0.001, 0.001), "voxels of 2×0.5×1 µm; seen at 2×1×1 µm"),
        ((0.002, 0.002, 0.0011), (0.002, 0.001, 0.0011), "voxels of 2×2×1.1 µm; seen at 2×1×1.1 µm"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "more than 4 times as long or short as the 2×1×1 µm"),
    ],
)
def test_the_size_that_is_seen_and_what_is_told_of_it(spacing, seen, told):
    space = Space.from_spacing((20, 24, 28), spacing)
    grid = learned_grid(space, LEARNED)
    assert grid.spacing == pytest.approx(seen)
    assert (grid is space) == (seen == spacing)
    line = assumption(space, LEARNED)
    assert line.startswith(told) if not told.startswith("more") else told in line
    assert "\n" not in line
    assert bool(line) == bool(told)


def test_a_grid_of_1_mm_from_0_on_says_nothing_of_its_voxels():
    assert not has_voxel_size(Space.from_spacing((5, 6)))
    assert has_voxel_size(Space.from_spacing((5, 6), 1.0, (1.0, 0.0, 0.0)))
    assert has_voxel_size(Space.from_spacing((5, 6), 0.5))


def test_the_common_size_of_cases_that_are_alike():
    grids = [Space.from_spacing((8, 8, 8), step) for step in (0.1, 0.11, 0.12)]
    assert common_size(grids) == pytest.approx((0.11,) * 3)
    assert common_size([*grids, Space.from_spacing((8, 8, 8), 0.3)]) is None
    assert common_size([*grids, Space.from_spacing((8, 8, 8))]) is None
    assert common_size([]) is None


@pytest.mark.parametrize(
    ("spacing", "size", "message"),
    [
        (0.002, 16, r"task\.object_size: objects of 16 mm are larger than the image; expected mm.*are 0\.032 mm\)"),
        (0.002, 0.001, r"objects of 0\.001 mm are smaller than a voxel"),
        (None, 0.016, r"objects of 0\.016 voxels are smaller than a voxel; expected voxels, as the file doesn't say"),
        (None, 1000, r"objects of 1000 voxels are larger than the image"),
    ],
)
def test_sizes_in_another_unit_than_the_images_are_refused(spacing, size, message):
    sample = balls((0.001, 0.001, 0.001))
    space = Space.from_spacing(sample.space.shape, *([] if spacing is None else [spacing]))
    used = task(learned_object_size=0.01, object_size=size)
    with pytest.raises(SettingError, match=message):
        used.predict(collate([sample.replace(space=space)]))


def test_boxes_end_at_the_edges_of_the_image():
    space = Space.from_spacing((9, 11), (0.3, 0.2))
    target = space.respace((0.7, 0.6))
    whole = torch.tensor([[-0.5, -0.5, target.shape[0] - 0.5, target.shape[1] - 0.5]])
    assert boxes_on(whole, target, space).tolist() == [[-0.5, -0.5, 8.5, 10.5]]


def test_boxes_keep_their_place_in_the_world():
    space = placed(Space.from_spacing((9, 11, 13), (0.3, 0.2, 0.1)), (9, 11, 13), (0.3, 0.2, 0.1))
    target = space.respace((0.2, 0.25, 0.16))
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0, 6.0, 7.0]], dtype=torch.float64)
    moved = boxes_on(boxes, target, space)
    for corner in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(
            space.to_world(moved[0, corner].numpy()), target.to_world(boxes[0, corner].numpy()), atol=1e-9
        )


@pytest.mark.parametrize("spacing", [(0.004, 0.002, 0.002), (0.002, 0.001, 0.002), (0.03, 0.01, 0.01)])
@pytest.mark.parametrize("tile_size", [None, (12, 24, 24)])
def test_objects_of_another_size_are_found_where_it_is_given(spacing, tile_size):
    factor = spacing[0] / 0.002
    sample = balls((0.002, *(step / factor for step in spacing[1:])))
    shape = sample.space.shape
    sample = sample.replace(space=placed(Space.from_spacing(shape, spacing), shape, spacing))
    size = 0.01 * factor  # mm; the balls have 10 µm where their planes are 2 µm apart
    used = task(tile_size=tile_size, learned_object_size=0.01, object_size=size)
    (found,) = used.predict(collate([sample]))
    assert found.space.is_close(sample.space)
    assert instance_metrics(found.instances, sample.masks.numpy())["f1_50"] == 1.0


def test_without_a_voxel_size_objects_are_as_large_as_so_many_voxels():
    sample = balls((0.001, 0.001, 0.001)).replace(space=Space.from_spacing((48, 40, 44)))
    (found,) = task(learned_object_size=0.01).predict(collate([sample]))
    assert not len(found)
    used = task(learned_object_size=0.01, object_size=10)
    (found,) = used.predict(collate([sample]))
    assert instance_metrics(found.instances, sample.masks.numpy())["f1_50"] == 1.0
    assert size_of_objects(sample.space, used.seen_size, 10) == (
        "objects of about 10 voxels, taken as cubes (give their size with --spacing, in mm); "
        "seen 0.5×1×1 times as large"
    )
    told = size_of_objects(balls((0.001, 0.001, 0.001)).space, task().seen_size, 0.01)
    assert told == "objects of about 10 µm, voxels of 1×1×1 µm; seen at 2×1×1 µm"


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_objects_of_another_size_are_found_by_an_estimate(factor):
    sample = balls(LEARNED)
    spacing = tuple(step * factor for step in LEARNED)
    sample = sample.replace(space=placed(Space.from_spacing(sample.space.shape, spacing), sample.space.shape, spacing))
    (found,) = task(learned_object_size=0.01).predict(collate([sample]))
    assert not len(found)
    used = task(learned_object_size=0.01, object_size="auto")
    (found,) = used.predict(collate([sample]))
    assert instance_metrics(found.instances, sample.masks.numpy())["f1_50"] == 1.0
    assert used.object_size == "auto", "the next image has a size of its own"


def test_objects_that_are_found_anyway_are_seen_as_ever():
    sample = balls(LEARNED)
    used = task(learned_object_size=0.01, object_size="auto")
    assert used.sized(lambda window: sample.image[(slice(None), *window)], sample.space).object_size is None
    empty = torch.zeros_like(sample.image)
    assert used.sized(lambda window: empty[(slice(None), *window)], sample.space).object_size is None


def test_the_median_size_of_objects_leaves_out_what_the_border_cuts():
    boxes = torch.tensor([[2.0, 2.0, 6.0, 6.0], [1.0, 1.0, 3.0, 9.0], [0.0, 0.0, 15.0, 15.0]])
    sample = Sample(torch.zeros(1, 16, 16), Space.from_spacing((16, 16), 0.5), "a", "a", boxes=boxes)
    assert common_object_size([sample]) == pytest.approx(2.0)
    assert common_object_size([sample.replace(boxes=boxes[2:])]) == pytest.approx(7.5)
    assert common_object_size([sample.replace(boxes=boxes[:0])]) is None


@pytest.mark.parametrize("size", ["large", 0, -1.0, math.inf, True])
def test_sizes_of_objects_that_can_not_be_are_refused(size):
    with pytest.raises(SettingError, match="object_size"):
        task(learned_object_size=0.01, object_size=size)
    with pytest.raises(SettingError, match="object_size: expected a model that knows"):
        task(object_size=0.01)


@pytest.mark.parametrize("size", [0.0, -1.0, [1.0, 1.0], math.inf])
def test_sizes_that_can_not_be_are_refused(size):
    with pytest.raises(SettingError, match="voxel_size"):
        task(voxel_size=size)

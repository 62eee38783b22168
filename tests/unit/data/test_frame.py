"""Copies of an image on other grids are one image to the network, and lead back to one place in the world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.frame import filled, find_content, index_map, trimmed, untilted
from voxelry.data.sample import Sample
from voxelry.ops.resample import resample

GRID = Space.from_spacing((30, 36, 26), (1.0, 0.9, 1.2), (-20.0, 13.0, 40.0))
SLICE = Space.from_spacing((40, 34), (1.0, 0.8), (5.0, -60.0, 12.0))


def anatomy(space: Space) -> torch.Tensor:
    """Waves of some centimetres through the world, bright at the image's edges, too: `(1, *spatial)` in [1, 3]."""
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(space.to_world(index), -1, 0)
    waves = np.sin(x / 4.1 + y / 9.0) * np.cos(y / 5.3 - z / 7.0) + 0.5 * np.sin(z / 3.7)
    return torch.from_numpy(2 + waves / 1.5)[None].float()


def case(space: Space, image: torch.Tensor | None = None) -> Sample:
    points = torch.tensor([[8.3, 20.1, 11.7], [25.0, 4.4, 6.6]])[:, : space.ndim]
    return Sample(anatomy(space) if image is None else image, space, "case", landmarks=points)


def tilted(
    space: Space, degrees: tuple[float, float, float], *, step: float = 1.0, size: float = 1.0, shift: float = 0.0
) -> Space:
    """A grid turned about the centre of `space`; at rank 2 by the first angle, in its own plane."""
    axes = space.directions
    turn = Rotation.from_euler("xyz", degrees if space.ndim == 3 else (0, 0, 0), degrees=True).as_matrix() @ axes
    if space.ndim == 2:
        angle = np.radians(degrees[0])
        turn = axes @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    spacing = np.asarray(space.spacing) * ([step, 1.0, 1.0] if space.ndim == 3 else [step, 1.0])
    shape = np.ceil(np.asarray(space.extent) * size / spacing).astype(int)
    centre = space.to_world((np.asarray(space.shape) - 1) / 2) + shift * axes.sum(axis=1)
    affine = np.zeros((4, space.ndim + 1))
    affine[:3, : space.ndim] = turn * spacing
    affine[:3, -1] = centre - affine[:3, : space.ndim] @ ((shape - 1) / 2)
    affine[3, -1] = 1.0
    return Space(tuple(shape.tolist()), affine)


def onto(sample: Sample, space: Space, padding: float = -7.0) -> Sample:
    """The image as other tools resample it: a constant around it."""
    matrix, offset = index_map(sample.space, space)
    image = resample(sample.image, matrix, offset, space.shape, fill=padding)
    points = space.to_index(sample.space.to_world(sample.landmarks.double())).float()
    return Sample(image, space, "copy", landmarks=points)


COPIES = {
    "turned": tilted(GRID, (6, -5, 8)),
    "turned further": tilted(GRID, (15, -10, 20)),
    "turned and larger": tilted(GRID, (6, -5, 8), size=1.4),
    "turned off the centre": tilted(GRID, (-7, 4, 9), size=1.2, shift=2.0),
    "turned with thick slices": tilted(GRID, (6, -5, 8), step=2.5),
    "turned and mirrored": (lambda space: space.reorder((2, 0, 1), (True, False, False)))(tilted(GRID, (6, -5, 8))),
    "slice turned in its plane": tilted(SLICE, (9, 0, 0)),
}


@pytest.mark.parametrize("space", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("padding", [-7.0, 2.0])
def test_a_copy_on_a_tilted_grid_becomes_the_box_that_it_was(space, padding):
    original = case(GRID if space.ndim == 3 else SLICE)
    copy = onto(original, space, padding)
    preprocess = Preprocess(align="auto", normalise=None)
    expected, found = preprocess(original), preprocess(copy)
    assert np.allclose(found.space.directions, expected.space.directions, atol=1e-9)
    for corner in itertools.product((0.0, 1.0), repeat=space.ndim):
        ends = [sample.space.to_world(np.asarray(corner) * sample.space.shape - 0.5) for sample in (expected, found)]
        assert np.abs(ends[1] - ends[0]).max() <= 0.5 * max(space.spacing)
    world = [sample.space.to_world(sample.landmarks.double()) for sample in (original, copy, expected, found)]
    for points in world[1:]:
        assert_close(points, world[0], atol=1e-3, rtol=0)

    sized = Preprocess(align="auto", normalise=None, image_size=24)
    views = sized(original).image, sized(copy).image
    middle = (0, *[slice(4, -4)] * space.ndim)
    assert (views[0][middle] - views[1][middle]).abs().max() < 0.05  # of a range of 2
    assert np.corrcoef(views[0].flatten(), views[1].flatten())[0, 1] > 0.97  # corners that the copy lacks, too
    plain = Preprocess(normalise=None, image_size=24)(copy).image
    assert (views[0][middle] - plain[middle]).abs().max() > 0.3


def test_blended_edges_and_channels_do_not_hide_the_box():
    """Some tools mix the outermost voxels with the padding; each channel may have its own."""
    original = case(GRID)
    copy = onto(original, COPIES["turned"], padding=np.nan)
    weight = resample(torch.ones_like(original.image), *index_map(GRID, copy.space), copy.space.shape)
    soft = torch.nn.functional.avg_pool3d(weight, 3, stride=1, padding=1, count_include_pad=False)
    image = torch.cat([torch.where(weight > 0, copy.image.nan_to_num() * soft, 0.0), 9 - 9 * soft])
    found = untilted(image, copy.space)
    assert found is not None
    assert (np.abs(np.asarray(found[0].shape) - GRID.shape) <= 3).all()  # it was blurred by a voxel on both sides


def ball(space: Space, background: float = 0.0) -> torch.Tensor:
    """The anatomy within an ellipsoid, one value around it."""
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    off = (space.to_world(index) - GRID.to_world((np.asarray(GRID.shape) - 1) / 2)) / np.array([9.0, 13.0, 11.0])
    inside = torch.from_numpy(np.linalg.norm(off, axis=-1) < 1)
    return torch.where(inside, anatomy(space), background)


@pytest.mark.parametrize("make", [anatomy, ball], ids=["filled", "one value around it"])
def test_a_tilted_scan_that_was_not_resampled_keeps_its_voxels(make):
    for degrees in ((2, 1, -2), (15, -10, 20)):
        space = tilted(GRID, degrees)
        sample = case(space, make(space))
        assert untilted(sample.image, space) is None
        result = Preprocess(align="auto", normalise=None)(sample)
        assert torch.equal(result.image, sample.image)
        assert result.space.is_close(space, tolerance=1e-9)


def test_trimmed_is_the_box_of_what_is_not_padding():
    inner = case(GRID)
    image = torch.full((1, 40, 41, 39), 5.0)
    image[0, 3:33, 1:37, 13:39] = inner.image[0]
    space = GRID.crop((-3, -1, -13), (40, 41, 39))
    labels = (image[0] > 2).long()
    sample = Sample(image, space, "padded", landmarks=inner.landmarks + torch.tensor([3.0, 1.0, 13.0]), labels=labels)
    for code in ("SAR", "PIL"):
        stored = Preprocess(orientation=code, normalise=None)(sample)
        result = Preprocess(trim=True, normalise=None)(stored)
        assert torch.equal(result.image, inner.image)
        assert torch.equal(result.labels, labels[3:33, 1:37, 13:39])
        assert result.space.is_close(GRID, tolerance=1e-6)
        assert_close(result.landmarks, inner.landmarks, atol=1e-5, rtol=0)
    assert Preprocess(trim=True, image_size=20)(sample).space.is_close(GRID.resize((20, 20, 20)), tolerance=1e-6)


def test_trimmed_along_the_world_a_copy_of_an_organ_is_the_same_view():
    original = case(GRID, ball(GRID))
    preprocess = Preprocess(align="world", trim=True, normalise=None, image_size=20)
    expected = preprocess(original)
    for name in ("turned", "turned and larger", "turned and mirrored"):
        found = preprocess(onto(original, COPIES[name], padding=0.0))
        assert np.abs(np.asarray(found.space.extent) - expected.space.extent).max() <= 2 * max(GRID.spacing)
        assert np.corrcoef(found.image.flatten(), expected.image.flatten())[0, 1] > 0.95
        world = [sample.space.to_world(sample.landmarks.double()) for sample in (found, expected)]
        assert_close(*world, atol=1e-3, rtol=0)


def test_an_image_without_padding_or_content_is_left_whole():
    sample = case(GRID)
    assert torch.equal(Preprocess(trim=True, normalise=None)(sample).image, sample.image)
    flat = case(COPIES["turned"], torch.full((1, *COPIES["turned"].shape), 4.0))
    for settings in ({"trim": True}, {"align": "auto"}, {"align": "auto", "trim": True}):
        result = Preprocess(normalise=None, **settings)(flat)
        assert torch.equal(result.image, flat.image)


def test_padding_is_what_most_corners_hold_and_of_several_the_smallest():
    image = torch.arange(60, dtype=torch.float32).reshape(1, 3, 4, 5) + 1
    image[0, 2, 3, 4] = 0.0
    assert find_content(image).logical_not().nonzero().tolist() == [[2, 3, 4]]
    image[0, 0, 0, 0] = image[0, 0, 3, 0] = 8.0
    assert find_content(image).logical_not().nonzero().tolist() == [[0, 0, 0], [0, 3, 0]]
    both = torch.cat([image, torch.arange(60.0).reshape(1, 3, 4, 5)])
    assert find_content(both).logical_not().nonzero().tolist() == [[2, 3, 4]]  # each pair once: the smallest


def test_inside_the_value_of_the_padding_is_content():
    image = torch.ones(1, 6, 7, 8)
    image[0, :2] = image[0, 3, 3, 3] = image[0, 4, 0, 2:4] = 0.0
    image[0, 2, 6, 7] = 0.0  # reached from the first planes
    found = find_content(image)
    assert not found[:2].any()
    assert found[2:].logical_not().nonzero().tolist() == [[0, 6, 7]]


def test_few_grey_levels_are_no_padding(rng):
    """In an image of few grey levels many voxels hold the value of a corner."""
    for _ in range(5):
        space = tilted(GRID, (15, -10, 20))
        image = torch.from_numpy(rng.integers(0, 12, (1, *space.shape))).float()
        assert untilted(image, space) is None


def test_filled_takes_the_nearest_content():
    image = torch.tensor([[[0.0, 0.0, 3.0, 4.0], [0.0, 0.0, 5.0, 9.0], [0.0, 0.0, 6.0, 0.0]]])
    image[0, 2, 3] = 7.0
    near = torch.tensor([[[3.0, 3.0, 3.0, 4.0], [5.0, 5.0, 5.0, 9.0], [6.0, 6.0, 6.0, 7.0]]])
    assert torch.equal(filled(image, find_content(image)), near)


def test_what_can_not_be_said_is_refused():
    with pytest.raises(SettingError, match="align: 'auto' needs an orientation"):
        Preprocess(align="auto", orientation=None)
    with pytest.raises(SettingError, match="trim: expected true or false, got 'yes'"):
        Preprocess(trim="yes")
    kept = Preprocess(align="auto", trim=True).settings()
    assert Preprocess(**kept).settings() == kept
    assert Preprocess().settings() | {"align": "auto", "trim": True} == kept


def test_content_along_its_own_axes_ends_with_its_outermost_voxels():
    space = Space.from_spacing((4, 6))
    content = torch.zeros(4, 6, dtype=torch.bool)
    assert trimmed(space, content, space) is space
    content[1, 4] = content[2, 2] = True
    assert trimmed(space, content, space).is_close(space.crop((1, 2), (2, 3)))

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import DataError, SettingError
from voxelry.core.orientation import orientation_steps
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess, move
from voxelry.data.preprocess.frame import world_aligned
from voxelry.data.preprocess.normalise import normalise
from voxelry.data.sample import Sample


def rotation(degrees: float, axis: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> np.ndarray:
    """Rodrigues' formula."""
    unit = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), unit)
    angle = np.radians(degrees)
    return np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def oblique(space: Space, degrees: float = 20.0) -> Space:
    turn = np.eye(4)
    turn[:3, :3] = rotation(degrees)
    return Space(space.shape, turn @ space.affine)


def blob(space: Space, centre: np.ndarray, width: float) -> torch.Tensor:
    """A Gaussian of `width` mm around a point of the world."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in space.shape], indexing="ij"), axis=-1)
    distance = np.linalg.norm(space.to_world(index) - centre, axis=-1)
    return torch.from_numpy(np.exp(-0.5 * (distance / width) ** 2)).float()[None]


def full_sample(space: Space, rng: np.random.Generator) -> Sample:
    image = torch.from_numpy(rng.normal(100, 20, (1, *space.shape))).float()
    labels = torch.from_numpy(rng.integers(0, 3, space.shape))
    points = torch.from_numpy(rng.uniform(0, np.asarray(space.shape) - 1, (5, space.ndim))).float()
    points[2] = torch.nan
    boxes = torch.cat([points[:2] - 1.5, points[:2] + 2.0], dim=1)
    return Sample(
        image, space, "case", landmarks=points, labels=labels, masks=(labels > 1).long(), boxes=boxes, source="case.nii"
    )


def centroid(image: torch.Tensor, space: Space) -> np.ndarray:
    weights = (image[0].double() ** 2).numpy()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in space.shape], indexing="ij"), axis=-1)
    return space.to_world((weights[..., None] * index).reshape(-1, space.ndim).sum(0) / weights.sum())


SPACES = {
    "oblique anisotropic": oblique(Space.from_spacing((9, 12, 14), (3.0, 0.7, 1.1), (-20.0, 5.0, 90.0))),
    "mirrored": Space.from_spacing((9, 12, 14), (2.0, 1.0, 0.5)).reorder((1, 0, 2), (True, False, True)),
    "oblique slice": oblique(Space.from_spacing((16, 11), (0.8, 2.0), (4.0, 5.0, 6.0))),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize(
    "settings",
    [{}, {"image_size": 8}, {"spacing": 1.3}, {"align": "world"}, {"align": "world", "spacing": 2.0}],
    ids=["orientation", "size", "spacing", "world", "world and spacing"],
)
def test_points_keep_their_place_in_the_world(space, settings, rng):
    sample = full_sample(space, rng)
    result = Preprocess(**settings)(sample)
    before = space.to_world(sample.landmarks.double())
    after = result.space.to_world(result.landmarks.double())
    assert_close(after, before, atol=1e-4, rtol=0, equal_nan=True)
    assert result.image.shape[1:] == result.labels.shape == result.masks.shape == result.space.shape


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("settings", [{}, {"spacing": 0.6}, {"align": "world", "spacing": 0.6}])
def test_the_image_keeps_its_place_in_the_world(space, settings):
    wide = Space(space.shape, space.affine)
    centre = wide.to_world((np.asarray(wide.shape) - 1) / 2 + 0.3)
    sample = Sample(blob(wide, centre, width=1.6), wide, "case")
    result = Preprocess(**settings)(sample)
    assert np.linalg.norm(centroid(result.image, result.space) - centroid(sample.image, wide)) < 0.15


def test_labels_move_as_points_do():
    space = SPACES["oblique anisotropic"]
    labels = torch.zeros(space.shape, dtype=torch.int64)
    labels[4, 6, 3] = 7
    point = torch.tensor([[4.0, 6.0, 3.0]])
    sample = Sample(labels[None].float(), space, "case", labels=labels, landmarks=point)
    result = Preprocess(align="world", spacing=0.5)(sample)
    found = torch.nonzero(result.labels == 7).double().mean(0).numpy()
    assert np.linalg.norm(result.space.to_world(found) - space.to_world(point[0].numpy())) < 0.25


@pytest.mark.parametrize("spacing", [2.0, (0.7, 1.3, 2.1)])
def test_labels_and_masks_keep_their_volume_and_go_on_touching(spacing):
    space = oblique(Space.from_spacing((20, 24, 16), (0.8, 0.8, 1.5)))
    labels = torch.zeros(space.shape, dtype=torch.int64)
    labels[3:8, 4:15, 3:12] = 1
    labels[8:13, 4:15, 3:12] = 2
    sample = Sample(torch.rand(1, *space.shape), space, "case", "case.nii.gz", labels=labels, masks=labels)
    prepared = Preprocess(spacing=spacing, orientation="RAS")(sample)
    for moved in (prepared.labels, prepared.masks):
        for value in (1, 2):
            volume = float((moved == value).sum()) * float(np.prod(prepared.space.spacing))
            assert volume == pytest.approx(float((labels == value).sum()) * float(np.prod(space.spacing)), rel=0.02)
        first = (moved == 1).float()[None, None]
        beside = (torch.nn.functional.max_pool3d(first, 3, 1, 1)[0, 0] > 0) & (moved == 2)
        assert beside.sum() > 20


def test_all_orientations_of_a_volume_become_one(rng):
    sample = full_sample(SPACES["oblique anisotropic"], rng)
    expected = Preprocess()(sample)
    assert expected.space.orientation == "SAR"
    for axes in itertools.permutations(range(3)):
        flips = [bool(axes[0] % 2), axes[1] > 0, axes[2] != 1]
        steps = Space(sample.space.shape, sample.space.affine).reorder(axes, flips)
        turned = sample.image.permute(0, *[axis + 1 for axis in axes]).flip([i + 1 for i in range(3) if flips[i]])
        index = steps.to_index(sample.space.to_world(sample.landmarks.double())).float()
        result = Preprocess()(Sample(turned.contiguous(), steps, "copy", landmarks=index))
        assert torch.equal(result.image, expected.image)
        assert result.space.is_close(expected.space, tolerance=1e-9)
        assert_close(result.landmarks, expected.landmarks, atol=1e-5, rtol=0, equal_nan=True)


def test_copies_in_other_axes_and_tilts_give_the_same_anatomy(rng):
    """What a network sees of an LAS, a PSR and an oblique copy is the same, and leads back to each one's world."""
    space = Space.from_spacing((20, 24, 22), (1.5, 1.0, 1.0), (-10.0, -12.0, -14.0))
    sample = full_sample(space, rng)
    found = torch.tensor([[5.2, 7.7, 9.1]])  # a network's answer on what it was fed
    expected = space.to_world(found.double())
    preprocess = Preprocess()
    for code in ("SAL", "RSP", "SAR"):
        copy_space = space.reorder(*orientation_steps(space, code))
        assert copy_space.orientation == code
        copy = Preprocess(orientation=code, normalise=None)(sample)
        result = preprocess(copy)
        assert torch.equal(result.image, preprocess(sample).image)
        assert (result.space.to_world(found.double()) - expected).norm() < 0.01
    tilted = Sample(sample.image, oblique(space, 12.0), "tilted")
    result = preprocess(tilted)
    assert torch.equal(result.image, preprocess(sample).image)
    assert_close(tilted.space.to_index(result.space.to_world(found.double())), found.double(), atol=1e-5, rtol=0)


def test_copies_agree_after_resampling():
    centre = np.array([1.3, -2.1, 0.7])
    straight = Space.from_spacing((40, 36, 32), (1.0, 1.2, 0.9), (-14.0, -20.0, -19.0))
    middle = straight.to_world((np.asarray(straight.shape) - 1) / 2)
    turn = np.eye(4)
    turn[:3, :3] = rotation(18.0)
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    tilted = Space(straight.shape, turn @ straight.affine)
    spaces = [straight, tilted, straight.reorder(*orientation_steps(straight, "RSP"))]
    found = []
    for space in spaces:
        sample = Sample(blob(space, centre, width=2.5), space, "case")
        result = Preprocess(align="world", spacing=1.4)(sample)
        assert np.allclose(result.space.directions, straight.directions, atol=1e-9)
        found.append(centroid(result.image, result.space))
    assert max(np.linalg.norm(point - found[0]) for point in found) < 0.05


def test_world_alignment_holds_the_whole_image_and_keeps_straight_ones():
    straight = SPACES["mirrored"]
    assert world_aligned(straight) is straight
    for name in ("oblique anisotropic", "oblique slice"):
        space = SPACES[name]
        grid = world_aligned(space)
        corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in space.shape])))
        index = grid.to_index(space.to_world(corners))
        assert (index > -0.51).all()
        assert (index < np.asarray(grid.shape) - 0.49).all()
        assert np.allclose(grid.spacing, space.spacing)
        # at rank 2 the plane is the same one
        assert np.allclose(grid.to_world(index), space.to_world(corners), atol=1e-9)


def test_a_slice_is_turned_within_its_plane(rng):
    affine = np.zeros((4, 3))
    affine[1, 0] = -2.0  # row towards posterior
    affine[2, 1] = -0.5  # column towards inferior
    affine[:, 2] = [30.0, 0.0, 0.0, 1.0]
    sample = full_sample(Space((10, 14), affine), rng)
    result = Preprocess(normalise=None)(sample)
    assert sample.space.orientation == "PI"
    assert result.space.orientation == "SA"
    assert_close(result.image, sample.image.transpose(1, 2).flip([1, 2]))
    assert_close(
        result.space.to_world(result.landmarks.double()),
        sample.space.to_world(sample.landmarks.double()),
        atol=1e-5,
        rtol=0,
        equal_nan=True,
    )


def test_files_without_orientation_stay_as_they_are(rng):
    for shape in ((6, 7, 8), (9, 7)):
        image = torch.from_numpy(rng.random((1, *shape))).float()
        result = Preprocess(normalise=None)(Sample(image, Space.from_spacing(shape), "case"))
        assert torch.equal(result.image, image)


def test_orientation_none_keeps_the_axes(rng):
    sample = full_sample(SPACES["mirrored"], rng)
    result = Preprocess(orientation=None, normalise=None)(sample)
    assert torch.equal(result.image, sample.image)
    assert result.space.is_close(sample.space)


def test_boxes_move_with_what_they_hold(rng):
    space = SPACES["mirrored"]
    masks = torch.zeros(space.shape, dtype=torch.int64)
    masks[2:5, 3:7, 1:9] = 1
    box = torch.tensor([[1.5, 2.5, 0.5, 4.5, 6.5, 8.5]])
    sample = Sample(masks[None].float(), space, "case", masks=masks, boxes=box)
    result = Preprocess(spacing=0.5)(sample)
    inside = torch.nonzero(result.masks)
    expected = torch.cat([inside.amin(0) - 0.5, inside.amax(0) + 0.5])
    assert (result.boxes[0] - expected).abs().max() <= 0.5


@pytest.mark.parametrize("ndim", [2, 3])
def test_sizes_per_axis(ndim, rng):
    shape = (9, 12, 15)[:ndim]
    sample = Sample(torch.from_numpy(rng.random((2, *shape))).float(), Space.from_spacing(shape), "case")
    size = (6, 8, 20)[:ndim]
    result = Preprocess(image_size=size)(sample)
    assert result.image.shape == (2, *size)
    assert result.space.extent == pytest.approx(sample.space.extent)
    assert Preprocess(image_size=7)(sample).image.shape[1:] == (7,) * ndim
    assert Preprocess(spacing=(1.5, 3.0, 1.0)[:ndim])(sample).image.shape[1:] == (6, 4, 15)[:ndim]


def test_upsampling_a_ramp_is_exact_inside():
    ramp = torch.arange(8.0)[None, None].repeat(1, 4, 1)
    sample = Sample(ramp, Space.from_spacing((4, 8)), "case")
    result = Preprocess(image_size=(4, 16), normalise=None)(sample)
    assert_close(result.image[0, 0, 1:-1], torch.arange(14) * 0.5 + 0.25)


def test_shrinking_does_not_alias():
    """A pattern finer than the new voxels goes to its mean, as it would in a scanner of that resolution."""
    stripes = (torch.arange(64) % 2).float().repeat(64, 1)[None]
    sample = Sample(stripes, Space.from_spacing((64, 64)), "case")
    result = Preprocess(image_size=16, normalise=None)(sample)
    assert (result.image[0, :, 1:-1] - 0.5).abs().max() < 0.02


def test_a_mere_rotation_is_not_smoothed():
    space = SPACES["oblique anisotropic"]
    cubic = Space((12, 12, 12), np.hstack([space.affine[:, :3] / [*space.spacing], space.affine[:, 3:]]))
    image = torch.zeros(1, 12, 12, 12)
    image[0, 6, 6, 6] = 1.0
    aligned = world_aligned(cubic)
    shifted = aligned.crop(aligned.to_index(cubic.to_world(np.array([6.0, 6.0, 6.0]))), (1, 1, 1))
    assert move(Sample(image, cubic, "case"), shifted).image.max() == pytest.approx(1.0, abs=1e-5)


def test_beyond_the_image_is_its_smallest_value():
    space = oblique(Space.from_spacing((10, 10, 10)), 30.0)
    sample = Sample(torch.rand(1, 10, 10, 10) - 1000.0, space, "case", labels=torch.ones(10, 10, 10).long())
    result = Preprocess(align="world", normalise=None)(sample)
    assert result.image.min() == sample.image.min()
    assert result.labels[0, 0, 0] == 0


def test_settings_rebuild_the_same_preprocessing(rng):
    preprocess = Preprocess(
        orientation="PIR", spacing=(2.0, 1.5, np.float64(1.0)), normalise="window", window=(-100, 300), channels=2
    )
    settings = json.loads(json.dumps(preprocess.settings()))
    again = Preprocess(**settings)
    assert again.settings() == preprocess.settings()
    sample = full_sample(SPACES["oblique anisotropic"], rng)
    assert torch.equal(again(sample).image, preprocess(sample).image)
    assert preprocess(sample).image.shape[0] == 2
    assert preprocess(sample).space.orientation == "PIR"


def test_channels():
    space = Space.from_spacing((4, 5))
    colour = Sample(torch.rand(3, 4, 5), space, "photo", source="photo.png")
    grey = Preprocess(channels=1, normalise=None)(colour)
    assert_close(grey.image[0], colour.image.mean(0))
    assert Preprocess(channels=3)(grey).image.shape == (3, 4, 5)
    with pytest.raises(DataError, match=r"^photo\.png: 3 channels, but channels is 2$"):
        Preprocess(channels=2)(colour)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (8, 8)}, "image_size: expected 1 or 3 values"),
        ({"spacing": (1.0, 1.0)}, "spacing: expected 1 or 3 values"),
    ],
)
def test_settings_of_another_rank(settings, message):
    sample = Sample(torch.rand(1, 4, 5, 6), Space.from_spacing((4, 5, 6)), "case")
    with pytest.raises(SettingError, match=message) as caught:
        Preprocess(**settings)(sample)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 8, "spacing": 1.0}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": "64"}, "image_size"),
        ({"spacing": -1.0}, "spacing"),
        ({"spacing": float("nan")}, "spacing"),
        ({"orientation": "SAX"}, "orientation"),
        ({"orientation": "SSA"}, "orientation"),
        ({"align": "oblique"}, "align"),
        ({"align": "world", "orientation": None}, "align"),
        ({"normalise": "max"}, "normalise"),
        ({"normalise": "window"}, "window"),
        ({"window": (5, 1)}, "window"),
        ({"percentiles": (50, 120)}, "percentiles"),
        ({"clip": 0}, "clip"),
        ({"channels": 0}, "channels"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(SettingError, match=f"^{message}:"):
        Preprocess(**settings)


def test_a_grid_beyond_memory_is_refused():
    sample = Sample(torch.rand(1, 8, 8, 8), Space.from_spacing((8, 8, 8)), "case", source="case.mha")
    with pytest.raises(DataError, match=r"^case\.mha: too large a grid of 0.0001 x 0.0001 x 0.0001 mm, 80000 x"):
        Preprocess(spacing=1e-4)(sample)


@pytest.mark.parametrize("settings", [{"spacing": 0.5}, {"image_size": 16}], ids=str)
def test_a_grid_is_measured_against_the_memory_there_is(monkeypatch, settings):
    sample = Sample(torch.rand(2, 8, 8, 8), Space.from_spacing((8, 8, 8)), "case", labels=torch.ones(8, 8, 8).long())
    needed = 16**3 * (4 * 3 * 2 + 8)  # floats of two channels, classes
    monkeypatch.setattr("voxelry.core.memory.available_memory", lambda: needed)
    assert Preprocess(**settings)(sample).space.shape == (16, 16, 16)
    monkeypatch.setattr("voxelry.core.memory.available_memory", lambda: needed - 1)
    with pytest.raises(DataError, match=r"^case: .*16 x 16 x 16 voxels need about 0.0 GB, and there are 0.0 GB; give"):
        Preprocess(**settings)(sample)
    assert Preprocess()(sample).space.shape == (8, 8, 8)


def test_normalisations():
    image = torch.tensor([[[-1000.0, 0.0], [100.0, 900.0]]])
    assert_close(normalise(image)[0], torch.tensor([[0.0, 1000 / 1900], [1100 / 1900, 1.0]]))
    assert_close(normalise(image, "window", window=(0, 200))[0], torch.tensor([[0.0, 0.0], [0.5, 1.0]]))
    scores = normalise(image, "zscore", clip=3.0)
    assert_close(scores, (image - image.mean()) / image.std(correction=0) / 6 + 0.5)
    many = torch.arange(1001.0).reshape(1, 7, 143)
    expected = ((many - 5) / 990).clamp(0, 1)
    assert_close(normalise(many, "percentile", percentiles=(0.5, 99.5)), expected)
    assert torch.equal(normalise(image, None), image)


def test_channels_are_normalised_apart_or_together():
    image = torch.stack([torch.linspace(0, 1, 6).reshape(2, 3), torch.linspace(0, 10, 6).reshape(2, 3)])
    assert_close(normalise(image).amax(dim=(1, 2)), torch.ones(2))
    assert_close(normalise(image, per_channel=False).amax(dim=(1, 2)), torch.tensor([0.1, 1.0]))


@pytest.mark.parametrize("method", ["minmax", "percentile", "zscore"])
@pytest.mark.parametrize("value", [0.0, -3.5, 1e30, float("nan"), float("inf")])
def test_an_image_without_contrast_becomes_zeros(method, value):
    assert torch.equal(normalise(torch.full((1, 3, 3, 3), value), method), torch.zeros(1, 3, 3, 3))


def test_numbers_that_are_not_finite_are_replaced():
    image = torch.tensor([[[torch.nan, 1.0, 3.0], [torch.inf, -torch.inf, 2.0]]])
    assert_close(normalise(image), torch.tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.5]]]))
    # before resampling, so that they don't spread
    sample = Sample(image, Space.from_spacing((2, 3)), "case")
    assert torch.isfinite(Preprocess(image_size=5)(sample).image).all()


def test_extreme_ranges_neither_overflow_nor_divide_by_zero():
    wide = torch.tensor([[[-3e38, 0.0, 3e38]]])
    assert_close(normalise(wide), torch.tensor([[[0.0, 0.5, 1.0]]]))
    narrow = torch.tensor([[[0.0, 1e-42, 2e-42]]])
    assert_close(normalise(narrow), torch.tensor([[[0.0, 0.5, 1.0]]]), atol=1e-3, rtol=0)

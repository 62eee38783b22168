"""Laws of slices: augmentation keeps slice and truth together, resizing and normalising lose nothing."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelry.core.space import Space
from voxelry.data.slices.augment import SliceAugment, move_space
from voxelry.data.slices.choice import Choice, choose_cuts
from voxelry.data.slices.cut import draw_click, plane_normal
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.pointmaps import PointmapNormaliser, masked_pointmap
from voxelry.ops.pointmaps import resize_pointmap

SHAPE = (12, 14, 16)


def tilted(seed: int) -> Space:
    generator = np.random.default_rng(seed)
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * generator.uniform(0.8, 3.0, 3)
    affine[:3, 3] = generator.uniform(-200, 200, 3)
    return Space(SHAPE, affine)


def ball() -> np.ndarray:
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - (5.5, 6.5, 7.5)
    return np.linalg.norm(places / (4.0, 5.0, 5.5), axis=-1) < 1


@given(seed=st.integers(0, 10_000), method=st.sampled_from(["random", "oblique"]))
def test_the_pointmap_of_an_augmented_slice_lies_on_the_augmented_truths_plane(seed, method):
    space, mask, generator = tilted(seed), ball(), np.random.default_rng(seed)
    labels = torch.from_numpy(mask.astype(np.int64))
    cut = choose_cuts(mask, space, Choice(method=method, min_pixels=20, reach=25.0), generator)[0]
    sample = cut.take(labels[None].float(), labels, space)
    sample = sample.replace(
        click=draw_click(sample.mask, generator), pointmap=masked_pointmap(sample.space, sample.mask)
    )
    augment = SliceAugment(rotation=30, scale=0.2, mirror=0.5, turn=40, zoom=0.2, shift=2.0, intensity={})
    moved, motion = augment(sample, generator)

    # the plane, as the moved volume has it: world points of the old plane, moved
    known = torch.isfinite(moved.pointmap).all(dim=0)
    points = moved.pointmap[:, known].double().numpy().T
    corner = motion[:3, :3] @ sample.space.origin + motion[:3, 3]
    normal = motion[:3, :3] @ plane_normal(sample.space)
    assert np.abs((points - corner) @ (normal / np.linalg.norm(normal))).max(initial=0) < 1e-3
    assert moved.volume_space.is_close(move_space(space, motion))
    np.testing.assert_allclose(moved.space.to_index(points), torch.nonzero(known).numpy(), atol=1e-3)

    # the truth at those points is the organ: the mask went with the distances
    scale = np.cbrt(abs(np.linalg.det(motion[:3, :3])))
    shape = OrganShape.of_mask(mask, space, 15.0)
    after = shape.moved(motion).on(moved.space)
    before = shape.on(sample.space)
    assert np.abs(after[moved.mask.numpy()]).max(initial=0) <= scale * np.abs(before[sample.mask.numpy()]).max() + 0.5
    wrong = moved.mask.numpy() != (after < 0)
    assert np.abs(after[wrong]).max(initial=0) < scale * max(*space.spacing, *sample.space.spacing)
    np.testing.assert_allclose(motion[:3, :3] @ sample.click_world + motion[:3, 3], moved.click_world, atol=1e-3)


@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    value=st.floats(-900, 900),
)
def test_resizing_gives_means_of_known_points_only(seed, shape, value):
    generator = np.random.default_rng(seed)
    points = torch.from_numpy(generator.uniform(0, 5, (3, 9, 8)).astype(np.float32) + np.float32(value))
    unknown = torch.from_numpy(generator.random((9, 8)) < 0.6)
    unknown[4, 4] = False
    resized = resize_pointmap(points.masked_fill(unknown, torch.nan), shape, coverage=0.2)
    found = resized[torch.isfinite(resized)]
    kept = points[:, ~unknown]
    assert bool(((found >= kept.min() - 1e-2) & (found <= kept.max() + 1e-2)).all())


@given(
    shift=st.tuples(*[st.floats(-500, 500)] * 3),
    scale=st.floats(0.1, 1000),
    seed=st.integers(0, 100),
)
def test_normalisers_invert(shift, scale, seed):
    points = torch.from_numpy(np.random.default_rng(seed).uniform(-400, 400, (3, 5, 6)))
    points[:, 2, 3] = torch.nan
    normaliser = PointmapNormaliser(shift, scale)
    torch.testing.assert_close(normaliser.restore(normaliser.normalise(points)), points, equal_nan=True)
    again = PointmapNormaliser(**normaliser.settings())
    torch.testing.assert_close(again.normalise(points), normaliser.normalise(points), equal_nan=True)


@given(seed=st.integers(0, 10_000))
def test_a_moved_shape_is_the_shape_of_the_moved_voxels(seed):
    space, mask = tilted(seed), ball()
    movement = SliceAugment(rotation=90, scale=0.3, mirror=0.5).draw(
        space.to_world(np.array([5.0, 6.0, 7.0])), np.random.default_rng(seed)
    )
    moved = OrganShape.of_mask(mask, space, 12.0).moved(movement.motion)
    made = OrganShape.of_mask(mask, move_space(space, movement.motion), 12.0)
    limit = 6.0  # well below where either was clipped, which for the moved one is elsewhere
    centre = made.centroid
    np.testing.assert_allclose(
        moved.canonical(centre, 60.0, 12, limit), made.canonical(centre, 60.0, 12, limit), atol=0.05
    )
    np.testing.assert_allclose(moved.centroid, centre, atol=1e-6)
    np.testing.assert_allclose(moved.extent, made.extent, rtol=1e-6)
    np.testing.assert_allclose(moved.volume_ml, made.volume_ml, rtol=1e-6)

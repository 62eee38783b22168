"""Laws of distances, meshes and shape metrics, whatever the shape and the grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from voxelry.core.space import Space
from voxelry.metrics.surfaces import reconstruction_metrics, voxel_metrics
from voxelry.ops.sdf import canonical_sdf, canonical_space, signed_distance
from voxelry.ops.surface import extract_surface
from voxelry.ops.voxelise import voxelise_mesh

seeds = st.integers(0, 2**32 - 1)
spacings = st.tuples(*[st.floats(0.4, 4.0)] * 3)


def grid(draw_seed, shape, spacing, mirror):
    rng = np.random.default_rng(draw_seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * np.asarray(spacing) * (1, 1, -1 if mirror else 1)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return Space(shape, affine)


@given(seeds, spacings, st.booleans(), st.booleans())
def test_every_surface_is_closed_outward_and_fills_its_voxels(seed, spacing, mirror, rounded):
    rng = np.random.default_rng(seed)
    field = rng.normal(size=tuple(rng.integers(2, 8, 3)))
    field = np.round(field) if rounded else field  # with values of exactly zero
    field[0, 0, 0] = -1.0
    space = grid(seed, field.shape, spacing, mirror)
    mesh = extract_surface(field, space)
    assert mesh.is_watertight
    assert mesh.volume > 0
    np.testing.assert_array_equal(voxelise_mesh(mesh, space), field < 0)


@given(seeds, spacings)
def test_the_distance_of_a_mask_turns_with_it(seed, spacing):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 5, 6)) < 0.3
    mask[1, 2, 3] = True
    found = signed_distance(mask, spacing)
    order = rng.permutation(3)
    turned = signed_distance(mask.transpose(order), np.asarray(spacing)[order])
    # ties between neighbours may be broken another way
    assert np.isclose(turned, found.transpose(order), rtol=1e-4).mean() > 0.8
    np.testing.assert_array_equal(turned < 0, mask.transpose(order))
    assert np.isfinite(found).all()


@given(seeds, spacings, st.booleans(), st.floats(0.5, 20.0))
def test_canonical_distances_stay_within_the_truncation(seed, spacing, mirror, truncation):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 5, 6)) < 0.2
    space = grid(seed, mask.shape, spacing, mirror)
    found = canonical_sdf(mask, space, space.to_world(np.array([1.5, 2.0, 2.5])), 20.0, 9, truncation)
    if not mask.any():
        assert found is None
        return
    assert np.abs(found).max() <= truncation * (1 + 1e-6)
    # a cell further from every voxel than the truncation is outside
    cells = canonical_space(space.to_world(np.array([1.5, 2.0, 2.5])), 20.0, 9)
    places = cells.to_world(np.argwhere(found < truncation * 0.99).astype(float))
    voxels = space.to_world(np.argwhere(mask).astype(float))
    if len(places):
        away = np.linalg.norm(places[:, None] - voxels, axis=-1).min(axis=1)
        assert away.max() <= truncation + 2 * np.linalg.norm(spacing)


@given(seeds, spacings, st.booleans())
def test_metrics_do_not_care_how_the_patient_is_stored(seed, spacing, mirror):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, 4, 5, 6)) < 0.3
    prediction[1, 1, 1] = truth[2, 2, 2] = True
    space = grid(seed, truth.shape, spacing, mirror)
    axes, flips = rng.permutation(3).tolist(), rng.random(3) < 0.5
    window = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    other = space.reorder(axes, flips.tolist())
    first = voxel_metrics(prediction, truth, space)
    second = voxel_metrics(prediction.transpose(axes)[window], truth.transpose(axes)[window], other)
    assert second == pytest.approx(first)


@given(seeds, spacings)
def test_metrics_are_within_their_ranges_and_symmetric_where_they_should_be(seed, spacing):
    rng = np.random.default_rng(seed)
    prediction, truth = rng.random((2, 3, 4, 5)) < rng.uniform(0, 0.5, (2, 1, 1, 1))
    space = grid(seed, truth.shape, spacing, mirror=False)
    there, back = (
        reconstruction_metrics(*pair, space, samples=50) for pair in ((prediction, truth), (truth, prediction))
    )
    for name in ("dice", "iou", "normal_consistency"):
        assert 0 <= there[name] <= 1 + 1e-9
    for name in ("hd95_mm", "assd_mm", "msd_mm", "chamfer_mm"):
        assert 0 <= there[name] <= np.linalg.norm(space.extent) * (1 + 1e-9)
    for name in ("dice", "iou", "hd95_mm", "assd_mm", "chamfer_mm", "normal_consistency"):
        assert there[name] == pytest.approx(back[name])
    assert there["volume_error_ml"] == pytest.approx(-back["volume_error_ml"])

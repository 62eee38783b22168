"""Shape metrics: by hand, on concentric spheres, and against MONAI and surface-distance."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.metrics import slices, surfaces
from voxelry.ops.surface import empty_mesh, extract_surface

OBLIQUE = np.array(
    [[0.45, -0.64, -0.41, 10.0], [0.6, 0.47, -0.55, -40.0], [2.9, 0.03, 0.4, 70.0], [0.0, 0.0, 0.0, 1.0]]
)


def grid(shape=(16, 40, 44), spacing=(2.0, 0.9, 0.8), mirror=1.0):
    base = np.linalg.qr(OBLIQUE[:3, :3])[0]
    affine = OBLIQUE.copy()
    affine[:3, :3] = base * np.asarray(spacing)
    affine[:3, 0] *= mirror
    return Space(shape, affine)


def ball(space, radius, shift=(0.0, 0.0, 0.0)):
    index = np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1).astype(float)
    centre = space.to_world((np.asarray(space.shape) - 1) / 2 + 0.2) + np.asarray(shift)
    return (np.linalg.norm(space.to_world(index) - centre, axis=-1) - radius).astype(np.float32)


def cut(space, axis, index):
    start = [0.0] * 3
    start[axis] = index
    affine = np.delete(space.crop(start, space.shape).affine, axis, axis=1)
    return Space(tuple(size for other, size in enumerate(space.shape) if other != axis), affine)


def batch(mask):
    return torch.from_numpy(mask)[None, None].float()


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_concentric_spheres(mirror):
    space = grid((24, 46, 50), (1.5, 0.9, 0.8), mirror)
    found = surfaces.reconstruction_metrics(ball(space, 14), ball(space, 11), space, planes=[cut(space, 0, 12)])
    assert found["dice"] == pytest.approx(2 * 11**3 / (14**3 + 11**3), rel=0.02)
    assert found["chamfer_mm"] == pytest.approx(3, rel=0.01)
    assert found["on_slice_contour_mm"] == pytest.approx(3, rel=0.01)
    assert found["normal_consistency"] > 0.99
    assert found["volume_error"] == pytest.approx((14 / 11) ** 3 - 1, rel=0.02)
    assert found["volume_error_ml"] == pytest.approx(4 / 3000 * np.pi * (14**3 - 11**3), rel=0.02)
    # border voxels are up to one voxel inside of either surface
    assert found["assd_mm"] == pytest.approx(3, abs=0.3)
    assert found["hd95_mm"] == pytest.approx(3, abs=1.0)
    assert all(type(value) is float for value in found.values())


def test_two_voxels_by_hand():
    space = Space.from_spacing((1, 3, 6), (5.0, 2.0, 1.0))
    prediction, truth = np.zeros((2, 1, 3, 6), dtype=bool)
    prediction[0, 0, :2], truth[0, 2, 1] = True, True
    found = surfaces.voxel_metrics(prediction, truth, space)
    there = np.array([np.sqrt(17), 4.0])
    assert found["dice"] == found["iou"] == 0
    assert found["msd_mm"] == pytest.approx(there.mean())
    assert found["assd_mm"] == pytest.approx((there.sum() + 4) / 3)
    assert found["hd95_mm"] == pytest.approx(4 + 0.95 * (np.sqrt(17) - 4))
    assert found["volume_ml"] == pytest.approx(0.02)
    assert found["volume_error"] == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")  # MONAI's own use of its own functions
@pytest.mark.parametrize("shift", [(0, 0, 0), (3.0, 1.0, -2.0), (9.0, 8.0, 0.0)])
def test_border_distances_are_those_of_monai(shift):
    monai = pytest.importorskip("monai.metrics", reason="MONAI is in the dev extra")
    space = grid()
    prediction, truth = ball(space, 12, shift) < 0, ball(space, 9) < 0
    prediction[:3, :10] = True  # touches the edge of the grid
    found = surfaces.voxel_metrics(prediction, truth, space)
    pair, options = (batch(prediction), batch(truth)), {"include_background": True, "spacing": space.spacing}
    assert found["hd95_mm"] == pytest.approx(
        monai.compute_hausdorff_distance(*pair, percentile=95, **options).item(), rel=1e-5
    )
    average = monai.compute_average_surface_distance
    assert found["assd_mm"] == pytest.approx(average(*pair, symmetric=True, **options).item(), rel=1e-5)
    assert found["msd_mm"] == pytest.approx(average(*pair, **options).item(), rel=1e-5)
    assert found["dice"] == pytest.approx(monai.compute_dice(*pair).item(), rel=1e-5)
    assert found["iou"] == pytest.approx(monai.compute_iou(*pair).item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # the peer's imports from SciPy
def test_surface_distances_agree_with_surface_distance():
    peer = pytest.importorskip("surface_distance", reason="surface-distance is in the dev extra")
    space = Space.from_spacing((44, 44, 44), 1.0)
    prediction, truth = ball(space, 17) < 0, ball(space, 12) < 0
    found = surfaces.reconstruction_metrics(prediction, truth, space)
    distances = peer.compute_surface_distances(truth, prediction, space.spacing)
    assert found["chamfer_mm"] == pytest.approx(5, abs=0.1)
    # its elements are grid points half a voxel to either side of the surface, of which the nearer one counts
    assert found["chamfer_mm"] == pytest.approx(np.mean(peer.compute_average_surface_distance(distances)), abs=0.6)
    assert found["hd95_mm"] == pytest.approx(peer.compute_robust_hausdorff(distances, 95), abs=0.5)
    assert found["dice"] == pytest.approx(peer.compute_dice_coefficient(truth, prediction))


def test_a_perfect_answer():
    space = grid()
    truth = ball(space, 10) < 0
    found = surfaces.reconstruction_metrics(truth, truth.copy(), space, planes=[cut(space, 2, 20)])
    assert {found[name] for name in ("dice", "iou", "on_slice_iou", "dice_0_5_mm")} == {1.0}
    assert {found[name] for name in ("hd95_mm", "assd_mm", "msd_mm", "volume_error", "on_slice_contour_mm")} == {0.0}
    assert found["chamfer_mm"] == pytest.approx(0, abs=1e-5)
    assert found["normal_consistency"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("predicted", "true"), [(False, False), (True, False), (False, True)])
def test_nothing_to_compare(predicted, true):
    space = grid()
    full = ball(space, 9) < 0
    none = np.zeros_like(full)
    found = surfaces.reconstruction_metrics(
        full if predicted else none, full if true else none, space, planes=[cut(space, 0, 8)]
    )
    agrees, far = float(not (predicted or true)), np.linalg.norm(space.extent)
    assert {found[name] for name in ("dice", "iou", "normal_consistency", "on_slice_iou")} == {agrees}
    for name in ("hd95_mm", "assd_mm", "msd_mm", "chamfer_mm"):
        assert found[name] == pytest.approx(0 if agrees else far)
    assert found["on_slice_contour_mm"] == pytest.approx(0 if agrees else np.linalg.norm(space.extent[1:]))
    assert found["volume_error"] == int(predicted) - int(true)
    assert np.isnan(found["dice_20_mm_on"])
    assert np.isnan(found["dice_0_5_mm"]) == agrees


def test_masks_and_distances_mean_the_same():
    space = grid()
    first, second = ball(space, 11, (2.0, 0.0, 1.0)), ball(space, 10)
    fields = surfaces.reconstruction_metrics(first, second, space, planes=[cut(space, 1, 20)])
    masks = surfaces.reconstruction_metrics(first < 0, second < 0, space, planes=[cut(space, 1, 20)])
    for name in ("dice", "hd95_mm", "volume_error", "dice_5_10_mm"):
        assert fields[name] == masks[name]
    assert masks["chamfer_mm"] == pytest.approx(fields["chamfer_mm"], rel=0.1)
    assert masks["on_slice_contour_mm"] == pytest.approx(fields["on_slice_contour_mm"], abs=0.2)


def test_given_meshes_are_used():
    space = grid()
    truth = ball(space, 10)
    far = extract_surface(ball(space, 10, (4.0, 0.0, 0.0)), space)
    found = surfaces.reconstruction_metrics(truth, truth, space, prediction_mesh=far)
    assert found["dice"] == 1.0
    assert found["chamfer_mm"] > 1


def test_dice_by_distance_by_hand():
    space = Space.from_spacing((1, 1, 30), 1.0)
    prediction, truth = np.zeros((2, 1, 1, 30), dtype=bool)
    prediction[..., 4:14], truth[..., 6:26] = True, True
    planes = [cut(space, 2, 4), cut(space, 2, 24)]
    found = slices.dice_by_distance(prediction, truth, space, planes, distances=(0, 3, 8, 50))
    # voxels 4, 5, 6 and 22..25; 7..11 and 17..21; 12..16
    assert found["dice_0_3_mm"] == pytest.approx(2 * 1 / (3 + 5))
    assert found["dice_3_8_mm"] == pytest.approx(2 * 5 / (5 + 10))
    assert found["dice_8_50_mm"] == pytest.approx(2 * 2 / (2 + 5))
    assert np.isnan(found["dice_50_mm_on"])


def test_on_slice_metrics_of_a_moved_shape():
    space = grid((30, 60, 60), (1.0, 0.5, 0.5))
    plane = cut(space, 0, 15)
    found = slices.on_slice_metrics(ball(space, 9, 2.0 * space.directions[:, 2]), ball(space, 9), space, [plane, plane])
    assert found["on_slice_contour_mm"] == pytest.approx(2 * 2 / np.pi, rel=0.1)  # mean of |2 cos|
    half = np.arccos(2 / 18)
    lens = 2 * 81 * half - 2 / 2 * np.sqrt(4 * 81 - 4)
    assert found["on_slice_iou"] == pytest.approx(lens / (2 * np.pi * 81 - lens), abs=0.01)


def test_a_contour_that_leaves_the_plane_runs_along_its_edge():
    plane = Space.from_spacing((10, 20), 1.0)
    everywhere = -np.ones(plane.shape)
    half = np.broadcast_to(np.where(np.arange(20) < 10, -0.5, 0.5), plane.shape)
    assert slices.contour_error(everywhere, everywhere, plane) == 0.0
    assert slices.contour_error(half, everywhere, plane) > 1.0


def test_mask_metrics_by_hand():
    found = slices.mask_metrics(np.array([[0.9, 0.5], [0.2, 0.0]]), np.array([[True, False], [True, False]]))
    assert found["mask_iou"] == pytest.approx(1 / 3)
    assert found["mask_mse"] == pytest.approx((0.01 + 0.25 + 0.64) / 4)
    nothing = np.zeros((2, 2))
    assert slices.mask_metrics(nothing, nothing > 0) == {"mask_iou": 1.0, "mask_mse": 0.0}


def test_errors_are_signed_by_the_side():
    space = grid()
    truth = extract_surface(ball(space, 9), space)
    for radius in (7.5, 11.0):
        errors = surfaces.signed_error(extract_surface(ball(space, radius), space), truth)
        np.testing.assert_allclose(errors, radius - 9, atol=0.15)


def test_the_spread_of_hypotheses():
    space = grid()
    mesh, smaller, larger = (extract_surface(ball(space, radius), space) for radius in (9, 8, 11))
    spread = surfaces.surface_spread(mesh, [smaller, empty_mesh(), larger])
    np.testing.assert_allclose(spread, np.sqrt((1 + 4) / 2), atol=0.15)
    np.testing.assert_array_equal(surfaces.surface_spread(mesh, []), 0)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda space, mask: surfaces.voxel_metrics(mask.astype(int), mask, space), "prediction: expected a bool"),
        (lambda space, mask: surfaces.voxel_metrics(mask, mask[1:], space), "truth: expected shape"),
        (
            lambda space, mask: surfaces.reconstruction_metrics(mask[1:] * 1.0, mask, space),
            "prediction: expected shape",
        ),
        (lambda space, mask: slices.contour_error(mask[0] * 1.0, mask[0, 1:] * 1.0, cut(space, 0, 0)), "truth"),
        (lambda space, mask: slices.mask_metrics(mask[0] * 1.0, mask[0, 1:]), "probability"),
    ],
)
def test_what_cannot_be_is_named(call, names):
    space = grid((4, 5, 6))
    with pytest.raises(SettingError, match=names):
        call(space, np.ones(space.shape, dtype=bool))

import json

import numpy as np
import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.ops.masks import mask_boxes
from voxelry.phantoms import make_phantom, write_phantoms
from voxelry.phantoms.anatomy import LABEL_NAMES, LANDMARK_NAMES
from voxelry.phantoms.shapes import Ovoid, Tube, rotation_to

SMALL = {2: (56, 64), 3: (32, 36, 40)}


def small(seed, ndim=3, **settings):
    extent = {"spacing": (2.0, 1.8)} if ndim == 2 else {"spacing": (4.4, 3.4, 3.2)}
    return make_phantom(seed, ndim=ndim, shape=SMALL[ndim], **(extent | settings))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_seed_gives_the_same_bytes(ndim):
    one, two, other = small(4, ndim), small(4, ndim), small(5, ndim)
    for name in ("image", "landmarks", "labels", "masks", "boxes"):
        assert getattr(one, name).numpy().tobytes() == getattr(two, name).numpy().tobytes()
    assert one.space.is_close(two.space)
    assert not torch.equal(one.image, other.image)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_everything_is_there_and_within_range(ndim, seed):
    sample = small(seed, ndim)
    assert sample.image.shape == (1, *SMALL[ndim])
    assert sample.image.dtype == torch.float32
    assert 0 <= sample.image.min() < 0.1
    assert 0.6 < sample.image.max() <= 1
    assert sample.landmark_names == LANDMARK_NAMES
    assert sample.landmarks.shape == (len(LANDMARK_NAMES), ndim)
    assert torch.isfinite(sample.landmarks).all()
    assert set(sample.labels.unique().tolist()) >= set(range(len(LABEL_NAMES))) - {LABEL_NAMES.index("nodule")}
    count = len(sample.boxes)
    assert count >= 1
    assert sample.masks.unique().tolist() == list(range(count + 1))
    assert torch.equal(sample.boxes, mask_boxes(sample.masks, count))
    assert (sample.labels[sample.masks > 0] == LABEL_NAMES.index("nodule")).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_grids_are_anisotropic_oblique_and_sometimes_mirrored(ndim):
    found = [make_phantom(seed, ndim=ndim, shape=(12,) * ndim, organs=()).space for seed in range(8)]
    assert len({space.orientation for space in found}) > 1
    assert len({space.spacing for space in found}) == 8
    for space in found:
        assert len({round(step, 3) for step in space.spacing}) == ndim
        assert np.abs(space.directions).max() < 1 - 1e-6
    straight = make_phantom(0, ndim=ndim, shape=(12,) * ndim, organs=(), oblique=False).space
    assert np.abs(straight.directions).max() == 1


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("oblique", [False, True])
def test_sides_are_the_patients(ndim, oblique):
    for seed in range(4):
        sample = small(seed, ndim, oblique=oblique)
        world = sample.space.to_world(sample.landmarks.double().numpy())
        x = dict(zip(sample.landmark_names, world[:, 0], strict=True))
        assert x["right_kidney"] > x["left_kidney"] + 5
        assert x["right_lung_apex"] > x["left_lung_apex"] + 5


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_landmarks_lie_on_their_organs(ndim, seed):
    sample = small(seed, ndim)
    spacing = np.asarray(sample.space.spacing)
    on = {name: name.removesuffix("_apex").removesuffix("_tip") for name in LANDMARK_NAMES} | {"carina": "airway"}
    for name, point in zip(sample.landmark_names, sample.landmarks.numpy(), strict=True):
        only = small(seed, ndim, organs=(on[name],))  # so that no other organ covers it
        voxels = np.argwhere(only.labels.numpy() == LABEL_NAMES.index(on[name]))
        away = np.linalg.norm((voxels - point) * spacing, axis=1).min()
        assert away < spacing.max()


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_centre_landmark_is_the_centroid_where_nothing_is_bent(ndim):
    """Deformation moves a centroid a little off the centre's image, but by far less than the organ is large."""
    for seed in range(3):
        sample = small(seed, ndim, organs=("bladder",))
        assert sample.landmark_names == ("bladder",)
        voxels = np.argwhere(sample.labels.numpy() == LABEL_NAMES.index("bladder"))
        away = np.abs((voxels.mean(axis=0) - sample.landmarks.numpy()[0]) * sample.space.spacing)
        assert away.max() < 2.0


def test_tips_are_the_ends_of_their_solids(rng):
    axes, order = rotation_to(np.array([0.2, 0.1, -0.9]))
    assert order == [2, 0, 1]
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(axes[:, 0] @ [0.2, 0.1, -0.9], np.linalg.norm([0.2, 0.1, -0.9]))
    solid = Ovoid(np.array([4.0, -3.0, 7.0]), np.array([9.0, 4.0, 3.0]), axes, exponent=2.3, taper=0.5)
    grid = np.stack(np.meshgrid(*[np.linspace(-10, 10, 81)] * 3, indexing="ij")).astype(np.float32) + np.float32(4)
    grid[1] -= 7
    grid[2] += 3
    inside = solid.distance(grid) < 0
    along = np.einsum("a,a...->...", axes[:, 0], grid - solid.centre.reshape(3, 1, 1, 1))
    assert along[inside].max() == pytest.approx(9.0, abs=0.3)
    assert solid.distance(solid.tip().reshape(3, 1).astype(np.float32))[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_distances_are_right_for_a_ball_and_a_tube(ndim, rng):
    points = rng.uniform(-6, 6, (ndim, 200)).astype(np.float32)
    ball = Ovoid(np.ones(ndim), np.full(ndim, 3.0), np.eye(ndim))
    np.testing.assert_allclose(ball.distance(points), np.linalg.norm(points - 1, axis=0) - 3, atol=1e-4)
    start, end = np.zeros(ndim), np.array([4.0] + [0.0] * (ndim - 1))
    tube = Tube(np.array([[start, end]]), 1.0)
    nearest = np.clip(points[0], 0, 4)
    expected = np.sqrt((points[0] - nearest) ** 2 + (points[1:] ** 2).sum(axis=0)) - 1
    np.testing.assert_allclose(tube.distance(points), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ndim": 4}, "ndim: expected 2 or 3"),
        ({"shape": (32, 32)}, "shape: expected 3 sizes"),
        ({"shape": (32, 32, 4)}, "shape: expected 3 sizes of at least 8"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing: expected positive"),
        ({"spacing": (1.0, 1.0)}, "spacing: expected 1 or 3 values"),
        ({"organs": ("brain",)}, "organs: no brain"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(SettingError, match=message):
        make_phantom(0, **settings)


@pytest.mark.parametrize(
    ("ndim", "suffix", "landmark_format"), [(3, ".nii.gz", "txt"), (3, "nii", "csv"), (2, ".png", "txt")]
)
def test_written_phantoms_are_read_back(tmp_path, ndim, suffix, landmark_format):
    from voxelry.io.images.image import read_image
    from voxelry.io.points.landmarks import read_landmarks

    spacing = (4.4, 3.4, 3.2)[-ndim:] if ndim == 3 else (1.0, 1.0)
    settings = {"ndim": ndim, "shape": SMALL[ndim], "spacing": spacing}
    folder = write_phantoms(tmp_path / "set", 2, seed=7, format=suffix, landmark_format=landmark_format, **settings)
    suffix = "." + suffix.lstrip(".")
    assert sorted(path.name for path in (folder / "volumes").iterdir()) == [f"case_000{suffix}", f"case_001{suffix}"]
    for number in range(2):
        sample = make_phantom(7 + number, oblique=suffix != ".png", **settings)
        image = read_image(folder / "volumes" / f"case_{number:03d}{suffix}")
        step = 1 / 255 if suffix == ".png" else 1e-6
        scale = 255 if suffix == ".png" else 1
        np.testing.assert_allclose(image.array / scale, sample.image.numpy(), atol=step)
        assert image.space.is_close(sample.space)
        labels = read_image(folder / "labels" / f"case_{number:03d}{suffix}").array
        np.testing.assert_array_equal(labels[0], sample.labels.numpy())
        instances = read_image(folder / "instances" / f"case_{number:03d}{suffix}").array
        np.testing.assert_array_equal(instances[0], sample.masks.numpy())
        points = read_landmarks(folder / "landmarks" / f"case_{number:03d}.{landmark_format}", space=image.space)
        index = image.space.to_index(points.world)
        np.testing.assert_allclose(index, sample.landmarks.numpy(), atol=1e-3)


def test_the_seeds_text_format_has_x_along_the_last_axis(tmp_path):
    folder = write_phantoms(tmp_path, 1, shape=SMALL[3])
    count, *lines = (folder / "landmarks" / "case_000.txt").read_text().strip().splitlines()
    sample = make_phantom(0, shape=SMALL[3])
    assert json.loads(count) == len(lines) == len(LANDMARK_NAMES)
    values = np.array([[float(word) for word in line.split()[:3]] for line in lines])
    np.testing.assert_allclose(values, sample.landmarks.numpy()[:, ::-1] / np.array(SMALL[3])[::-1], atol=1e-5)


def test_kinds_and_counts_are_checked(tmp_path):
    with pytest.raises(SettingError, match="kind: expected"):
        write_phantoms(tmp_path, 1, kind="chest")
    with pytest.raises(SettingError, match="count: expected"):
        write_phantoms(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []

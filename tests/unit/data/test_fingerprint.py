"""What is told of a data set by headers and sampled windows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from voxelry.core.space import Space
from voxelry.data.fingerprint.record import Fingerprint
from voxelry.data.fingerprint.take import take_fingerprint
from voxelry.data.layouts.find import find_cases, find_pairs
from voxelry.data.windows import sample_windows, slabs
from voxelry.io import write_image

NEED = ("landmarks", "labels", "masks")


def take(root: Path, **settings) -> Fingerprint:
    return take_fingerprint(find_cases(root), root, **{"need": NEED, **settings})


def noise(shape, seed=0, low=0, high=200, dtype=np.uint8):
    return np.random.default_rng(seed).integers(low, high, (1, *shape)).astype(dtype)


def test_an_oblique_volume_with_objects(write_volumes, oblique, objects):
    found = take(write_volumes(("a", "b")))
    case = found.cases[0]
    assert (found.ndim, len(found.cases), found.groups, found.duplicates) == (3, 2, 2, [])
    assert case.space.is_close(oblique, tolerance=1e-4)
    assert case.placed
    assert case.dtype == "uint16"
    assert case.quantiles[0] >= 0
    assert case.quantiles[-1] < 4000
    sizes = [tuple(part.stop - part.start for part in voxels) for voxels in objects.values()]
    assert set(case.objects) == set(sizes)
    expected = sorted(np.cbrt(np.prod(np.array(sizes) * oblique.spacing, axis=1)))
    assert sorted(found.object_sizes())[::2] == pytest.approx(expected, rel=1e-4)


def test_classes_points_and_a_file_that_is_broken(tmp_path):
    shape = (8, 10, 12)
    space = Space.from_spacing(shape, (5.0, 0.5, 0.5))
    labels = np.zeros((1, *shape), np.uint8)
    labels[0, :4] = 2
    for name in ("one", "two", "three", "worn"):
        write_image(tmp_path / "volumes" / f"{name}.nii.gz", noise(shape, len(name)), space)
        write_image(tmp_path / "labels" / f"{name}.nii.gz", labels, space)
        points = tmp_path / "landmarks" / f"{name}.csv"
        points.parent.mkdir(exist_ok=True)
        points.write_text("# coordinateSystem = RAS\nname,x,y,z\nleft hip,1,1,1\nright hip,,,\n")
    (tmp_path / "landmarks" / "three.csv").write_text("a point")
    (tmp_path / "volumes" / "worn.nii.gz").write_bytes(b"nothing of the kind")
    found = take(tmp_path)
    assert found.landmark_names == ("left hip", "right hip")
    assert {case.name: case.absent for case in found.readable} == {"one": 1, "three": 0, "two": 1}
    assert found.classes == {0: 0.5, 2: 0.5}
    assert found.readable[0].objects == ((4, 10, 12),)
    assert [case.name for case in found.cases if case.fault] == ["three", "worn"]  # of one the points alone are
    assert not found.cases[-1].shape
    assert found.duplicates == [["one", "two"]]  # the same seed


def test_a_copy_of_another_type_is_a_copy(tmp_path):
    values = noise((6, 20, 20), low=-1000, high=900, dtype=np.int16)
    for name, kind in (("a", np.int16), ("b", np.float32)):
        write_image(tmp_path / "volumes" / f"{name}.mha", values.astype(kind), Space.from_spacing((6, 20, 20), 1.0))
    assert take(tmp_path).duplicates == [["a", "b"]]


@pytest.mark.parametrize(
    ("values", "spacing", "modality"),
    [
        (noise((6, 20, 20), low=-1000, high=900, dtype=np.int16), 1.0, "ct"),
        (noise((6, 20, 20), low=0, high=900, dtype=np.int16), 1.0, "unknown"),
        (noise((6, 20, 20), high=40, dtype=np.uint16) ** 3, 0.0002, "fluorescence"),
        (noise((6, 20, 20), dtype=np.uint16), 0.0002, "unknown"),
    ],
)
def test_the_modality_follows_from_values_and_voxels(tmp_path, values, spacing, modality):
    write_image(tmp_path / "volumes" / "a.mha", values, Space.from_spacing(values.shape[1:], spacing))
    assert take(tmp_path).modality == modality


def test_an_image_without_contrast_is_empty_and_one_without_scale_is_not_placed(tmp_path):
    flat = np.full((1, 30, 40), 7, np.uint8)
    write_image(tmp_path / "a.png", flat, Space.from_spacing((30, 40)))
    write_image(tmp_path / "b.png", noise((30, 40)), Space.from_spacing((30, 40)))
    found = take(tmp_path)
    assert [case.empty for case in found.cases] == [True, False]
    assert not any(case.placed for case in found.cases)


def test_pairs_tell_the_channels_of_each_condition(tmp_path):
    for folder, channels in (("A", 2), ("B", 1)):
        pixels = np.concatenate([noise((4, 16, 16), seed) for seed in range(channels)])
        write_image(tmp_path / folder / "1.nii.gz", pixels, Space.from_spacing((4, 16, 16)))
    found = take_fingerprint(find_pairs(tmp_path), tmp_path)
    assert found.pairs
    assert found.cases[0].conditions == (2,)


def test_a_huge_image_is_told_by_its_header_and_a_few_windows(tmp_path):
    """Chunks that aren't there read as zeros, so the volume of 8 TB takes no room on the disk."""
    root = tmp_path / "volumes" / "huge.zarr"
    write_image(root, noise((4, 8, 8), dtype=np.uint16), Space.from_spacing((4, 8, 8), (0.002, 0.009, 0.009)))
    for header in root.rglob("zarr.json"):
        content = json.loads(header.read_text())
        if content.get("node_type") == "array":
            content["shape"] = [1] * (len(content["shape"]) - 3) + [20_000, 20_000, 10_000]
            header.write_text(json.dumps(content))
    found = take(tmp_path)
    assert found.cases[0].shape == (20_000, 20_000, 10_000)
    assert found.cases[0].space.spacing == pytest.approx((0.002, 0.009, 0.009))
    assert found.cases[0].fault == ""
    assert len(found.cases[0].quantiles) == 7


def test_the_record_comes_back_from_its_cache_until_a_file_changes(write_volumes, tmp_path):
    root, cache = write_volumes(("a", "b")), tmp_path / "kept"
    calls: list[tuple[int, int]] = []
    first = take(root, cache=cache, progress=lambda done, count: calls.append((done, count)))
    again = take(root, cache=cache, progress=lambda done, count: calls.append((done, count)))
    assert again == first
    assert calls == [(0, 2), (1, 2), (2, 2)]
    image = root / "volumes" / "a.nii.gz"
    write_image(image, noise((20, 24, 28), 9), first.cases[0].space)
    assert take(root, cache=cache).cases[0].dtype == "uint8"


@pytest.mark.parametrize("shape", [(7, 30, 50), (900, 41)])
def test_slabs_make_up_an_image(shape):
    seen = np.zeros(shape, int)
    for window in slabs(shape, 2, 2 * 4000):
        seen[window] += 1
        assert seen[window].size <= 4000
    assert (seen == 1).all()


@pytest.mark.parametrize("shape", [(300, 512, 512), (1, 20_000, 30_000), (5, 9), (40_000, 50_000), (64, 2, 2)])
def test_sampled_windows_lie_in_the_image_and_are_small(shape):
    for window in sample_windows(shape, 3, 1 << 16):
        sizes = [part.stop - part.start for part in window]
        assert all(0 <= part.start < part.stop <= size for part, size in zip(window, shape, strict=True))
        assert np.prod(sizes) <= 1 << 16
    assert len(sample_windows((300, 512, 512), 3, 1 << 19)) == 3


@pytest.mark.parametrize("shape", [(20, 24), (12, 15, 14)])
def test_an_inverted_image_is_known_by_where_it_is_bright(tmp_path, shape):
    """Its values lie as those of the others do, and one that is only stored the other way round is none."""
    ramp = np.linspace(0, 1000, shape[0])[(..., *(None,) * (len(shape) - 1))]
    for number in range(6):
        array = (ramp + noise(shape, seed=number)).astype(np.int16)
        space = Space.from_spacing(shape, 0.7)
        if number == 2:
            array = 1200 - array
        elif number == 3:
            turned = (True, *(False,) * (len(shape) - 1))
            array, space = np.flip(array, 1), space.reorder(range(len(shape)), turned)
        write_image(tmp_path / "volumes" / f"c{number}.nii.gz", array, space)
    assert take(tmp_path).inverted == ["c2"]


def test_images_that_have_nothing_in_common_are_not_called_inverted(tmp_path):
    for number in range(8):
        write_image(
            tmp_path / "volumes" / f"c{number}.nii.gz", noise((9, 9, 9), seed=number), Space.from_spacing((9, 9, 9))
        )
    assert take(tmp_path).inverted == []

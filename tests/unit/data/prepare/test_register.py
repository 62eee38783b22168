"""Scans brought onto a template: known displacements of an oblique, mirrored, anisotropic scan, and the way back."""

import json

import numpy as np
import pytest
import SimpleITK
import torch

from voxelry.core.errors import SettingError
from voxelry.core.space import Space
from voxelry.data.layouts.find import find_cases
from voxelry.data.prepare.case import PrepareSettings
from voxelry.data.prepare.register import write_transform
from voxelry.data.prepare.run import prepare_all
from voxelry.data.prepare.source import patient_frame
from voxelry.io import read_image, write_image
from voxelry.ops.sdf import canonical_space
from voxelry.tasks.reconstruct.predict import ReconstructPrediction

PARTS = [((0, 0, 0), (30, 22, 26), 100), ((12, 5, -6), (9, 7, 6), 220), ((-12, -7, 8), (7, 9, 5), 30),
         ((3, -10, -12), (5, 5, 8), 180), ((-6, 9, 12), (4, 6, 5), 250)]  # fmt: skip


def turned(degrees, axis=(1.0, 0.5, 0.3)):
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(np.deg2rad(degrees)) * cross + (1 - np.cos(np.deg2rad(degrees))) * cross @ cross


def motion_of(matrix, shift):
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = matrix, shift
    return motion


def write_scan(path, space, motion):
    """A body of ellipsoids, moved from the common frame by `motion`; the second of them is labelled."""
    back = np.linalg.inv(motion)
    index = np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1).astype(float)
    world = space.to_world(index) @ back[:3, :3].T + back[:3, 3]
    values, labels = np.zeros(space.shape), np.zeros(space.shape, np.uint8)
    for number, (centre, radii, value) in enumerate(PARTS):
        inside = np.linalg.norm((world - centre) / np.asarray(radii), axis=-1) < 1
        values[inside], labels[inside] = value, 1 if number == 1 else 0
    values += np.random.default_rng(0).normal(0, 4, space.shape)
    write_image(path.with_name(f"{path.name}-image.nii.gz"), values[None].astype(np.float32), space)
    write_image(path.with_name(f"{path.name}-label.nii.gz"), labels[None], space)


TEMPLATE = Space.from_spacing((17, 16, 20), 4.0, (-38.0, -30.0, -32.0))
MOTION = motion_of(turned(12), (9.0, -12.0, 7.0))


def patient_space():
    shape = (25, 36, 38)
    axes = turned(25, (0, 1, 1)) @ np.diag([1, 1, -1]) @ np.diag([3.4, 2.0, 2.2])
    return Space(shape, motion_of(axes, MOTION[:3, 3] - axes @ ((np.asarray(shape) - 1) / 2)))


def test_a_displaced_scan_lies_on_the_template_and_goes_back(tmp_path):
    write_scan(tmp_path / "template", TEMPLATE, np.eye(4))
    write_scan(tmp_path / "data" / "a", patient_space(), MOTION)
    template = tmp_path / "template-image.nii.gz"
    settings = PrepareSettings(spacing=2.0, truncation=8.0, modality="mr", register=str(template), slices_per_class=2)
    record = prepare_all(find_cases(tmp_path / "data"), tmp_path / "out", settings).records[0]
    found = np.asarray(record["register"]["matrix"])
    places = np.array([[x, y, z, 1] for x in (-20, 20) for y in (-15, 15) for z in (-18, 18)])
    assert np.abs((places @ (found @ MOTION).T - places)[:, :3]).max() < 0.6
    labels = read_image(tmp_path / "out" / record["labels"])
    np.testing.assert_allclose(labels.space.directions, np.fliplr(np.eye(3)), atol=1e-6)
    middle = labels.space.to_world(np.argwhere(labels.array[0] == 1).mean(axis=0))
    np.testing.assert_allclose(middle, PARTS[1][0], atol=0.7)
    transform = SimpleITK.ReadTransform(str(tmp_path / "out" / "transforms" / "a.tfm"))
    lps = transform.TransformPoint((-12.0, -5.0, -6.0))
    np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], (np.linalg.inv(found) @ (12, 5, -6, 1))[:3], atol=1e-6)

    back, space = patient_frame(tmp_path / "out" / record["volume"])
    assert space.is_close(patient_space(), tolerance=1e-3)
    frame = canonical_space((12.0, 5.0, -6.0), 40.0, 40)
    at = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), axis=-1).astype(float)
    sdf = np.linalg.norm(frame.to_world(at) - (12.0, 5.0, -6.0), axis=-1).astype(np.float32) - 7.0
    answer = ReconstructPrediction(
        "a", 1, sdf, frame, labels.space, np.array([[12.0, 5.0, -6.0]]), (), (), np.zeros((0, 1, 1), np.float32)
    )
    home = answer.moved(back, space)
    assert home.mask().shape == space.shape
    truth = (MOTION @ (12, 5, -6, 1))[:3]
    np.testing.assert_allclose(space.to_world(np.argwhere(home.mask()).mean(axis=0)), truth, atol=0.8)
    np.testing.assert_allclose(home.clicks[0], truth, atol=0.6)
    assert home.volume_ml == pytest.approx(answer.volume_ml, rel=1e-4)
    assert patient_frame(template) is None


def test_distances_are_millimetres_after_an_affine_motion():
    frame = canonical_space((0.0, 0.0, 0.0), 40.0, 41)
    at = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), axis=-1).astype(float)
    sdf = (frame.to_world(at)[..., 0] - 3.0).astype(np.float32)  # a wall across x
    answer = ReconstructPrediction("a", 1, sdf, frame, frame, np.zeros((0, 3)), (), (), np.zeros((0, 1, 1), np.float32))
    motion = motion_of(np.array([[1.3, 0.2, 0], [0, 0.9, 0.1], [0, 0, 1.1]]), (5.0, 0, 0))
    home = answer.moved(motion, frame)
    normal = np.linalg.inv(motion[:3, :3])[0]
    exact = (home.frame.to_world(at) - motion[:3, :3] @ (3.0, 0, 0) - (5.0, 0, 0)) @ normal / np.linalg.norm(normal)
    np.testing.assert_allclose(home.sdf, exact, atol=1e-3)
    twice = answer.moved(motion_of(2 * turned(30), (0, 0, 0)), frame)
    np.testing.assert_allclose(twice.sdf, 2 * sdf, atol=1e-4)


def test_transforms_and_kinds(tmp_path):
    with pytest.raises(SettingError, match="transform: expected one of rigid, affine, got 'warp'"):
        PrepareSettings(transform="warp")
    path = write_transform(tmp_path / "a.tfm", MOTION)
    assert path.read_text().startswith("#Insight Transform File V1.0")
    assert torch.tensor(json.loads(json.dumps(MOTION.tolist()))).shape == (4, 4)

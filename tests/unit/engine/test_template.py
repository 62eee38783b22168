"""A model that was trained on registered scans takes a scan as it comes: known displacements, and the way back."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from voxelry.bundle.bundle import read_bundle, write_bundle
from voxelry.bundle.model import load
from voxelry.bundle.registry import recipe_of_config
from voxelry.cli import app
from voxelry.core.errors import CheckpointError, DataError
from voxelry.core.space import Space
from voxelry.data.layouts.find import find_cases
from voxelry.data.prepare.case import PrepareSettings
from voxelry.data.prepare.run import prepare_all
from voxelry.data.prepare.source import folder_template
from voxelry.data.preprocess import Preprocess
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data
from voxelry.engine.report import evaluate_folder
from voxelry.engine.train import train
from voxelry.io import read_image, write_image
from voxelry.models.shape import ShapeNet
from voxelry.tasks.reconstruct import ReconstructTask
from voxelry.tasks.reconstruct.placed import place

ORGAN = np.array([12.0, 5.0, -7.0])  # on a plane of the 2 mm grid
RADII = np.array([9.0, 6.0, 4.0])
PARTS = [((0, 0, 0), (30, 22, 26), 100), (ORGAN, RADII, 220), ((-12, -7, 8), (7, 9, 5), 30),
         ((3, -10, -12), (5, 5, 8), 180), ((-6, 9, 12), (4, 6, 5), 250)]  # fmt: skip
TEMPLATE = Space.from_spacing((17, 16, 20), 4.0, (-38.0, -30.0, -32.0))


def turned(degrees, axis):
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(np.deg2rad(degrees)) * cross + (1 - np.cos(np.deg2rad(degrees))) * cross @ cross


def motion_of(matrix, shift):
    return np.vstack([np.column_stack([matrix, shift]), [0, 0, 0, 1]])


MOTION = motion_of(turned(20, (1.0, 0.5, 0.3)), (9.0, -12.0, 7.0))  # from the template to the patient


def patient_space():
    """Oblique, mirrored, 3.4 by 2.0 by 2.2 mm."""
    shape = (25, 36, 38)
    axes = turned(25, (0, 1, 1)) @ np.diag([1, 1, -1]) @ np.diag([3.4, 2.0, 2.2])
    return Space(shape, motion_of(axes, MOTION[:3, 3] - axes @ ((np.asarray(shape) - 1) / 2)))


def world_of(space):
    return space.to_world(np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1).astype(float))


def write_scan(folder, name, space, motion):
    back = np.linalg.inv(motion)
    world = world_of(space) @ back[:3, :3].T + back[:3, 3]
    values, labels = np.zeros(space.shape), np.zeros(space.shape, np.uint8)
    for number, (centre, radii, value) in enumerate(PARTS):
        inside = np.linalg.norm((world - centre) / np.asarray(radii), axis=-1) < 1
        values[inside], labels[inside] = value, int(number == 1)
    values += np.random.default_rng(0).normal(0, 4, space.shape)
    write_image(folder / f"{name}-label.nii.gz", labels[None], space)
    return write_image(folder / f"{name}-image.nii.gz", values[None].astype(np.float32), space)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """`template-image.nii.gz`, and `data/a` displaced from it."""
    folder = tmp_path_factory.mktemp("scans")
    write_scan(folder, "template", TEMPLATE, np.eye(4))
    write_scan(folder / "data", "a", patient_space(), MOTION)
    return folder


@pytest.fixture(scope="module")
def prepared(scans, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    settings = PrepareSettings(
        spacing=2.0, truncation=8.0, modality="mr", register=str(scans / "template-image.nii.gz"), slices_per_class=3
    )
    prepare_all(find_cases(scans / "data"), root, settings)
    return root


@pytest.fixture(scope="module")
def bundle(prepared, tmp_path_factory):
    """A model that answers with the organ's ellipsoid around any click, its axes along the template's."""
    network = ShapeNet(
        image_size=16, grid=24, prior_grid=24, width=8, multipliers=(1, 2), volume_width=8, volume_multipliers=(1, 2)
    )
    for value in network.parameters():
        torch.nn.init.zeros_(value)
    frame = Space.from_spacing((24, 24, 24), 40 / 24, (-115 / 6, -115 / 6, -115 / 6))
    shape = (np.linalg.norm(world_of(frame) / RADII, axis=-1) - 1) * RADII.min()
    network.set_mean_shape(torch.from_numpy(shape.astype(np.float32)) / 40, 0)
    task = ReconstructTask(network.eval(), organs=[(1,)], edges=[40.0], baseline_shapes=1, recentre=False)
    preprocess = Preprocess(normalise="zscore", clip=3.0, spacing=2.0)
    record = {"data": {"root": "", "train": [], "validation": [], "test": []}, "metrics": {"on": "none"}}
    folder = tmp_path_factory.mktemp("model") / "bundle"
    return write_bundle(folder, task, preprocess, record=record, card="", template=folder_template(prepared))


def predicted(bundle, scan, click, out, *more):
    told = ",".join(f"{value:.3f}" for value in click)
    return CliRunner().invoke(
        app, ["predict", "--model", str(bundle), str(scan), "--click", told, "--out", str(out), *more]
    )


def moments(points):
    """Middle and covariance of places `(N, 3)`."""
    return points.mean(axis=0), np.cov(points.T)


def test_a_raw_scan_is_registered_and_its_answer_lies_in_the_patient(bundle, scans, tmp_path):
    click = (MOTION @ (*ORGAN, 1))[:3]
    found = predicted(bundle, scans / "data" / "a-image.nii.gz", click, tmp_path)
    assert found.exit_code == 0, found.output
    voxels = read_image(tmp_path / "a-image.nii.gz")
    assert voxels.space.is_close(patient_space(), tolerance=1e-3)
    middle, spread = moments(voxels.space.to_world(np.argwhere(voxels.array[0] == 1).astype(float)))
    np.testing.assert_allclose(middle, click, atol=0.8)
    # the ellipsoid is turned with the patient: of a solid one the covariance is radius² / 5 along each axis
    turn = MOTION[:3, :3]
    own = np.linalg.eigvalsh(spread)[::-1]
    np.testing.assert_allclose(np.sqrt(5 * own), RADII, rtol=0.15)
    longest = np.linalg.eigh(spread)[1][:, -1]
    assert abs(longest @ turn[:, 0]) > np.cos(np.deg2rad(6))
    assert abs(longest[0]) < np.cos(np.deg2rad(9))  # what an answer that was only shifted would give
    numbers = json.loads((tmp_path / "a-image.json").read_text())
    np.testing.assert_allclose(numbers["clicks_mm"][0], click, atol=0.5)  # its foot on the slice


def test_what_a_network_sees_of_a_raw_scan_is_what_was_prepared(bundle, prepared, scans):
    model = load(bundle)
    raw, volume = scans / "data" / "a-image.nii.gz", prepared / "volumes" / "a.nii.gz"
    seen = place(model.bundle, model.sample(raw), raw)
    known = place(model.bundle, model.sample(volume), volume)
    assert seen.prepared.space.is_close(known.prepared.space, tolerance=1e-4)
    assert float((seen.prepared.image - known.prepared.image).abs().max()) < 0.02
    assert known.home[1].is_close(patient_space(), tolerance=1e-3)
    np.testing.assert_allclose(known.home[0] @ seen.motion, np.eye(4), atol=1e-3)


def test_what_is_not_in_the_frame_is_refused_with_the_way_there(bundle, prepared, scans, tmp_path):
    model, raw = load(bundle), scans / "data" / "a-image.nii.gz"
    corner = patient_space().to_world(np.array([0.0, 0.0, 0.0]))
    with pytest.raises(DataError, match=r"air|beyond the template"):
        model.reconstruct(raw, click=corner)
    with pytest.raises(DataError, match="a single image can't be registered to the template"):
        model.reconstruct(raw, click=(3.0, 4.0), slice=True)
    with pytest.raises(DataError, match=r"isn't registered, .*--register \S+bundle/template.nii.gz --transform rigid"):
        evaluate_folder(model, scans / "data", tmp_path / "evaluation")
    other = shutil.copytree(prepared, tmp_path / "other")
    image = read_image(raw)
    write_image(other / "template.nii.gz", image.array, image.space)
    with pytest.raises(DataError, match="other: was registered to another template"):
        model.reconstruct(other / "volumes" / "a.nii.gz", click=(0, 0, 0))
    assert 0 <= evaluate_folder(model, prepared, tmp_path / "evaluation").summary["dice"] <= 1
    prepare_all(find_cases(scans / "data"), other, PrepareSettings(spacing=4.0, meshes=False, slices_per_class=1))
    assert not (other / "template.nii.gz").exists()


def test_a_template_that_was_changed_is_refused(bundle, tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    image = read_image(folder / "template.nii.gz")
    image.array[0, 3, 3, 3] += 1
    write_image(folder / "template.nii.gz", image.array, image.space)
    with pytest.raises(CheckpointError, match=r"template.nii.gz: changed since it was written"):
        read_bundle(folder)
    (folder / "template.nii.gz").unlink()
    with pytest.raises(CheckpointError, match=r"template.nii.gz: can't be read as the model's template"):
        read_bundle(folder)


def test_a_training_keeps_the_template_of_its_folder(prepared, tmp_path, quick_training):
    quick = [override for override in quick_training if not override.startswith(("model", "data"))]
    config = compose_training([
        "experiment=reconstruct_3d", f"data.root={prepared}", f"output_dir={tmp_path}", "model.image_size=16",
        "data.split.fractions=[1.0,0.0,0.0]", "data.slices.organs=[1]", "model.grid=16", "model.prior_grid=16",
        "model.width=8", "model.multipliers=[1,2]", "model.volume_width=8", "model.volume_multipliers=[1,2]",
        "task.baseline_shapes=1", "data.slices.truncation=8", *quick, "trainer.max_steps=1",
    ])  # fmt: skip
    known = folder_template(prepared)
    bundle = load(train(config).bundle).bundle
    assert bundle.template.digest == known.digest
    assert bundle.template.grid.is_close(read_image(prepared / "volumes" / "a.nii.gz").space, tolerance=1e-4)
    assert bundle.config["template"] == {"transform": "rigid", "spacing": 2.0, "sha256": known.digest}
    config.data.layout = "volumes"
    volumes = build_data(config.data, ndim=3, recipe=recipe_of_config(config), augment=config.augment)
    assert volumes.template.digest == known.digest

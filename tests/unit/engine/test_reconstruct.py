"""Reconstruction from a configuration to files: training, bundle, clicks, adapters, faults."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

import voxelry
from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import Model, load
from voxelry.bundle.seen import lineage
from voxelry.cli import app
from voxelry.core.errors import CheckpointError, ConfigError, DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.layouts.files import case_name
from voxelry.data.preprocess import Preprocess
from voxelry.data.slices.cut import oblique_plane
from voxelry.data.slices.pointmaps import masked_pointmap
from voxelry.engine.compose import compose_training
from voxelry.engine.predict import predict_files
from voxelry.engine.train import train
from voxelry.io import read_image, write_image
from voxelry.io.meshes import read_mesh
from voxelry.models.shape import ShapeNet
from voxelry.tasks.reconstruct import ReconstructTask
from voxelry.tasks.reconstruct.options import OPTIONS
from voxelry.tasks.reconstruct.prompt import reconstruct

SMALL = {
    "image_size": 32, "grid": 24, "prior_grid": 24, "width": 8, "multipliers": (1, 2), "volume_width": 8,
    "volume_multipliers": (1, 2), "context": 16,
}  # fmt: skip
QUICK = [
    "experiment=reconstruct_3d", "data.slices.organs=[6]", "data.split.fractions=[0.5,0.5,0.0]", "model.grid=16",
    "model.prior_grid=16", "model.image_size=16", "model.width=8", "model.multipliers=[1,2]", "model.volume_width=8",
    "model.volume_multipliers=[1,2]", "task.baseline_shapes=2", "data.slices.slices=[1,2]",
    "data.slices.evaluation={slices: 1, clicks: 1}", "trainer.max_steps=2",
]  # fmt: skip
LIVER = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that answers with some shape, the same for every order of axes only if the frame is."""
    torch.manual_seed(0)
    network = ShapeNet(**SMALL)
    for name, value in network.named_parameters():
        if name.endswith(("head.weight", "head.bias")):
            torch.nn.init.normal_(value, std=0.02)
    task = ReconstructTask(network.eval(), organs=[(3, 4)], edges=[50.0], baseline_shapes=1)
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    record = {"data": {"root": "", "train": [], "validation": [], "test": []}, "metrics": {"on": "none"}}
    return load(write_bundle(folder, task, Preprocess(normalise="percentile"), record=record, card="a card"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    """A bright ellipsoid in noise, 24 × 28 × 32 voxels of 1.5, 2 and 1 mm."""
    space = Space.from_spacing((24, 28, 32), (1.5, 2.0, 1.0), (-10.0, 20.0, 5.0))
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    distance = np.linalg.norm((space.to_world(index.astype(float)) - (6, 46, 22)) / (10, 14, 8), axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.05, space.shape)
    image = np.where(distance < 1, 1.0, 0.4) + noise
    image[:, :3] = 0.0
    folder = tmp_path_factory.mktemp("scan")
    write_image(folder / "mask.nii.gz", (distance < 1).astype(np.uint8)[None], space)
    return write_image(folder / "scan.nii.gz", image[None].astype(np.float32), space)


CLICK = (6.0, 44.0, 20.0)


def test_a_shape_is_written_as_mesh_voxels_distances_and_numbers(model, scan, tmp_path):
    options = {"click": CLICK, "plane": "coronal"}
    outcome = predict_files(model, [scan], tmp_path, format="stl", options=options)
    assert not outcome.failed
    assert outcome.written == [tmp_path / "scan.stl"]
    mesh, voxels = read_mesh(tmp_path / "scan.stl"), read_image(tmp_path / "scan.nii.gz")
    assert mesh.is_watertight
    assert set(np.unique(voxels.array).tolist()) == {0, 3}
    assert voxels.space.is_close(read_image(scan).space)
    record = json.loads((tmp_path / "scan.json").read_text())
    assert record["volume_ml"] == pytest.approx(mesh.volume_ml, rel=1e-3)
    assert record["clicks_mm"] == [list(CLICK)]
    voxel = np.prod(voxels.space.spacing) / 1000
    assert (voxels.array > 0).sum() * voxel == pytest.approx(mesh.volume_ml, rel=0.15)


@pytest.mark.parametrize("plane", ["axial", (0.2, 1.0, 0.3)])
def test_copies_in_other_orders_of_axes_give_the_same_mesh(model, scan, plane):
    image = read_image(scan)
    first = reconstruct(model, image.array.astype(np.float32), space=image.space, click=CLICK, plane=plane)
    for axes, flips in (((1, 0, 2), (True, False, True)), ((2, 1, 0), (False, True, True))):
        moved = image.space.reorder(axes, flips)
        array = image.array.transpose(0, *(axis + 1 for axis in axes))
        array = array[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in flips))]
        other = reconstruct(model, np.ascontiguousarray(array), space=moved, click=CLICK, plane=plane)
        assert other.frame.is_close(first.frame)
        assert np.abs(other.sdf - first.sdf).max() < 0.05
        assert other.mask().shape == moved.shape


def test_a_patient_who_lies_otherwise_gets_the_same_mesh(model, scan):
    image = read_image(scan)
    array = image.array.astype(np.float32)
    first = reconstruct(model, array, space=image.space, click=CLICK, plane="coronal")
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", (15, -10, 20), degrees=True).as_matrix()
    motion[:3, 3] = (5.0, -8.0, 100.0)
    turned = Space(image.space.shape, motion @ image.space.affine)
    click = motion[:3, :3] @ CLICK + motion[:3, 3]
    other = reconstruct(model, array, space=turned, click=click, plane="coronal")
    np.testing.assert_allclose(other.mesh.vertices, first.moved(motion, turned).mesh.vertices, atol=1e-3)
    np.testing.assert_allclose(other.clicks[0], click, atol=1e-3)
    assert (other.mask() == first.mask()).all()


def test_masks_and_several_slices_are_taken(model, scan, tmp_path):
    mask = scan.parent / "mask.nii.gz"
    one = model.reconstruct(scan, click=CLICK, mask=mask)
    assert one.given is not None
    assert one.on_slice_mm < 1.0
    stored = read_image(mask)
    moved = stored.space.reorder((1, 0, 2), (True, False, True))
    other = write_image(tmp_path / "psl.nii.gz", stored.array.transpose(0, 2, 1, 3)[:, ::-1, :, ::-1], moved)
    assert (model.reconstruct(scan, click=CLICK, mask=other).given == one.given).all()
    two = reconstruct(model, scan, click=[CLICK, (4.0, 46.0, 24.0)], plane=["axial", "sagittal"], label=4)
    assert len(two.planes) == 2
    assert two.label == 3


@pytest.mark.parametrize("spacing", [4.0, 0.7])
@pytest.mark.parametrize("plane", ["axial", "coronal", (0.1, 0.2, 1.0)])
def test_a_mask_of_one_slice_alone_is_seen_whatever_grid_the_model_has(model, scan, plane, spacing):
    bundle = replace(model.bundle, preprocess=Preprocess(spacing=spacing))
    image = read_image(scan)
    plane_of_click = np.round(image.space.to_index(CLICK)).astype(int)
    labels = np.zeros(image.space.shape)
    if plane == "coronal":
        labels[8:16, plane_of_click[1], 10:20] = 1
    elif plane == "axial":
        labels[plane_of_click[0], 10:18, 10:20] = 1
    else:
        labels[tuple(plane_of_click)] = 1  # one voxel
    found = reconstruct(Model(bundle, "cpu"), scan, click=CLICK, plane=plane, mask=labels)
    view = found.views[0]
    drawn = image.space.to_world(np.argwhere(labels).astype(float))
    seen = view.to_world(np.argwhere(found.given[0]).astype(float))
    assert np.linalg.norm(seen.mean(axis=0) - drawn.mean(axis=0)) < max(image.space.spacing) + max(view.spacing)


def test_a_single_image_is_enough(model, scan, tmp_path):
    array = read_image(scan).array[0][10]
    grey = (np.clip(array, 0, 1) * 255).astype(np.uint8)
    path = write_image(tmp_path / "slice.png", grey[None], Space.from_spacing(grey.shape))
    with pytest.raises(DataError, match="spacing"):
        reconstruct(model, path, click=(16, 13), slice=True)
    outcome = predict_files(
        model, [path], tmp_path / "out", options={"click": (16, 13), "slice": True, "spacing": (2.0, 1.0)}
    )
    assert not outcome.failed
    assert (tmp_path / "out" / "slice.ply").is_file()
    assert not (tmp_path / "out" / "slice.nii.gz").exists()


def test_a_pointmap_says_where_a_single_image_lies(model, scan, tmp_path):
    plane = oblique_plane((6, 46, 22), (0.3, -0.5, 1.0), spacing=(1.5, 2.0), shape=(24, 20))
    grey = np.random.default_rng(0).integers(90, 255, plane.shape, dtype=np.uint8)
    path = write_image(tmp_path / "slice.png", grey[None], Space.from_spacing(plane.shape))
    region = torch.zeros(plane.shape, dtype=torch.bool)
    region[4:15, 3:9] = True  # as prepared slices have it: known on the organ alone
    points = masked_pointmap(plane, region).numpy()
    np.save(tmp_path / "first.npy", points)
    np.save(tmp_path / "last.npy", np.moveaxis(points, 0, 2))
    np.savez(tmp_path / "prepared.npz", image=grey[None], pointmap=points)
    for given in (points, tmp_path / "first.npy", tmp_path / "last.npy", f"{tmp_path}/prepared.npz::pointmap"):
        found = model.reconstruct(path, click=(9, 13), slice=True, pointmap=given)
        np.testing.assert_allclose(found.clicks[0], plane.to_world(np.array([13.0, 9.0])), atol=1e-3)
        normal = np.cross(*plane.directions.T)
        assert np.abs(found.views[0].directions.T @ normal).max() < 1e-5
    for pointmap, fault in ((np.full_like(points, np.nan), "got NaN only"), (points[:, 1:], r"expected shape \(3, 24")):
        np.save(tmp_path / "bad.npy", pointmap)
        with pytest.raises(DataError, match=f"bad.npy: .*{fault}"):
            model.reconstruct(path, click=(9, 13), slice=True, pointmap=tmp_path / "bad.npy")
    with pytest.raises(SettingError, match="expected none with a pointmap"):
        model.reconstruct(path, click=(9, 13), slice=True, pointmap=points, spacing=1.0)
    with pytest.raises(SettingError, match="expected with slice"):
        model.reconstruct(scan, click=CLICK, pointmap=points)


def test_the_mask_of_a_single_image_is_enough(model, scan, tmp_path):
    array = read_image(scan).array[0][10]
    grey = (np.clip(array, 0, 1) * 255).astype(np.uint8)
    path = write_image(tmp_path / "slice.png", grey[None], Space.from_spacing(grey.shape))
    mask = np.zeros_like(grey)
    mask[8:15, 10:21] = 1
    mask[2, 2] = 1
    own = {"slice": True, "spacing": 2.0, "mask": mask}
    found, clicked = (model.reconstruct(path, **own, **more) for more in ({}, {"click": (13, 11)}))
    np.testing.assert_array_equal(found.sdf, clicked.sdf)
    np.testing.assert_array_equal(found.clicks, clicked.clicks)
    for without in ("slice", "mask"):
        with pytest.raises(SettingError, match="click: expected"):
            model.reconstruct(path, **{name: value for name, value in own.items() if name != without})


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ({"click": (500, 0, 0)}, "outside of the volume"),
        ({"click": (6.0, 21.0, 20.0)}, "is in air"),
        ({"click": CLICK, "mask": np.zeros((24, 28, 32))}, "no foreground"),
        ({"click": CLICK, "mask": np.zeros((24, 28, 30))}, r"mask: shape \(24, 28, 30\)"),
    ],
)
def test_prompts_that_can_t_be_are_told_in_one_line(model, scan, prompt, fault):
    with pytest.raises(DataError, match=fault) as caught:
        reconstruct(model, scan, **prompt)
    assert "\n" not in str(caught.value)


def test_settings_of_a_prompt_are_checked(model, scan):
    with pytest.raises(SettingError, match="plane: expected sagittal, coronal, axial"):
        reconstruct(model, scan, click=CLICK, plane="diagonal")
    with pytest.raises(SettingError, match=r"label: expected one of the model's organs, 3\+4"):
        reconstruct(model, scan, click=CLICK, label=9)
    with pytest.raises(SettingError, match="up to 3 slices"):
        reconstruct(model, scan, click=[CLICK] * 4)
    click = next(option for option in OPTIONS if option.name == "click")
    assert click.read(["1,-2.5,3"]) == [[1.0, -2.5, 3.0]]
    with pytest.raises(SettingError, match="--click: expected two or three numbers"):
        click.read(["1;2"])


@pytest.mark.parametrize(("size", "grid", "pixels"), [("tiny", 48, 64), ("small", 64, 256), ("base", 128, 256)])
def test_presets_keep_their_sizes_in_an_experiment(size, grid, pixels):
    for experiment, model in (("reconstruct_3d", "shape"), ("reconstruct_flow_3d", "shape_flow")):
        config = compose_training([f"experiment={experiment}", f"model={model}_{size}", "data.root=DIR"])
        assert (config.model.grid, config.model.image_size) == (grid, pixels)
        assert (config.data.slices.grid, config.data.slices.image_size) == (grid, pixels)


@pytest.fixture(scope="session")
def quick(quick_training) -> list[str]:
    """What makes a training short, but for the network."""
    return [*(override for override in quick_training if not override.startswith("model")), *QUICK]


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory, quick):
    output = tmp_path_factory.mktemp("trained") / "run"
    return output, voxelry.train(*quick, {"data.root": str(phantoms), "output_dir": str(output)})


def test_a_training_leaves_a_bundle(trained):
    output, run = trained
    assert 0 <= run.summary["dice"] <= 1
    assert "Plan and data" in (output / "report.html").read_text(), "it was planned"
    assert {"mean_shape_dice", "ellipsoid_dice", "nearest_shape_dice"} <= set(run.summary)
    model = voxelry.load(run.bundle)
    assert model.task.organs == [(LIVER,)]
    assert model.task.network.prior.distances.min() < 0


@pytest.mark.usefixtures("drawn")
def test_a_bundle_is_measured_on_a_folder(trained, phantoms, evaluated, tmp_path):
    summary = evaluated(load(trained[1].bundle), phantoms, tmp_path).summary
    assert "Away from what was seen" in (tmp_path / "report.html").read_text()
    assert 0 <= summary["dice"] <= 1


def test_an_adapter_is_trained_on_a_bundle_and_merged(trained, phantoms, tmp_path, quick):
    overrides = [*quick, "trainer.max_steps=1", f"data.root={phantoms}", f"output_dir={tmp_path / 'run'}"]
    overrides.append("adapter={name: liver, rank: 2, targets: convolutions, head_rate: 1e-4}")
    with pytest.raises(ConfigError, match=r"model\.grid: expected 16, as .* has it, got 24"):
        train(compose_training([*overrides, f"pretrained={trained[0]}", "model.grid=24"]))
    with pytest.raises(ConfigError, match="adapter: expected pretrained=BUNDLE"):
        train(compose_training(overrides))
    run = train(compose_training([*overrides, f"pretrained={trained[0]}"]))
    assert (tmp_path / "run" / "adapter" / "adapter.safetensors").is_file()
    assert load(run.bundle).task.network.settings() == load(trained[1].bundle).task.network.settings()


def test_adapters_on_their_base_answer_as_their_merged_bundles_do(trained, phantoms, tmp_path, quick):
    image = sorted((phantoms / "volumes").iterdir())[0]
    labels = read_image(phantoms / "labels" / image.name)
    runs = {}
    for name, label, rate in (("liver", LIVER, 0.01), ("kidney", 3, 0.02)):
        own = [f"adapter={{name: {name}, rank: 2}}", f"data.slices.organs=[{label}]", f"optimizer.lr={rate}"]
        own.append("data.split.fractions=[0.5,0.0,0.5]")  # without validation the last weights are kept, not the best
        overrides = [f"data.root={phantoms}", f"output_dir={tmp_path / name}", f"pretrained={trained[0]}"]
        runs[name] = train(compose_training([*quick, *overrides, *own])).bundle
    clicks = {
        name: tuple(labels.space.to_world(np.argwhere(labels.array[0] == label)[0].astype(float)))
        for name, label in (("liver", LIVER), ("kidney", 3))
    }
    model = load(trained[1].bundle, adapter=tmp_path / "liver")
    base = load(trained[1].bundle).reconstruct(image, click=clicks["liver"])
    model.adapters.load(tmp_path / "kidney" / "adapter")
    assert (model.adapters.names, model.adapters.active) == (("liver", "kidney"), "kidney")
    own, began = lineage(model.bundle.config)
    assert own["digests"]["train"] == lineage(load(runs["kidney"]).bundle.config)[0]["digests"]["train"]
    assert [began] == lineage(load(trained[0]).bundle.config)
    for name, label in (("liver", LIVER), ("kidney", 3)):
        model.adapters.switch(name)
        found = model.reconstruct(image, click=clicks[name])
        merged = load(runs[name]).reconstruct(image, click=clicks[name])
        assert found.label == merged.label == label
        np.testing.assert_allclose(found.sdf, merged.sdf, atol=1e-3)
        model.adapters.merge()
        np.testing.assert_allclose(model.reconstruct(image, click=clicks[name]).sdf, found.sdf, atol=1e-3)
        model.adapters.unmerge()
    with model.adapters.using(None):
        alone = model.reconstruct(image, click=clicks["liver"])
    assert np.array_equal(alone.sdf, base.sdf)
    assert np.abs(found.frame.affine - base.frame.affine).max() > 0  # each has its organ's frame
    with pytest.raises(CheckpointError, match="trained on another base"):
        load(runs["liver"], adapter=tmp_path / "kidney")
    with pytest.raises(SettingError, match="device: expected before the adapters"):
        model.to("cpu")
    flags = ["predict", "--model", str(trained[0]), "--adapter", str(tmp_path / "liver"), str(image)]
    flags += ["--click", ",".join(map(str, clicks["liver"])), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, flags)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads((tmp_path / "out" / f"{case_name(image)}.json").read_text())["label"] == LIVER


def test_an_adapter_may_be_for_fewer_organs_than_its_base_knows(phantoms, tmp_path, quick):
    both, one = "data.slices.organs=[6,3]", "data.slices.organs=[3]"
    base = [*quick, f"data.root={phantoms}", "trainer.max_steps=1"]
    first = train(compose_training([*base, f"output_dir={tmp_path / 'base'}", both]))
    adapted = [*base, f"output_dir={tmp_path / 'run'}", f"pretrained={first.bundle}", "adapter={name: kidney}"]
    with pytest.raises(ConfigError, match="knows 2 organs; expected no more"):
        train(compose_training([*adapted, "data.slices.organs=[3,4,6]"]))
    run = train(compose_training([*adapted, one]))
    assert load(run.bundle).task.organs == load(first.bundle, adapter=tmp_path / "run").task.organs == [(3,)]


def test_other_networks_can_t_be_adapted(trained, phantoms, tmp_path, quick):
    from voxelry.models.unet.folded import FoldedUNet
    from voxelry.tasks.landmarks import LandmarkTask

    task = LandmarkTask(FoldedUNet(ndim=3, width=8, multipliers=(1,), out_channels=1), num_landmarks=1)
    record = {"data": {"root": "", "train": [], "validation": [], "test": []}, "metrics": {"on": "none"}}
    other = write_bundle(tmp_path / "other", task, Preprocess(), record=record, card="")
    overrides = [*quick, f"data.root={phantoms}", f"output_dir={tmp_path / 'run'}"]
    with pytest.raises(CheckpointError, match="holds a folded_unet; expected a shape_net"):
        train(compose_training([*overrides, f"pretrained={other}"]))

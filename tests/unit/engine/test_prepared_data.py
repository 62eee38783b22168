"""Training on a folder that `prepare` wrote: splits, classes, slices that stay on their shapes, refused settings."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from voxelry.bundle.model import load
from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.layouts.find import find_cases
from voxelry.data.prepare.case import PrepareSettings
from voxelry.data.prepare.run import prepare_all
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data
from voxelry.engine.doctor import diagnose
from voxelry.engine.report import evaluate_folder
from voxelry.engine.train import train
from voxelry.io import write_image

SPACING, RADII = (3.0, 1.2, 1.5), np.array([10.0, 7.0, 13.0])
SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "train"}
NETWORK = [
    "model.grid=16", "model.prior_grid=16", "model.image_size=16", "model.width=8", "model.multipliers=[1,2]",
    "model.volume_width=8", "model.volume_multipliers=[1,2]", "task.baseline_shapes=2", "data.slices.truncation=8",
]  # fmt: skip
FLOW = [
    "model.latent_grid=4", "model.autoencoder_width=8", "model.flow_width=16", "model.flow_depth=1", "task.samples=2",
    "task.steps=2", "task.recentre=false", "task.draws=1",
]  # fmt: skip


def write_case(folder, name, number):
    """An ellipsoid in a CT of axes P, S, L, turned by 15 degrees; every case but the last also has a ball."""
    turn = np.deg2rad(15)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    axes = rotation @ np.array([[0, 0, -1.0], [-1.0, 0, 0], [0, 1.0, 0]]) * SPACING
    shape, centre = (14, 28, 24), np.array([-18.0, 33.0, 60.0 + number])
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = centre - axes @ ((np.asarray(shape) - 1) / 2)
    space = Space(shape, affine)
    world = space.to_world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float))
    labels = np.zeros(shape, np.uint8)
    labels[np.linalg.norm((world - centre) / RADII, axis=-1) < 1] = 1
    if number < 4:
        labels[np.linalg.norm(world - centre - (13, 0, 0), axis=-1) < 4] = 2
    image = np.where(labels > 0, 60.0, -600.0) + np.random.default_rng(number).normal(0, 20, shape)
    write_image(folder / f"{name}.nii.gz", image[None].astype(np.float32), space)
    write_image(folder / f"{name}_label.nii.gz", labels[None], space)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number, name in enumerate(SPLITS):
        write_case(folder, name, number)
    rows = [f"{name}.nii.gz,{name}_label.nii.gz,{split}" for name, split in SPLITS.items()]
    (folder / "list.csv").write_text("\n".join(["image,label,split", *rows]) + "\n")
    return folder


def made(source, out, **settings):
    chosen = PrepareSettings(**{"spacing": 2.0, "slices_per_class": 6, "truncation": 8.0, "meshes": False, **settings})
    prepare_all(find_cases(source / "list.csv"), out, chosen)
    return out


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    return made(source, tmp_path_factory.mktemp("prepared"))


def splits(root, *overrides, experiment="reconstruct_3d"):
    config = compose_training([f"experiment={experiment}", f"data.root={root}", *NETWORK, *overrides])
    return build_data(config.data, ndim=3, recipe=recipe_of_config(config), augment=config.augment)


def read_off(case, points):
    """Distances of a case's shape at places `(N, 3)` of its frame, mm."""
    places = 2 * points[None, None, None]
    return torch.nn.functional.grid_sample(case.sdf[None], places, padding_mode="border", align_corners=False).flatten()


def test_splits_classes_and_intensities_are_those_of_the_manifest(prepared):
    found = splits(prepared)
    assert found.names == {"train": ["a", "b", "e"], "validation": ["c"], "test": ["d"]}
    assert found.train.organs == [(1,), (2,)]
    assert found.preprocess.settings()["window"] == [-1000.0, 2000.0]
    assert found.preprocess.settings()["spacing"] == 2.0
    assert {sample.source.split("/")[-3] for sample in found.train.sample(0, 0).slices} == {"slices"}
    ball = splits(prepared, "data.slices.organs=[2]")
    assert ball.names["train"] == ["a", "b"]  # the third has none
    assert ball.test[0].label == 2
    shared = splits(prepared, "data.split.fractions=[0.6,0.4,0.0]")
    assert {part: len(names) for part, names in shared.names.items()} == {"train": 3, "validation": 2, "test": 0}
    assert len(shared.test) == 0


def test_a_folder_may_be_read_as_volumes_instead(prepared):
    found = splits(prepared, "data.layout=volumes", "data.slices.organs=[1]", "data.split.fractions=[0.6,0.4,0.0]")
    assert found.train.sample(0, 0).slices[0].slice_idx is not None
    assert found.train.sample(0, 0).source.endswith("/volumes/" + found.names["train"][0] + ".nii.gz")
    assert len(splits(prepared, "data.layout=prepared").train) == 3


def test_slices_and_shapes_move_together(prepared):
    strong = "data.slices.augment={rotation: 40.0, scale: 0.2, mirror: 0.5, turn: 30.0, zoom: 0.2, shift: 4.0}"
    train_set = splits(prepared, strong, "data.slices.slices=2", "data.slices.organs=[1]", "data.slices.grid=48").train
    still = splits(prepared, "data.slices.augment=null", "data.slices.slices=2", "data.slices.organs=[1]").train
    apart = 0.0
    for epoch in range(4):
        case, before = train_set.sample(0, epoch), still.sample(0, epoch)
        box = before.field_of_view[:, :3]
        assert not box.isfinite().all() or float((box - torch.diag(box.diag())).abs().max()) < 1e-5  # upright
        for place in range(2):
            inside = case.mask_target[place] > 0
            points = case.pointmap[place][:, inside].T
            reach = 2.0**0.5 * 1.2  # half a diagonal of a pixel whose middle is inside, enlarged
            assert float((read_off(case, points) < reach).float().mean()) > 0.97
            around = case.pointmap[place][:, (case.validity[place] > 0) & ~inside].T
            within = around[(around.abs() < 0.5).all(dim=1)]
            assert float((read_off(case, within) > -1.5).float().mean()) > 0.97
            apart = max(apart, float((case.plane - before.plane).abs().max()))
    assert apart > 0.05
    assert torch.equal(train_set.sample(0, 1).image, train_set.sample(0, 1).image)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("data.preprocess.spacing=1.0", r"data.preprocess.spacing: .* was prepared with 2.0, got 1.0"),
        ("data.preprocess.window=[0,100]", r"data.preprocess.window: .* was prepared with \[-1000.0, 2000.0\]"),
        ("data.preprocess.image_size=32", "data.preprocess.image_size: .* was prepared as it is, got 32"),
        ("data.patches={size: 16}", "data.patches: is for volumes"),
        ("data.slices.evaluation={slices: 0}", "data.slices.evaluation.slices: expected a positive whole number"),
        (
            "+data.slices.evaluation.organs=3",
            "data.slices.evaluation: expected one of slices, clicks, seed, got 'organs'",
        ),
        ("augment=flips", "augment: is for volumes"),
        ("data.slices.truncation=20", "data.slices.truncation: .* distances up to 8 mm, got 20"),
        ("data.slices.organs=[[1,2]]", r"organs: \[1, 2\] is several classes.*--merge 1,2"),
    ],
)
def test_settings_that_slices_on_disk_can_t_follow_are_refused(prepared, override, fault):
    with pytest.raises(SettingError, match=fault) as caught:
        splits(prepared, override)
    assert "\n" not in str(caught.value)


def test_missing_slices_classes_and_files_are_told_in_one_line(source, prepared, tmp_path):
    with pytest.raises(DataError, match=r"no case has a slice of class 7; .* 1 \(class 1\), 2 \(class 2\)"):
        splits(prepared, "data.slices.organs=[7]")
    axial = made(source, tmp_path / "axial", axes=(2,))
    assert splits(axial).train.sample(0, 0).slices[0].plane == "axial"
    with pytest.raises(DataError, match="case a has no slice of class 1 across x, but across z"):
        splits(axial, "data.slices.axes=[0]", "data.slices.oblique=0")
    oblique = made(source, tmp_path / "oblique", slices="oblique")
    assert splits(oblique).validation[0].slices[0].axis is None
    with pytest.raises(SettingError, match=r"data.slices.oblique: .* has no other slices"):
        splits(oblique, "data.slices.oblique=0")
    manifest = json.loads((axial / "manifest.json").read_text())
    slice_file = axial / manifest["cases"][0]["slices"][0]["file"]
    whole = slice_file.read_bytes()
    slice_file.unlink()
    with pytest.raises(FileError, match="no such file, though the manifest names it"):
        splits(axial)
    for entry in manifest["cases"][0]["slices"]:
        (axial / entry["file"]).write_bytes(whole[:200])
    with pytest.raises(FileError, match="is damaged"):
        splits(axial).train.sample(0, 0)
    (axial / "manifest.json").unlink()
    with pytest.raises(FileError, match=r"manifest.json: no such file.*run voxelry prepare again to finish it"):
        splits(axial)
    shutil.rmtree(axial)


def trained(experiment, root, output, quick_training, *overrides):
    quick = [override for override in quick_training if not override.startswith(("model", "data"))]
    given = [f"experiment={experiment}", f"data.root={root}", f"output_dir={output}"]
    return train(compose_training([*given, *quick, "trainer.max_steps=2", *NETWORK, *overrides]))


def test_a_prepared_folder_is_looked_at_slice_by_slice(prepared, tmp_path):
    assert diagnose(prepared).ok
    root = tmp_path / "damaged"
    shutil.copytree(prepared, root)
    files = sorted((root / "slices" / "a").iterdir())

    def change(file, **changes):
        with np.load(file) as known:
            content = dict(known)
        np.savez(file, **{**content, **{key: make(content[key]) for key, make in changes.items()}})

    def blank(pointmap):
        return np.full_like(pointmap, np.nan)

    change(files[0], pointmap=lambda points: points + 1.0)
    change(files[1], pointmap=blank)
    change(files[2], image=blank)
    change(files[3], mask=lambda mask: mask[1:])
    change(files[4], mask=np.zeros_like, pointmap=blank)
    files[5].write_bytes(b"none")
    (root / "sdf" / "b.npz").unlink()
    found = {finding.file: finding.message for finding in diagnose(root).findings if finding.severity == "error"}
    for file, words in zip(files, ("mm beside the slice", "NaN elsewhere", "no numbers", "expected one size",
                                   "its mask is empty", "is damaged"), strict=False):  # fmt: skip
        assert words in found.pop(str(file)), file
    assert "no such file" in found.pop(str(root / "sdf" / "b.npz"))
    assert not found


def test_a_prepared_folder_is_trained_on_and_what_came_of_it_takes_scans(prepared, source, tmp_path, quick_training):
    run = trained(
        "reconstruct_3d", prepared, tmp_path / "run", quick_training, "data.slices.evaluation={slices: 2, clicks: 1}"
    )
    assert 0 <= run.summary["dice"] <= 1
    model = load(run.bundle)
    assert model.task.organs == [(1,), (2,)]
    assert model.task.names == ["class 1", "class 2"]
    summary = evaluate_folder(model, prepared, tmp_path / "evaluation").summary
    assert 0 <= summary["dice"] <= 1
    with (tmp_path / "evaluation" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (4 * 2 + 1) * 2 * 1  # organs of cases, slices of each, clicks on each
    assert len({(row["name"], row["organ"], row["slice"], row["click"]) for row in rows}) > 9
    assert summary["class 1/prompts"] == 10
    assert summary["class 2/prompts"] == 8
    assert np.mean([float(row["dice"]) for row in rows if row["organ"] == "class 1"]) == pytest.approx(
        summary["class 1/dice"]
    )
    shape = model.reconstruct(source / "a.nii.gz", click=(-18.0, 33.0, 60.0), label=1)
    assert shape.probability.shape == (1, 16, 16)
    other = made(source, tmp_path / "other", window="abdomen")
    with pytest.raises(DataError, match=r"prepared with window \[-160.0, 240.0\], but the model was trained with"):
        evaluate_folder(model, other, tmp_path / "evaluation")


def test_hypotheses_are_learned_from_a_prepared_folder(prepared, tmp_path, quick_training):
    one = [
        "data.slices.organs=[1]",
        "data.split.fractions=[0.8,0.2,0.0]",
        "data.slices.evaluation={slices: 1, clicks: 1}",
    ]
    run = trained("reconstruct_flow_3d", prepared, tmp_path / "run", quick_training, *one, *FLOW)
    assert 0 <= run.summary["hypothesis_dice"] <= 1

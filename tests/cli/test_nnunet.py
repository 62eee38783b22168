"""One folder of nnU-Net's raw data, two channels on an oblique grid, through every command that reads folders."""

import json
from pathlib import Path

import numpy as np
import pytest

import voxelry
from voxelry.core.space import Space
from voxelry.data.layouts.prepared import read_manifest
from voxelry.io import read_image, write_image

SHAPE = (8, 16, 16)
OBLIQUE = Space(
    SHAPE, np.array([[0.2, 0.1, 0.95, 5.0], [0.3, 0.97, -0.1, -4.0], [1.9, -0.2, 0.1, 7.0], [0.0, 0.0, 0.0, 1.0]])
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nnunet") / "Dataset001_Toy"
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    for number in range(4):
        random = np.random.default_rng(number)
        labels = np.zeros(SHAPE, np.uint8)
        for value, (centre, radius) in enumerate([((4, 5, 5), 3.5), ((4, 10, 10), 2.5)], start=1):
            away = grid - (np.array(centre) + random.integers(-1, 2, 3))[:, None, None, None]
            labels[np.sqrt((away**2).sum(0)) < radius] = value
        for channel in range(2):
            image = (labels == channel + 1) * 200 + random.normal(300, 20, SHAPE)
            path = root / "imagesTr" / f"toy_{number:03d}_{channel:04d}.nii.gz"
            write_image(path, image[None].astype(np.float32), OBLIQUE)
        write_image(root / "labelsTr" / f"toy_{number:03d}.nii.gz", labels[None], OBLIQUE)
    (root / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1, "lesion": 2}})
    )
    return root


def test_doctor_finds_nothing_wrong(run, folder):
    for task in ([], ["--task", "segment"], ["--task", "reconstruct"]):
        status, out, err = run("doctor", folder, *task)
        assert (status, err) == (0, ""), out
    assert "toy_003" in out


def test_a_training_learns_both_channels_and_the_names_and_is_evaluated(run, folder, tmp_path):
    status, _, err = run(
        "train", "experiment=segment_3d", f"data.root={folder}", f"output_dir={tmp_path / 'run'}", "trainer=smoke",
        "trainer.progress=false", "trainer.accelerator=cpu", "trainer.max_steps=1", "data.batch_size=1",
        "data.split.fractions=[0.5,0.25,0.25]", "data.patches=null", "backbone.backbone.width=4",
        "backbone.out_channels=8",
    )  # fmt: skip
    assert status == 0, err
    model = voxelry.load(tmp_path / "run" / "bundle", "cpu")
    assert tuple(model.task.class_names) == ("organ", "lesion")
    status, _, err = run("evaluate", "--model", tmp_path / "run", folder, "--out", tmp_path / "evaluation")
    assert status == 0, err
    assert len((tmp_path / "evaluation" / "cases.csv").read_text().splitlines()) == 1 + 4
    second, image = "toy_000_0001.nii.gz", folder / "imagesTr" / "toy_000_0000.nii.gz"
    option = ["--option", f"channel_files=[{second}]"]
    status, _, err = run("predict", "--model", tmp_path / "run", image, *option, "--out", tmp_path / "one")
    assert status == 0, err
    status, out, err = run("predict", "--model", tmp_path / "run", folder / "imagesTr", "--out", tmp_path / "all")
    assert (status, err) == (0, ""), err
    assert "4 of 4 predicted" in out
    (labels,) = (tmp_path / "one").glob("*.nii.gz")
    assert (tmp_path / "all" / labels.name).read_bytes() == labels.read_bytes()
    for number in range(2):  # whole cases whose names end as if they were channels
        channels = [read_image(folder / "imagesTr" / f"toy_000_{channel:04d}.nii.gz").array for channel in range(2)]
        write_image(tmp_path / "whole" / f"scan_{number:04d}.nii.gz", np.concatenate(channels), OBLIQUE)
    status, out, err = run("predict", "--model", tmp_path / "run", tmp_path / "whole", "--out", tmp_path / "both")
    assert (status, err) == (0, ""), err
    assert "2 of 2 predicted" in out


def test_prepare_knows_the_names_and_the_modality(run, folder, tmp_path):
    status, _, err = run(
        "prepare", "--source", folder, "--out", tmp_path / "prepared", "--channel", "1", "--workers", "0",
        "--slices-per-class", "1", "--no-meshes",
    )  # fmt: skip
    assert status == 0, err
    manifest = read_manifest(tmp_path / "prepared")
    assert manifest["classes"] == {"1": "organ", "2": "lesion"}
    assert {case["modality"] for case in manifest["cases"]} == {"mr"}


def test_index_holds_the_classes_as_objects(run, folder, tmp_path):
    status, out, err = run("index", folder, "--out", tmp_path / "index.sqlite", "--crop-size", "8")
    assert status == 0, err
    assert "from 4 images" in out
    assert "objects  8" in out

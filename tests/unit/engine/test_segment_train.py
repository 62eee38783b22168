"""The segmentation experiments from files to files, and what can start them."""

import csv
import shutil

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import voxelry
from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import CheckpointError, ConfigError, DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.engine.check import check_settings
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data
from voxelry.engine.inputs import gather_inputs
from voxelry.engine.predict import predict_files
from voxelry.engine.report import evaluate_folder
from voxelry.engine.train import build_task, train
from voxelry.phantoms import write_phantoms

SMALL = (
    "trainer=smoke",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "data.split.fractions=[0.5,0.25,0.25]",
    "data.patches.size=32",
    "data.patches.margin=4",
    "data.batch_size=1",
    "backbone.backbone.width=4",
    "backbone.out_channels=8",
)


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuclei") / "flat"
    return write_phantoms(folder, 4, seed=5, ndim=2, shape=(48, 56), kind="nuclei", format=".ome.tif")


@pytest.fixture
def flat(nuclei, tmp_path):
    def configured(*overrides: str):
        common = [f"data.root={nuclei}", f"output_dir={tmp_path / 'run'}"]
        return compose_training(["experiment=segment_2d", *SMALL, *common, *overrides])

    return configured


@pytest.fixture(scope="module")
def learned(nuclei, tmp_path_factory):
    """The bundle of a training of one step."""
    common = [f"data.root={nuclei}", f"output_dir={tmp_path_factory.mktemp('learned') / 'run'}"]
    settings = ["trainer.max_steps=1", "task.score_threshold=0.0", "task.tile_overlap=0.25"]
    return train(compose_training(["experiment=segment_2d", *SMALL, *common, *settings])).bundle


def begun(config, folder):
    """The bundle of a training that has learned from one sample, and neither validated nor reported."""
    check_settings(config)
    recipe = recipe_of_config(config)
    splits = build_data(config.data, ndim=config.ndim, augment=config.augment, seed=config.seed, recipe=recipe)
    task, _ = build_task(config, recipe, splits)
    loss = task.training_loss(collate([splits.train[0]]))["loss"]
    loss.backward()
    assert loss.isfinite()
    record = {"data": {"root": "", "train": [], "validation": [], "test": []}, "metrics": {"on": "none"}}
    return write_bundle(folder, task, splits.preprocess, record=record, card="")


@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_a_bundle_that_predicts_in_every_format(flat, nuclei, evaluated, tmp_path):
    run = train(flat("task.score_threshold=0.0", "task.tile_overlap=0.25", "trainer.max_steps=2"))
    assert {"ap_50", "pq", "watershed_ap_50"} <= set(run.summary)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    model = voxelry.load(run.bundle, "cpu")
    assert model.task_name == "segment"
    assert model.task.tile_size == (32, 32)
    image = nuclei / "volumes" / "case_000.ome.tif"
    direct = model.predict(image)
    space = voxelry.open_image(image).space
    learned = model.task.learned_object_size
    assert 3 * max(space.spacing) < learned < 30 * min(space.spacing)
    halved = voxelry.load(run.bundle, "cpu", changes={"task.object_size": learned / 2})
    assert halved.task.seen_grid(space).spacing == pytest.approx([step / 2 for step in space.spacing])
    for format in ("nii.gz", "tif", "ome.zarr"):
        outcome = predict_files(model, gather_inputs([image]), tmp_path / format, format=format)
        assert not outcome.failed
        (written,) = outcome.written
        volume = voxelry.read_image(written, ndim=2)
        np.testing.assert_array_equal(volume.array[0], direct.label_volume)
        assert volume.space.is_close(space, tolerance=1e-3)
        with (tmp_path / format / "case_000.instances.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(direct)
    summary = evaluated(model, nuclei, tmp_path / "evaluation").summary
    assert summary["images"] == 4
    assert (tmp_path / "evaluation" / "report.html").exists()


def test_metrics_are_chosen_for_validations_for_the_end_and_for_an_evaluation(flat, nuclei, tmp_path):
    chosen = ("metrics.at_validation=[pq]", "metrics.at_end=['ap_*']", "metrics.thresholds=[0.3]")
    run = train(flat("trainer.max_steps=1", "trainer.validate_every=1", *chosen))
    with (tmp_path / "run" / "logs" / "metrics.csv").open(newline="") as file:
        logged = {column for column in next(csv.reader(file)) if column.startswith("val/")}
    assert logged == {"val/ap_50", "val/pq"}
    assert {"ap_30", "ap_50", "ap_mean"} <= set(run.summary)
    assert all(name.startswith("ap_") for name in run.summary)
    changes = {"metrics.at_end": ["coco_map_mask", "pq"], "metrics.classes": ["object"]}
    summary = evaluate_folder(voxelry.load(run.bundle, "cpu", changes=changes), nuclei, tmp_path / "evaluation").summary
    # and of the cases apart that the model wasn't trained on
    assert set(summary) == {"coco_map_mask", "pq", "unseen.coco_map_mask", "unseen.pq"}
    with pytest.raises(SettingError, match=r"metrics.at_end: no 'map' here"):
        voxelry.load(run.bundle, "cpu", changes={"metrics.at_end": ["map"]})
    with pytest.raises(SettingError, match=r"metrics.at_end: no 'ap_mea' here; the nearest is 'ap_mean'"):
        train(flat("metrics.at_end=[ap_mea]", "overwrite=true"))


def test_files_of_other_kinds_than_in_training_are_predicted(flat, nuclei, tmp_path, caplog):
    model = voxelry.load(train(flat("trainer.max_steps=1", "data.preprocess.channels=3")).bundle, "cpu")
    read = voxelry.read_image(nuclei / "volumes" / "case_000.ome.tif")
    size = [step * 1e3 for step in read.space.spacing]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["label"] = read.array[0], np.ones(read.space.shape, dtype=np.uint16)
        file["raw"].attrs["element_size_um"] = size
    two = np.concatenate([read.array, read.array[:, ::-1]])
    voxelry.write_image(tmp_path / "b.ome.tif", two, read.space)
    voxelry.write_image(tmp_path / "c.npy", read.array, read.space)
    half = Space.from_spacing(read.space.shape, [step * 0.5 for step in read.space.spacing])
    voxelry.write_image(tmp_path / "d.ome.tif", read.array, half)
    inputs = [
        tmp_path / "a.h5",
        tmp_path / "a.h5::raw",
        tmp_path / "b.ome.tif",
        tmp_path / "c.npy",
        tmp_path / "d.ome.tif",
    ]
    for number, path in enumerate(gather_inputs(inputs)):
        options = {"channel": 1} if path.name.startswith("b.") else {}
        outcome = predict_files(model, [path], tmp_path / str(number), format="tif", options=options)
        assert not outcome.failed
        assert voxelry.read_image(outcome.written[0]).space.shape == read.space.shape
    assert "a.h5" not in caplog.text
    assert "c.npy: has no voxel size" in caplog.text
    assert "d.ome.tif: voxels of" in caplog.text
    (path, fault) = predict_files(model, [tmp_path / "b.ome.tif"], tmp_path / "no").failed[0]
    assert fault == f"{path}: 2 channels, but the model takes 3"
    (_, fault) = predict_files(model, [path], tmp_path / "no", options={"channel": 2}).failed[0]
    assert fault == f"{path}: has no channel 2 (there are 2, counted from 0)"


def test_a_bundle_of_another_run_starts_a_detector(flat, nuclei, learned, tmp_path, caplog):
    with caplog.at_level("INFO", logger="voxelry"):
        train(flat(f"pretrained={learned}", "trainer.max_steps=1"))
    assert " 0 new" in caplog.text
    data = shutil.copytree(nuclei, tmp_path / "classes")
    with pytest.raises(DataError, match=r"no labels for this image; .* tell the classes of task.class_names=\[a,b\]"):
        train(flat(f"data.root={data}", "task.class_names=[a,b]", f"output_dir={tmp_path / 'no'}"))
    for path in (data / "instances").iterdir():
        ids = voxelry.read_image(path)
        voxelry.write_image(data / "labels" / path.name, (ids.array > 0).astype(np.uint8), ids.space)
    with caplog.at_level("INFO", logger="voxelry"):
        train(
            flat(
                f"data.root={data}",
                f"pretrained={learned}",
                "trainer.max_steps=1",
                "task.class_names=[a,b]",
                f"output_dir={tmp_path / 'b'}",
            )
        )
    assert "box_branch.predictor" in caplog.text


def test_a_diffusion_model_becomes_a_backbone_of_its_own_architecture(flat, nuclei, tmp_path, caplog):
    diffusion = compose_training(
        [
            "experiment=pretrain_2d",
            f"data.root={nuclei}",
            "model=folded_unet",
            "model.width=8",
            "task.n_timestep=20",
            "task.sample_steps=2",
            "task.reconstruct_steps=2",
            "data.preprocess.image_size=32",
        ]
    )
    pretrained = begun(diffusion, tmp_path / "diffusion")
    overrides = [part for part in SMALL if not part.startswith("backbone.")]
    config = compose_training(
        [
            "experiment=segment_2d",
            *overrides,
            "backbone=unet",
            f"data.root={nuclei}",
            f"pretrained={pretrained}",
            f"output_dir={tmp_path / 'run'}",
            "trainer.max_steps=1",
        ]
    )
    with caplog.at_level("INFO", logger="voxelry"):
        run = train(config)
    assert "tensors matched" in caplog.text
    network = voxelry.load(run.bundle, "cpu").task.network
    assert network.backbone.backbone.name == "unet"
    assert network.backbone.backbone.network.fold == (2, 2)


@pytest.mark.parametrize("backbone", ["hiera", "vitdet", "resnet_fpn"])
def test_a_backbone_is_swapped_by_one_override(nuclei, tmp_path, backbone):
    overrides = [part for part in SMALL if not part.startswith("backbone.")]
    small = {
        "hiera": [
            "backbone.backbone.embed_dim=8",
            "backbone.backbone.stages=[1,1,1]",
            "backbone.backbone.input_size=32",
        ],
        "vitdet": ["backbone.dim=24", "backbone.depth=2", "backbone.out_channels=8", "backbone.image_size=32"],
        "resnet_fpn": ["backbone.backbone.width=4", "backbone.out_channels=8", "backbone.backbone.layers=[1,1,1,1]"],
    }[backbone]
    config = compose_training(
        [
            "experiment=segment_2d",
            *overrides,
            f"backbone={backbone}",
            *small,
            f"data.root={nuclei}",
        ]
    )
    network = voxelry.load(begun(config, tmp_path / "bundle"), "cpu").task.network
    assert network.ndim == 2
    found, wanted = network.backbone.describe(), OmegaConf.to_container(config.backbone)
    assert found["name"] == wanted["name"]
    assert found.get("backbone", {}).get("name") == wanted.get("backbone", {}).get("name")


def test_images_are_resized_and_normalised_as_configured(flat, nuclei, learned, tmp_path):
    settings = (
        "model.transform.min_size=[48,64]",
        "model.transform.max_size=96",
        "model.transform.image_mean=[0.1]",
        "model.transform.image_std=[0.5]",
    )
    run = train(flat("trainer.max_steps=1", *settings))
    networks = [voxelry.load(one, "cpu").task.network for one in (learned, run.bundle)]
    assert networks[1].transform.min_size == (48, 64)
    assert not networks[1].transform.skip_normalize
    sizes = [np.array(network.settings()["anchors"]["sizes"]) for network in networks]
    np.testing.assert_allclose(sizes[1], 2 * sizes[0], rtol=0.05)  # patches of 32 are seen at 64
    evaluate_folder(voxelry.load(run.bundle, "cpu"), nuclei, tmp_path / "scores")
    image = sorted((nuclei / "volumes").iterdir())[0]
    prediction = voxelry.load(run.bundle, "cpu", changes={"task.tile_size": 32, "task.score_threshold": 0.0}).predict(
        image
    )
    assert prediction.label_volume.shape == (48, 56)
    assert (prediction.boxes >= -0.5).all()


def test_weights_that_fit_nowhere_are_refused(flat, training, tmp_path):
    other = begun(training("landmarks_3d"), tmp_path / "other")
    with pytest.raises(CheckpointError, match="none of its weights fits"):
        train(flat(f"pretrained={other}"))


def test_hdf5_volumes_with_thick_slices_train_as_they_lie(tmp_path, rng):
    folder = tmp_path / "stacks"
    folder.mkdir()
    for number in range(3):
        sample = voxelry_nuclei(number)
        with h5py.File(folder / f"stack_{number}.h5", "w") as file:
            for name, values in (("raw", sample.image[0] * 255), ("label", sample.masks)):
                stored = file.create_dataset(name, data=values.numpy().astype(np.uint8))
                stored.attrs["element_size_um"] = np.array(sample.space.spacing) * 1000
    config = compose_training(
        [
            "experiment=segment_3d",
            *SMALL,
            f"data.root={folder}",
            "data.patches.size=[16,32,32]",
            "data.split.fractions=[0.67,0.33,0.0]",
        ]
    )
    network = voxelry.load(begun(config, tmp_path / "bundle"), "cpu").task.network
    # the slices are thick, so the first step leaves that axis alone
    assert next(iter(network.backbone.strides.values())) == (2, 4, 4)


def voxelry_nuclei(seed: int):
    from voxelry.phantoms.nuclei import make_nuclei

    return make_nuclei(seed, shape=(20, 40, 40))


def test_crops_of_an_index_train_through_the_same_entry_point(nuclei, tmp_path):
    from voxelry.engine.index import build_index

    summary = build_index(nuclei, tmp_path / "index.sqlite", crop_size=32)
    assert summary.crops >= 4
    overrides = [part for part in SMALL if not part.startswith("data.patches")]
    config = compose_training(
        [
            "experiment=segment_2d",
            "data=crops",
            *overrides,
            f"data.index={tmp_path / 'index.sqlite'}",
            "data.margin=4",
            f"output_dir={tmp_path / 'run'}",
            "trainer.max_steps=1",
        ]
    )
    run = train(config)
    model = voxelry.load(run.bundle, "cpu")
    assert model.task.tile_size == (32, 32)
    assert model.predict(nuclei / "volumes" / "case_000.ome.tif").label_volume.shape == (48, 56)


def test_images_without_instances_are_named(flat, nuclei, tmp_path):
    alone = tmp_path / "alone"
    (alone / "volumes").mkdir(parents=True)
    for image in sorted((nuclei / "volumes").iterdir()):
        (alone / "volumes" / image.name).write_bytes(image.read_bytes())
    with pytest.raises(DataError, match=r"case_000\.ome\.tif: no instances for this image; expected a label volume"):
        train(flat(f"data.root={alone}"))


@pytest.mark.parametrize(
    ("override", "fault"),
    [("~backbone", "backbone: expected one"), ("model.anchors.unit=inch", r"model\.anchors\.unit: expected one of")],
)
def test_descriptions_that_can_t_be_are_refused(nuclei, tmp_path, override, fault):
    overrides = [part for part in SMALL if not part.startswith("backbone.")]
    config = compose_training(
        ["experiment=segment_2d", *overrides, override, f"data.root={nuclei}", f"output_dir={tmp_path}"]
    )
    with pytest.raises(ConfigError, match=fault):
        train(config)


def test_anchors_in_mm_become_voxels(flat):
    config = flat("model.anchors.unit=mm", "model.anchors.sizes=[[0.00254],[[0.00254,0.00508]]]", "backbone.extra=null")
    recipe = recipe_of_config(config)
    splits = build_data(config.data, ndim=2, recipe=recipe, seed=0)
    network, _ = recipe.network(config, splits.train, None)
    np.testing.assert_allclose(network.settings()["anchors"]["sizes"], [[[20, 20]], [[20, 40]]], rtol=1e-3)


def test_data_sets_or_loaders_are_handed_out(flat):
    config = flat("data.batch_size=2")
    recipe, common = recipe_of_config(config), {"ndim": 2, "augment": config.augment, "seed": 1}
    splits = build_data(config.data, recipe=recipe, **common)
    loaders = build_data(config.data, recipe=recipe, **common, return_dataloaders=True)
    first, second = (list(loaders.train) for _ in range(2))
    assert [len(batch) for batch in first] == [2]
    assert {name for batch in first for name in batch.names} == set(splits.names["train"])
    assert first[0].image.shape == (2, 1, 32, 32)
    assert not torch.equal(first[0].image, second[0].image)  # augmented anew
    for part in ("validation", "test"):
        assert [batch.names[0] for batch in getattr(loaders, part)] == splits.names[part]


def test_a_large_image_is_predicted_piece_by_piece_and_goes_on_where_it_was_stopped(
    nuclei, learned, tmp_path, monkeypatch
):
    from voxelry.tasks.segment import recipe as segment
    from voxelry.tasks.segment.detect import Detector

    model = voxelry.load(learned, "cpu")
    image = nuclei / "volumes" / "case_000.ome.tif"
    (whole,) = predict_files(model, [image], tmp_path / "whole").written
    monkeypatch.setattr(segment, "_WHOLE_VOXELS", 0)
    seen, original = [], Detector.__call__

    def stopping(self, pixels):
        seen.append(pixels.shape)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(Detector, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, [image], tmp_path / "pieces")
    (pieces,) = predict_files(model, [image], tmp_path / "pieces").written
    assert len(seen) == 1 + 4  # of four tiles, two were there already
    np.testing.assert_array_equal(voxelry.read_image(pieces).array, voxelry.read_image(whole).array)
    assert not list((tmp_path / "pieces").glob(".voxelry/parts/*"))

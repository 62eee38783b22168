"""Translation from a configuration to files: training, bundle, contrasts, DICOM, resumption, faults."""

import re

import numpy as np
import pytest
import torch

import voxelry
from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.model import load
from voxelry.core.errors import ConfigError, DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.engine.compose import compose_training
from voxelry.engine.predict import predict_files
from voxelry.engine.report import evaluate_folder
from voxelry.engine.train import train
from voxelry.io import read_image, write_image
from voxelry.models.unet.haar import HaarUNet
from voxelry.phantoms import write_phantoms
from voxelry.tasks.translate import TranslateTask
from voxelry.tasks.translate.targets import input_channels

SMALL = [
    "data.preprocess.image_size=16",
    "model=translate_small",
    "model.width=8",
    "model.multipliers=[1,2]",
    "model.groups=4",
]


@pytest.fixture
def trained(tmp_path, quick_training):
    """A very short training on a folder."""

    def run(root, *overrides, experiment="translate_3d", name="run"):
        quick = [override for override in quick_training if not override.startswith("model")]
        places = [f"data.root={root}", f"output_dir={tmp_path / name}"]
        return train(compose_training([f"experiment={experiment}", *quick, *SMALL, *places, *overrides]))

    return run


def contrasts(root, count=4, shape=(12, 10, 8)):
    """Cases of t1, t2 and flair, each a function of one invisible anatomy; case 1 has no t2."""
    rng = np.random.default_rng(0)
    for number in range(count):
        space = Space.from_spacing(shape, (2.0, 1.0, 1.0), (number, 5.0, -3.0))
        anatomy = rng.random((1, *shape)).astype(np.float32)
        pixels = {"t1": 100 + 400 * anatomy, "t2": 900 - 700 * anatomy, "flair": 50 * anatomy**2}
        for name, image in pixels.items():
            if (number, name) != (1, "t2"):
                write_image(root / name / f"case_{number}.nii.gz", image.astype(np.float32), space)
    return root


def bundle(folder, *, conditions=1, preprocess=None, **settings):
    """A bridge that has learned nothing, and so answers the mean of its conditions."""
    torch.manual_seed(0)
    network = HaarUNet(
        ndim=3, in_channels=input_channels(conditions, 1, 3, tells_place=False), out_channels=1, width=8,
        multipliers=[1, 2], groups=4, block="pre_norm", attention="none", middle_attention="none", zero_head=True,
    )  # fmt: skip
    task = TranslateTask(network, conditions=conditions, baseline=False, clip=False, **settings)
    preprocess = preprocess or Preprocess(normalise="minmax")
    return load(write_bundle(folder / "bundle", task, preprocess, record={}, card="a card"))


@pytest.mark.usefixtures("drawn")
def test_a_run_on_degraded_volumes_leaves_a_bundle_that_restores(trained, phantoms, evaluated, monkeypatch, tmp_path):
    run = trained(phantoms, "task.spread_samples=2", "trainer.max_steps=2")
    assert {"psnr", "ssim", "input_psnr", "baseline_psnr", "coverage_90"} <= set(run.summary)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for heading in ("Translated images", "Against regression", "Over the number of calls", "Spread", "Cases"):
        assert heading in page
    model = voxelry.load(run.bundle)
    assert model.task.calibration.cases == 1
    path = sorted((phantoms / "volumes").iterdir())[0]
    prediction = model.predict(path, steps=2, samples=2)
    assert prediction.calls == 4
    outcome = predict_files(model, [path], tmp_path / "out", options={"samples": 2})
    assert not outcome.failed
    image, spread = read_image(outcome.written[0]), read_image(tmp_path / "out" / f"{prediction.name}_spread.nii.gz")
    given = read_image(path)
    assert image.space.is_close(given.space, 1e-4)
    assert spread.space.is_close(given.space, 1e-4)
    out = tmp_path / "evaluation"
    found = evaluated(model, phantoms, out)
    assert found.summary["psnr"] > found.summary["input_psnr"] - 1
    assert {way: len(rows) for way, rows in found.beside.items()} == dict.fromkeys(("1", "2", "4"), 4)
    before = {path.name: path.read_bytes() for path in out.glob("*.*")}
    assert b"Over the number of calls" in before["report.html"]
    monkeypatch.setattr(type(model.task), "predict", None)  # the network is asked nothing again
    assert evaluate_folder(model, phantoms, out).outcome.kept
    assert {path.name: path.read_bytes() for path in out.glob("*.*")} == before


@pytest.mark.parametrize("experiment", ["translate_2d", "translate_3d"])
@pytest.mark.parametrize("mode", ["flow", "diffusion", "regression"])
def test_every_mode_runs(trained, tmp_path, mode, experiment):
    shape = (24, 28, 32)[: int(experiment[-2])]
    root = write_phantoms(tmp_path / "phantoms", 3, seed=5, ndim=len(shape), shape=shape, format=".nii.gz")
    run = trained(
        root, f"task.mode={mode}", "task.steps=2", "trainer.max_steps=1", "data.split.fractions=[0.67,0.33,0.0]",
        "data.degrade.steps=[{name:rician,sigma:0.1}]", experiment=experiment,
    )  # fmt: skip
    assert np.isfinite(run.summary["psnr"])
    assert load(run.bundle).task.mode == mode


def test_one_model_serves_any_missing_contrast(trained, tmp_path):
    root = contrasts(tmp_path / "data")
    run = trained(
        root, "data=pairs", "data.pairs.target=flair", "task.drop=0.5", "data.preprocess.normalise=minmax",
        "trainer.max_steps=1",
    )  # fmt: skip
    model = load(run.bundle)
    assert model.task.condition_names == ("t1", "t2")
    t1, t2 = (root / name / "case_0.nii.gz" for name in ("t1", "t2"))
    both, one = model.predict({"t1": t1, "t2": t2}), model.predict({"t2": t2})
    assert both.image.shape[0] == one.image.shape[0] == 2
    assert not one.image[0].any()
    torch.testing.assert_close(one.translated, one.image[1:], atol=0.2, rtol=0)
    outcome = predict_files(model, [t2], tmp_path / "out", options={"contrast": {"t2": t2}})
    assert not outcome.failed
    image = read_image(outcome.written[0])
    assert image.space.is_close(read_image(t2).space)
    assert image.array.min() > -20  # flair's units, which are learned, are not t2's
    assert image.array.max() < 70
    summary = evaluate_folder(model, root, tmp_path / "evaluation").summary
    assert np.isfinite(summary["psnr"])
    with pytest.raises(SettingError, match="contrast: expected one of t1, t2, got 'pd'"):
        model.predict({"pd": t1})
    with pytest.raises(SettingError, match="at least one"):
        model.predict({"t1": None})
    elsewhere = write_image(
        tmp_path / "moved.nii.gz", read_image(t1).array[:, 1:], read_image(t1).space.crop((1, 0, 0), (11, 10, 8))
    )
    with pytest.raises(DataError, match=r"case_0\.nii\.gz: shape .* moved|moved\.nii\.gz"):
        model.predict({"t2": t2, "t1": elsewhere})


def test_patches_are_told_their_place_and_tiles_are_their_size(trained, phantoms):
    patches = "data.patches={size:12,context:true,foreground:0.0,margin:0}"
    run = trained(phantoms, patches, "data.batch_size=1", "trainer.max_steps=1", "task.steps=1", "task.baseline=false")
    task = load(run.bundle).task
    assert task.context
    assert task.tile_size == [12, 12, 12]
    assert task.network.settings()["in_channels"] == 1 + 4 + 1


def test_values_are_the_inputs_own_and_lie_where_it_does(tmp_path):
    affine = np.array([[0.0, 0.3, 0.9, -7], [0.0, -0.9, 0.3, 4], [-2.5, 0.0, 0.0, 9], [0, 0, 0, 1]])
    space = Space((12, 14, 10), affine)
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    pixels = (200 * np.sin(space.to_world(index) / 9).sum(axis=-1) - 300)[None].astype(np.float32)
    path = write_image(tmp_path / "scan.nii.gz", pixels, space)
    for preprocess, tolerance in ((Preprocess(normalise="minmax"), 1e-3), (Preprocess(spacing=(1.0, 1.0, 1.0)), 60)):
        model = bundle(tmp_path, preprocess=preprocess)
        outcome = predict_files(model, [path], tmp_path / "out", format="nii.gz")
        image = read_image(outcome.written[0])
        assert image.space.is_close(space, 1e-3)
        assert np.abs(image.array - pixels).max() < tolerance
    array = model.predict(pixels, space)
    assert array.space.is_close(model.bundle.preprocess.target(space))


def check_series(series, tmp_path):
    model = bundle(tmp_path)
    outcome = predict_files(model, [series], tmp_path / "out")
    assert not outcome.failed
    given, found = read_image(series), read_image(outcome.written[0])
    assert outcome.written[0].suffixes[-2:] == [".nii", ".gz"]
    assert found.space.is_close(given.space, 1e-3)
    np.testing.assert_allclose(found.array, given.array, atol=1e-2 * np.ptp(given.array))


def test_a_dicom_series_becomes_a_nifti_over_it(write_series, tmp_path, rng):
    affine = np.array([[0.0, 0.3, 0.9, -7], [0.0, -0.9, 0.3, 4], [-2.5, 0.0, 0.0, 9], [0, 0, 0, 1]])
    volume = rng.integers(-300, 900, (6, 8, 10))
    check_series(write_series(tmp_path / "series", volume, Space(volume.shape, affine)), tmp_path)


def test_a_real_dicom_series_becomes_a_nifti_over_it(shared_data, tmp_path):
    series = next(path for path in sorted((shared_data / "hippocrop_dicom").rglob("*")) if path.is_dir()
                  and any(entry.suffix == ".dcm" for entry in path.iterdir()))  # fmt: skip
    check_series(series, tmp_path)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN|finite"), (3.0, "constant|one value")])
def test_images_that_say_nothing_are_refused(tmp_path, value, message):
    pixels = np.full((1, 8, 8, 8), 3.0, np.float32)
    pixels[0, 0, 0, 0] = value
    path = write_image(tmp_path / "bad.nii.gz", pixels, Space.from_spacing((8, 8, 8)))
    outcome = predict_files(bundle(tmp_path), [path], tmp_path / "out")
    assert len(outcome.failed) == 1
    assert "bad.nii.gz" in outcome.failed[0][1]
    assert re.search(message, outcome.failed[0][1], re.IGNORECASE), outcome.failed[0][1]


def test_steps_that_were_not_trained_are_refused_in_one_line(tmp_path):
    model = bundle(tmp_path, steps=4)
    image = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    assert model.predict(image, steps=2).calls == 2
    with pytest.raises(SettingError, match="it can do 1, 2, 4"):
        model.predict(image, steps=3)
    with pytest.raises(ConfigError, match="it can do 1, 2, 4"):
        load(model.bundle.path, changes={"task.steps": 3})
    assert load(model.bundle.path, changes={"task.steps": 1}).predict(image).calls == 1


def test_an_interrupted_run_goes_on_with_the_same_numbers(trained, phantoms, tmp_path):
    # averaged weights begin at a share of the steps, which differ here
    common = ["trainer.max_steps=3", "learning_rate=constant", "trainer.ema=null", "task.steps=1"]
    straight = trained(phantoms, *common, name="straight")
    trained(phantoms, *common[1:], "trainer.max_steps=1", name="halted")
    halted = trained(phantoms, *common, "resume=true", name="halted")
    one, other = (load(run.bundle).task.network.state_dict().values() for run in (straight, halted))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_volumes_without_targets_are_refused(trained, phantoms):
    with pytest.raises(ConfigError, match="has no target; expected pairs"):
        trained(phantoms, "data=volumes")


def test_what_does_not_fit_is_refused_before_it_starts(trained, phantoms, monkeypatch):
    monkeypatch.setattr("voxelry.models.memory.available_memory", lambda accelerator: 30 * 2**20)
    with pytest.raises(SettingError, match=r"memory: a training step on 40×48×48 .* it would fit with .*32×32×32"):
        trained(phantoms, "data.preprocess.image_size=[40,48,48]")
    monkeypatch.setattr("voxelry.models.memory.available_memory", lambda accelerator: None)
    assert trained(phantoms, "trainer.max_steps=1").bundle is not None


def test_thick_slices_become_thin_ones_on_the_targets_grid(trained, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        thin = Space.from_spacing((20, 8, 8), (1.0, 0.9, 0.9), (number, 2.0, -9.0))
        thick = thin.resize((4, 8, 8)).reorder((2, 0, 1), (True, False, True))
        for folder, space in (("A", thick), ("B", thin)):
            write_image(tmp_path / "pairs" / folder / f"{number}.nii.gz", rng.random((1, *space.shape)), space)
    overrides = ["data=pairs", "data.pairs.resample=true", "data.preprocess.image_size=null", "task.baseline=false"]
    overrides.append("trainer.max_steps=1")
    run = trained(tmp_path / "pairs", *overrides)
    scan = Space.from_spacing((5, 8, 8), (5.0, 0.9, 0.9), (40.0, 2.0, 7.0)).reorder((1, 2, 0), (False, True, True))
    write_image(tmp_path / "scan.nii.gz", rng.random((1, *scan.shape)).astype(np.float32), scan)
    model = load(run.bundle)
    assert model.task.target_grid.ratio == pytest.approx((5, 1, 1))
    (written,) = predict_files(model, [tmp_path / "scan.nii.gz"], tmp_path / "out").written
    # along the patient's z, whatever array axis that is
    assert voxelry.open_image(written).space.is_close(scan.resize((8, 8, 25)), 1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_answer_on_a_finer_grid_has_its_values_where_they_belong(tmp_path, axis):
    ratio = [1.0, 1.0, 1.0]
    ratio[axis] = 4.0
    model = bundle(tmp_path / "b", target_grid={"ratio": ratio, "spacing": [1.0] * 3})
    shape = [12, 12, 12]
    shape[axis] = 3
    given = Space.from_spacing(shape, [4.0 if one == axis else 1.0 for one in range(3)], (3.0, -2.0, 8.0))
    ramp = given.to_world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)).sum(axis=-1)
    write_image(tmp_path / "scan.nii.gz", ramp[None].astype(np.float32), given)
    (written,) = predict_files(model, [tmp_path / "scan.nii.gz"], tmp_path / "out").written
    found = read_image(written)
    assert found.space.shape == (12, 12, 12)
    inner = found.array[0][tuple(slice(2, 10) if one == axis else slice(None) for one in range(3))]
    index = np.stack(np.meshgrid(*[np.arange(2, 10) if one == axis else np.arange(12) for one in range(3)],
                                 indexing="ij"), axis=-1)  # fmt: skip
    np.testing.assert_allclose(inner, found.space.to_world(index).sum(axis=-1), atol=0.2)


def test_a_picture_is_written_as_whole_numbers_or_refused(tmp_path):
    from voxelry.tasks.translate.predict import TranslatePrediction, write_translation

    def prediction(low, high):
        values = torch.tensor([[[0.0, 0.5], [1.0, 1.2]]])
        levels = torch.tensor([[low, high]] * 2)
        return TranslatePrediction("p", values, values, levels, Space.from_spacing((2, 2)))

    (path,) = write_translation(prediction(0.0, 255.0), tmp_path, suffix=".png")
    assert read_image(path).array.tolist() == [[[0, 128], [255, 255]]]
    (path,) = write_translation(prediction(0.0, 1000.0), tmp_path, suffix=".png")
    assert read_image(path).array.tolist() == [[[0, 500], [1000, 1200]]]
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (-1024.0, 3071.0)):
        with pytest.raises(FileError, match=r"PNG holds whole numbers from 0 to 65535, .* \(use --format npy\)"):
            write_translation(prediction(low, high), tmp_path, suffix=".png")

"""The command as a user types it: what it writes, and that bad input gets one line and leaves nothing behind."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelry.bundle.bundle import write_bundle
from voxelry.core.space import Space
from voxelry.data.layouts.files import visible
from voxelry.data.preprocess import Preprocess
from voxelry.engine.lightning import TaskModule
from voxelry.io import read_landmarks, write_image
from voxelry.models.unet import UNet
from voxelry.phantoms import write_phantoms
from voxelry.tasks.landmarks import LandmarkTask

NAMES = tuple(f"point_{number}" for number in range(1, 9))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", 4, seed=5, shape=(24, 28, 32))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    network = UNet(ndim=3, out_channels=len(NAMES), width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=NAMES)
    return write_bundle(tmp_path_factory.mktemp("b") / "bundle", task, Preprocess(image_size=16), record={}, card="")


def one_line_error(result: tuple[int, str, str]) -> str:
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("voxelry: error: ")]
    assert status == 1
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_help_names_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(word in out for word in ("train", "predict", "evaluate", "doctor", "phantoms", "index", "demo"))


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 8. GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_shortage_of_memory_is_one_line(run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("voxelry.cli.app", fail)
    assert "the memory ran out" in one_line_error(run("doctor", "DIR"))
    monkeypatch.setattr("voxelry.engine.shortage.is_shortage", lambda error: False)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="allocate"):
            run("doctor", "DIR")


@pytest.mark.parametrize("what", ["import voxelry", "from voxelry import cli\ncli.main()"], ids=["package", "help"])
def test_imports_are_light(what):
    code = (
        "import sys\nsys.argv = ['voxelry', '--help']\n"
        f"try:\n    exec({what!r})\nexcept SystemExit:\n    pass\n"
        "files = {name.partition('.')[0]: getattr(one, '__file__', None) for name, one in sys.modules.items()}\n"
        "print(*sorted(name for name, file in files.items() if 'site-packages' in (file or '')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "torch",
        "numpy",
        "scipy",
        "numba",
        "lightning",
        "matplotlib",
        "hydra",
        "omegaconf",
        "nibabel",
        "PIL",
        "ray",
    }
    found = set(result.stdout.splitlines()[-1].split())
    assert not found & heavy
    if what == "import voxelry":
        assert "typer" not in found


def test_a_process_ends_with_one_line_and_a_status():
    command = [sys.executable, "-m", "voxelry", "doctor", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "nowhere" in one_line_error((result.returncode, result.stdout, result.stderr))


@pytest.mark.parametrize("format", ["mrk.json", "fcsv", "csv", "json"])
def test_predictions_lie_in_the_input_s_world(run, bundle, data, tmp_path, format):
    out = tmp_path / "out"
    status, _, _ = run(
        "predict", "--model", bundle, data / "volumes" / "case_000.nii.gz", "--out", out, "--format", format
    )
    assert status == 0
    points = read_landmarks(out / f"case_000.{format}")
    assert points.names == NAMES
    from voxelry.io import open_image

    space = open_image(data / "volumes" / "case_000.nii.gz").space
    assert space.contains(space.to_index(points.world)).all()


def test_a_file_that_fails_is_named_and_the_rest_is_done(run, bundle, data, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(data / "volumes", folder)
    (folder / "broken.nii.gz").write_bytes(b"no volume")
    result = run("predict", "--model", bundle, folder, "--out", tmp_path / "out")
    assert "broken.nii.gz" in one_line_error(result)
    assert "4 of 5 predicted" in result[1]
    assert len(visible(tmp_path / "out")) == 4


def test_evaluate_writes_metrics_and_a_report(run, bundle, data, tmp_path):
    status, out, _ = run("evaluate", "--model", bundle, data, "--out", tmp_path / "evaluation")
    assert status == 0
    assert "mre_mm" in out
    figures = {"cases.csv", "summary.json", "report.html"}
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {*figures, "measured"}


def test_evaluate_tells_what_was_kept_and_what_failed(run, bundle, data, tmp_path):
    folder, out, table = shutil.copytree(data, tmp_path / "data"), tmp_path / "evaluation", tmp_path / "jobs.csv"
    command = ("evaluate", "--model", bundle, folder, "--out", out, "--job-report", table)
    broken = folder / "volumes" / "case_001.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    result = run(*command)
    assert str(broken) in one_line_error(result)
    assert result[1].splitlines()[-1] == f"3 of 4 measured; written to {out}"
    assert "cases_failed" in result[1]
    states = ["state", "done", "failed", "done", "done"]
    assert [line.split(",")[1] for line in table.read_text().splitlines()] == states
    broken.write_bytes(whole)
    status, said, _ = run(*command)
    assert (status, said.splitlines()[-1]) == (0, f"4 of 4 measured, 3 of them before; written to {out}")
    for path in (folder / "volumes").iterdir():
        path.write_bytes(b"no volume")
    status, said, errors = run(*command)
    assert (status, said) == (1, "0 of 4 measured\n")
    assert sum(line.startswith("voxelry: error: ") for line in errors.splitlines()) == 4
    assert [line.split(",")[1] for line in table.read_text().splitlines()] == ["state", *["failed"] * 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--job-report", "jobs.txt"], "--job-report: expected one of .csv, .json, .html, got '.txt'"),
        (["--workers", 2], "--workers: expected with --launcher ray"),
    ],
)
def test_what_evaluate_can_not_do_is_refused_beforehand(run, bundle, data, tmp_path, arguments, message):
    line = one_line_error(run("evaluate", "--model", bundle, data, "--out", tmp_path / "out", *arguments))
    assert line == f"voxelry: error: {message}"
    assert not (tmp_path / "out").exists()


def test_what_the_files_do_not_say_is_said_to_evaluate_and_doctor(run, bundle, data, tmp_path):
    """Normalised points that begin with the first array axis."""
    other = tmp_path / "other"
    (other / "landmarks").mkdir(parents=True)
    for path in sorted((data / "landmarks").iterdir()):
        count, *rows = path.read_text().splitlines()
        rows = [" ".join(reversed(row.split())) for row in rows]
        (other / "landmarks" / path.name).write_text("\n".join([count, *rows]) + "\n")
    shutil.copytree(data / "volumes", other / "volumes")
    said = ("--point-option", "axis_order=zyx")
    figures = []
    for folder, further in ((data, ()), (other, ()), (other, said)):
        status, out, _ = run("evaluate", "--model", bundle, folder, "--out", tmp_path / "evaluation", *further)
        assert status == 0
        figures.append(float(out.split("mre_mm ")[1].split()[0]))
    assert figures[2] == pytest.approx(figures[0], rel=1e-3)
    assert figures[1] != pytest.approx(figures[0], rel=1e-3)
    for command in (("evaluate", "--model", bundle), ("doctor",)):
        fault = one_line_error(run(*command, other, "--point-option", "order=zyx"))
        known = "axis_order, coordinate_system, unit"
        said_of_it = f"expected one of {known}, got 'order'; did you mean 'axis_order'?"
        assert fault == f"voxelry: error: --point-option: {said_of_it}"


def test_channels_of_an_array_are_said_to_predict(run, bundle, tmp_path, rng):
    np.save(tmp_path / "image.npy", rng.random((1, 20, 18, 1), dtype=np.float32))
    common = ("predict", "--model", bundle, tmp_path / "image.npy", "--out", tmp_path / "out", "--format", "csv")
    assert run(*common, "--option", "channel_axis=-1")[0] == 1  # one plane of 20 x 18 then
    np.save(tmp_path / "image.npy", rng.random((1, 12, 20, 18), dtype=np.float32))
    assert run(*common)[0] == 1  # 18 channels
    assert run(*common, "--option", "channel_axis=0")[0] == 0
    fault = one_line_error(run(*common, "--option", "channels=0"))
    known = "dataset, spacing, channel, channel_axis, ndim, stack, channel_files"
    hint = "did you mean 'channel'?"
    assert fault == f"voxelry: error: --option: expected one of {known}, got 'channels'; {hint}"


def test_a_setting_of_use_is_set_for_one_prediction(run, bundle, data, tmp_path):
    image = data / "volumes" / "case_000.nii.gz"
    common = ("predict", "--model", bundle, image, "--format", "csv")
    for name, settings in (("whole", ()), ("tiles", ("--set", "task.tile_size=[8,16,16]"))):
        assert run(*common, "--out", tmp_path / name, *settings)[0] == 0
    whole, tiles = (read_landmarks(tmp_path / name / "case_000.csv").world for name in ("whole", "tiles"))
    assert not np.allclose(whole, tiles)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("task.sigma=3", "task.sigma: not a setting of"),
        ("task.tile_size", "--set: expected NAME=VALUE"),
        ("task.tile_size=[8,", "--set: expected NAME=VALUE"),
        ("task.tile_size=[8,8]", "tile_size: expected"),
    ],
)
def test_what_can_not_be_set_is_refused(run, bundle, data, tmp_path, text, fault):
    result = run("predict", "--model", bundle, data, "--out", tmp_path / "out", "--set", text)
    assert fault in one_line_error(result)
    assert not (tmp_path / "out").exists()


def test_an_image_of_another_rank_is_refused(run, bundle, tmp_path):
    write_image(tmp_path / "flat.png", np.zeros((1, 32, 32), dtype=np.uint8), Space.from_spacing((32, 32)))
    error = one_line_error(run("predict", "--model", bundle, tmp_path / "flat.png", "--out", tmp_path / "out"))
    assert "flat.png: an image of rank 2, but the model is of rank 3" in error
    assert not visible(tmp_path / "out")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_bundle_with_changed_settings_is_refused(run, bundle, data, tmp_path, command):
    changed = shutil.copytree(bundle, tmp_path / "changed")
    config = changed / "config.yaml"
    config.write_text(config.read_text().replace("image_size: 16", "image_size: 24"))
    result = run(command, "--model", changed, data, "--out", tmp_path / "out")
    assert "config.yaml: changed since the bundle was written" in one_line_error(result)
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_refused_with_those_that_are_known(run, bundle, tmp_path):
    (tmp_path / "scan.xyz").write_bytes(b"???")
    error = one_line_error(run("predict", "--model", bundle, tmp_path / "scan.xyz", "--out", tmp_path / "out"))
    assert "scan.xyz" in error
    assert ".nii.gz" in error


def test_doctor_tells_a_clean_dataset_from_a_faulty_one(run, tmp_path, rng):
    for name in ("a", "b"):
        path = tmp_path / "set" / "volumes" / f"{name}.nii.gz"
        write_image(path, rng.random((1, 6, 7, 8)).astype(np.float32), Space.from_spacing((6, 7, 8)))
    assert run("doctor", tmp_path / "set")[0] == 0
    write_image(path, np.full((1, 6, 7, 8), np.nan, dtype=np.float32), Space.from_spacing((6, 7, 8)))
    status, out, _ = run("doctor", tmp_path / "set")
    assert status == 1
    assert "NaN" in out


def test_a_sweep_goes_on_after_a_run_that_fails(run, data, tmp_path):
    tiny = (
        "plan=null",
        "model=unet_tiny",
        "model.width=8",
        "model.multipliers=[1,2]",
        "trainer=smoke",
        "trainer.progress=false",
        "trainer.max_steps=1",
        "data.preprocess.image_size=16",
        "data.split.fractions=[0.5,0.25,0.25]",
    )
    runs = ("task.decoder=nothing,argmax", f"output_dir={tmp_path / 'sweep'}")
    result = run("train", "--multirun", "experiment=landmarks_3d", f"data.root={data}", *tiny, *runs)
    fault = one_line_error(result)
    assert "decoder: expected one of" in fault
    assert str(tmp_path / "sweep" / "0") in fault
    assert (tmp_path / "sweep" / "1" / "bundle").is_dir()
    assert (tmp_path / "sweep" / "sweep.csv").is_file()


def test_flags_of_hydra_that_exclude_each_other_are_refused(run):
    found = one_line_error(run("train", "--multirun", "--cfg", "hydra"))
    assert "Only one of --run, --multirun, --cfg" in found


def test_a_run_s_folder_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "taken").touch()
    code, _, error = run(
        "train", "experiment=landmarks_3d", "data.root=DIR", "plan=null", f"output_dir={tmp_path / 'taken'}"
    )
    assert (code, error) == (1, f"voxelry: error: {tmp_path / 'taken'}: no folder for a run: File exists\n")


def test_phantoms_are_the_same_for_the_same_seed(run, tmp_path):
    for name in ("one", "two"):
        assert run("phantoms", tmp_path / name, "--count", 2, "--size", 24, "--seed", 7)[0] == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.txt"))
    assert files
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_nuclei_have_instances_and_no_landmarks(run, tmp_path):
    assert run("phantoms", tmp_path / "n", "--kind", "nuclei", "--count", 1, "--size", 32, "--format", ".tif")[0] == 0
    assert {path.name for path in (tmp_path / "n").iterdir()} == {"volumes", "instances"}


def test_an_index_says_what_is_in_it_and_which_anchors_suit(run, tmp_path):
    write_phantoms(tmp_path / "n", 2, seed=1, shape=(24, 40, 40), kind="nuclei")
    status, out, _ = run("index", tmp_path / "n", "--out", tmp_path / "i.sqlite", "--crop-size", "16,32,32")
    assert status == 0
    assert "crops of 16 x 32 x 32 voxels from 2 images" in out
    assert "anchors  model.anchors.sizes=[[" in out
    assert (tmp_path / "i.sqlite").is_file()
    again = run("index", tmp_path / "n", "--out", tmp_path / "i.sqlite", "--crop-size", "16,32,32")
    assert "0 indexed, 2 already there" in again[1]


def test_a_crop_size_that_is_no_number_is_refused(run, data, tmp_path):
    error = one_line_error(run("index", data, "--out", tmp_path / "i.sqlite", "--crop-size", "big"))
    assert "--crop-size: expected whole numbers such as 64 or 32,64,64, got 'big'" in error


def test_prepare_makes_shapes_and_slices_with_the_flags_of_the_seed(run, data, tmp_path):
    flags = (
        "--original_nifti_dir",
        data,
        "--out_dir",
        tmp_path / "out",
        "--axes",
        "0,2",
        "--spacing",
        "8",
        "--workers",
        0,
    )
    status, out, _ = run("prepare", *flags)
    assert status == 0
    assert "4 cases prepared, 0 already there" in out
    assert all((tmp_path / "out" / name).exists() for name in ("manifest.json", "contact_sheet.png", "slices", "sdf"))
    assert "0 cases prepared, 4 already there" in run("prepare", *flags)[1]


def test_prepare_merges_labels_and_takes_its_other_settings(run, data, tmp_path):
    flags = ["--source", data, "--out", tmp_path / "out", "--spacing", 3.0, "--workers", 0, "--merge", "3,4"]
    flags += ["--merge", "6", "--truncation", 10, "--no-meshes", "--slices-per-class", 1, "--min-pixels", 4]
    status, _, _ = run("prepare", *flags)
    assert status == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["merge"] == [[3, 4], [6]]
    assert list(manifest["classes"]) == ["1", "2"]
    assert manifest["settings"]["truncation"] == 10
    assert not (tmp_path / "out" / "meshes").exists()
    status, _, err = run("prepare", *flags, "--merge", "liver")
    assert "--merge: expected whole numbers such as" in err


def test_prepare_refuses_labels_beyond_the_classes(run, data, tmp_path):
    message = one_line_error(
        run("prepare", "--source", data, "--out", tmp_path / "out", "--classes", 2, "--workers", 0)
    )
    assert "case_000.nii.gz" in message
    assert "classes is 2" in message


def test_a_format_of_another_task_is_refused(run, bundle, data, tmp_path):
    result = run("predict", "--model", bundle, data, "--out", tmp_path / "out", "--format", "ome.zarr")
    assert (
        "format: landmarks is written as one of mrk.json, fcsv, csv, json, txt, pts, got 'ome.zarr'"
        in one_line_error(result)
    )
    assert not (tmp_path / "out").exists()


class TestTraining:
    """`voxelry train`."""

    @pytest.fixture
    def settings(self, quick_training) -> list[str]:
        return ["train", "experiment=landmarks_3d", *quick_training]

    @pytest.fixture
    def refused(self, run, settings, tmp_path, monkeypatch):
        """The one line of a training that can't begin."""
        monkeypatch.chdir(tmp_path)

        def message(*overrides: str) -> str:
            result = run(*settings, *overrides)
            assert not (tmp_path / "runs" / "landmarks_3d" / "bundle").exists()
            assert not (tmp_path / "runs" / "landmarks_3d" / "checkpoints").exists()
            return one_line_error(result)

        return message

    def test_a_wrong_number_of_landmarks(self, refused, data, tmp_path):
        broken = shutil.copytree(data, tmp_path / "broken")
        (broken / "landmarks" / "case_002.txt").write_text("3\n0.1 0.2 0.3\n")
        assert "case_002.txt" in refused(f"data.root={broken}")

    def test_an_image_size_of_the_wrong_rank(self, refused, data):
        error = refused(f"data.root={data}", "data.preprocess.image_size=[16,16]")
        assert "image_size: expected 1 or 3 values" in error

    def test_data_that_are_not_there(self, refused):
        assert "nowhere" in refused("data.root=nowhere")

    def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(self, run, settings, data, tmp_path, monkeypatch):
        endless = (
            f"data.root={data}",
            "plan=null",
            "data.preprocess.image_size=16",
            "trainer.max_steps=5000",
            "trainer.log_every=1",
            "trainer.validate_every=5000",
        )
        checkpoint = tmp_path / "runs" / "landmarks_3d" / "checkpoints" / "last.ckpt"
        step = TaskModule.training_step

        def until_there_is_one(module, batch, index):
            if checkpoint.exists():
                signal.raise_signal(signal.SIGINT)
            return step(module, batch, index)

        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(TaskModule, "training_step", until_there_is_one)
            status, _, err = run(*settings, *endless, "trainer.checkpoint_every=1")
        assert status == 130, err
        assert "resume=true" in err
        steps = torch.load(checkpoint, weights_only=True)["global_step"]
        assert steps >= 1
        status, out, err = run(*settings, *endless, "resume=true", f"trainer.max_steps={steps + 2}")
        assert status == 0, err
        assert torch.load(checkpoint, weights_only=True)["global_step"] == steps + 2
        assert "bundle: " in out

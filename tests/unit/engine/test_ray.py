"""Training by several Ray workers equals training by one process, also if one is lost on the way."""

import contextlib
import csv
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from voxelry.bundle.bundle import write_bundle
from voxelry.bundle.checkpoint import read_checkpoint
from voxelry.bundle.model import load
from voxelry.core.errors import ConfigError, MissingDependencyError, VoxelryError
from voxelry.core.space import Space
from voxelry.data.layouts.files import visible
from voxelry.data.preprocess import Preprocess
from voxelry.engine.cases import MEASURED
from voxelry.engine.compose import compose_training
from voxelry.engine.predict import predict_files
from voxelry.engine.ray_pool import RayPool
from voxelry.engine.report import evaluate_folder
from voxelry.engine.train import train
from voxelry.io import write_image
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask

MORTAL = """
    import os
    import signal
    from pathlib import Path

    import torch.distributed as distributed

    from voxelry.engine.schedules import LearningRate


    class Mortal(LearningRate):
        '''A constant learning rate, at whose fifth step one worker is killed unless that happened before.'''

        def __init__(self, marker, rank):
            self.marker, self.rank = Path(marker), rank

        def factor(self, progress):
            if progress >= 4 / 6 and distributed.get_rank() == self.rank and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return 1.0
"""
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),  # its own settings, at import
]


@pytest.fixture(scope="module")
def cluster():
    """Ray on two CPUs."""
    ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'voxelry[ray]')")
    pytest.importorskip("ray.train.torch", reason="Ray Train is not installed (pip install 'voxelry[ray]')")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the paths of its sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=40,
            _temp_dir=folder,
            _system_config={"worker_niceness": 0},
        )
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def many_phantoms(tmp_path_factory):
    from voxelry.phantoms import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("ray") / "volumes3", 6, seed=5, shape=(20, 24, 28))


def logged(folder, name="train/loss"):
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def last(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def settings(many_phantoms, quick_training):
    return [
        "experiment=landmarks_3d",
        *quick_training,
        "data.preprocess.image_size=16",
        f"data.root={many_phantoms}",
        "data.split.fractions=[0.5,0.5,0]",  # three cases to validate, which two workers can't share out evenly
        "data.batch_size=1",
        "trainer.max_steps=6",
        "trainer.validate_every=2",
        "trainer.checkpoint_every=4",
        "learning_rate=constant",
        "optimizer=sgd",  # Adam makes steps of rounding errors
    ]


@pytest.mark.slow
def test_two_workers_one_of_which_is_lost_learn_what_one_process_with_twice_the_batch_learns(
    cluster, settings, tmp_path
):
    (tmp_path / "mortal.py").write_text(dedent(MORTAL))
    path = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    lethal = [
        "learning_rate._target_=mortal.Mortal",
        "~learning_rate.warmup",
        f"+learning_rate.marker={tmp_path / 'killed'}",
        "+learning_rate.rank=0",
        "launcher=ray",
        "launcher.max_failures=1",
        f"+launcher.env.PYTHONPATH={os.pathsep.join([str(tmp_path), *path])}",
    ]
    folder, alone = tmp_path / "two", tmp_path / "one"
    one = train(compose_training([*settings, "data.batch_size=2", f"output_dir={alone}"]))
    two = train(compose_training([*settings, *lethal, f"output_dir={folder}"]))
    assert (tmp_path / "killed").exists()

    expected, found = logged(alone), logged(folder)
    assert sorted(found) == sorted(expected) == list(range(6))
    assert found == pytest.approx(expected, rel=1e-5)
    assert max(expected.values()) - min(expected.values()) > 0.1, "whoever learns nothing agrees, too"
    validated = logged(alone, "val/mre_mm")
    assert len(validated) == 5  # at steps 2, 4, 6 and where a fifth of the run would pass without one
    assert logged(folder, "val/mre_mm") == pytest.approx(validated, rel=1e-4)

    ours, theirs = last(folder), last(alone)
    assert ours["voxelry"]["batches_taken"] == theirs["voxelry"]["batches_taken"] == 6
    assert [row["step"] for row in ours["voxelry"]["history"]] == [2, 3, 4, 5, 6]
    torch.testing.assert_close(
        ours["current_model_state"], theirs["current_model_state"], rtol=1e-4, atol=1e-6, equal_nan=True
    )
    best, reference = (read_checkpoint(place / "checkpoints" / "best.ckpt")["state_dict"] for place in (folder, alone))
    torch.testing.assert_close(best, reference, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert two.summary["cases"] == one.summary["cases"] == 3
    assert two.summary["mre_mm"] == pytest.approx(one.summary["mre_mm"], rel=1e-4)
    for name in ("bundle/weights.safetensors", "report.html", "summary.json", "metrics/cases.csv"):
        assert (folder / name).exists()
    kept = list((folder / "ray").glob("*/checkpoint_*/last.ckpt"))
    assert {read_checkpoint(path)["global_step"] for path in kept} <= {4, 6}  # of each start of the workers the last
    assert read_checkpoint(max(kept))["global_step"] == 6


@pytest.fixture
def worker_here(cluster, monkeypatch):
    """The one worker of Ray's trainer, started in this process; what it raises becomes Ray's own error."""
    import ray.train
    import ray.train.torch

    class Trainer:
        def __init__(self, work, *, train_loop_config, run_config, **settings):
            self.work, self.job = work, train_loop_config
            self.tries = 1 + run_config.failure_config.max_failures

        def fit(self):
            for _ in range(self.tries):
                try:
                    return SimpleNamespace(return_value=self.work(self.job))
                except VoxelryError as error:
                    failures = {0: error}
            raise ray.train.WorkerGroupError(f"[Rank 0]\nTraceback\n{failures[0]}", failures)

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    for logger in (logging.getLogger(), logging.getLogger("voxelry"), logging.getLogger("ray.train")):
        monkeypatch.setattr(logger, "level", logger.level)


@pytest.mark.parametrize("failures", [0, 2])
def test_what_the_user_did_wrong_is_one_line_of_the_worker(worker_here, settings, tmp_path, failures):
    wrong = [
        "launcher=ray",
        "launcher.num_workers=1",
        f"launcher.max_failures={failures}",
        "data.root=/nowhere",
        f"output_dir={tmp_path}",
    ]
    with pytest.raises(VoxelryError, match=r"^/nowhere: [^\n]*$"):
        train(compose_training([*settings, *wrong]))


def ancestors(process: int) -> Iterator[int]:
    while process > 1:
        status = Path(f"/proc/{process}/status").read_text()
        process = int(status.partition("PPid:")[2].split()[0])
        yield process


def own_actor() -> int:
    """A process that predicts for this one: Ray names them after what they do."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        process = int(place.parent.name)
        with contextlib.suppress(OSError):
            if b"_Predictor" in place.read_bytes() and os.getpid() in ancestors(process):
                return process
    raise AssertionError("no actor")


def test_actors_predict_what_one_process_predicts_though_one_is_lost(cluster, tmp_path):
    torch.manual_seed(0)
    network = UNet(ndim=2, out_channels=2, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=["left", "right"], sigma=2.0)
    bundle = write_bundle(tmp_path / "bundle", task, Preprocess(), record={}, card="")
    rng = np.random.default_rng(0)
    scans = [
        write_image(tmp_path / f"{number}.tif", rng.random((1, 64, 64), dtype=np.float32), Space.from_spacing((64, 64)))
        for number in range(8)
    ]
    scans[4].write_bytes(b"II")
    lost = []

    def lose(_):
        if not lost:
            lost.append(own_actor())
            os.kill(lost[0], signal.SIGKILL)

    model = load(bundle, "cpu")
    here, there = tmp_path / "here", tmp_path / "there"
    expected = predict_files(model, scans, here)
    pool = RayPool({"path": bundle, "device": "cpu"}, num_workers=2)
    outcome = predict_files(model, scans, there, progress=lose, pool=pool)
    assert lost
    assert [row.state for row in outcome.rows] == [row.state for row in expected.rows]
    assert outcome.failed == expected.failed
    assert [path.read_bytes() for path in outcome.written] == [path.read_bytes() for path in expected.written]
    assert [row.state for row in predict_files(model, scans, there).rows].count("kept") == 7


def test_actors_measure_what_one_process_measures_though_one_is_lost(cluster, many_phantoms, tmp_path):
    torch.manual_seed(0)
    names = [f"point_{number}" for number in range(1, 9)]
    network = UNet(ndim=3, out_channels=8, width=8, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    task = LandmarkTask(network, landmark_names=names, sigma=2.0)
    bundle = write_bundle(tmp_path / "bundle", task, Preprocess(image_size=16), record={}, card="")
    data = shutil.copytree(many_phantoms, tmp_path / "data")
    broken = data / "volumes" / "case_004.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-100])
    lost = []

    def lose(_):
        if not lost:
            lost.append(own_actor())
            os.kill(lost[0], signal.SIGKILL)

    model = load(bundle, "cpu")
    here, there = tmp_path / "here", tmp_path / "there"
    expected = evaluate_folder(model, data, here)
    pool = RayPool({"path": bundle, "device": "cpu"}, num_workers=2)
    found = evaluate_folder(model, data, there, progress=lose, pool=pool)
    assert lost
    assert [row.state for row in found.outcome.rows] == [row.state for row in expected.outcome.rows]
    assert found.outcome.failed == expected.outcome.failed
    assert [row.input for row in found.outcome.rows if row.state == "failed"] == [broken]
    files = [path.relative_to(here) for path in (*here.glob("*.*"), *visible(here / MEASURED))]
    assert len(files) == 3 + 5
    for path in files:
        assert (there / path).read_bytes() == (here / path).read_bytes()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launcher.num_workers=0", r"launcher\.num_workers: expected 1 or more, got 0"),
        ("launcher.placement=NEAR", r"launcher\.placement: expected one of PACK, .*, got 'NEAR'"),
        ("launcher.gpus_per_worker=1", r"launcher\.num_workers: 2 workers with 1 GPU each, but .* has 0 GPUs"),
        ("trainer.accelerator=gpu", r"launcher\.num_workers: 2 workers with 1 GPU each, but .* has 0 GPUs"),
    ],
)
def test_what_ray_can_not_meet_is_refused(cluster, training, override, message):
    with pytest.raises(ConfigError, match=message):
        train(training("landmarks_3d", "launcher=ray", override))


def test_without_ray_the_error_names_the_extra(training, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"ray is not installed; .*pip install 'voxelry\[ray\]'"):
        train(training("landmarks_3d", "launcher=ray"))

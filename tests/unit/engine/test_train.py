import json
from functools import cache

import pytest
import torch
import yaml

import voxelry
from voxelry.bundle.checkpoint import read_checkpoint
from voxelry.core.errors import CheckpointError, ConfigError
from voxelry.engine.compose import compose_training
from voxelry.engine.lightning import DivergedError, TaskModule
from voxelry.engine.train import Run, train

PRETRAIN = (
    "task.n_timestep=20", "task.sample_steps=3", "task.reconstruct_steps=2", "task.time_bands=2",
    "trainer.max_steps=3",
)  # fmt: skip


def weights(path):
    return read_checkpoint(path)["current_model_state"]


@pytest.fixture
def interrupted_after(monkeypatch):
    """Make Ctrl-C arrive during a given batch."""

    def arrange(batches: int) -> None:
        original = TaskModule.training_step

        def step(self, batch, index):
            if self.batches_taken == batches:
                import signal

                signal.raise_signal(signal.SIGINT)
            return original(self, batch, index)

        monkeypatch.setattr(TaskModule, "training_step", step)

    return arrange


LANDMARKS = ("trainer.max_steps=3",)
EPOCHS = ("trainer.max_epochs=3", "trainer.validate_every=epoch", "data.training_samples=2", "data.batch_size=1")
CLOSED = ("data.split.fractions=[0.75,0.25,0]", "data.batch_size=2", "trainer.grad_accumulation=4", *EPOCHS[:2])


@pytest.fixture(scope="module")
def whole(phantoms, tmp_path_factory, quick_training):
    """Runs that were not interrupted, each made once."""

    @cache
    def run(experiment: str, extra: tuple[str, ...]) -> Run:
        given = [f"data.root={phantoms}", f"output_dir={tmp_path_factory.mktemp('whole') / 'run'}"]
        small = [*quick_training, "data.preprocess.image_size=16"]
        return train(compose_training([f"experiment={experiment}", *given, *small, *extra]))

    return run


@pytest.mark.parametrize(
    ("experiment", "extra"),
    [("landmarks_3d", LANDMARKS), ("pretrain_3d", PRETRAIN), ("landmarks_3d", EPOCHS), ("landmarks_3d", CLOSED)],
)
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_interrupted(
    training, experiment, extra, whole, tmp_path, interrupted_after, monkeypatch
):
    expected = whole(experiment, extra)
    with monkeypatch.context():
        interrupted_after(1)
        first = train(training(experiment, *extra))
    assert first.interrupted
    assert first.bundle is None
    assert not (tmp_path / "run" / "bundle").exists()
    monkeypatch.undo()
    second = train(training(experiment, *extra, "resume=true"))
    assert not second.interrupted
    torch.testing.assert_close(weights(second.checkpoint), weights(expected.checkpoint), rtol=0, atol=0, equal_nan=True)
    assert second.summary == pytest.approx(expected.summary, nan_ok=True)


@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_a_bundle_a_report_and_numbers(training, tmp_path):
    run = train(training("landmarks_3d"))
    folder = tmp_path / "run"
    assert {"weights.safetensors", "config.yaml", "card.md"} == {entry.name for entry in run.bundle.iterdir()}
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "metrics" / "cases.csv").read_text().startswith("name,")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["mre_mm"] == pytest.approx(run.summary["mre_mm"])
    assert voxelry.load(run.bundle).task_name == "landmarks"


def test_the_record_says_which_precision_auto_was(training, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    short = ("trainer.max_steps=1", "trainer.limit_val_batches=1", "data.preprocess.image_size=8")  # it is emulated
    run = train(training("landmarks_3d", "trainer.precision=auto", "trainer.accelerator=cpu", *short))
    config = yaml.safe_load((run.bundle / "config.yaml").read_text())
    assert config["training"]["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.usefixtures("drawn")
def test_a_pretraining_shows_samples(training, tmp_path):
    train(training("pretrain_3d", *PRETRAIN, "trainer.max_steps=2"))  # as much work as samples are
    assert list((tmp_path / "run" / "samples").glob("step_*.png"))
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_pretrained_weights_start_a_landmark_run_and_say_what_matched(training, whole, caplog):
    first = whole("pretrain_3d", PRETRAIN)
    with caplog.at_level("INFO", logger="voxelry"):
        train(training("landmarks_3d", f"pretrained={first.bundle}", "model.width=32", "trainer.max_steps=1"))
    assert "head.weight" in caplog.text
    assert "matched" in caplog.text


def test_a_checkpoint_of_another_architecture_is_refused(training, whole):
    folder = whole("landmarks_3d", LANDMARKS).bundle.parent
    with pytest.raises(CheckpointError, match=r"network\.width is 8 in the checkpoint, but 16 is configured"):
        train(training("landmarks_3d", "model.width=16", "resume=true", f"output_dir={folder}"))


def test_a_run_without_an_end_is_refused(training):
    with pytest.raises(ConfigError, match=r"trainer\.max_steps"):
        train(training("landmarks_3d", "trainer.max_steps=null"))


def test_a_loss_that_is_no_number_stops_the_run(training, monkeypatch):
    monkeypatch.setattr(
        "voxelry.tasks.landmarks.LandmarkTask.training_loss",
        lambda self, batch: {"loss": next(self.parameters()).sum() * float("nan")},
    )
    with pytest.raises(DivergedError, match=r"the loss became nan at step 0; lower optimizer\.lr"):
        train(training("landmarks_3d"))


def test_epochs_count_passes(whole):
    assert read_checkpoint(whole("landmarks_3d", EPOCHS).checkpoint)["global_step"] == 3 * 2


def test_an_epoch_ends_with_a_step_and_a_validation(whole):
    # 3 cases in batches of 2, and 4 batches would be accumulated
    checkpoint = read_checkpoint(whole("landmarks_3d", CLOSED).checkpoint)
    assert (checkpoint["global_step"], checkpoint["voxelry"]["batches_taken"]) == (3, 6)
    assert [entry["step"] for entry in checkpoint["voxelry"]["history"]] == [1, 2, 3]

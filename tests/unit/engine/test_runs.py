"""How a run begins, goes on, validates and ends."""

import csv
import logging

import pytest
import torch

from voxelry.bundle.checkpoint import read_checkpoint
from voxelry.bundle.pretrained import read_pretrained
from voxelry.core.errors import CheckpointError, ConfigError
from voxelry.engine import run_folder
from voxelry.engine.checkpoints import StoppedError
from voxelry.engine.lightning import TaskModule
from voxelry.engine.resume import check_same_run
from voxelry.engine.run_folder import begin_clean, checkpoint_to_resume
from voxelry.engine.train import train
from voxelry.engine.validations import Validations
from voxelry.tasks.landmarks import LandmarkTask


@pytest.fixture
def earlier(tmp_path):
    """A folder as a finished run left it, with somebody's notes."""
    for name in (
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "bundle/config.yaml",
        "logs/metrics.csv",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("earlier")
    return tmp_path


def test_an_earlier_run_is_kept_unless_something_is_said(earlier):
    with pytest.raises(
        ConfigError, match="holds an earlier run; resume=true goes on with it, overwrite=true begins anew"
    ):
        checkpoint_to_resume(earlier, resume=False, overwrite=False)
    assert checkpoint_to_resume(earlier, resume=True, overwrite=False) == earlier / "checkpoints" / "last.ckpt"
    assert checkpoint_to_resume(earlier, resume=False, overwrite=True) is None
    with pytest.raises(ConfigError, match="overwrite: expected without resume=true"):
        checkpoint_to_resume(earlier, resume=True, overwrite=True)
    (earlier / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"without checkpoints/last\.ckpt, from which resume=true would go on"):
        checkpoint_to_resume(earlier, resume=True, overwrite=False)


def test_a_torn_checkpoint_falls_back_to_the_one_before(earlier, caplog):
    folder = earlier / "checkpoints"
    last, before = folder / "last.ckpt", folder / "before_last.ckpt"

    def resumed():
        caplog.clear()
        return checkpoint_to_resume(earlier, resume=True, overwrite=False), caplog.text

    torch.save({"weights": torch.arange(1000)}, before)
    torch.save({"weights": torch.arange(2000)}, last)
    whole = last.read_bytes()
    assert resumed() == (last, "")
    for torn in (whole[:-30], whole[:4000], b"", bytes(len(whole)), whole[:3000] + bytes(50) + whole[3050:]):
        last.write_bytes(torn)
        found, said = resumed()
        assert (found, "last.ckpt is torn: going on from the one before it" in said) == (before, True)
    last.unlink()
    found, said = resumed()
    assert (found, "last.ckpt is missing" in said) == (before, True)


def test_a_run_that_begins_anew_removes_what_a_run_wrote_and_nothing_else(earlier):
    begin_clean(earlier)
    assert [path.name for path in earlier.iterdir()] == ["notes.txt"]


def test_a_folder_without_a_checkpoint_is_no_run(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text("of a run that failed at once")
    for resume in (False, True):
        assert checkpoint_to_resume(tmp_path, resume=resume, overwrite=False) is None


def test_epochs_that_are_many_enough_are_the_only_validations():
    validations = Validations(10)
    assert [step for step in range(1, 71) if validations.due(step, step / 70)] == [10, 20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize(("steps", "every"), [(5, 200), (7, 200), (100, 33), (2000, 200), (2001, 10**6)])
def test_a_run_by_steps_validates_five_times_at_least(steps, every):
    validations = Validations(every)
    assert sum(validations.due(step, step / steps) for step in range(1, steps + 1)) >= 5


def test_a_run_by_minutes_validates_at_each_fifth_and_goes_on_so():
    progress = [0.05, 0.15, 0.22, 0.3, 0.45, 0.63, 0.64, 0.81, 0.9, 1.0]
    whole, first, second = (Validations(10**6) for _ in range(3))
    expected = [whole.due(step, share) for step, share in enumerate(progress, 1)]
    assert sum(expected) == 5
    found = [first.due(step, share) for step, share in enumerate(progress[:4], 1)]
    second.load_state_dict(first.state_dict())
    assert found + [second.due(step, share) for step, share in enumerate(progress[4:], 5)] == expected


FOUND = {"settings": {"seed": 0, "trainer.max_steps": 4}, "cases": {"train": {"a": "1", "b": "2"}}}


def test_other_data_and_settings_are_listed_and_refused(tmp_path, caplog):
    wanted = {"settings": {"seed": 1, "trainer.max_steps": 8}, "cases": {"train": {"a": "0", "c": "2"}}}
    told = (
        r"seed was 0, is 1; train cases: 1 new \(c\); train cases: 1 gone \(b\); train cases: 1 changed \(a\) .*"
        "resume_changed=true to go on all the same"
    )
    with pytest.raises(CheckpointError, match=told):
        check_same_run(tmp_path, FOUND, wanted, forced=False)
    with caplog.at_level(logging.WARNING, logger="voxelry"):
        check_same_run(tmp_path, FOUND, wanted, forced=True)
    assert "goes on with other settings: seed was 0, is 1" in caplog.text


def test_another_length_is_taken_and_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="voxelry"):
        check_same_run(tmp_path, FOUND, {**FOUND, "settings": {"seed": 0, "trainer.max_steps": 8}}, forced=False)
    assert "trainer.max_steps was 4 and is 8" in caplog.text


@pytest.fixture
def scored(monkeypatch):
    """Make the validations of a landmark training come out as given."""

    def arrange(*values: float) -> None:
        left = iter(values)
        summary = LandmarkTask.summary
        monkeypatch.setattr(
            LandmarkTask, "summary", lambda self, rows: summary(self, rows) | {"mre_mm": next(left, values[-1])}
        )

    return arrange


def test_the_bundle_is_never_an_earlier_run_s_best(training, tmp_path, scored, caplog):
    """The first run's best can't be beaten; the second one has other weights all the same."""
    scored(0.001)
    first = train(training("landmarks_3d", "trainer.max_steps=1"))
    with pytest.raises(ConfigError, match="holds an earlier run"):
        train(training("landmarks_3d", "trainer.max_steps=1"))
    scored(float("nan"))
    old = torch.load(first.checkpoint, weights_only=True)["state_dict"]
    with caplog.at_level(logging.WARNING, logger="voxelry"):
        second = train(training("landmarks_3d", "trainer.max_steps=1", "overwrite=true", "seed=1"))
    assert "was no number in any validation" in caplog.text
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    new = torch.load(second.checkpoint, weights_only=True)["state_dict"]
    assert any(not torch.equal(old[name], new[name]) for name in old if "weight" in name)


def test_a_run_ends_when_validations_no_longer_get_better_and_keeps_the_best(training, scored, tmp_path):
    scored(3.0, 2.0, 4.0, 5.0, 1.0)
    run = train(training("landmarks_3d", "trainer.max_steps=20", "trainer.validate_every=1", "trainer.patience=2"))
    assert read_checkpoint(run.checkpoint)["global_step"] == 4
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["global_step"] == 2


def test_numbered_checkpoints_are_kept_and_can_start_another_run(training, tmp_path):
    train(training("landmarks_3d", "trainer.keep_every=2", "trainer.checkpoint_every=100"))
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step_*.ckpt"))
    assert [path.name for path in kept] == ["step_00000002.ckpt", "step_00000004.ckpt"]
    assert read_checkpoint(kept[0])["global_step"] == 2
    assert read_pretrained(kept[0]).is_unet


def test_a_resumed_run_goes_on_with_its_log_and_refuses_another_seed(training, tmp_path):
    log = tmp_path / "run" / "logs" / "metrics.csv"
    train(training("landmarks_3d", "trainer.max_steps=1"))
    before = log.read_text().splitlines()
    with pytest.raises(CheckpointError, match="seed was 0, is 3"):
        train(training("landmarks_3d", "trainer.max_steps=2", "resume=true", "seed=3"))
    train(training("landmarks_3d", "trainer.max_steps=2", "resume=true"))
    with log.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [0, 1]
    assert len(log.read_text().splitlines()) > len(before)


def test_a_list_without_validation_cases_is_where_to_add_some(training, phantoms, tmp_path):
    listed = tmp_path / "split.csv"
    listed.write_text("".join(f"{path.name},train\n" for path in sorted((phantoms / "volumes").iterdir())))
    with pytest.raises(ConfigError, match=rf"trainer\.patience: .* has no validation cases; list some in {listed}$"):
        train(training("landmarks_3d", "data.split.fractions=null", f"data.split.file={listed}", "trainer.patience=3"))


def test_without_validation_cases_it_is_said_and_what_needs_them_is_refused(training, caplog):
    split = "data.split.fractions=[1.0,0.0,0.0]"
    for setting, name in (("trainer.patience=3", r"trainer\.patience"), ("learning_rate=plateau", "learning_rate")):
        with pytest.raises(ConfigError, match=f"{name}: acts by validations, but the split has no validation cases"):
            train(training("landmarks_3d", split, setting))
    with caplog.at_level(logging.INFO, logger="voxelry"):
        run = train(training("landmarks_3d", split, "trainer.max_steps=1", "resume=true"))
    assert "no validation cases: there is no best checkpoint" in caplog.text
    assert "no run to go on with, a new one begins" in caplog.text
    assert (run.bundle / "config.yaml").read_text().count("weights: last step, 1") == 1


def test_a_second_ctrl_c_ends_a_run_at_once(training, monkeypatch, tmp_path):
    import signal

    def step(self, batch, index):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(TaskModule, "training_step", step)
    with pytest.raises(StoppedError, match="stopped at once"):
        train(training("landmarks_3d"))
    assert not any(run_folder._files(tmp_path / "run", ("checkpoints/*",)))

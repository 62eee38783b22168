"""Every task's demo is a table whose trainings compose; one is run, briefly."""

from dataclasses import replace

import pytest

from voxelry.bundle.registry import TASKS, recipe_named
from voxelry.core.errors import FileError, SettingError
from voxelry.demos.demo import run_demo
from voxelry.engine.check import check_settings
from voxelry.engine.compose import compose_training
from voxelry.tasks.demo import UNSEEN
from voxelry.tasks.reconstruct.recipe import ReconstructRecipe

DEMOS = {name: recipe_named(name).demo for name in TASKS if recipe_named(name).demo is not None}
RANKS = [(name, ndim) for name, demo in DEMOS.items() for ndim in demo.ranks]
BRIEF = (
    "trainer.max_steps=1", "trainer.validate_every=1", "data.batch_size=1", "model.grid=16", "model.prior_grid=16",
    "model.image_size=16", "model.width=8", "model.multipliers=[1,2]", "model.volume_width=8",
    "model.volume_multipliers=[1,2]", "task.baseline_shapes=2",
    "data.slices.evaluation={slices: 1, clicks: 1}",
)  # fmt: skip


@pytest.mark.parametrize(("name", "ndim"), RANKS)
def test_the_trainings_are_possible(name, ndim):
    demo = DEMOS[name]
    made = set()
    for training in demo.trainings:
        assert training.data in demo.phantoms
        assert training.pretrained is None or training.pretrained in made
        overrides = [*training.overrides, *demo.ranks[ndim].overrides]
        check_settings(
            compose_training([f"experiment={training.experiment}_{ndim}d", "data.root=phantoms", *overrides])
        )
        made.add(training.folder)
    assert UNSEEN in demo.phantoms


@pytest.mark.usefixtures("undrawn")
def test_a_demo_prints_its_commands_and_ends_in_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ReconstructRecipe, "demo", replace(DEMOS["reconstruct"], phantoms={"labelled": 4, UNSEEN: 2}))
    page = run_demo(tmp_path / "demo", task="reconstruct", size=20, overrides=BRIEF)
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[2] for line in lines if line.startswith("$ voxelry ")]
    assert commands == ["phantoms", "phantoms", "train", "predict", "predict", "evaluate"]
    assert "--click" in next(line for line in lines if " predict " in line)
    assert "All of this took" in page.read_text(encoding="utf-8")
    assert (tmp_path / "demo" / "evaluation" / "summary.json").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(FileError, match="not an earlier demo's folder"):
        run_demo(tmp_path / "other")


def test_there_must_be_such_a_demo(tmp_path):
    with pytest.raises(SettingError, match=r"task: expected one of landmarks, .*, got 'pretrain'"):
        run_demo(tmp_path, task="pretrain")
    with pytest.raises(SettingError, match="ndim: the demo of reconstruct has rank 3, got 2"):
        run_demo(tmp_path, task="reconstruct", ndim=2)

"""The README's commands, run in its order with invented data in the place of its names."""

import re
import shlex
from pathlib import Path

import pytest

from voxelry.data.layouts.files import visible
from voxelry.phantoms import write_phantoms

README = Path(__file__).parents[2] / "README.md"
NAMES = {"LABELLED": "data", "UNLABELLED": "data", "DATA": "data", "HELD_OUT": "data", "SCANS": "data/volumes"}


def commands(*wanted: str) -> list[list[str]]:
    """Arguments of the README's command lines that hold one of these texts."""
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("voxelry ")]
    found = [line for line in lines if any(text in line for text in wanted)]
    named = [re.sub(r"\b[A-Z_]{4,}\b", lambda name: NAMES[name[0]], line) for line in found]
    return [shlex.split(line, comments=True)[1:] for line in named]


@pytest.mark.slow
def test_landmarks_from_pretrained_weights_as_the_readme_does_it(run, quick_training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_phantoms(Path("data"), 4, seed=2, shape=(16, 18, 20))
    lines = [line for line in commands("doctor", "runs/pretrain", "runs/landmarks") if line[0] != "view"]  # it stays
    assert [line[0] for line in lines] == ["doctor", "train", "train", "predict", "evaluate"]
    for line in lines:
        small = ["data.preprocess.image_size=16", *quick_training, "trainer.max_steps=1"] if line[0] == "train" else []
        small += ["task.sample_steps=2", "task.reconstruct_steps=2"] if "experiment=pretrain_3d" in line else []
        status, _, err = run(*line, *small)
        warned = line[0] == "doctor"  # of spacings that differ
        assert status == warned, (line, err)
    points = [path.name for path in visible(Path("points"))]
    assert points == [f"case_00{number}.mrk.json" for number in range(4)]
    assert Path("runs/landmarks/report.html").is_file()
    assert Path("evaluation/report.html").is_file()

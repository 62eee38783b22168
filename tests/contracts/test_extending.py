"""docs/extending.md: what it prints is what lies in tests/plugins, and its commands run with these packages installed.

A training runs in the process of the tests, with the packages on its path; a prediction in a process of its own, which
knows of them by their entry points alone.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from voxelry.backbones.build import BACKBONES
from voxelry.bundle.registry import TASKS, recipe_named
from voxelry.data.layouts.files import case_name, visible
from voxelry.engine import check, configs
from voxelry.engine.launch import launch
from voxelry.io import read_image
from voxelry.phantoms import write_phantoms
from voxelry.tasks.options import OPTIONS

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PRINTED = re.findall(r"^`(tests/plugins/\S+)`\n\n```\w+\n(.*?)^```", TEXT, re.M | re.S)
COMMANDS = [
    shlex.split(line)[1:]
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
    for line in block.splitlines()
    if not language
]
LINES = {"backbone": 30, "reader": 30, "layout": 30, "task": 120}
COMMAND_LINE = (
    "import json, sys\nfrom voxelry.cli import app\nfor command in json.loads(sys.argv[1]):\n"
    "    status = app(command, standalone_mode=False)\n    assert not status or command[0] == 'doctor', command\n"
)
BUILD = (
    "import os, sys\nfrom setuptools import build_meta\nplace, *folders = sys.argv[1:]\n"
    "for folder in folders:\n    os.chdir(folder)\n    build_meta.build_wheel(place)\n"
)


def forget():
    """What was remembered of the packages that are installed."""
    for registry in (BACKBONES, TASKS, OPTIONS):
        vars(registry).pop("_places", None)
    for function in (recipe_named, configs.packages, configs.groups, check._shipped, check._shipped_top):
        function.cache_clear()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with all packages, as `pip install --target` leaves it."""
    place = tmp_path_factory.mktemp("plugins")
    copies = []
    for package in sorted(PLUGINS.iterdir()):  # a build leaves its files beside the source
        for path in package.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = place / "source" / path.relative_to(PLUGINS)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        copies.append(place / "source" / package.name)
    subprocess.run([sys.executable, "-c", BUILD, str(place), *map(str, copies)], check=True, capture_output=True)
    for wheel in place.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(place / "lib")
    return place / "lib"


@pytest.fixture
def on_path(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    forget()
    yield installed
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folders that the page calls DATA, CLINIC, BRICKS, RAW, RUNS and OUT."""
    place = tmp_path_factory.mktemp("extending")
    write_phantoms(place / "DATA", 3, seed=5, shape=(16, 16, 16))
    for scan in (place / "DATA" / "volumes").iterdir():
        patient = place / "CLINIC" / case_name(scan)
        patient.mkdir(parents=True)
        shutil.copy(scan, patient / "scan.nii.gz")
        shutil.copy(place / "DATA" / "landmarks" / f"{patient.name}.txt", patient / "points.txt")
        image = read_image(scan)
        header = json.dumps({"shape": image.space.shape, "spacing": image.space.spacing}).encode() + b"\n"
        (place / "BRICKS").mkdir(exist_ok=True)
        voxels = (1000 * image.array[0]).astype("<i2").tobytes()
        (place / "BRICKS" / f"{patient.name}.brick").write_bytes(header + voxels)
    (place / "RAW").mkdir()
    for number in range(3):
        np.random.default_rng(number).integers(0, 900, 16**3).astype("<i2").tofile(place / "RAW" / f"{number}.raw")
    return place


def given(arguments, places):
    return [
        re.sub(r"(?<![A-Z])(DATA|CLINIC|BRICKS|RAW|RUNS|OUT)\b", lambda found: str(places / found[1]), one)
        for one in arguments
    ]


@pytest.mark.parametrize(("path", "text"), PRINTED, ids=[path for path, _ in PRINTED])
def test_what_is_printed_is_what_is_there(path, text):
    assert (ROOT / path).read_text(encoding="utf-8") == text


def test_everything_of_weight_is_printed():
    printed = {path for path, _ in PRINTED}
    for path in (path for path in PLUGINS.rglob("*.*") if path.suffix in (".py", ".yaml", ".toml")):
        text = path.read_text(encoding="utf-8")
        assert path.relative_to(ROOT).as_posix() in printed or len(text.splitlines()) == 1 or "py-modules" in text, path


@pytest.mark.parametrize("package", LINES)
def test_a_package_is_as_short_as_it_is_said(package):
    lines = [line for path in (PLUGINS / package).rglob("*.py") for line in path.read_text().splitlines()]
    assert len(lines) <= LINES[package]


@pytest.mark.slow
def test_the_commands_run_as_they_are_printed(on_path, places, quick_training, capsys):
    for command in (one for one in COMMANDS if one[0] == "train"):
        own = [one for one in quick_training if not (one.startswith("model") and "model=backbone_heatmaps" in command)]
        if "experiment=pretrain_3d" in command:
            own += ["task.n_timestep=20", "task.sample_steps=3", "task.reconstruct_steps=2", "task.time_bands=2"]
        launch([*given(command[1:], places), *own, "plan=null", "trainer.max_steps=1", "trainer.validate_every=1"])
        output = Path(given(command, places)[-1].partition("=")[2])
        assert f"bundle: {output / 'bundle'}" in capsys.readouterr().out
    commands = [given(one, places) for one in COMMANDS if one[0] != "train"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(on_path), str(ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, json.dumps(commands)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    out = places / "OUT"
    for folder in ("stairs", "bricks"):
        assert [path.name for path in visible(out / folder)] == [f"case_00{n}.mrk.json" for n in range(3)]
    assert "3 cases: 1 warning" in done.stdout  # their spacings differ, so its status is 1
    answer = json.loads((out / "volumetry" / "case_000.json").read_text())
    assert answer["unit"] == "mm3"
    assert answer["value"] > 0
    assert json.loads((out / "measured" / "summary.json").read_text())["error_ml"] > 0


def test_without_the_packages_nothing_is_known_of_them():
    assert "stairs" not in BACKBONES
    assert "volumetry" not in TASKS
    assert "volumetry_3d" not in configs.groups()["experiment"]

"""Every `voxelry` command in README and docs is taken as it is printed; a training composes and its settings check."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from click.exceptions import UsageError
from omegaconf import OmegaConf

from voxelry.cli import app
from voxelry.core.errors import ConfigError
from voxelry.engine.check import check_settings
from voxelry.engine.compose import compose_training

ROOT = Path(__file__).parents[2]
# those of extending.md run with its packages, see test_extending.py
PAPERS = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem != "extending")]
# files and groups of the user's own, and what ends in a page of help
ELSEWHERE = ("--config", "--config-dir", "--multirun", "-m", "--help", "--cfg", "--hydra-help", "--info", "plan")


def commands() -> list[tuple[str, str]]:
    """`(paper, command)` of every line in a block of code that begins with `voxelry`, continued lines joined."""
    found = []
    for paper in PAPERS:
        for block in re.findall(r"^```\w*\n(.*?)^```", paper.read_text(encoding="utf-8"), re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(paper.name, line.strip()) for line in lines if re.match(r"(\.venv/bin/)?voxelry\s", line)]
    return found


COMMANDS = commands()


def test_papers_have_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("paper", "command"), COMMANDS, ids=lambda value: value[:60])
def test_a_command_is_taken_as_it_is_printed(paper, command):
    name, *arguments = shlex.split(command, comments=True)[1:]
    if name == "train":
        if not any(one.partition("=")[0] in ELSEWHERE or one.startswith("data._target_=") for one in arguments):
            config = compose_training([one for one in arguments if not one.startswith("hydra")])
            config.data.root = config.data.get("root") or "DATA"
            check_settings(config)
        return
    known = typer.main.get_command(app)
    assert name in known.commands
    try:
        known.commands[name].make_context(name, arguments)
    except UsageError as error:
        pytest.fail(f"{paper}: {command}: {error.format_message()}")


EXPERIMENTS = {
    "segment.md": ["segment_3d", "segment_3d data=crops", "segment_3d backbone=vitdet"],
    "crop_index.md": ["segment_3d data=crops"],
    "translate.md": ["translate_3d", "translate_3d data=pairs"],
    "pretraining.md": ["pretrain_3d", "pretrain_mae_3d"],
    "reconstruct.md": ["reconstruct_3d"],
    "reconstruct_flow.md": ["reconstruct_flow_3d"],
    "reconstruct_sam3d.md": ["reconstruct_sam3d_3d"],
    "adapters.md": ["reconstruct_3d"],
}
EVERY = ["landmarks_3d", "landmarks_2d", *(name for names in EXPERIMENTS.values() for name in names)]


def overrides() -> list[tuple[str, str]]:
    """`(paper, override)` of every override within a sentence that holds no place for the user's own."""
    found = set()
    for paper in PAPERS:
        text = re.sub(r"^```.*?^```", "", paper.read_text(encoding="utf-8"), flags=re.M | re.S)
        spans = re.findall(r"`([a-z_]+\.[\w.]+=[^`]+)`", text)
        found |= {(paper.name, span) for span in spans if not re.search(r"[A-Z]{2}|\.\.\.", span)}
    return sorted(found)


@cache
def keys(experiment: str) -> frozenset[str]:
    """Dotted names of all settings that an experiment has."""

    def walk(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in node.items():
            yield prefix + name
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")

    return frozenset(
        walk(OmegaConf.to_container(compose_training([*f"experiment={experiment}".split(), "data.root=DATA"])))
    )


@pytest.mark.parametrize(("paper", "override"), overrides(), ids=lambda value: value[:50])
def test_an_override_is_taken_as_it_is_printed(paper, override):
    given = re.split(r" (?=[a-z_]+\.[\w.]+=)", override)
    names = {one.partition("=")[0] for one in given}
    faults = []
    # those first that have the settings, which are most likely to take them
    for experiment in sorted([*EXPERIMENTS.get(paper, []), *EVERY], key=lambda one: not names <= keys(one)):
        try:
            config = compose_training([*f"experiment={experiment}".split(), "data.root=DATA", *given])
            check_settings(config)
        except ConfigError as error:  # another experiment may have the setting
            faults.append(str(error))
        else:
            return
    pytest.fail(f"{paper}: {override}: {faults[0]}")

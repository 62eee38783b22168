"""What the README and the documents show must exist: files, imports, commands, settings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxelry.engine.compose import compose_training

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("README.md")])
ALONE = [path for path in PAPERS if path.name != "extending.md"]  # which test_extending.py runs, with its own packages


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and contents of every fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of every `voxelry ...` line in fenced blocks without a language."""
    for language, content in blocks(text):
        if language in ("", "sh", "bash"):
            for line in content.replace("\\\n", " ").splitlines():
                if line.startswith("voxelry "):
                    yield shlex.split(line, comments=True)[1:]


def shown(which: str) -> list[tuple[str, list[str]]]:
    """Paper and arguments of every shown command that begins with `which`."""
    found = [(path.name, words) for path in ALONE for words in commands(path.read_text(encoding="utf-8"))]
    return [(name, words[1:]) for name, words in found if words[0] == which]


def test_the_papers_are_found():
    assert {"README.md", "CONTRIBUTING.md", "landmarks.md"} <= {path.name for path in PAPERS}
    assert len(shown("train")) > 5


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.name)
def test_python_examples_compile_and_import(path):
    for language, content in blocks(path.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "voxelry":
                assert hasattr(importlib.import_module("voxelry"), node.attr), ast.unparse(node)


def test_commands_and_their_options_exist():
    import typer

    from voxelry.cli import app

    group = typer.main.get_command(app)
    known = {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    for path in ALONE:
        for words in commands(path.read_text(encoding="utf-8")):
            assert words[0] in known, f"{path.name}: voxelry {words[0]}"
            if words[0] != "train":
                options = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert options <= known[words[0]], f"{path.name}: voxelry {' '.join(words)}"


@pytest.mark.parametrize(("name", "words"), shown("train"), ids=lambda value: value if isinstance(value, str) else "")
def test_training_commands_compose(name, words):
    overrides = [word for word in words if not word.startswith(("-", "plan=")) and "=" in word]  # a file to be made
    sweeping = "--multirun" in words
    for override in overrides:
        assert override.partition("=")[2] != "", f"{name}: {override}"
    one_each = [word.split(",")[0] if sweeping else word for word in overrides]
    config = compose_training(one_each)
    assert config.ndim in (2, 3)


def settings_in_tables(text: str, group: str) -> list[str]:
    """Names in the first column of tables that begin with `group.`."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(rf"`{group}\.(\w+)", cell)]


@pytest.mark.parametrize(
    ("paper", "targets"),
    [
        ("landmarks.md", ["voxelry.tasks.landmarks.LandmarkTask"]),
        ("pretraining.md", ["voxelry.tasks.pretrain.PretrainTask", "voxelry.tasks.pretrain.masked.MaskedPretrainTask"]),
    ],
)
def test_settings_of_tasks_exist(paper, targets):
    parameters = set()
    for target in targets:
        module, _, name = target.rpartition(".")
        parameters |= set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    named = settings_in_tables((ROOT / "docs" / paper).read_text(encoding="utf-8"), "task")
    assert len(named) > 4
    assert [setting for setting in named if setting not in parameters] == []


def test_settings_of_data_exist():
    choices = (
        ["experiment=landmarks_3d"],
        ["experiment=segment_3d", "data=crops"],
        ["experiment=reconstruct_3d"],
        ["experiment=translate_3d", "data=pairs"],
    )
    configs = [compose_training(choice) for choice in choices]
    text = "".join(path.read_text(encoding="utf-8") for path in PAPERS)
    for group in ("data", "trainer"):
        modules = {"io", "dataset", "preprocess", "layouts", "slice_case", "md"}
        named = set(re.findall(rf"(?<![\w./+]){group}\.([a-z_]+)", text)) - modules
        known = {key for config in configs for key in config[group]}
        assert named - known == set(), group

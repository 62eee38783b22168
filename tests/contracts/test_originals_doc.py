"""docs/originals.md: every counterpart that a table names is there and is taken as it is printed.

A command is parsed by the command line's own parser, `voxelry train` is composed; a setting is a key of our
configuration, an override composes, a dotted name can be imported.
"""

import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml
from click.exceptions import UsageError

import voxelry.configs
from voxelry.cli import app
from voxelry.data.prepare.case import PrepareSettings
from voxelry.engine.compose import compose_training
from voxelry.engine.launch import launch
from voxelry.interop.legacy.fast_ddpm_options import read_options

DOCS = Path(__file__).parents[2] / "docs"
CONFIGS = Path(voxelry.configs.__file__).parent
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra")
EXPERIMENTS = {
    "## Fast-DDPM, and its plan": ["translate_3d", "translate_3d model=fast_ddpm"],
    "## Organs from one slice": ["reconstruct_3d", "reconstruct_flow_3d", "reconstruct_sam3d_3d"],
    "## Instances in light-sheet": ["segment_3d"],
}


def rows():
    """`(section, line, code spans of the last cell)` of every table whose first cell is what is there."""
    section, found = "", []
    for line in (DOCS / "originals.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = line
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] if line.startswith("|") else []
        if len(cells) >= 2 and cells[0] not in ("there", "ours", "key") and not set(cells[0]) <= set("-"):
            found.append((section, cells[0], cells[-1]))
    return found


ROWS = rows()
SPANS = sorted(
    {(section, span.replace("\\|", "|")) for section, _, here in ROWS for span in re.findall(r"`([^`]+)`", here)}
)


def of_kind(pattern):
    return [(section, span) for section, span in SPANS if re.fullmatch(pattern, span)]


@cache
def known_keys():
    """All keys of our configuration groups, dotted, and the groups themselves."""

    def walk(prefix, value):
        yield prefix
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}", inner)

    keys = set(GROUPS)
    for group in GROUPS:
        for path in (CONFIGS / group).glob("*.yaml"):
            keys |= set(walk(group, yaml.safe_load(path.read_text()) or {}))
    top = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    return keys | {key for name, value in top.items() if name not in ("defaults", "hydra") for key in walk(name, value)}


def experiments(section):
    return next(
        (names for start, names in EXPERIMENTS.items() if section.startswith(start)), ["landmarks_3d", "pretrain_3d"]
    )


def composes(section, overrides):
    chosen = [[]] if any(one.startswith("experiment=") for one in overrides) else []
    chosen = chosen or [f"experiment={name}".split() for name in experiments(section)]
    fault = None
    for extra in chosen:
        try:
            return compose_training([*extra, *overrides])
        except Exception as error:  # the next experiment may have it
            fault = error
    raise fault


def test_every_thing_of_the_documents_has_an_answer():
    assert len(ROWS) > 80
    for section, there, here in ROWS:
        assert len(here) > 2, f"{section}: {there}"


@pytest.mark.parametrize(("section", "command"), of_kind(r"voxelry .+"), ids=lambda value: value[-40:])
def test_a_command_is_taken_as_it_is_printed(section, command):
    name, *arguments = shlex.split(command)[1:]
    if name == "train":
        if "--config" in arguments:
            read_options(arguments)
        else:
            plain = [one for one in arguments if "=" in one and not one.startswith(("hydra/", "backbone=mine"))]
            composes(section, plain)
        return
    known = typer.main.get_command(app).commands[name]
    try:
        given = known.make_context(name, [one.replace("DIR", ".") for one in arguments]).params
    except UsageError as error:
        pytest.fail(f"{command}: {error.format_message()}")
    if name == "prepare":
        PrepareSettings(**{key: given[key] for key in ("spacing", "modality", "slices", "sdf", "transform")})


@pytest.mark.parametrize(("section", "override"), of_kind(r"[a-z_]+(\.[\w.]+)?=\S+"), ids=lambda value: value[-40:])
def test_an_override_is_taken_as_it_is_printed(section, override):
    key, _, value = override.partition("=")
    if re.search(r"[A-Z]{2}", value):  # a place for the user's own
        assert key in known_keys()
    else:
        composes(section, [override])


@pytest.mark.parametrize("key", sorted({span for _, span in of_kind(rf"({'|'.join(GROUPS)})(\.\w+)+")}))
def test_a_setting_is_one_of_ours(key):
    assert key in known_keys()


@pytest.mark.parametrize("file", sorted({span for _, span in of_kind(r"(scripts|docs|configs)/[\w./]+")}))
def test_a_file_is_there(file):
    assert (DOCS.parent / file).is_file()


@pytest.mark.parametrize("name", sorted({span for _, span in of_kind(r"voxelry(\.\w+)+")}))
def test_a_name_can_be_imported(name):
    parts = name.split(".")
    for place in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:place]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[place:]:
            found = getattr(found, attribute)
        return
    pytest.fail(name)


def test_a_group_of_ones_own_is_found_beside_ours(tmp_path, capsys):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "mine.yaml").write_text((CONFIGS / "backbone" / "vitdet.yaml").read_text())
    launch(["--config-dir", str(tmp_path), "experiment=segment_3d", "backbone=mine", "data.root=DIR", "--cfg", "job"])
    assert "name: vitdet" in capsys.readouterr().out

"""The plan of a training: everything that follows from data and machine, and what speaks against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import ConfigError, DataError
from voxelry.core.settings import keywords
from voxelry.data.doctor.pairs import holds_pairs
from voxelry.data.fingerprint.record import Fingerprint
from voxelry.data.fingerprint.take import take_fingerprint
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases, find_pairs
from voxelry.engine.check import check_settings
from voxelry.engine.compose import compose_training
from voxelry.engine.configs import groups
from voxelry.engine.doctor import diagnose
from voxelry.engine.plan import data_rules, size_rules, training_rules
from voxelry.engine.plan.contradictions import contradictions
from voxelry.engine.plan.in_crops import in_crops
from voxelry.engine.plan.inherited import SETTLED, as_pretrained
from voxelry.engine.plan.limits import check_fits
from voxelry.engine.plan.memory import modelled
from voxelry.engine.plan.situation import Machine, Rule, Situation, seen_at_once
from voxelry.engine.plan_file import Decision

__all__ = ["GIVEN", "RULES", "Plan", "cases_of", "decide", "is_planned_by_files", "plan_folder"]

RULES: tuple[Rule, ...] = (
    data_rules.working_spacing,
    data_rules.intensities,
    data_rules.heatmaps,
    data_rules.split,
    data_rules.augmentation,
    training_rules.beside,
    size_rules.levels,
    size_rules.sizes,
    size_rules.tiles,
    training_rules.course,
    training_rules.readers,
)
"""In the order in which they decide."""

_EXAMINED = 1 << 30  # bytes of images that doctor is asked about
_TOLD = 8  # of its findings
GIVEN = "as you set it"
"""The reason of what isn't planned."""


@dataclass(frozen=True)
class Plan:
    """What was decided, and what is to be known of it.

    Attributes:
        decisions: what was given first, then in the order of the rules.
        notes: contradictions and what is odd in the data, a line each.
        training_memory, prediction_memory: bytes at the peak; None where nobody knows.
        machine, data: what it was made for.
        config: with the decisions in it.
    """

    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    training_memory: int | None
    prediction_memory: int | None
    machine: Machine
    data: Fingerprint
    config: DictConfig


def plan_folder(
    root: str | Path,
    task: str,
    settings: Sequence[str] = (),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Plan a training on a folder.

    Args:
        root: data in any of the layouts.
        task: an entry of `configs/task`, such as `landmarks`.
        settings: overrides as they are typed after `voxelry train`; what they set is not decided about.
        progress: see `take_fingerprint`.

    Raises:
        ConfigError: an unknown task, or settings that can't be.
        DataError, FileError: no cases, or none that can be read.
        ConfigError: no plan fits the memory; says what helps most.
    """
    given = frozenset(text.lstrip("+~").partition("=")[0] for text in settings) | {"data.root"}
    choices = _experiment(task, None, given)
    config = _composed(root, choices, settings)
    if "data" not in given and config.data.get("degrade") is not None and holds_pairs(root, config.data.layout):
        choices.append(Decision("data", "pairs", "the folder holds images and what they are to become"))
        config = _composed(root, choices, settings)
    recipe = recipe_of_config(config)
    cache = config.data.get("cache")
    found = take_fingerprint(
        cases_of(config),
        Path(root),
        need=tuple(dict.fromkeys((*recipe.needs, *recipe.truth))),
        cache=None if cache in (None, "auto", "memory") else Path(str(cache)),
        progress=progress,
    )
    if all(case.fault for case in found.cases):
        raise DataError(f"{root}: none of {len(found.cases)} cases can be read; the first: {found.cases[0].fault}")
    if config.ndim != found.ndim and not {"experiment", "ndim"} & given:
        choices[:1] = _experiment(task, found.ndim, given)
        config = _composed(root, choices, settings)
    check_settings(config)
    if config.pretrained is not None:
        choices.extend(as_pretrained(config, given))
        given |= {*SETTLED}
        config = _composed(root, choices, settings)
    situation = Situation(found, Machine.here(config.trainer.accelerator), config, recipe, given)
    plan = decide(situation)
    if situation.is_for_crops:
        crops = tuple(in_crops(plan.decisions, replace(situation, config=plan.config)))
        plan = replace(plan, decisions=crops)
        check_settings(_composed(root, [*choices, *crops], settings))
    heads = [*choices, Decision("data.root", str(Path(root).absolute()), GIVEN), *_typed(settings)]
    notes = (*plan.notes, *_findings(root, recipe.name, found, config))
    return Plan(
        (*heads, *plan.decisions), notes, plan.training_memory, plan.prediction_memory, plan.machine, found, plan.config
    )


def decide(situation: Situation) -> Plan:
    """What the rules decide in a situation; the same one gives the same plan.

    Raises:
        DataError: there is no case of the run's rank.
        ConfigError: what is given leaves no plan that fits the memory, see `check_fits`.
    """
    if not situation.cases:
        ndim = situation.config.ndim
        raise DataError(f"{situation.data.root}: no image of rank {ndim}, but ndim={ndim} is configured")
    decisions: list[Decision] = []
    for rule in RULES:
        for decision in list(rule(situation)):
            decisions.append(decision)
            situation = situation.after(decision)
    check_fits(situation)
    network = modelled(situation)
    config = situation.config
    size = seen_at_once(situation)
    tile = config.task.get("tile_size") or size
    return Plan(
        tuple(decisions),
        tuple(contradictions(situation, network)),
        None if network is None else network.training(size, config.data.batch_size),
        None if network is None else network.prediction([tile] * config.ndim if isinstance(tile, int) else list(tile)),
        situation.machine,
        situation.data,
        config,
    )


def is_planned_by_files(config: DictConfig) -> bool:
    """Whether a run's samples are made of files that a layout knows."""
    return config.data.get("source") != "crops" and not config.data.get("_target_")


def cases_of(config: DictConfig) -> Sequence[Case]:
    """The cases of a run, by its `data`.

    Raises:
        ConfigError: its samples aren't made of files that a layout knows.
        DataError, FileError: see `find_cases` and `find_pairs`.
    """
    data = config.data
    if not is_planned_by_files(config):
        raise ConfigError(
            "data: expected images that voxelry reads itself, to plan by; got data=crops or data._target_"
        )
    if data.get("source") == "pairs":
        pairs = {name: value for name, value in keywords(data.pairs).items() if name != "resample"}
        return find_pairs(data.root, data.layout, options=keywords(data.options), **pairs)
    return find_cases(
        data.root, data.layout, options=keywords(data.options), point_options=keywords(data.point_options)
    )


def _experiment(task: str, ndim: int | None, given: frozenset[str]) -> list[Decision]:
    """The experiment of a task for that rank, of volumes where none is asked for; nothing where one is given.

    Raises:
        ConfigError: there is no such task, or none for the rank.
    """
    if "experiment" in given:
        return []
    entries: dict[int, str] = {}
    for name, file in groups()["experiment"].items():
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        tasks = [one.get("override /task") for one in content.get("defaults", ()) if isinstance(one, dict)]
        if task in tasks:
            entries.setdefault(int(content.get("ndim", 3)), name)
    if not entries:
        raise ConfigError(f"task: expected one of {', '.join(groups()['task'])}, got {task!r}")
    rank = max(entries) if ndim is None else ndim
    if rank not in entries:
        raise ConfigError(f"task: {task} has no experiment for images of rank {rank}; expected one with ndim={rank}")
    return [Decision("experiment", entries[rank], f"images of rank {rank}")]


def _composed(root: str | Path, choices: Sequence[Decision], settings: Sequence[str]) -> DictConfig:
    """The configuration as a training would have it."""
    return compose_training([*({one.setting: one.value} for one in choices), {"data.root": str(root)}, *settings])


def _typed(settings: Sequence[str]) -> Iterator[Decision]:
    """Settings as they were typed."""
    for text in settings:
        name, _, value = text.lstrip("+").partition("=")
        if name not in ("data.root", "plan") and not name.startswith(("~", "-")):
            try:
                yield Decision(name, yaml.safe_load(value), GIVEN)
            except yaml.YAMLError:
                yield Decision(name, value, GIVEN)


def _findings(root: str | Path, task: str, found: Fingerprint, config: DictConfig) -> Iterator[str]:
    """What `doctor` would fault, in a line; of large data what the fingerprint saw."""
    size = sum(case.channels * prod(case.shape) for case in found.readable)
    if size > _EXAMINED:
        faults = [f"{case.image}: {case.fault}" for case in found.cases if case.fault]
        told = "only headers and samples were looked at; voxelry doctor reads every voxel"
        yield f"{len(faults)} cases can't be read, the first: {faults[0]} ({told})" if faults else told
        return
    diagnosis = diagnose(
        root,
        task=task,
        layout=config.data.layout,
        target=OmegaConf.select(config, "data.pairs.target"),
        options=keywords(config.data.options),
        point_options=keywords(config.data.point_options),
    )
    wrong = sorted(diagnosis.wrong, key=lambda one: one.severity != "error")
    yield from (f"doctor: {one.severity}: {one.file}: {one.message}" for one in wrong[:_TOLD])
    if len(wrong) > _TOLD:
        yield f"doctor: {len(wrong) - _TOLD} more"

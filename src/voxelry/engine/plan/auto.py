"""`voxelry train` plans as it begins, where nothing else is said: `plan=auto`, the default."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from voxelry.core.errors import ConfigError
from voxelry.engine.compose import compose_training, parted, settle, typed, value_of
from voxelry.engine.plan.plan import GIVEN, Plan, is_planned_by_files, plan_folder
from voxelry.engine.plan.table import summary
from voxelry.engine.plan_file import AUTO, in_yaml, remaining
from voxelry.engine.run_folder import checkpoint_to_resume

__all__ = ["planned"]

_ASKS = ("--help", "-h", "--hydra-help", "--version", "--info", "-i")  # flags beside which nothing is trained
_SHOWS = ("--cfg", "-c")
_SWEEPS = ("--multirun", "-m")
_ELSEWHERE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "hydra.searchpath")
_DECISIVE = ("task", "experiment", "ndim", "data", "data.root")  # a sweep over these has no plan in common
_TASK = "landmarks"  # of configs/train.yaml, where neither an experiment nor a task is chosen
_NONE = "plan=null"

log = logging.getLogger("voxelry")


def planned(arguments: Sequence[str]) -> list[str]:
    """Arguments of `voxelry train`, with what a plan that is made now decides, unless a plan or none is asked for.

    A sweep has one plan, made for the first of its runs; a run that is gone on with keeps its own. Tells what is
    planned, and why; and why nothing is, where one might expect it.

    Raises:
        ConfigError: a plan is asked for by name that can't be made; the run's folder holds another run; see
            `plan_folder` for others.
    """
    asked = value_of(arguments, "plan")
    if asked not in (None, AUTO) or set(_ASKS) & {*arguments}:
        return list(arguments)
    rest = [argument for argument in arguments if not argument.lstrip("+").startswith("plan=")]
    why = _unplanned(rest)
    if why is None:
        first = _first_run(rest)
        config = compose_training([*first, _NONE])
        why = _unplanned_by(config)
        if why is None:
            return _with_own_plan(rest, config) or _with_new_plan(rest, first, config)
    if asked == AUTO:
        raise ConfigError(f"plan: expected without auto, {why}")
    log.info("not planned: %s", why)
    return [*rest, _NONE]


def _unplanned(arguments: Sequence[str]) -> str | None:
    """Why arguments, as they stand, can't be planned by; None where they can."""
    if any(argument.startswith(_ELSEWHERE) for argument in arguments):
        return "as settings come from files of one's own"
    swept = [one for one in _swept(arguments) if one in _DECISIVE]
    return f"as the runs differ in {', '.join(swept)}" if swept else None


def _unplanned_by(config: DictConfig) -> str | None:
    """Why a run can't be planned; None where it can."""
    if OmegaConf.is_missing(config.data, "root") or config.data.get("root") is None:
        return "as there is no data.root"
    return None if is_planned_by_files(config) else "as its samples come from data=crops or data._target_"


def _with_own_plan(arguments: Sequence[str], config: DictConfig) -> list[str] | None:
    """The arguments of a run that is gone on with, by its own plan or none; None for one that begins.

    Raises:
        ConfigError: another run is there, and nothing was said of it.
    """
    if set(_SHOWS) & {*arguments} or set(_SWEEPS) & {*arguments}:
        return None
    output = Path(config.output_dir)
    if checkpoint_to_resume(output, resume=config.resume, overwrite=config.overwrite) is None:
        return None
    earlier = output / "plan.yaml"
    return [*arguments, f"plan={earlier}" if earlier.is_file() else _NONE]


def _with_new_plan(arguments: Sequence[str], first: Sequence[str], config: DictConfig) -> list[str]:
    plan = plan_folder(config.data.root, value_of(first, "task") or _TASK, first)
    _tell(plan)
    _, settings = parted(arguments)
    decisions = remaining(plan.decisions, {one.lstrip("+~").partition("=")[0] for one in settings})
    told = [[one.setting, one.value, one.why] for one in plan.decisions if one.setting not in _swept(arguments)]
    return [*typed({one.setting: one.value for one in decisions}), *arguments, *typed({"plan": told})]


def _tell(plan: Plan) -> None:
    log.info("planned for %s (plan=null: as configured)", summary(plan))
    for one in plan.decisions:
        if one.why != GIVEN:
            log.info("  %s: %s  # %s", one.setting, in_yaml(one.value), one.why)
    for note in plan.notes:
        log.warning("%s", note)


def _swept(arguments: Sequence[str]) -> list[str]:
    """Names of the settings of which each run of a sweep has another value."""
    flags, settings = parted(arguments)
    if not set(_SWEEPS) & {*flags}:
        return []
    return [one.key_or_group for one in map(_parsed, settings) if one.is_sweep_override()]


def _first_run(arguments: Sequence[str]) -> list[str]:
    """The settings of the first run of a sweep; of a single run all."""
    flags, settings = parted(arguments)
    return [_first_of(one) for one in settings] if set(_SWEEPS) & {*flags} else settings


def _first_of(setting: str) -> str:
    parsed = _parsed(setting)
    return f"{parsed.key_or_group}={next(parsed.sweep_string_iterator())}" if parsed.is_sweep_override() else setting


def _parsed(setting: str) -> Override:
    """A setting as Hydra reads it."""
    return OverridesParser.create().parse_override(settle([setting, _NONE])[0])

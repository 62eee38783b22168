"""`voxelry train ... plan=auto`: the plan is made as the training begins."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from voxelry.core.errors import ConfigError
from voxelry.engine.compose import compose_training
from voxelry.engine.plan.plan import plan_folder
from voxelry.engine.plan.table import summary
from voxelry.engine.plan_file import in_yaml, write_plan

__all__ = ["planned"]

_AUTO = "plan=auto"
_SWEEPS = ("--multirun", "-m")
_TASK = "landmarks"  # of configs/train.yaml, where neither an experiment nor a task is chosen

log = logging.getLogger("voxelry")


def planned(arguments: Sequence[str]) -> list[str]:
    """Arguments of `voxelry train`, with the file of a plan that is made now in place of `plan=auto`.

    Of a run that is gone on with, its own plan. Tells what is planned, and why.

    Raises:
        ConfigError: several runs at once; see `plan_folder` for others.
    """
    if _AUTO not in arguments:
        return list(arguments)
    if set(_SWEEPS) & {*arguments}:
        raise ConfigError("plan: auto plans a single run; of several, voxelry plan DATA --out FILE and plan=FILE")
    rest = [argument for argument in arguments if argument != _AUTO]
    settings = [argument for argument in rest if not argument.startswith("-")]
    config = compose_training([*settings, "plan=null"])
    earlier = Path(config.output_dir) / "plan.yaml"
    if config.resume and earlier.is_file():
        return [*rest, f"plan={earlier}"]
    task = next((one.partition("=")[2] for one in reversed(settings) if one.startswith("task=")), _TASK)
    plan = plan_folder(config.data.root, task, settings)
    log.info("planned for %s", summary(plan))
    for one in plan.decisions:
        log.info("  %s: %s  # %s", one.setting, in_yaml(one.value), one.why)
    for note in plan.notes:
        log.warning("%s", note)
    path = Path(tempfile.mkdtemp(prefix="voxelry-plan-")) / "plan.yaml"
    write_plan(path, plan.decisions, summary(plan))
    return [*rest, f"plan={path}"]

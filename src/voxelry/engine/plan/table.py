"""A plan on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voxelry.engine.plan.plan import Plan
from voxelry.engine.plan.situation import Machine
from voxelry.engine.plan.size_rules import gigabytes
from voxelry.engine.plan_file import in_yaml

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["render", "summary"]


def render(plan: Plan) -> Group:
    """Setting, value and reason of each decision; the memory that is predicted; what speaks against it."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=escape(summary(plan)), title_justify="left")
    for column in ("setting", "value", "why"):
        table.add_column(column, overflow="fold")
    for one in plan.decisions:
        table.add_row(escape(one.setting), escape(in_yaml(one.value)), escape(one.why))
    lines = [Text(_memory(plan)), *(Text(note, style="yellow") for note in plan.notes)]
    return Group(table, *lines)


def summary(plan: Plan) -> str:
    """Data and machine in a line."""
    data = plan.data
    return f"{data.root}: {len(data.cases)} cases, modality {data.modality}; {_device(plan.machine)}"


def _device(machine: Machine) -> str:
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}, {gigabytes(machine.memory)}"
    return f"{machine.gpu}, {gigabytes(machine.gpu_memory)}; {cores}" if machine.gpu else cores


def _memory(plan: Plan) -> str:
    def told(count: int | None) -> str:
        return "unknown" if count is None else f"about {gigabytes(count)}"

    return f"memory at the peak: training {told(plan.training_memory)}, prediction {told(plan.prediction_memory)}"

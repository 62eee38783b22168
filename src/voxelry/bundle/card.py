"""The model card of a bundle."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

import voxelry
from voxelry.bundle.task import StoredTask

__all__ = ["model_card"]


def model_card(task: StoredTask, record: Mapping[str, Any], summary: Mapping[str, float]) -> str:
    """Markdown that says what the model is, what it saw, how good it was and what it must not be used for."""
    data = record["data"]
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    lines = [
        f"# voxelry {type(task).__name__}",
        "",
        f"- written: {datetime.now(UTC):%Y-%m-%d} by voxelry {voxelry.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        f"- network: {type(task.network).__name__}, {parameters / 1e6:.2f} million parameters",
        f"- data: {data['root']}; {len(data['train'])} cases for training, {len(data['validation'])} for "
        f"validation, {len(data['test'])} for testing (names in config.yaml)",
        "- preprocessing: see `preprocess` in config.yaml; it is applied by `voxelry predict` and `voxelry.load`",
        "- licence: not set; the data's licence may bind the weights",
        "- not a medical device",
        "",
        f"## Metrics on the {record['metrics']['on']} cases",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in summary.items()),
        "",
    ]
    return "\n".join(lines)

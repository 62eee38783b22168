"""What a reconstruction may be asked for: the prompt and, of a flow, how hypotheses are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from voxelry.core.errors import SettingError
from voxelry.core.option import Option

__all__ = ["FLOW_OPTIONS", "OPTIONS"]


def _numbers(text: str, name: str) -> list[float]:
    """Numbers between commas: `"12,-40.5,88"`."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (2, 3) or not all(math.isfinite(value) for value in values):
        raise SettingError(f"{name}: expected two or three numbers between commas, such as 12,-40.5,88, got {text!r}")
    return values


def _clicks(texts: Sequence[str]) -> list[list[float]]:
    return [_numbers(text, "--click") for text in texts]


def _planes(texts: Sequence[str]) -> str | list[float] | list[str | list[float]]:
    """One plane for all clicks, or one for each."""
    planes = [_numbers(text, "--plane") if "," in text else text for text in texts]
    return planes[0] if len(planes) == 1 else planes


def _alone(path: Path) -> list[Path]:
    return [path]


OPTIONS = (
    Option(
        "click",
        str,
        "x,y,z in RAS mm inside the organ, once per slice; column,row with --slice, none with its --mask",
        True,
        read=_clicks,
    ),
    Option("plane", str, "axial, coronal, sagittal, or a normal x,y,z; once, or once per click", True, read=_planes),
    Option("mask", Path, "the organ in the clicked slice, as an image"),
    Option("slice", Path, "a single slice, without a volume", files=_alone),
    Option("pointmap", Path, "x, y, z in RAS mm of each pixel of --slice, (3, H, W), NaN where unknown"),
    Option("label", int, "which organ, where a model knows several"),
)

FLOW_OPTIONS = (
    *OPTIONS,
    Option("steps", int, "time steps to sample in"),
    Option("sampler", str, "another sampler than the model's"),
    Option("samples", int, "so many hypotheses, and their spread"),
)

"""What a translation may be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxelry.core.errors import SettingError
from voxelry.core.option import Option
from voxelry.core.remote import as_path

__all__ = ["OPTIONS"]


def _contrasts(texts: list[str]) -> dict[str, Path]:
    """`NAME=FILE` texts as a mapping."""
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise SettingError(f"--contrast: expected NAME=FILE such as t1=scan.nii.gz, got {text!r}")
        found[name] = as_path(path)
    return found


def _first(contrasts: Mapping[str, Path]) -> list[Path]:
    return list(contrasts.values())[:1]


OPTIONS = (
    Option("steps", int, "time steps to sample in, of those trained"),
    Option("sampler", str, "another sampler than the model's"),
    Option("eta", float, "share of the noise that is drawn anew in every step of a diffusion"),
    Option("samples", int, "so many, and their mean and spread"),
    Option(
        "contrast",
        str,
        "NAME=FILE for each contrast there is, instead of an input",
        repeated=True,
        read=_contrasts,
        files=_first,
    ),
)

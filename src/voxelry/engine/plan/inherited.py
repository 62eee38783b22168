"""What a training that begins with the weights of another one takes over from it, in place of planning it anew."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig

from voxelry.bundle.pretrained import preprocess_of
from voxelry.core.settings import plain
from voxelry.engine.plan_file import Decision, is_settled

__all__ = ["SETTLED", "as_pretrained"]

_PREPROCESS = "data.preprocess"
_SEEN = ("spacing", "image_size", "normalise", "window", "percentiles", "clip", "per_channel")
SETTLED = ("model", *(f"{_PREPROCESS}.{name}" for name in _SEEN))
"""Settings that pretrained weights decide about, or leave as they are configured."""


def as_pretrained(config: DictConfig, given: Collection[str]) -> list[Decision]:
    """Decisions to show images as the training saw them that the weights in `config.pretrained` come from.

    Args:
        config: of the whole run.
        given: names of the settings that somebody set, which stay as they are.

    Raises:
        CheckpointError: there are no weights.
    """
    seen, own = preprocess_of(Path(config.pretrained)), config.data.preprocess
    return [
        Decision(f"{_PREPROCESS}.{name}", seen[name], "as the pretrained network saw its images")
        for name in _SEEN
        if name in seen and name in own and not is_settled(f"{_PREPROCESS}.{name}", given)
        if seen[name] != plain(own[name])
    ]

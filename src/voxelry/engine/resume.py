"""Whether a run that goes on is the run that was begun."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voxelry.core.errors import CheckpointError
from voxelry.core.settings import plain

__all__ = ["check_same_run", "describe_run"]

log = logging.getLogger("voxelry")

# what neither the data nor the learning depends on
_FREE = (
    "name",
    "output_dir",
    "plan",  # its settings count
    "resume",
    "resume_changed",
    "overwrite",
    "launcher",
    "trainer.checkpoint_every",
    "trainer.keep_every",
    "trainer.log_every",
    "trainer.progress",
    "trainer.logger",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.compile",
    "data.root",  # what lies there counts, not where
    "data.index",
    "data.num_workers",
    "data.pin_memory",
    "data.cache",
    "data.check",
)
_LENGTH = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_minutes", "trainer.patience")


def describe_run(config: DictConfig, cases: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """What a checkpoint says of its run: every setting that counts, and the cases by part with their digests."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    flat = {name: plain(value) for name, value in _flat(settings) if not _is_free(name)}
    return {"settings": flat, "cases": {part: dict(digests) for part, digests in cases.items()}}


def check_same_run(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, forced: bool) -> None:
    """Refuse to go on with other data or other settings than a run was begun with, unless that is asked for.

    Another length is always taken, and said.

    Args:
        path: the checkpoint.
        found, wanted: what `describe_run` gave then and gives now.
        forced: `resume_changed`, go on all the same.

    Raises:
        CheckpointError: lists what differs.
    """
    theirs, ours = dict(found.get("settings", {})), dict(wanted["settings"])
    for name in _LENGTH:
        before, now = theirs.pop(name, None), ours.pop(name, None)
        if before != now:
            log.info("%s: %s was %s and is %s; the learning rate follows the new length", path, name, before, now)
    differing = [*_settings(theirs, ours), *_cases(found.get("cases", {}), wanted["cases"])]
    if not differing:
        return
    if not forced:
        raise CheckpointError(
            f"{path}: the run was begun with other settings: {'; '.join(differing)} (set them as they were, or "
            "resume_changed=true to go on all the same, or take another output_dir)"
        )
    log.warning("%s: goes on with other settings: %s", path, "; ".join(differing))


def _settings(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            yield f"{name} was {_shown(theirs, name)}, is {_shown(ours, name)}"


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not set"


def _cases(theirs: Mapping[str, Mapping[str, str]], ours: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for part in sorted({*theirs, *ours}):
        before, now = theirs.get(part, {}), ours.get(part, {})
        for what, names in (
            ("new", sorted(now.keys() - before.keys())),
            ("gone", sorted(before.keys() - now.keys())),
            ("changed", sorted(name for name in before.keys() & now.keys() if before[name] != now[name])),
        ):
            if names:
                yield f"{part} cases: {len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)

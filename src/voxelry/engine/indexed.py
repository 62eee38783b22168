"""`voxelry train ... data=crops data.root=DIR`: the index of the crops is made first, in the same command."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from voxelry.core.settings import keywords
from voxelry.engine.compose import compose_training, parted, typed, value_of, with_plan
from voxelry.engine.index import build_index
from voxelry.engine.run_folder import checkpoint_to_resume

__all__ = ["indexed_first"]

_NAME = "crops.sqlite"

log = logging.getLogger("voxelry")


def indexed_first(arguments: Sequence[str]) -> list[str]:
    """Arguments of `voxelry train`, with an index of the crops of a folder where `data=crops` comes without one.

    It lies in `output_dir/crops.sqlite`; with `resume=true` it goes on where it stopped.

    Raises:
        ConfigError: the run's folder holds another run, and nothing was said of it.
        DataError, FileError, SettingError: see `build_index`.
    """
    flags, settings = parted(with_plan(arguments))
    if value_of(settings, "data") != "crops" or value_of(settings, "data.index") not in (None, "null") or flags:
        return list(arguments)
    config = compose_training(settings)
    if config.data.root is None:
        return list(arguments)
    output = Path(config.output_dir)
    checkpoint_to_resume(output, resume=config.resume, overwrite=config.overwrite)
    output.mkdir(parents=True, exist_ok=True)
    log.info("indexing %s, in %s", config.data.root, output / _NAME)
    data = keywords(config.data)
    summary = build_index(
        data["root"],
        output / _NAME,
        crop_size=data["crop_size"],
        pad="edge",
        layout=data["layout"],
        options=data["options"],
        say=lambda line: log.info("%s", line),
    )
    log.info("%s", summary.render())
    return [*arguments, *typed({"data.index": str(output / _NAME), "data.root": None})]

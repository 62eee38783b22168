"""`voxelry train` by the settings in a file: `python -m voxelry.serve.train_process FILE`."""

from __future__ import annotations

import logging
import sys

from omegaconf import OmegaConf

from voxelry.core.errors import VoxelryError
from voxelry.engine.train import train
from voxelry.serve.training import FAILED

__all__ = ["main"]


def main(settings: str) -> int:
    """Train by a file of settings; the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        train(OmegaConf.load(settings))
    except VoxelryError as error:
        print(f"{FAILED}{error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))

"""`voxelry.train`: the command as a function; in a file of its own, as what trains takes seconds to import.

run = voxelry.train("experiment=landmarks_3d", {"data.root": folder, "trainer.max_steps": 5000})
voxelry.predict(run.bundle, "scans", "points", format="mrk.json")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voxelry.engine import train as training
from voxelry.engine.compose import compose_training, typed
from voxelry.engine.indexed import indexed_first
from voxelry.engine.plan.auto import planned
from voxelry.engine.unlabelled import pretrained_first

__all__ = ["train"]


def train(*settings: str | Mapping[str, Any]) -> training.Run:
    """Train a model, as `voxelry train SETTINGS`.

    Args:
        settings: overrides as they are typed, `"data.root=DIR"`, and mappings from dotted names to plain values,
            `{"data.root": folder}`; of a name that is given twice the last one counts.

    Returns:
        The run, with its bundle and the metrics of the held-out cases; `interrupted` after a Ctrl-C.

    Raises:
        VoxelryError: whatever a user can cause: unknown settings, data that don't fit, a full disk.
    """
    overrides = [one for given in settings for one in ([given] if isinstance(given, str) else typed(given))]
    return training.train(compose_training(pretrained_first(indexed_first(planned(overrides)))))

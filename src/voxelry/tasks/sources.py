"""What samples are made of, by the name that `data.source` has for it."""

from __future__ import annotations

from typing import Any

from voxelry.core.registry import Registry

__all__ = ["SOURCES"]

SOURCES: Registry[Any] = Registry(
    "sources",
    "data.source",
    {
        "volumes": "voxelry.tasks.volumes:build_volumes",
        "slices": "voxelry.tasks.reconstruct.data:build_slices",
        "pairs": "voxelry.tasks.translate.data:build_pairs",
        "degraded": "voxelry.tasks.translate.data:build_degraded",
        "crops": "voxelry.tasks.crops:build_crops",
    },
)
"""Functions `(config, *, ndim, recipe, augment, seed)` that give `data.parts.Splits`, see `engine.data.build_data`."""

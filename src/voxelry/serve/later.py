"""What the page needs later than its first image, imported when it is first used: with torch it would wait seconds."""

from __future__ import annotations

from typing import Any

from voxelry.core.lazy import lazily

_PLACES = {
    "Reference": "voxelry.data.label_grid",
    "find_cases": "voxelry.data.layouts.find",
    "load": "voxelry.bundle.model",
    "inspect": "voxelry.data.doctor.inspect",
    "labelled": "voxelry.serve.learning",
    "nearest_labels": "voxelry.serve.placing",
    "open_labels": "voxelry.data.label_grid",
    "parts_of": "voxelry.serve.learning",
    "read_record": "voxelry.models.adapters.file",
    "training_settings": "voxelry.serve.learning",
    "verdict": "voxelry.serve.learning",
    "whole_numbers": "voxelry.data.label_grid",
}

__all__ = [*_PLACES]

_find = lazily(__name__, _PLACES)


def __getattr__(name: str) -> Any:
    return _find(name)

"""What a `dataset.json` of the Medical Segmentation Decathlon or of nnU-Net says of all cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from voxelry.core.errors import FileError

__all__ = ["MODALITIES", "description"]

MODALITIES = {
    "ct": "ct",
    "mri": "mr",
    "mr": "mr",
    "t1": "mr",
    "t2": "mr",
    "flair": "mr",
    "us": "us",
    "ultrasound": "us",
}
"""What people call a modality, lower case, to our word for it."""


def description(path: Path) -> dict[str, Any]:
    """Names of the classes and the modality as fields of a `Case`; nothing where there is no such file.

    Labels may be `{"1": "liver"}` or `{"liver": 1}`; regions, which are lists of values, have no number of their own.

    Raises:
        FileError: it can't be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels: dict[Any, Any] = content.get("labels", {})
        names = {}
        for key, value in labels.items():
            name, number = (value, key) if str(key).isdigit() else (key, value)
            if not isinstance(number, list) and int(number) > 0:
                names[int(number)] = str(name)
        channels = content.get("channel_names") or content.get("modality") or {}
        modality = str(channels.get("0", "")).lower()
    except (ValueError, AttributeError, TypeError) as error:
        raise FileError(path, f"isn't a dataset.json with labels: {error}") from None
    return {"classes": dict(sorted(names.items())), "modality": MODALITIES.get(modality, "")}

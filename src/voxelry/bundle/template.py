"""The template of a model that was trained on registered scans, beside its weights: an image, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import CheckpointError, FileError
from voxelry.data.prepare.template import TEMPLATE, Template

__all__ = ["read_template", "template_record"]


def template_record(template: Template | None) -> dict[str, Any]:
    """What settings say of it, to go with the image: `{"template": {...}}`, or nothing without one."""
    if template is None:
        return {}
    about = {"transform": template.transform, "spacing": float(template.spacing), "sha256": template.digest}
    return {"template": about}


def read_template(folder: Path, record: Mapping[str, Any]) -> Template | None:
    """The template of a bundle or an adapter; None where its settings name none.

    Raises:
        CheckpointError: it is gone, or isn't the one that the settings name.
    """
    about = record.get("template")
    if about is None:
        return None
    try:
        found = Template.read(folder / TEMPLATE, str(about["transform"]), float(about["spacing"]))
        known = found.digest == about["sha256"]
    except (FileError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / TEMPLATE}: can't be read as the model's template: {error}") from error
    if not known:
        raise CheckpointError(f"{folder / TEMPLATE}: changed since it was written, or not this model's own")
    return found

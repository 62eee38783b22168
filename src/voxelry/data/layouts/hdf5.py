"""HDF5 files that hold their image and its instances.

    NAME.h5    a dataset `raw` and, where there is one, `label` (an instance id per voxel)

Other names by `options={"dataset": ..., "label_dataset": ...}`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from voxelry.core.errors import DataError
from voxelry.core.remote import as_path
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import HDF5_SUFFIXES, case_name, existing, visible
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.io import is_image
from voxelry.io.images.hdf5 import dataset_names

__all__ = ["Hdf5", "image_options"]

_RAW, _LABEL = "raw", "label"


class Hdf5(Layout):
    """`NAME.h5` with the datasets `raw` and `label`."""

    images_alone = True
    own_reader = "images"
    answers = ("dataset", "label_dataset")

    def fits(self, root: Path) -> bool:
        """By a file of that suffix in the folder."""
        if not root.is_dir() or is_image(root):
            return False
        return any(path.suffix in HDF5_SUFFIXES and path.is_file() for path in visible(root))

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per file."""
        paths = [root] if root.is_file() else [path for path in visible(existing(root)) if path.suffix in HDF5_SUFFIXES]
        if wanted.landmarks and paths:
            raise DataError(f"{paths[0]}: an HDF5 file has no landmarks; expected folders volumes and landmarks")
        dataset, label = (
            str(wanted.options.get(name) or usual) for name, usual in (("dataset", _RAW), ("label_dataset", _LABEL))
        )
        cases = []
        for path in paths:
            held = dataset_names(path)
            # a file of one dataset is that image, whatever it is called
            options = {"dataset": dataset} if len(held) > 1 else {}
            instances = as_path(f"{path}::{label}") if label.strip("/") in held else None
            cases.append(Case(case_name(path), path, instances=instances, layout="hdf5", options=options))
        return cases


def image_options(path: Path, dataset: str | None = None) -> dict[str, Any]:
    """What `open_image` must be told of a single image: of an HDF5 file with several, which one by its usual name.

    Args:
        dataset: the usual name; `raw`, as in the layout `hdf5`, if not given.

    Raises:
        FileError: not HDF5.
    """
    if path.suffix.lower() not in HDF5_SUFFIXES or not path.is_file():
        return {}
    usual = (dataset or _RAW).strip("/")
    held = dataset_names(path)
    return {"dataset": usual} if len(held) > 1 and usual in held else {}

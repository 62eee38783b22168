"""Slices and shapes from a folder that `prepare` wrote, for `SliceDataset`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import DataError, SettingError
from voxelry.data.io import read_image
from voxelry.data.organ_shape import OrganShape
from voxelry.data.prepare.files import read_sdf, read_slice_file
from voxelry.data.prepare.modality import preprocess_like, to_unit
from voxelry.data.prepare.run import read_manifest
from voxelry.data.preprocess import Preprocess
from voxelry.data.slice_choice import Cut
from voxelry.data.slice_sources import Choice
from voxelry.data.slices import SliceSample

__all__ = ["PreparedSlices"]


class PreparedSlices:
    """The slices on disk, with intensities in [0, 1].

    Args:
        root: the folder.
        names: cases to take, in this order; by default all.
        split: `train`, `validation` or `test`, where the data said so; None for all.

    Raises:
        FileError: no manifest, or a damaged one.
        DataError: a case that isn't there, or none at all.
    """

    def __init__(self, root: str | Path, *, names: Sequence[str] | None = None, split: str | None = None):
        self.root = Path(root)
        self.manifest = read_manifest(root)
        cases = {case["name"]: case for case in self.manifest["cases"]}
        if unknown := [name for name in names or () if name not in cases]:
            raise DataError(f"{self.root}: no case {unknown[0]!r} in its manifest")
        self.cases: list[dict[str, Any]] = [
            cases[name] for name in (names or cases) if split is None or cases[name]["split"] == split
        ]
        if not self.cases:
            raise DataError(f"{self.root}: no case of split {split!r} in its manifest")
        self._shapes: dict[tuple[int, int], OrganShape] = {}

    @property
    def names(self) -> list[str]:
        """Of the cases."""
        return [str(case["name"]) for case in self.cases]

    def preprocess(self) -> Preprocess:
        """What makes of a raw volume the intensities and grid that these slices have.

        Raises:
            DataError: cases of different modalities, which have no preprocessing in common.
        """
        kinds = {str(case["modality"]) for case in self.cases}
        if len(kinds) > 1:
            raise DataError(f"{self.root}: cases of modalities {', '.join(sorted(kinds))}; expected one")
        settings = self.manifest["settings"]
        return preprocess_like(kinds.pop(), settings["spacing"], window=settings["window"])

    def organs_of(self, case: int, organs: Sequence[tuple[int, ...]]) -> list[int]:
        """Places in `organs` of those that a case has slices of.

        Raises:
            SettingError: an organ of several labels, which have to be merged when they are prepared.
            DataError: none.
        """
        for organ in organs:
            if len(organ) > 1:
                raise SettingError(f"organs: {organ} is several classes; prepare the data with merge=[{list(organ)}]")
        present = {entry["label"] for entry in self.cases[case]["slices"]}
        found = [place for place, organ in enumerate(organs) if organ[0] in present]
        if not found:
            wanted = ", ".join(str(organ[0]) for organ in organs)
            raise DataError(f"{self.root}: case {self.names[case]} has no slice of class {wanted}")
        return found

    def listed(self, case: int, organ: tuple[int, ...], choice: Choice) -> list[Cut | str]:
        """Files of the slices of an organ on the axes of the choice; of `oblique`, the oblique ones."""
        axes = {-1} if choice.method == "oblique" else {-1, *choice.axes} if choice.oblique else {*choice.axes}
        slices = [entry for entry in self.cases[case]["slices"] if entry["label"] == organ[0]]
        chosen = [entry["file"] for entry in slices if entry["axis"] in axes] or [entry["file"] for entry in slices]
        return cast("list[Cut | str]", chosen)

    def slices(
        self,
        case: int,
        organ: tuple[int, ...],
        first: Cut | str | None,
        count: int,
        choice: Choice,
        generator: np.random.Generator,
    ) -> list[SliceSample]:
        """`count` slices, each once where there are enough of them.

        Raises:
            FileError: a damaged file.
        """
        files = self.listed(case, organ, choice)
        chosen = [] if first is None else [first]
        rest = [file for file in files if file != first] or files
        missing = count - len(chosen)
        if missing:
            places = generator.choice(len(rest), missing, replace=missing > len(rest))
            chosen += [rest[int(place)] for place in places]
        samples = [read_slice_file(self.root / str(file), name=self.names[case]) for file in chosen]
        modality = self.cases[case]["modality"]
        return [sample.replace(image=to_unit(sample.image, modality)) for sample in samples]

    def shape(self, case: int, organ: tuple[int, ...], truncation: float) -> OrganShape:
        """The true shape; its distances are clipped where they were when they were prepared.

        Raises:
            FileError: a damaged file.
            DataError: the case doesn't have the organ.
        """
        key = (case, organ[0])
        if key not in self._shapes:
            path = self.root / self.cases[case]["sdf"]
            found = read_sdf(path, organ[0])
            if found is None:
                raise DataError(f"{path}: class {organ[0]} is absent from this case")
            self._shapes[key] = found
        return self._shapes[key]

    def truth(self, case: int, organ: tuple[int, ...]) -> Tensor:
        """`(D, H, W)` bool on the isotropic grid."""
        labels = read_image(self.root / self.cases[case]["labels"]).array[0]
        return torch.from_numpy(np.isin(labels, organ))

"""Slices and shapes from a folder that `prepare` wrote, for `SliceDataset`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.layouts.files import case_name
from voxelry.data.layouts.prepared import AGAIN, is_prepared_folder, read_manifest
from voxelry.data.prepare.files import read_sdf, read_slice_file
from voxelry.data.prepare.template import TEMPLATE, Template
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.modality import preprocess_like, to_unit
from voxelry.data.slices.augment import move_slice
from voxelry.data.slices.choice import Choice, Cut, Draw, spread_out
from voxelry.data.slices.cut import SliceSample, array_axis
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.data.slices.upright import upright
from voxelry.data.units import Unit
from voxelry.io import open_image, read_image

__all__ = ["PreparedSlices", "check_template", "folder_template", "patient_frame"]

_OBLIQUE = -1  # the axis of oblique slices in a manifest


class PreparedSlices:
    """The slices on disk, with intensities in [0, 1].

    Args:
        root: the folder.
        names: cases to take, in this order, perhaps none; by default all.
        split: `train`, `validation` or `test`, where the data said so; None for all.

    Raises:
        FileError: no manifest, or a damaged one.
        DataError: a case that isn't there, or none of the split.
    """

    def __init__(self, root: str | Path, *, names: Sequence[str] | None = None, split: str | None = None):
        self.root = Path(root)
        self.manifest = read_manifest(root)
        cases = {case["name"]: case for case in self.manifest["cases"]}
        if unknown := [name for name in names or () if name not in cases]:
            raise DataError(f"{self.root}: no case {unknown[0]!r} in its manifest")
        self.cases: list[dict[str, Any]] = [
            cases[name]
            for name in (cases if names is None else names)
            if split is None or cases[name]["split"] == split
        ]
        if not self.cases and names is None:
            known = sorted({case["split"] for case in cases.values()} - {""})
            told = f"its cases are of {', '.join(known)}" if known else "none has one; leave split out"
            raise DataError(f"{self.root}: no case of split {split!r}, {told}")
        self._shapes: dict[tuple[int, int], OrganShape] = {}
        self._motions: dict[int, NDArray[np.float64]] = {}

    @property
    def names(self) -> list[str]:
        """Of the cases."""
        return [str(case["name"]) for case in self.cases]

    def units(self) -> list[Unit]:
        """The cases and their files, whatever the numbers of the samples."""
        settings = {name: self.manifest[name] for name in ("settings", "classes")}
        return [
            Unit(
                name=str(case["name"]),
                image=self.root / "volumes" / f"{case['name']}.nii.gz",
                files=tuple(
                    self.root / name
                    for name in (case["sdf"], case["labels"], *(entry["file"] for entry in case["slices"]))
                ),
                numbers=(),
                settings={"record": case, **settings},
            )
            for case in self.cases
        ]

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

    def check(self) -> None:
        """Look whether every file is there.

        Raises:
            FileError: the first that isn't.
        """
        for case in self.cases:
            for name in (case["sdf"], case["labels"], *(entry["file"] for entry in case["slices"])):
                if not (self.root / name).is_file():
                    raise FileError(self.root / name, "no such file, though the manifest names it", AGAIN)

    def organ_name(self, organ: tuple[int, ...]) -> str:
        """What the manifest calls it."""
        return "+".join(str(self.manifest["classes"].get(str(label), label)) for label in organ)

    def organs_of(self, case: int, organs: Sequence[tuple[int, ...]]) -> list[int]:
        """Places in `organs` of those that a case has slices of.

        Raises:
            SettingError: an organ of several labels, which have to be merged when they are prepared.
            DataError: none.
        """
        found = [place for place, organ in enumerate(organs) if self.has(case, organ)]
        if not found:
            wanted = ", ".join(str(organ[0]) for organ in organs)
            raise DataError(f"{self.root}: case {self.names[case]} has no slice of class {wanted}")
        return found

    def has(self, case: int, organ: tuple[int, ...]) -> bool:
        """Whether a case has slices of an organ.

        Raises:
            SettingError: an organ of several labels, which have to be merged when they are prepared.
        """
        if len(organ) > 1:
            merged = ",".join(map(str, organ))
            raise SettingError(
                f"organs: {list(organ)} is several classes, and {self.root} has slices of one each; prepare it with "
                f"--merge {merged}, or cut slices from its volumes with layout=volumes"
            )
        return any(entry["label"] == organ[0] for entry in self.cases[case]["slices"])

    def listed(self, case: int, organ: tuple[int, ...], choice: Choice) -> list[Cut | str]:
        """Files of the slices of an organ on the axes of the choice, oblique ones among them if it has a chance of any.

        Those that show less than `min_pixels` of it are passed over, unless all do. `uniform` takes up to `count` of
        each axis at even distances, `central` of each the one nearest to the organ's centroid.

        Raises:
            DataError: none is across any of these axes.
        """
        only = choice.method == "oblique" or choice.oblique == 1
        axes = {_OBLIQUE} if only else {*choice.axes} | ({_OBLIQUE} if choice.oblique > 0 else set())
        slices = [entry for entry in self.cases[case]["slices"] if entry["label"] == organ[0]]
        chosen = [entry for entry in slices if entry["axis"] in axes]
        if not chosen:
            raise DataError(
                f"{self.root}: case {self.names[case]} has no slice of class {organ[0]} across {_told(axes)}, but "
                f"across {_told({entry['axis'] for entry in slices})}; choose these by axes and oblique, or prepare "
                "others"
            )
        least = min(choice.min_pixels, max(entry["pixels"] for entry in chosen))
        shown = [entry for entry in chosen if entry["pixels"] >= least]
        if choice.method in ("uniform", "central"):
            groups = [[entry for entry in shown if entry["axis"] == axis] for axis in sorted(axes)]
            shown = [entry for group in groups for entry in self._of_axis(case, organ, group, choice)]
        return cast("list[Cut | str]", [entry["file"] for entry in shown])

    def _of_axis(
        self, case: int, organ: tuple[int, ...], entries: list[dict[str, Any]], choice: Choice
    ) -> list[dict[str, Any]]:
        """Those of one axis that `uniform` or `central` takes."""
        if not entries:
            return []
        entries = sorted(entries, key=lambda entry: int(entry["index"]))
        if choice.method == "uniform" or entries[0]["axis"] == _OBLIQUE:
            return [entries[place] for place in spread_out(len(entries), choice.count)]
        space = open_image(self.root / self.cases[case]["labels"]).space
        shape = read_sdf(self.root / self.cases[case]["sdf"], organ[0])
        assert shape is not None  # it has slices
        middle = float(np.asarray(space.to_index(shape.centroid))[array_axis(space, entries[0]["axis"])])
        return [min(entries, key=lambda entry: abs(int(entry["index"]) - middle))]

    def slices(self, draw: Draw, generator: np.random.Generator) -> list[SliceSample]:
        """See `SliceSource`; each slice once where there are enough of them.

        Raises:
            FileError: a damaged file.
        """
        case = draw.case
        files = self.listed(case, draw.organ, draw.choice)
        chosen = [] if draw.first is None else [draw.first]
        rest = [file for file in files if file != draw.first] or files
        missing = draw.count - len(chosen)
        if missing:
            places = generator.choice(len(rest), missing, replace=missing > len(rest))
            chosen += [rest[int(place)] for place in places]
        samples = [read_slice_file(self.root / str(file), name=self.names[case]) for file in chosen]
        modality, motion = self.cases[case]["modality"], self._motion(case)
        return [move_slice(sample.replace(image=to_unit(sample.image, modality)), motion) for sample in samples]

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
            self._shapes[key] = found.moved(self._motion(case))
        return self._shapes[key]

    def truth(self, case: int, organ: tuple[int, ...]) -> Tensor:
        """`(D, H, W)` bool on the isotropic grid."""
        labels = read_image(self.root / self.cases[case]["labels"]).array[0]
        return torch.from_numpy(np.isin(labels, organ))

    def _motion(self, case: int) -> NDArray[np.float64]:
        if case not in self._motions:
            self._motions[case] = upright(open_image(self.root / self.cases[case]["labels"]).space)
        return self._motions[case]


def patient_frame(path: Path) -> tuple[NDArray[np.float64], Space] | None:
    """How a volume that was registered when it was prepared goes back to its patient.

    Args:
        path: `volumes/NAME.nii.gz` of a prepared folder; any other file is in its own frame.

    Returns:
        `(4, 4)` from the template's world to the patient's, and the grid of the patient's scan; else None.

    Raises:
        FileError: the case's record is damaged.
    """
    record = path.parent.parent / "cases" / f"{case_name(path)}.json"
    if path.parent.name != "volumes" or not record.is_file():
        return None
    try:
        home = json.loads(record.read_text(encoding="utf-8"))["register"]
        if home is None:
            return None
        back = np.linalg.inv(np.asarray(home["matrix"], dtype=np.float64))
        return back, Space(tuple(home["shape"]), np.asarray(home["affine"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(record, f"is damaged: {error}", AGAIN) from None


def folder_template(root: str | Path) -> Template | None:
    """The common frame of a folder's cases; None where they lie in their own, or `prepare` didn't write the folder.

    Raises:
        FileError: the manifest or the template is damaged or gone.
    """
    if not is_prepared_folder(root):
        return None
    settings = read_manifest(root)["settings"]
    if settings["register"] is None:
        return None
    return Template.read(Path(root) / TEMPLATE, settings["transform"], settings["spacing"])


def check_template(root: str | Path, known: Template | None) -> None:
    """Refuse a folder whose cases don't lie in the frame that a model was trained in.

    Args:
        root: a folder of cases.
        known: the model's; None takes any folder.

    Raises:
        DataError: they don't; tells how they come there.
    """
    if known is None:
        return
    own = folder_template(root)
    if own is None or own.digest != known.digest:
        found = "isn't registered" if own is None else "was registered to another template"
        raise DataError(
            f"{root}: {found}, but the model was trained in the frame of its own; bring the scans there with voxelry "
            f"prepare --source SCANS --out FOLDER --register {known.image.source} --transform {known.transform} "
            f"--spacing {known.spacing:g}, and take that folder"
        )


def _told(axes: set[int]) -> str:
    return ", ".join("oblique" if axis == _OBLIQUE else "xyz"[axis] for axis in sorted(axes)) or "none"

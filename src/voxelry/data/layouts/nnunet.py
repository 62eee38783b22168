"""The raw data of nnU-Net: a file for every channel of a case.

    imagesTr/NAME_0000.nii.gz    channel 0; NAME_0001.nii.gz channel 1, ...
    labelsTr/NAME.nii.gz         a class per voxel
    instancesTr/NAME.nii.gz      an id per voxel; without it, each class of a case is one object
    dataset.json                 names the classes and the modality, see `description`

The channels of a case become one image. `imagesTs/` has no labels and is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from voxelry.core.errors import DataError
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.description import description
from voxelry.data.layouts.files import case_name, existing, files_by_name, images_in
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["NnUNet", "files_of_cases"]

_CHANNEL = re.compile(r"_(\d{4})$")


class NnUNet(Layout):
    """`imagesTr/NAME_0000.*` with `labelsTr/NAME.*`."""

    images_alone = True

    def fits(self, root: Path) -> bool:
        """By `imagesTr` with numbers of channels at the end of every name."""
        images = images_in(root / "imagesTr")
        return bool(images) and all(_CHANNEL.search(case_name(path)) for path in images)

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per name without its channel."""
        labels, instances = files_by_name(root / "labelsTr"), files_by_name(root / "instancesTr")
        about = description(root / "dataset.json")
        cases = []
        for name, files in _channels(images_in(existing(root / "imagesTr"))).items():
            image, *others = files
            found = labels.get(name)
            cases.append(
                Case(
                    name,
                    image,
                    labels=found,
                    instances=instances.get(name, found),
                    layout="nnunet",
                    options={"channel_files": [path.name for path in others]} if others else {},
                    **about,
                )
            )
        return cases


def files_of_cases(images: Sequence[Path]) -> list[list[Path]]:
    """The files of each case, in the order of their channels, where a folder's names all end with one; else each alone.

    Raises:
        DataError: cases of other channels than the first.
    """
    folders: dict[Path, list[Path]] = {}
    for path in images:
        folders.setdefault(path.parent, []).append(path)
    cases: list[list[Path]] = []
    for beside in folders.values():
        numbered = all(_CHANNEL.search(case_name(path)) for path in beside)
        cases += _channels(beside).values() if numbered else [[path] for path in beside]
    return cases


def _channels(images: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each case of a folder, in the order of their channels.

    Raises:
        DataError: a name without a channel, or cases of other channels than the first.
    """
    found: dict[str, dict[int, Path]] = {}
    for image in images:
        end = _CHANNEL.search(case_name(image))
        if end is None:
            raise DataError(f"{image}: expected a name that ends with its channel, such as _0000 (layout nnunet)")
        name, number = case_name(image)[: end.start()], int(end[1])
        if number in found.setdefault(name, {}):
            raise DataError(f"{image} and {found[name][number]}: two files for one channel of {name}")
        found[name][number] = image
    for name, files in found.items():
        first = next(iter(found))
        expected = range(max(found[first]) + 1)
        if sorted(files) != [*expected]:
            like = "" if name == first else f" as of {first}"
            raise DataError(
                f"{images[0].parent / name}: has the channels {', '.join(map(str, sorted(files)))}, expected "
                f"{', '.join(map(str, expected))}{like}"
            )
    return {name: [files[number] for number in sorted(files)] for name, files in found.items()}

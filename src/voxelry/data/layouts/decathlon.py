"""The Medical Segmentation Decathlon: channels, where there are several, lie in one file.

    imagesTr/NAME.nii.gz
    labelsTr/NAME.nii.gz       a class per voxel
    instancesTr/NAME.nii.gz    an id per voxel; without it, each class of a case is one object
    dataset.json               names the classes and the modality, see `description`

`imagesTs/` has no labels and is left alone.
"""

from __future__ import annotations

from pathlib import Path

from voxelry.data.layouts.case import Case
from voxelry.data.layouts.description import description
from voxelry.data.layouts.files import case_name, existing, files_by_name, images_in
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["Decathlon"]


class Decathlon(Layout):
    """`imagesTr/NAME.*` with `labelsTr/NAME.*`."""

    images_alone = True

    def fits(self, root: Path) -> bool:
        """By the folder `imagesTr`, which `nnunet` has, too."""
        return (root / "imagesTr").is_dir()

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per image."""
        labels, instances = files_by_name(root / "labelsTr"), files_by_name(root / "instancesTr")
        about = description(root / "dataset.json")
        cases = []
        for image in images_in(existing(root / "imagesTr")):
            name = case_name(image)
            found = labels.get(name)
            objects = instances.get(name, found)
            cases.append(Case(name, image, labels=found, instances=objects, layout="decathlon", **about))
        return cases

"""Our own layout: folders of images, points and labels, in which files belong together by name.

volumes/NAME.nii.gz    any reader's format, 2-D or 3-D
landmarks/NAME.txt     or .csv, .json, .fcsv, .mrk.json, .pts
labels/NAME.nii.gz     a class per voxel, or a closed surface (.ply, .stl, .obj, .glb): what is inside is class 1
instances/NAME.nii.gz  an id per voxel
dataset.json           may name the classes and the modality, see `description`
"""

from __future__ import annotations

from pathlib import Path

from voxelry.data.layouts.case import Case
from voxelry.data.layouts.description import description
from voxelry.data.layouts.files import existing, files_by_name, images_in, no_landmarks, own_name, points_by_name
from voxelry.data.layouts.layout import Layout, Wanted

__all__ = ["Volumes"]


class Volumes(Layout):
    """`volumes/NAME.*` with `landmarks/`, `labels/` and `instances/` beside it, where there are any."""

    images_alone = True
    own_reader = "volumes"

    def fits(self, root: Path) -> bool:
        """By the folder `volumes`."""
        return (root / "volumes").is_dir()

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per image."""
        points, labels, instances = (
            points_by_name(root / "landmarks"),
            files_by_name(root / "labels", surfaces=True),
            files_by_name(root / "instances"),
        )
        about = description(root / "dataset.json")
        cases = []
        for image in images_in(existing(root / "volumes"), wanted.suffix):
            name = own_name(image, wanted.suffix)
            if wanted.landmarks and name not in points:
                raise no_landmarks(image, root / "landmarks" / f"{name}.txt")
            found = (points[name],) if name in points else ()
            cases.append(Case(name, image, found, labels.get(name), instances.get(name), **about))
        return cases

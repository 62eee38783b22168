"""Images alone: a file, a folder of images, or a pattern such as `scans/*.mha`.

NAME.tif
NAME_masks.tif    or NAME_cp_masks.*: its instances, as Cellpose writes them
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxelry.core.errors import DataError
from voxelry.core.remote import as_path
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.files import existing, images_in, own_name
from voxelry.data.layouts.layout import Layout, Wanted
from voxelry.io import is_image

__all__ = ["Images"]

_MASK_ENDS = ("_cp_masks", "_masks")


class Images(Layout):
    """Whatever images there are, with Cellpose's masks beside them."""

    certain = False
    own_reader = "images"

    def fits(self, root: Path) -> bool:
        """Always: what is no other layout is this one."""
        return True

    def cases(self, root: Path, wanted: Wanted) -> list[Case]:
        """One per image that isn't the mask of another."""
        options: dict[str, str] = {}
        if not root.exists() and any(sign in str(root) for sign in "*?["):
            pattern = root.relative_to(root.anchor) if root.anchor else root
            images = [path for path in sorted(Path(root.anchor).glob(str(pattern))) if is_image(path)]
        elif not root.exists() and "::" in str(root):  # an image inside of an HDF5 file
            file, _, inside = str(root).partition("::")
            images, options = [existing(as_path(file))], {"dataset": inside}
        elif existing(root).is_dir() and (wanted.suffix is not None or not is_image(root)):
            images = images_in(root, wanted.suffix)
        else:
            images = [root]
        if wanted.landmarks:
            raise DataError(f"{root}: images alone, without landmarks; expected folders volumes and landmarks")
        names = [own_name(image, wanted.suffix) for image in images]
        masks = _masks(dict(zip(names, images, strict=True))) if wanted.suffix is None else {}
        return [
            Case(name, image, instances=masks.get(name), layout="images", options=options)
            for name, image in zip(names, images, strict=True)
            if image not in masks.values()
        ]


def _masks(images: Mapping[str, Path]) -> dict[str, Path]:
    """Files among the images that are the instances of another, by the other's name.

    Raises:
        DataError: two of one image.
    """
    found: dict[str, Path] = {}
    for name, path in images.items():
        owner = name.removesuffix(next((end for end in _MASK_ENDS if name.endswith(end)), ""))
        if owner != name and owner in images:
            if owner in found:
                raise DataError(f"{path} and {found[owner]}: two files of masks for one image, {owner}")
            found[owner] = path
    return found

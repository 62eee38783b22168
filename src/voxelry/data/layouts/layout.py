"""What a layout of folders is, and the list of them all.

Another package adds one through an entry point of the group `voxelry.layouts`, `dhcp = "my_package:Dhcp"`: a child of
`Layout` with two methods. With `data.layout=auto` ours are asked before it, in the order of the list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from voxelry.core.errors import DataError
from voxelry.core.registry import Registry
from voxelry.data.layouts.case import Case

__all__ = ["LAYOUTS", "Layout", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a layout beside the folder.

    Attributes:
        landmarks: whether a case without points is an error.
        suffix: of files that a reader of one's own reads, see `find.find_cases`; None for our formats.
        options: those of the reading that the layout answers for itself (`Layout.answers`).
        target, conditions, need_target, unpaired: of pairs, see `find.find_pairs`.
    """

    landmarks: bool = False
    suffix: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    conditions: Sequence[str] | None = None
    need_target: bool = True
    unpaired: list[tuple[Path, str]] | None = None

    def refuse(self, path: Path, lacks: str) -> None:
        """Note a file without its partner, or raise for it."""
        if self.unpaired is None:
            raise DataError(f"{path}: unpaired, {lacks}")
        self.unpaired.append((path, lacks))


class Layout(ABC):
    """One way in which people lay out the files of their cases.

    Attributes:
        pairs: whether its cases are `PairCase`: images, and what they are to become.
        certain: whether `fits` means that it is this one; the others are thought of last.
        images_alone: whether the folders of its images hold nothing else, so that any other file there is odd.
        own_reader: the layout by which a reader of one's own finds its files in such a folder, if there is one.
        answers: options of `find_cases` that it follows itself; all others go to the reader of every image.
    """

    pairs: ClassVar[bool] = False
    certain: ClassVar[bool] = True
    images_alone: ClassVar[bool] = False
    own_reader: ClassVar[str | None] = None
    answers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def fits(self, root: Path) -> bool:
        """Whether a folder or file looks like it, by names alone."""

    @abstractmethod
    def cases(self, root: Path, wanted: Wanted) -> Sequence[Case]:
        """The cases of a folder or file, in any order.

        Raises:
            DataError: files that don't belong together as they should; the message names one.
            FileError: a table can't be read, or a folder isn't there.
            SettingError: something is asked for that there isn't.
        """


LAYOUTS: Registry[type[Layout]] = Registry(
    "layouts",
    "layout",
    {
        "volumes": "voxelry.data.layouts.volumes:Volumes",
        "prepared": "voxelry.data.layouts.prepared:Prepared",
        "chest": "voxelry.data.layouts.chest:Chest",
        "cephalometric": "voxelry.data.layouts.cephalometric:Cephalometric",
        "hand": "voxelry.data.layouts.hand:Hand",
        "nnunet": "voxelry.data.layouts.nnunet:NnUNet",
        "decathlon": "voxelry.data.layouts.decathlon:Decathlon",
        "masks": "voxelry.data.layouts.masks:Masks",
        "bids": "voxelry.data.layouts.bids:Bids",
        "tracking": "voxelry.data.layouts.tracking:Tracking",
        "totalsegmentator": "voxelry.data.layouts.totalsegmentator:TotalSegmentator",
        "list": "voxelry.data.layouts.table:Table",
        "ab": "voxelry.data.layouts.ab:AB",
        "ldfdct": "voxelry.data.layouts.ldfdct:LowDoseCT",
        "csv": "voxelry.data.layouts.pair_table:PairTable",
        "suffixes": "voxelry.data.layouts.suffixes:Suffixes",
        "dicom": "voxelry.data.layouts.dicom:Dicom",
        "hdf5": "voxelry.data.layouts.hdf5:Hdf5",
        "contrasts": "voxelry.data.layouts.contrasts:Contrasts",
        "pmub": "voxelry.data.layouts.pmub:Pmub",
        "images": "voxelry.data.layouts.images:Images",
    },
)
"""Children of `Layout` by name, in the order in which `auto` asks whether a folder looks like them."""

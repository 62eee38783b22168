"""A prepared folder as one sample for each slice, with all classes at once: per-class masks and distances.

    planes = PreparedPlanes("prepared", method="random_axis", image_size=256, distances=True)
    planes[0]["image"], planes[0]["masks"], planes[0]["mask_sdf"]

`SliceDataset` makes prompts of one organ for `reconstruct`; this is for networks of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.errors import SettingError
from voxelry.core.settings import settle
from voxelry.core.space import Space
from voxelry.data.dataset import one_line_errors
from voxelry.data.prepare.files import nifti_affine, pointmap_range, read_class_map, read_full_sdf, read_slice_file
from voxelry.data.prepare.source import PreparedSlices
from voxelry.data.preprocess.frame import index_map
from voxelry.data.preprocess.modality import to_unit
from voxelry.data.slices.choice import Choice, Cut, choose_cuts
from voxelry.data.slices.cut import SliceSample, draw_click, regrid, take_labels, view_plane
from voxelry.data.slices.pointmaps import masked_pointmap
from voxelry.io import read_image
from voxelry.ops.resample import resample

__all__ = ["PreparedPlanes"]


class PreparedPlanes(torch.utils.data.Dataset[dict[str, Any]]):
    """Slices of a folder that `voxelry prepare` wrote, each a mapping.

    `name`; `label`, the class that the slice was chosen for; `image (C, H, W)` float32 in [0, 1]; `mask (1, H, W)`
    float32 of that class and `masks (K, H, W)` of each of `classes`; `click (2,)`, row and column of a random pixel of
    the mask; `pointmap (3, H, W)` world mm, NaN outside of the mask; `pointmap_scale (3,)` and `pointmap_shift (3,)`,
    see `write_slice_file`; `affine (4, 4)` of the volume as NIfTI has it, `plane_affine (4, 3)`, (row, column, 1) to
    world mm; `axis` and `slice_idx`, -1 of oblique ones; `gt_sdf_path` and `gt_mesh_path`, the latter empty where no
    meshes were written; with `distances`, `mask_sdf (K, D, H, W)` float32 mm of the classes on the volume's grid,
    array order.

    Args:
        root: the folder.
        classes: class numbers that `masks` and `mask_sdf` are of, by default all of the folder.
        cache_slices: take the slices on disk; else cut them from the folder's volumes.
        image_size: pixels of a square around the slice that it is brought to; None leaves it as it is.
        distances: whether `mask_sdf` is read.
        names, split: of the cases, see `PreparedSlices`.
        seed: of slices and clicks.
        choice: of a `data.slices.choice.Choice`: `method`, `axes`, `count`, `oblique` and `min_pixels`. `random_axis`
            and `oblique` are one slice of each class and case in an epoch, drawn anew in each; `uniform`, `central`
            and `all` one item for each slice.

    Raises:
        FileError: no manifest, or a damaged file.
        DataError: a case or split that there isn't.
        SettingError: an unknown method or class.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[int] | None = None,
        cache_slices: bool = True,
        image_size: int | None = None,
        distances: bool = False,
        names: Sequence[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        **choice: Any,
    ):
        self.source = PreparedSlices(root, names=names, split=split)
        known = [int(label) for label in self.source.manifest["classes"]]
        self.classes = known if classes is None else [int(label) for label in classes]
        if strange := [label for label in self.classes if label not in known]:
            raise SettingError(f"classes: expected some of {known}, got {strange[0]}")
        self.choice = settle(Choice, {"min_pixels": 1, **choice})
        self.cache_slices, self.image_size, self.distances, self.seed = cache_slices, image_size, distances, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.items = [
            (case, label, cut)
            for case in range(len(self.source.names))
            for label in self.classes
            if self.source.has(case, (label,))
            for cut in self._listed(case, label)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """Draw other slices and clicks from now on; reaches the workers of a DataLoader, too."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Slice `index`; see the class."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)}")
        with one_line_errors():
            return self._sample(index % len(self))

    def _listed(self, case: int, label: int) -> list[Cut | str | None]:
        if self.choice.method in ("random_axis", "oblique"):
            return [None]
        if self.cache_slices:
            return [*self.source.listed(case, (label,), self.choice)]
        return [*self._cuts(self._volume(case, "labels"), label, np.random.default_rng(0))]

    def _cuts(self, volume: tuple[Tensor, Space], label: int, generator: np.random.Generator) -> list[Cut]:
        count = self.choice.count if self.choice.method == "uniform" else 1
        return choose_cuts((volume[0][0] == label).numpy(), volume[1], self.choice, generator, count=count)

    def _volume(self, case: int, part: str) -> tuple[Tensor, Space]:
        read = read_image(self.source.root / self.source.cases[case][part])
        return torch.from_numpy(read.array.astype(np.float32 if part == "volume" else np.int64)), read.space

    def _sample(self, index: int) -> dict[str, Any]:
        case, label, cut = self.items[index]
        generator = np.random.default_rng([self.seed, int(self._epoch), index])
        taken = self._from_disk if self.cache_slices else self._from_volume
        slice_, labels = taken(case, label, cut, generator)
        slice_, labels = self._resized(slice_, labels)
        assert slice_.mask is not None
        assert slice_.volume_space is not None
        points = masked_pointmap(slice_.space, slice_.mask)
        shift, scale = pointmap_range(points, max(slice_.space.spacing))
        record, root = self.source.cases[case], self.source.root
        mesh = record["meshes"].get(str(label))
        axis = -1 if slice_.axis is None else slice_.volume_space.closest_axes()[slice_.axis][0]
        sample = {
            "name": self.source.names[case],
            "label": label,
            "image": to_unit(slice_.image, record["modality"]),
            "mask": slice_.mask[None].float(),
            "masks": torch.stack([labels == one for one in self.classes]).float(),
            "click": draw_click(slice_.mask, generator),
            "pointmap": points,
            "pointmap_scale": torch.from_numpy(scale),
            "pointmap_shift": torch.from_numpy(shift),
            "affine": torch.from_numpy(nifti_affine(slice_.volume_space)),
            "plane_affine": torch.from_numpy(slice_.space.affine.copy()),
            "axis": axis,
            "slice_idx": -1 if slice_.slice_idx is None else slice_.slice_idx,
            "gt_sdf_path": str(root / record.get("sdf_full", record["sdf"])),
            "gt_mesh_path": "" if mesh is None else str(root / mesh),
        }
        if self.distances:
            sample["mask_sdf"] = torch.from_numpy(read_full_sdf(root / record["sdf"], self.classes))
        return sample

    def _from_disk(
        self, case: int, label: int, cut: Cut | str | None, generator: np.random.Generator
    ) -> tuple[SliceSample, Tensor]:
        file = cut
        if file is None:
            files = self.source.listed(case, (label,), self.choice)
            file = files[int(generator.integers(len(files)))]
        path = self.source.root / str(file)
        return read_slice_file(path, name=self.source.names[case]), read_class_map(path)

    def _from_volume(
        self, case: int, label: int, cut: Cut | str | None, generator: np.random.Generator
    ) -> tuple[SliceSample, Tensor]:
        (image, space), labels = self._volume(case, "volume"), self._volume(case, "labels")
        chosen = cut if isinstance(cut, Cut) else self._cuts(labels, label, generator)[0]
        whole = labels[0][0]
        sample = chosen.take(image, whole, space, label=label, name=self.source.names[case])
        return sample, take_labels(whole, space, axis=chosen.axis, index=chosen.index, plane=chosen.plane)

    def _resized(self, sample: SliceSample, labels: Tensor) -> tuple[SliceSample, Tensor]:
        if self.image_size is None:
            return sample, labels
        middle = np.asarray(sample.space.to_world((np.asarray(sample.space.shape) - 1) / 2))
        target = view_plane(sample.space, middle, max(sample.space.extent), self.image_size)
        moved = resample(labels[None].to(torch.int64), *index_map(sample.space, target), target.shape, order=0)[0]
        return regrid(sample.replace(pointmap=None), target)[0], moved

"""The record of a data set: plain values, that go to JSON and come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from voxelry.core.space import Space

__all__ = ["UNKNOWN", "CaseFacts", "Fingerprint"]

UNKNOWN = "unknown"
_ENOUGH = 4  # cases that one can be told to be unlike
_ALIKE = 0.5  # correlation of coarse images
_APART, _TIMES = 0.15, 4.0  # shares of the range, and times the usual distance, that it is away at least


@dataclass(frozen=True)
class CaseFacts:
    """What is known of one case; what wasn't looked at is None or empty.

    Attributes:
        name, image: of the case, and its file.
        group: what it shares with others that a split must not part it from; its own name where it shares nothing.
        split: `train`, `validation` or `test` where the data say so.
        fault: why a part of it can't be read, in one line; what would follow from that part is missing.
        shape, affine: its grid in array order, see `core.space.Space`; the affine as rows. Empty without a header.
        placed: whether the file says where its voxels lie, or how far apart they are.
        channels, dtype, format: of its pixels and file.
        conditions: of a pair, channels of each image that is given; empty for one that this case lacks.
        modality: `ct`, `mr`, `us`, `xray`, `fluorescence`, another of DICOM's in lower case, or `unknown`.
        quantiles: of the finite values of the sampled windows, all channels: the smallest, 0.5, 25, 50, 75 and 99.5 %,
            the largest.
        coarse: means over thirds of the middle window along each axis, in the order of the patient's axes (SAR) and C
            order; empty of images too small for that.
        digest: of the sampled windows; two cases of one digest and shape are copies.
        landmarks: names of its points; `absent` of them have no position.
        classes: share of the sampled voxels by label value, 0 among them.
        objects: extents in voxels, per axis, of the objects of the file of instances, else of the label values.
    """

    name: str
    image: str
    group: str = ""
    split: str = ""
    fault: str = ""
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    placed: bool = False
    channels: int = 0
    dtype: str = ""
    format: str = ""
    conditions: tuple[int, ...] = ()
    modality: str = UNKNOWN
    quantiles: tuple[float, ...] = ()
    coarse: tuple[float, ...] = ()
    digest: str = ""
    landmarks: tuple[str, ...] = ()
    absent: int = 0
    classes: Mapping[int, float] = field(default_factory=dict)
    objects: tuple[tuple[int, ...], ...] = ()

    @property
    def space(self) -> Space:
        """The grid of the image, of a case whose header was read."""
        return Space(self.shape, np.asarray(self.affine))

    @property
    def empty(self) -> bool:
        """Whether all sampled values are the same; False where none were sampled."""
        return bool(self.quantiles) and self.quantiles[0] >= self.quantiles[-1]


@dataclass(frozen=True)
class Fingerprint:
    """What is known of a data set.

    Attributes:
        root: its folder or file.
        pairs: whether its cases are images and what they are to become.
        cases: by name.
    """

    root: str
    pairs: bool
    cases: tuple[CaseFacts, ...]

    @property
    def readable(self) -> list[CaseFacts]:
        """The cases whose headers were read."""
        return [case for case in self.cases if case.shape]

    @property
    def ndim(self) -> int:
        """The rank that most of the images have; 3 where none can be read."""
        ranks = Counter(len(case.shape) for case in self.readable)
        return ranks.most_common(1)[0][0] if ranks else 3

    @property
    def modality(self) -> str:
        """The modality of most of those whose modality is known."""
        known = Counter(case.modality for case in self.readable if case.modality != UNKNOWN)
        return known.most_common(1)[0][0] if known else UNKNOWN

    @property
    def sampled(self) -> list[CaseFacts]:
        """The cases whose values were looked at."""
        return [case for case in self.readable if case.quantiles]

    @property
    def unlike_ct(self) -> list[CaseFacts]:
        """Where most are CT, those that aren't by their values: of another modality, or stored with an offset."""
        return [case for case in self.sampled if case.modality != "ct"] if self.modality == "ct" else []

    @property
    def groups(self) -> int:
        """Cases that a split may part from each other."""
        return len({case.group or case.name for case in self.cases})

    @property
    def landmark_names(self) -> tuple[str, ...]:
        """Of the first case that has any."""
        return next((case.landmarks for case in self.cases if case.landmarks), ())

    @property
    def classes(self) -> dict[int, float]:
        """Mean share of the voxels by label value, over the cases whose labels were sampled."""
        sampled = [case.classes for case in self.cases if case.classes]
        values = sorted({value for shares in sampled for value in shares})
        return {value: sum(shares.get(value, 0.0) for shares in sampled) / len(sampled) for value in values}

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of cases that hold the same pixels, as far as these were sampled."""
        alike: dict[tuple[Any, ...], list[str]] = {}
        for case in self.cases:
            if case.digest:
                alike.setdefault((case.digest, case.shape), []).append(case.name)
        return [names for names in alike.values() if len(names) > 1]

    @property
    def inverted(self) -> list[str]:
        """Names of cases that are bright where the others are dark.

        Told by how their values lie between the extremes, or by where in the image they are high.
        """
        turned = {*self._turned_values(), *self._turned_places()}
        return [case.name for case in self.readable if case.name in turned]

    def _turned_values(self) -> list[str]:
        """Cases whose quartiles lie as the others' do once they are turned round."""
        names, places = [], []
        for case in self.readable:
            low, high = (case.quantiles[1], case.quantiles[-2]) if case.quantiles else (0.0, 0.0)
            if low < high:
                names.append(case.name)
                places.append((np.array(case.quantiles[2:5]) - low) / (high - low))
        if len(names) < _ENOUGH:
            return []
        usual = np.median(places, axis=0)
        away = np.abs(places - usual).max(axis=1)
        turned = np.abs(1 - np.array(places)[:, ::-1] - usual).max(axis=1)
        least = max(_APART, _TIMES * float(np.median(away)))
        return [name for name, own, other in zip(names, away, turned, strict=True) if own > least and other < own / 3]

    def _turned_places(self) -> list[str]:
        """Cases that are correlated negatively with the usual image, where most look like it."""
        found = {case.name: np.array(case.coarse) for case in self.readable if len(set(case.coarse)) > 1}
        size = Counter(map(len, found.values())).most_common(1)
        alike = {name: values for name, values in found.items() if len(values) == size[0][0]}
        if len(alike) < _ENOUGH:
            return []
        rows = np.array([(values - values.mean()) / values.std() for values in alike.values()])
        usual = np.median(rows, axis=0)
        if not usual.std():
            return []
        correlation = rows @ (usual - usual.mean()) / (usual.std() * rows.shape[1])
        if np.median(correlation) < _ALIKE:
            return []
        return [name for name, value in zip(alike, correlation, strict=True) if value < -_ALIKE]

    def object_sizes(self) -> np.ndarray:
        """Cube root (square root of images) of the boxes of all sampled objects in mm, `(K,)`."""
        sizes = [
            np.prod(np.asarray(case.objects) * case.space.spacing, axis=1) ** (1 / len(case.shape))
            for case in self.readable
            if case.objects
        ]
        return np.concatenate(sizes) if sizes else np.empty(0)

    def plain(self) -> dict[str, Any]:
        """Plain values that can go to JSON; `of` makes the same of them again."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """A record from what `plain` gave.

        Raises:
            TypeError, KeyError, ValueError: it is something else.
        """
        return cls(str(values["root"]), bool(values["pairs"]), tuple(_case(one) for one in values["cases"]))


def _case(values: Mapping[str, Any]) -> CaseFacts:
    numbers = {int(value): float(share) for value, share in values["classes"].items()}
    listed = {
        name: tuple(tuple(one) if isinstance(one, list) else one for one in value)
        for name, value in values.items()
        if isinstance(value, list | tuple)
    }
    return CaseFacts(**{**values, **listed, "classes": numbers})

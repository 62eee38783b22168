"""Which cases a model has seen: by what is in their files, and by their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxelry.core.errors import FileError
from voxelry.data.crops.digest import digest
from voxelry.data.prepare.source import PreparedSlices

__all__ = [
    "SEEN_WORDS",
    "case_digests",
    "cases_of_parts",
    "describe_seen",
    "digests_of_parts",
    "image_digest",
    "lineage",
    "seen_as",
    "seen_cases",
]

_PARTS = ("train", "validation")
_EARLIER = "pretraining"
SEEN_WORDS = (*_PARTS, _EARLIER)


def digests_of_parts(splits: Any) -> dict[str, dict[str, str]]:
    """`case_digests` of the train, validation and test cases of a run (`data.parts.Splits`)."""
    return {part: case_digests(getattr(splits, part), names) for part, names in splits.names.items()}


def case_digests(dataset: Any, names: Any = None) -> dict[str, str]:
    """Name to digest of the image of every case, see `data.crops.digest`; empty text where there is no file to read.

    Args:
        dataset: of volumes, pairs, slices or crops.
        names: which cases; None for all of the dataset.
    """
    paths = _images(dataset)
    return {name: image_digest(paths.get(name)) for name in (paths if names is None else names)}


def image_digest(path: Path | None) -> str:
    """The digest of an image; empty text where there is no file to read."""
    if path is None:
        return ""
    try:
        return digest(path)
    except FileError:
        return ""


def cases_of_parts(digests: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """What `lineage` has of one training, from the digests of its parts."""
    known = {part: dict(digests.get(part) or {}) for part in _PARTS}
    return {part: list(found) for part, found in known.items()} | {"digests": known}


def lineage(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases of the training that made a bundle, and of those that its weights come from, the latest first.

    Args:
        config: the bundle's. What its weights were begun from is `data.earlier`.

    Returns:
        For each training the names of its `train` and `validation` cases and, by part, their `digests`.
    """
    data = config.get("data") or {}
    own: dict[str, Any] = {part: list(data.get(part) or ()) for part in _PARTS}
    digests = data.get("digests") or {}
    own["digests"] = {part: dict(digests[part] or {}) for part in _PARTS if part in digests}
    return [own, *(data.get("earlier") or ())]


def seen_cases(config: Mapping[str, Any], cases: Mapping[str, str]) -> dict[str, str]:
    """Of these cases those that a bundle was made with, and how: one of `SEEN_WORDS`, or `... (name alone)`.

    A case counts as seen when its image has the bytes of one of the bundle's, whatever it is called. One that only is
    called as one of them, with other bytes, may be a copy in another format or another case altogether. `pretraining`
    are the cases of whatever the training began with, see `lineage`.

    Args:
        config: the bundle's; one that was written before bundles kept digests has names alone.
        cases: name to digest, of `case_digests`.
    """
    own, *earlier = lineage(config)
    found = _seen_in(own, cases)
    for record in earlier:
        for name, how in _seen_in(record, cases).items():
            word = how.replace(how.partition(" ")[0], _EARLIER)
            if name not in found or (word == _EARLIER and found[name] not in SEEN_WORDS):
                found[name] = word
    return found


def _seen_in(record: Mapping[str, Any], cases: Mapping[str, str]) -> dict[str, str]:
    """Of these cases those of one training, and how."""
    digests = record["digests"]
    contents = {digest: part for part in _PARTS for digest in (digests.get(part) or {}).values() if digest}
    names = {name: part for part in _PARTS for name in record[part]}
    found = {}
    for name, own in cases.items():
        if own in contents:
            found[name] = contents[own]
        elif name in names:
            found[name] = f"{names[name]} (name alone)" if digests else names[name]
    return found


def seen_as(name: str, seen: Mapping[str, str]) -> str:
    """How the case of a row was seen, empty text where it was not; a row's name may go on after that of its case."""
    case = max((case for case in seen if name == case or name.startswith(f"{case} ")), key=len, default="")
    return seen.get(case, "")


def describe_seen(seen: Mapping[str, str]) -> list[str]:
    """Lines for people: which cases are no test of the model."""
    lines = []
    told = ("was trained on", "was chosen by", "began with weights made with")
    for part, verb in zip(SEEN_WORDS, told, strict=True):
        names = sorted(name for name, how in seen.items() if how == part)
        if names:
            lines.append(f"the model {verb} {len(names)} of these cases: {_few(names)}")
    alike = sorted(name for name, how in seen.items() if how not in SEEN_WORDS)
    if alike:
        lines.append(
            f"{len(alike)} cases have names of cases that the model was made with, but other contents, and count as "
            f"unseen; if they are copies in another format, they are no test: {_few(alike)}"
        )
    return lines


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _images(dataset: Any) -> dict[str, Path]:
    if hasattr(dataset, "source"):  # slices of volumes, or as they were prepared
        dataset = dataset.source
    dataset = getattr(dataset, "volumes", dataset)
    if isinstance(dataset, PreparedSlices):
        return {name: dataset.root / "volumes" / f"{name}.nii.gz" for name in dataset.names}
    if hasattr(dataset, "index"):
        return {file.name: file.image.path for file in dataset.files}
    return {case.name: case.image for case in getattr(dataset, "cases", ())}

"""The datasets of a reconstruction run over a folder that `voxelry prepare` wrote: its slices as they are on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from voxelry.core.errors import DataError, SettingError
from voxelry.core.settings import keywords
from voxelry.data.layouts.prepared import is_prepared_folder, prepared_cases
from voxelry.data.parts import Splits, divide, named_cases
from voxelry.data.prepare.source import PreparedSlices, folder_template
from voxelry.data.preprocess import Preprocess
from voxelry.data.slices.choice import Choice
from voxelry.tasks.reconstruct.prompts import prompts

__all__ = ["build_prepared", "check_standard", "held_out_axes", "prepared_source", "reads_prepared"]

_RANK = 3
_INSTEAD = "prepare it anew, or cut slices from its volumes with data.layout=volumes"

Organs = Sequence[tuple[int, ...]]
log = logging.getLogger("voxelry")


def reads_prepared(root: str | Path, layout: str) -> bool:
    """Whether slices are taken as they were prepared; other layouts than `prepared` cut them from the volumes there."""
    return layout == "prepared" or (layout == "auto" and is_prepared_folder(root))


def build_prepared(config: DictConfig, *, ndim: int, augment: DictConfig | None = None, seed: int = 0) -> Splits:
    """Split and wrap the slices of the prepared folder `config.root`; arguments as `engine.data.build_data`.

    Cases without any of the organs are left out. Where `slices.organs` is null, every class is learned that the
    training cases have. Images are standardised as the folder's are; `config.preprocess` is not asked.

    Raises:
        FileError: no manifest, or a file that it names isn't there.
        SettingError: a setting that slices on disk can't follow; names it.
        DataError: another rank than 3, cases of several modalities, no case with the organs, or one without a slice
            across the axes that are asked for.
    """
    root = Path(config.root)
    if ndim != _RANK:
        raise DataError(f"{root}: slices of volumes, but ndim={ndim} is configured")
    whole = PreparedSlices(root)
    _check_followed(config, augment, whole)
    settings = keywords(config.slices)
    if _is_oblique(whole):
        settings["oblique"] = 1.0
    classes = [int(label) for label in whole.manifest["classes"]]
    organs = [(one,) if isinstance(one, int) else tuple(one) for one in settings["organs"] or classes]
    having = prepared_source(root, organs)
    parts = divide([case for case in prepared_cases(root) if case.name in having.names], config, seed)
    names = {part: [case.name for case in cases] for part, cases in parts.items()}
    if not settings["organs"]:
        train = PreparedSlices(root, names=names["train"])
        organs = [organ for organ in organs if any(train.has(case, organ) for case in range(len(train.names)))]
    sources = {part: _having(root, organs, found) for part, found in names.items()}
    for source in sources.values():
        source.check()
        _check_axes(source, organs, settings)
    preprocess = sources["train"].preprocess()
    _tell(whole, sources, organs)
    return Splits(
        **prompts(sources, {**settings, "organs": organs}, seed),
        preprocess=preprocess,
        names={part: source.names for part, source in sources.items()},
        template=folder_template(root),
    )


def prepared_source(root: Path, organs: Organs, file: Path | None = None) -> PreparedSlices:
    """The cases of a prepared folder that have slices of some organs.

    Args:
        root: the folder.
        organs: label values of each.
        file: a list of cases, see `data.parts.named_cases`; by default all.

    Raises:
        FileError: no manifest, or a list that can't be read.
        DataError: the list names an unknown case, or no case has the organs.
    """
    found = _having(root, organs, [case.name for case in named_cases(prepared_cases(root), file)])
    if not found.names:
        classes = ", ".join(f"{label} ({name})" for label, name in found.manifest["classes"].items())
        wanted = ", ".join("+".join(map(str, organ)) for organ in organs)
        raise DataError(f"{root}: no case has a slice of class {wanted}; the folder's classes are {classes}")
    return found


def check_standard(source: PreparedSlices, preprocess: Preprocess) -> None:
    """Refuse slices whose intensities and grid aren't what a trained model is used to.

    Raises:
        DataError: they differ in a setting; names it.
    """
    own, wanted = source.preprocess().settings(), preprocess.settings()
    for name, value in own.items():
        if value != wanted[name]:
            raise DataError(
                f"{source.root}: prepared with {name} {value}, but the model was trained with {wanted[name]}; measure "
                "on the volumes that it was prepared from"
            )


def held_out_axes(source: PreparedSlices) -> dict[str, Any]:
    """Settings of a `SliceDataset` that lets it draw from whatever slices there are."""
    return {"axes": (0, 1, 2), "oblique": float(_is_oblique(source))}


def _having(root: Path, organs: Organs, names: Sequence[str]) -> PreparedSlices:
    source = PreparedSlices(root, names=names)
    having = [name for case, name in enumerate(source.names) if any(source.has(case, organ) for organ in organs)]
    return PreparedSlices(root, names=having)


def _is_oblique(source: PreparedSlices) -> bool:
    return bool(source.manifest["settings"]["slices"] == "oblique")


def _check_followed(config: DictConfig, augment: DictConfig | None, source: PreparedSlices) -> None:
    """Refuse settings that slices on disk can't follow.

    Raises:
        SettingError: names the first of them.
    """
    made = source.manifest["settings"]
    own = {**source.preprocess().settings(), "channels": None}
    for name in ("image_size", "spacing", "window", "channels"):
        value = config.preprocess.get(name)
        value = list(value) if isinstance(value, ListConfig) else value
        if value is not None and value != own[name]:
            told = "as it is" if own[name] is None else f"with {own[name]}"
            raise SettingError(f"data.preprocess.{name}: {source.root} was prepared {told}, got {value}; {_INSTEAD}")
    for name, value in (
        ("patches", config.patches),
        ("options", keywords(config.options)),
        ("augment", keywords(augment)),
    ):
        if value:
            where = name if name == "augment" else f"data.{name}"
            raise SettingError(f"{where}: is for volumes, and {source.root} holds slices; {_INSTEAD}")
    if config.slices.truncation > made["truncation"]:
        raise SettingError(
            f"data.slices.truncation: {source.root} was prepared with distances up to {made['truncation']:g} mm, got "
            f"{config.slices.truncation:g}; {_INSTEAD}"
        )
    if _is_oblique(source) and not config.slices.oblique:
        raise SettingError(f"data.slices.oblique: {source.root} has no other slices, got 0; {_INSTEAD}")


def _check_axes(source: PreparedSlices, organs: Organs, settings: Mapping[str, Any]) -> None:
    """Ask for every case's slices once, before a training does."""
    known = [field.name for field in fields(Choice)]
    choice = Choice(**{name: settings[name] for name in known if name in settings})
    for case in range(len(source.names)):
        for place in source.organs_of(case, organs):
            source.listed(case, organs[place], choice)


def _tell(whole: PreparedSlices, sources: Mapping[str, PreparedSlices], organs: Organs) -> None:
    """What was found, and what there might be missing of it."""
    count, there = sum(len(source.names) for source in sources.values()), len(whole.names)
    log.info(
        "%s: prepared slices of %s; data.preprocess is that of the folder",
        whole.root,
        ", ".join(whole.organ_name(organ) for organ in organs),
    )
    if count < there:
        log.info("%s: %d of %d cases aren't used, for their classes or by the split", whole.root, there - count, there)
    if not whole.manifest["complete"]:
        log.warning("%s: its preparation isn't complete; run voxelry prepare again for the other cases", whole.root)

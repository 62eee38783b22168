"""A trained model on disk: weights, settings and a card; nothing in it can run code.

A bundle is a folder with `weights.safetensors`, `config.yaml` and `card.md`, and of a model that was trained on
registered scans their `template.nii.gz`. The weights file carries
the SHA-256 of the settings, so that a settings file that was changed afterwards, and would silently
put points in the wrong place, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import voxelry
from voxelry.bundle.earlier import network_of_today
from voxelry.bundle.registry import TASKS, recipe_named, recipe_of
from voxelry.bundle.settings import FILES, FORMAT, bundle_folder, digest, read_settings
from voxelry.bundle.task import StoredTask
from voxelry.bundle.template import read_template, template_record
from voxelry.core.atomic import replacing
from voxelry.core.choice import check_choice
from voxelry.core.errors import CheckpointError, ConfigError, FileError, SettingError
from voxelry.core.fetch import fetch, named_as
from voxelry.core.remote import Remote, as_path
from voxelry.data.prepare.template import TEMPLATE, Template
from voxelry.data.preprocess import Preprocess
from voxelry.metrics.choice import MetricChoice
from voxelry.models.networks import NETWORKS, build_network, describe_network

__all__ = ["Bundle", "describe", "read_bundle", "write_bundle"]

TaskT = TypeVar("TaskT", bound=StoredTask)

_OWN = (*FILES, TEMPLATE)
_METRICS = "metrics."  # before the names of changes of what an evaluation tells


@dataclass
class Bundle(Generic[TaskT]):
    """What a bundle holds.

    Attributes:
        task: the trained task, in eval mode, on the CPU.
        preprocess: what every image goes through before the network sees it.
        config: the whole settings file, with `data` and `training` for the record.
        path: the folder.
        template: the frame that the training's scans were registered to; None where they lay in their own.
    """

    task: TaskT
    preprocess: Preprocess
    config: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    template: Template | None = None


def describe(task: StoredTask) -> dict[str, Any]:
    """Names and settings from which `build` makes the same task again.

    Raises:
        SettingError: the task or its network is of a kind that bundles don't know.
    """
    return {
        "task": {"name": recipe_of(task).name, **task.settings()},
        "network": describe_network(task.network),
    }


def build(description: dict[str, Any], source: Path) -> StoredTask:
    """The task of a `describe` answer, freshly initialised.

    Raises:
        ConfigError: a name or a setting is unknown; the message names `source`.
    """
    network = _construct(description, "network", NETWORKS, build_network, source)
    task: StoredTask = _construct(
        description, "task", TASKS, lambda name, settings: recipe_named(name).task(**settings), source, network=network
    )
    return task


def _construct(
    description: dict[str, Any],
    part: str,
    names: Iterable[str],
    make: Callable[[str, dict[str, Any]], Any],
    source: Path,
    **built: Any,
) -> Any:
    settings = dict(description.get(part) or {})
    name = settings.pop("name", None)
    check_choice(f"{source}: {part}.name", name, names, ConfigError)
    try:
        return make(name, {**built, **settings})
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # torch and Python have many words for a value that can't be
        raise ConfigError(f"{source}: {part}: {error}") from error


def write_bundle(
    folder: Path,
    task: StoredTask,
    preprocess: Preprocess,
    *,
    record: dict[str, Any],
    card: str,
    template: Template | None = None,
) -> Path:
    """Write a bundle, whole or not at all; an older one at the same place is replaced.

    Args:
        folder: the bundle's folder.
        task: the trained task.
        preprocess: how its images are prepared.
        record: plain values kept for people: data, training, metrics.
        card: the model card, markdown.
        template: what its scans were registered to, if they were.

    Raises:
        FileError: the disk is full or the place can't be written.
    """
    folder = as_path(folder)
    config = {
        "format": FORMAT,
        "voxelry": voxelry.__version__,
        **describe(task),
        "preprocess": preprocess.settings(),
        **template_record(template),
        **record,
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in task.state_dict().items()}
    if folder.is_dir():
        _check_ours(folder)
    with replacing(folder, "the bundle can't be written") as place:
        place.mkdir()
        (place / "config.yaml").write_text(text, encoding="utf-8")
        (place / "card.md").write_text(card, encoding="utf-8")
        if template is not None:
            template.write(place / TEMPLATE)
        save_file(state, place / "weights.safetensors", metadata={"config_sha256": digest(text.encode())})
    return folder


def _check_ours(folder: Path) -> None:
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in _OWN)
    if strangers:
        raise FileError(folder, f"holds {strangers[0]}, which is no part of a bundle", "choose another folder")


def read_bundle(folder: str | PathLike[str], changes: Mapping[str, Any] | None = None) -> Bundle[Any]:
    """Load a bundle.

    Args:
        folder: where it is, here or elsewhere, or the folder of the run that made it; its files stay as they are.
        changes: other values of settings that only say how a trained model is used, such as
            `{"task.tile_size": 192}`; `tasks.recipe.Recipe.adjustable` lists them for each task. Those that begin with
            `metrics.` say what an evaluation tells, see `metrics.choice`.

    Raises:
        CheckpointError: not a bundle, settings changed since it was written, weights that don't fit.
        ConfigError: the settings name something this version doesn't know.
        SettingError: a change of a setting that the model was trained with, or to a value that can't be.
    """
    folder = bundle_folder(folder)
    if isinstance(folder, Remote):
        return _read_copy(folder, changes)
    config = read_settings(folder)
    weights, config_path = folder / FILES[0], folder / FILES[1]
    try:
        with safe_open(weights, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights}: not a readable safetensors file: {error}") from error
    config["network"] = network_of_today(config.get("network"))
    changes = dict(changes or {})
    choice = {name.removeprefix(_METRICS): changes.pop(name) for name in list(changes) if name.startswith(_METRICS)}
    task = build(_changed(config, changes, config_path), config_path)
    load_weights(task, state, weights)
    task.choose(MetricChoice.from_settings(((config.get("training") or {}).get("metrics") or {}) | choice))
    try:
        preprocess = Preprocess(**config.get("preprocess", {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{config_path}: preprocess: {error}") from error
    template = read_template(folder, config)
    return Bundle(task=task.eval(), preprocess=preprocess, config=config, path=folder, template=template)


def _read_copy(folder: Remote, changes: Mapping[str, Any] | None) -> Bundle[Any]:
    """A bundle elsewhere, from a copy of its files; nothing else in its folder is fetched.

    Raises:
        CheckpointError: no bundle there, and as `read_bundle`.
    """
    if not (folder / FILES[0]).is_file():
        raise CheckpointError(f"{folder}: not a bundle, {FILES[0]} is missing")
    beside = [folder / name for name in _OWN[1:] if (folder / name).is_file()]
    copy = fetch(folder / FILES[0], beside)
    with named_as(folder / FILES[0], copy):
        return replace(read_bundle(copy.parent, changes), path=folder)


def _changed(config: dict[str, Any], changes: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The settings with some that can be chosen anew for every prediction set to other values."""
    if not changes:
        return config
    parts = {part: dict(config.get(part) or {}) for part in ("task", "network")}
    name = str(parts["task"].get("name"))
    allowed = recipe_named(name).adjustable if name in TASKS else ()
    for name, value in changes.items():
        *path, key = name.split(".")
        place: dict[str, Any] = parts
        for step in path:
            place[step] = place = dict(place.get(step) or {})
        if name not in allowed or key not in place:
            known = ", ".join([*allowed, *(f"{_METRICS}{choice.name}" for choice in fields(MetricChoice))])
            raise SettingError(f"{name}: not a setting of {source} that can be changed; expected one of {known}")
        place[key] = value
    return {**config, **parts}


def load_weights(task: StoredTask, state: dict[str, torch.Tensor], source: Path) -> None:
    """Put weights into a task; all of them must fit.

    Raises:
        CheckpointError: names the first that is missing, left over or of another shape.
    """
    own = task.state_dict()
    for name in sorted(set(own) | set(state)):
        if name not in state:
            raise CheckpointError(f"{source}: {name} is missing, which the configured architecture has")
        if name not in own:
            raise CheckpointError(f"{source}: {name} is not part of the configured architecture")
        if own[name].shape != state[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, "
                f"expected {tuple(own[name].shape)} by the configured architecture"
            )
    task.load_state_dict(state)

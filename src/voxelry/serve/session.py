"""What a page works on: the images that were named, a model, and the answers so far."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxelry.core.errors import SettingError
from voxelry.core.option import Option
from voxelry.core.space import Space
from voxelry.data.layouts.files import HDF5_SUFFIXES, case_name
from voxelry.io import is_image, open_image, read_image
from voxelry.io.images.record import ImageFile
from voxelry.serve import later
from voxelry.serve.adapters import AdapterChoice
from voxelry.serve.answers import Answer, best_format
from voxelry.serve.corrections import Corrections
from voxelry.serve.drawn import as_drawn, read_drawn, write_drawn
from voxelry.serve.instances import voxel_within
from voxelry.serve.jobs import Jobs, Progress
from voxelry.serve.masks import Mask, Masks, read_mask
from voxelry.serve.training import run_training
from voxelry.serve.volumes import FIRST_VOXELS, MOST_VOXELS, put, shown, thinned, thinning, thumbnail

if TYPE_CHECKING:
    from voxelry.bundle.model import Model

__all__ = ["Session", "askable"]

_TYPED = (str, int, float)
_DAY = 24 * 60  # minutes


class Session:
    """The state behind a page; a reload finds it again.

    Args:
        images: what can be looked at. The page names them by their number alone, so no other file can be asked for.
        model: that answers, or will when it is loaded; None: the images are only looked at.
        out: folder that answers are saved in.
        reading: options for the images' reader.
        most: voxels that are shown of an image.
        folders: that were named, whose labelled cases two models are compared on.
        first: voxels that are shown at first of a pyramid with more than four times as many.
    """

    def __init__(
        self,
        images: Sequence[Path],
        model: Model | Future[Model] | None,
        out: Path,
        reading: Mapping[str, Any] | None = None,
        most: int = MOST_VOXELS,
        folders: Sequence[Path] = (),
        first: int = FIRST_VOXELS,
    ):
        self.images = list(images)
        self._model = model
        self._adapters: AdapterChoice | None = None
        self._choosing = threading.Lock()
        self.out = out
        self.jobs = Jobs()
        self.trainings, self.checks = Jobs(), Jobs()
        self.training: int | None = None
        self.answers: dict[int, Answer] = {}
        self.corrections = Corrections(out / "corrections")
        self._folders = list(folders)
        self._keeping = threading.Lock()
        self._reading = dict(reading or {})
        self._most = most
        self._first, self._fine = first, set[int]()
        self._large: dict[int, bool] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="voxelry-view-")
        self.masks = Masks(self.images, self._folders, Path(self._folder.name))

    def close(self) -> None:
        """Give up what is running and remove what wasn't saved."""
        self.trainings.close()
        self.checks.close()
        self.jobs.close()
        self._folder.cleanup()

    @property
    def model(self) -> Model | None:
        """Who answers; while it is being loaded, whoever asks waits.

        Raises:
            VoxelryError: it can't be loaded.
        """
        return self._model.result() if isinstance(self._model, Future) else self._model

    @property
    def loading(self) -> bool:
        """Whether there is a model that can't be told of yet, or never."""
        known = self._model
        return isinstance(known, Future) and not (known.done() and known.exception() is None)

    def record(self) -> dict[str, Any]:
        """Images, answers, what was kept and trained, and who answers, see `answering`, where that is known."""
        return {
            **self._answering(None if self.loading else self.model),
            "loading": self.loading,
            "cases": [{"id": number, "name": case_name(path)} for number, path in enumerate(self.images)],
            "answers": {str(number): answer.record() for number, answer in self.answers.items()},
            "out": str(self.out),
            "kept": self.kept(),
            "training": None
            if self.training is None
            else {"job": self.training, **self.trainings[self.training].record()},
        }

    def answering(self) -> dict[str, Any]:
        """The model, once it is loaded, its task, adapters, and what a prediction can be asked for.

        Raises:
            VoxelryError: it can't be loaded.
        """
        return self._answering(self.model)

    def switch(self, name: str | None) -> int:
        """Queue a change of the adapter that answers; the number of the job, whose answer is that of `answering`.

        Args:
            name: of an adapter that is offered; None: the base alone.

        Raises:
            SettingError: no model.
        """
        choice = self._choice(self.model)
        if choice is None:
            raise SettingError("adapter: expected voxelry view --model BUNDLE, the base of it")

        def work(progress: Progress) -> dict[str, Any]:
            choice.switch(name)
            return self.answering()

        return self.jobs.start(work)

    def _choice(self, model: Model | None) -> AdapterChoice | None:
        """The adapters of the model that answers."""
        with self._choosing:
            if self._adapters is None or self._adapters.model is not model:
                self._adapters = None if model is None else AdapterChoice(model)
            return self._adapters

    def _answering(self, model: Model | None) -> dict[str, Any]:
        recipe, choice = None if model is None else model.recipe, self._choice(model)
        folders = {} if choice is None else choice.folders
        return {
            "model": _called(model),
            "task": None if recipe is None else recipe.name,
            "needed": None if recipe is None else recipe.needed,
            "options": [] if recipe is None else [_described(option, model) for option in askable(recipe)],
            "learns": recipe is not None and recipe.required is not None,
            "adapters": [{"name": name, "folder": str(folder)} for name, folder in folders.items()],
            "adapter": None if choice is None else choice.active,
        }

    def header(self, case: int) -> dict[str, Any]:
        """What an image is, and how much of it is shown.

        Raises:
            FileError: it can't be read.
        """
        image, seen = self._open(case), self._shown(case)
        space = image.space
        return {
            "name": case_name(self.images[case]),
            "format": image.format,
            "shape": list(image.shape),
            "spacing": list(space.spacing),
            "affine": space.affine.tolist(),
            "oriented": image.has_orientation,
            "shown": list(seen.space.shape),
            "every": list(thinning(seen, self._most_of(case))),
            "finer": self._is_large(case) and case not in self._fine,
            "modality": str(image.metadata.get("Modality", "")).upper(),
            "windows": [
                {"name": name, "low": low, "high": high} for low, high, name in image.metadata.get("windows", ())
            ],
        }

    def refine(self, case: int) -> dict[str, Any]:
        """Show a large pyramid as fine as all others from now on; its new header."""
        self._fine.add(case)
        return self.header(case)

    def volume(self, case: int) -> Path:
        """An image as NIfTI for the page, made once.

        Raises:
            FileError: it can't be read.
        """
        most = self._most_of(case)
        path = Path(self._folder.name) / f"image_{case}_{most}.nii"
        if path.exists():
            return path
        image = self._shown(case)
        return shown(image, path, most, oriented=image.has_orientation)

    def thumbnail(self, case: int) -> Path:
        """An image as a small PNG, made once.

        Raises:
            FileError: it can't be read.
        """
        path = Path(self._folder.name) / f"thumbnail_{case}.png"
        if path.exists():
            return path
        image = self._open(case)
        levels = image.metadata.get("levels", ())
        coarse = self._open(case, dataset=levels[-1]) if levels and "dataset" not in self._reading else image
        return thumbnail(coarse, path)

    def check(self) -> int:
        """Look for what is wrong with the images and what belongs to them; the number of the job in `checks`.

        Its answer are the lines that `voxelry doctor` has for each image, by its number; errors and warnings alone.
        """
        return self.checks.start(self._checked)

    def _checked(self, progress: Progress) -> dict[str, list[str]]:
        within = [folder for folder in self._folders if not is_image(folder)]
        alone = [path for path in self.images if not any(path.is_relative_to(folder) for folder in within)]
        found: dict[str, list[str]] = {}
        names = {case_name(path): str(number) for number, path in enumerate(self.images)}
        for path in [*within, *alone]:
            diagnosis = later.inspect(path, options=dict(self._reading), progress=progress)
            for finding in diagnosis.wrong:
                number = names.get(case_name(Path(finding.file)))
                if number is not None:
                    found.setdefault(number, []).append(f"{finding.severity}: {finding.message}")
        return found

    def overlay(self, case: int, name: str) -> Path:
        """A file of an answer as the page can show it: images as NIfTI, all others as they are.

        Raises:
            SettingError: there is no such file.
        """
        path, oriented = Path(self._folder.name) / f"answer_{case}_{name}.nii", self._open(case).has_orientation
        return self.answer(case).overlay(name, path, self._most_of(case), oriented=oriented)

    def difference(self, case: int, name: str) -> Path:
        """An image that was made less the one that it was made from, voxel by voxel as both are shown, as NIfTI.

        Raises:
            SettingError: there is no such file, or it lies on another grid.
        """
        made, given = (read_image(path) for path in (self.overlay(case, name), self.volume(case)))
        if made.space.shape != given.space.shape or not made.space.is_close(given.space, 1e-3):
            raise SettingError(f"difference: {name} doesn't lie on the voxels of the image as it is shown")
        array = made.array[:1].astype(np.float32) - given.array[:1].astype(np.float32)
        return put(array, made.space, Path(self._folder.name) / f"difference_{case}_{name}.nii", self._most_of(case))

    def answer(self, case: int) -> Answer:
        """The newest answer for an image.

        Raises:
            SettingError: there is none.
        """
        if case not in self.answers:
            raise SettingError(f"answer: expected a prediction for image {case} first")
        return self.answers[case]

    def predict(self, case: int, asked: Mapping[str, Any]) -> int:
        """Queue a prediction; the number of the job, whose answer is `Answer.record`.

        Args:
            asked: options by name, each as it is typed on the command line: a text or number, or a list of them where
                an option may be repeated. `mask`, of a task that has such an option, is what was drawn, see
                `read_drawn`, or a mask that is loaded as it is, see `load_mask`.

        Raises:
            DataError: a mask that isn't of the image as it is shown.
            SettingError: no model, an unknown option, or a value of another form.
        """
        model, path = self.model, self.images[case]
        if model is None:
            raise SettingError("model: expected voxelry view --model BUNDLE, to predict with")
        drawable = "mask" in asked and any(option.name == "mask" for option in model.recipe.options)
        typed = {name: value for name, value in asked.items() if name != "mask" or not drawable}
        options = {**self._reading, **_values(askable(model.recipe), typed)}
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        mask = self._mask(case, asked["mask"], folder.with_name(f"{folder.name}_mask.nii.gz")) if drawable else None
        if mask is not None:
            options["mask"] = mask
        model.recipe.split(options)

        def work(progress: Progress) -> dict[str, Any]:
            format = best_format(model.recipe.formats)
            model.recipe.predict_file(model, path, folder, format=format, options=options, progress=progress)
            adapter = choice.active if (choice := self._choice(model)) else None
            self.answers[case] = Answer(
                folder, case_name(path), self._open(case).space, _called(model), mask=mask, adapter=adapter
            )
            return self.answers[case].record()

        return self.jobs.start(work)

    def save(self, case: int, points: str = "mrk.json") -> list[Path]:
        """Copy the newest answer for an image into `out`; arguments and errors as `Answer.save`.

        Raises:
            SettingError: there is none.
        """
        return self.answer(case).save(self.out, points)

    def kept(self) -> list[int]:
        """The numbers of the images that are kept as labels."""
        known = self.corrections.images
        return [number for number, path in enumerate(self.images) if known.get(case_name(path)) == str(path.absolute())]

    def keep(self, case: int) -> dict[str, str]:
        """Keep the newest answer for an image as its label, see `Corrections.keep`.

        Raises:
            SettingError: there is none, or none that can be learned from.
            FileError: the folder can't be written.
        """
        answer, path = self.answer(case), self.images[case]
        with self._keeping:
            return self.corrections.keep(path, answer, reading=self._options(case))

    def train(self, minutes: float) -> int:
        """Learn again from what was kept, and take the new model if it is better; the number of the training.

        Args:
            minutes: that the training takes, more than 0 and at most a day.

        Raises:
            SettingError: no model that can learn from corrections, an adapter that answers, too few corrections, or a
                training that goes on.
        """
        model = self.model
        if model is None or model.recipe.required is None or model.bundle.path is None:
            raise SettingError("train: expected a model that learns from points, instances or labels")
        if (choice := self._choice(model)) is not None and choice.active is not None:
            raise SettingError(
                f"train: the adapter {choice.active} answers, and only the base can learn here; choose none, or train "
                "an adapter by voxelry train pretrained=BUNDLE adapter={name: NAME} (docs/adapters.md)"
            )
        if not 0 < minutes <= _DAY:
            raise SettingError(f"minutes: expected more than 0 and at most {_DAY}, got {minutes}")
        if self.training is not None and self.trainings[self.training].state in ("waiting", "running"):
            raise SettingError("train: one is going on already")
        kept = list(self.corrections.images)
        later.parts_of(kept, hold_out=False)  # too few are refused now
        self.training = self.trainings.start(lambda progress: self._learn(kept, minutes, progress))
        return self.training

    def _learn(self, kept: Sequence[str], minutes: float, progress: Progress) -> dict[str, Any]:
        before: Any = self.model
        progress(0, 0, "preparing")
        held_out = later.labelled(before, self._folders, kept)
        parts = later.parts_of(kept, hold_out=not held_out)
        held_out = held_out or {self.corrections.folder: parts["test"]}
        runs = self.out / "training"
        out = runs / str(1 + max((int(one.name) for one in runs.glob("*") if one.name.isdecimal()), default=0))
        settings = later.training_settings(before, self.corrections.folder.absolute(), parts, out.absolute(), minutes)
        bundle = run_training(settings, minutes, progress)
        progress(0, 0, "comparing")
        after = later.load(bundle, before.device)
        found = later.verdict(later.load(before.bundle.path, before.device), after, held_out)
        if found["better"]:
            self._model = after
        return {**found, "bundle": _called(after)}

    def edit(self, case: int, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Change the instances of the newest answer for an image, see `Answer.edit`; their record.

        Args:
            asked: `drawn`, where voxels are added, is what was drawn, see `read_drawn`.

        Raises:
            DataError: what was drawn isn't of the image as it is shown.
            SettingError: there is no answer, it has no instances, or it can't be done.
        """
        answer = self.answer(case)
        if "drawn" not in asked:
            return answer.edit(asked)
        return answer.edit(asked, read_drawn(asked["drawn"], self._grid(case), answer.space))

    def load_mask(self, case: int, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A mask for the page: `drawn` as `read_drawn` takes it, `position` in it in RAS mm, and what a `Mask` tells.

        Args:
            asked: `file`, its number in `Masks`, and `value`, see `read_mask`.

        Raises:
            DataError: it lies elsewhere than the image, or holds no labels.
            FileError: it can't be read.
            SettingError: there is no such file.
        """
        mask, space = self._read_mask(case, asked), self._open(case).space
        position, drawn = space.to_world(voxel_within(mask.crop)), as_drawn(mask.crop, space, self._grid(case))
        return {"drawn": drawn, "position": position.tolist(), "values": mask.values, "told": mask.told}

    def _read_mask(self, case: int, asked: Mapping[str, Any]) -> Mask:
        value = asked.get("value")
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise SettingError(f"mask: value: expected a whole number, got {value!r}")
        return read_mask(self.masks.file(case, asked.get("file")), self.images[case], self._options(case), value)

    def _mask(self, case: int, drawn: Any, path: Path) -> Path:
        """What was drawn, or a mask that was loaded, as a file of 0 and 1 on the grid of the image."""
        space = self._open(case).space
        loaded = isinstance(drawn, Mapping) and "file" in drawn
        crop = self._read_mask(case, drawn).crop if loaded else read_drawn(drawn, self._grid(case), space)
        return write_drawn(path, crop, space)

    def _grid(self, case: int) -> Space:
        """That of the image as it is shown."""
        image = self._shown(case)
        return thinned(image.space, thinning(image, self._most_of(case)))

    def _most_of(self, case: int) -> int:
        """Voxels that are shown of an image: of a large pyramid few at first, so that it is there at once."""
        return min(self._first, self._most) if self._is_large(case) and case not in self._fine else self._most

    def _is_large(self, case: int) -> bool:
        """Whether it is a large pyramid; looked at once, as opening a series takes long."""
        if case not in self._large:
            image = self._open(case)
            levels = image.metadata.get("levels", ())
            self._large[case] = len(levels) > 1 and prod(image.shape) > 4 * self._first
        return self._large[case]

    def _shown(self, case: int) -> ImageFile:
        """The image, or of a pyramid the finest level that can be shown whole, else its coarsest."""
        image = self._open(case)
        for level in image.metadata.get("levels", ())[1:]:
            if prod(image.shape) <= self._most_of(case) or "dataset" in self._reading:
                break
            image = self._open(case, dataset=level)
        return image

    def _open(self, case: int, **further: Any) -> ImageFile:
        return open_image(self.images[case], **{**self._options(case), **further})

    def _options(self, case: int) -> dict[str, Any]:
        """What an image's reader is told: of files that hold several images the model knows which."""
        path = self.images[case]
        if self._model is None or path.suffix.lower() not in HDF5_SUFFIXES:
            return self._reading
        model: Any = self.model
        return dict(model.reading(path, self._reading))


def _called(model: Model | None) -> str:
    """What a model is known by: its bundle, or nothing."""
    return "" if model is None or model.bundle.path is None else str(model.bundle.path)


def askable(recipe: Any) -> list[Option]:
    """The options of a task that a page may ask for: those that name no file."""
    return [option for option in recipe.options if option.type in _TYPED and option.files is None]


def _described(option: Option, model: Any) -> dict[str, Any]:
    told = {"name": option.name, "type": option.type.__name__, "help": option.help, "repeated": option.repeated}
    choices = model.recipe.choices(model.task).get(option.name, {})
    return {**told, "choices": [{"value": str(value), "name": name} for value, name in choices.items()]}


def _values(options: Sequence[Option], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for as a prediction takes it."""
    known = {option.name: option for option in options}
    found: dict[str, Any] = {}
    for name, value in asked.items():
        option = known.get(name)
        if option is None:
            raise SettingError(f"{name}: expected one of {', '.join(known) or 'nothing, this task has no options'}")
        many = value if isinstance(value, list) else [value]
        try:
            typed = [option.type(one) for one in many]
        except (TypeError, ValueError):
            raise SettingError(f"{name}: expected {option.type.__name__}, got {value!r}") from None
        own = typed if option.repeated else typed[0] if len(typed) == 1 else None
        if own is None:
            raise SettingError(f"{name}: expected one value, got {value!r}")
        found[name] = own if option.read is None else option.read(own)
    return found

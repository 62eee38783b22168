"""What `doctor` finds wrong for a task is what its training refuses, no more and no less."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import SettingError, VoxelryError
from voxelry.core.space import Space
from voxelry.engine.compose import compose_training
from voxelry.engine.data import build_data
from voxelry.engine.doctor import diagnose
from voxelry.io import read_image, write_image

TASKS = ("landmarks", "segment", "reconstruct", "pretrain", "translate")
SIZES = [(14, 16, 18), (12, 18, 14), (16, 14, 15), (15, 15, 13)]
ODD = 2  # the case that is spoilt


def write_case(root: Path, number: int, shape: tuple[int, ...], suffix: str, channels: int = 1) -> None:
    """An image with two points, and a class and two objects in it."""
    rng = np.random.default_rng(number)
    space = Space.from_spacing(shape, (1.5, 0.8, 0.9)[-len(shape) :])
    pixels = rng.integers(0, 255, (channels, *shape), dtype=np.uint8)
    write_image(root / "volumes" / f"{number}{suffix}", pixels, space)
    labels = np.zeros((1, *shape), dtype=np.uint8)
    labels[(0, *[slice(2, 9)] * len(shape))] = 1
    write_image(root / "labels" / f"{number}{suffix}", labels, space)
    labels[(0, slice(6, 9), *[slice(2, 9)] * (len(shape) - 1))] = 3
    write_image(root / "instances" / f"{number}{suffix}", labels, space)
    write_points(root, number, ("first", "second"), len(shape))


def write_points(root: Path, number: int, names: tuple[str, ...], ndim: int = 3) -> None:
    axes = "zyx"[-ndim:]
    rows = [",".join([name, *[str(3 + 2 * place)] * ndim]) for place, name in enumerate(names)]
    (root / "landmarks").mkdir(exist_ok=True)
    head = f"# coordinateSystem = index\nname,{','.join(axes)}"
    (root / "landmarks" / f"{number}.csv").write_text("\n".join([head, *rows]) + "\n")


def write_nowhere(path: Path) -> None:
    path.write_text("# coordinateSystem = index\nname,z,y,x\nfirst,nan,nan,nan\nsecond,nan,nan,nan\n")


@pytest.fixture
def volumes(tmp_path) -> Path:
    for number, shape in enumerate(SIZES):
        write_case(tmp_path / "data", number, shape, ".nii.gz")
    return tmp_path / "data"


def rewrite(path: Path, change) -> None:
    image = read_image(path)
    array, space = change(image.array, image.space)
    write_image(path, array, space)


@cache
def composed(task: str, ndim: int):
    return compose_training([f"experiment={task}_{ndim}d", "data.root=anywhere"])


def refused(root: Path, task: str, ndim: int) -> str | None:
    """What a training on a folder says, up to the first reading of every case of it."""
    config = deepcopy(composed(task, ndim))
    config.data.root = str(root)
    try:
        parts = build_data(config.data, ndim=ndim, recipe=recipe_of_config(config), augment=config.augment)
        for part in (parts.train, parts.validation, parts.test):
            for index in range(len(part)):
                part.sample(index, 0)
    except VoxelryError as error:
        return str(error)
    return None


def faults(root: Path, task: str | None) -> list[str]:
    return [
        f"{found.file}: {found.message}" for found in diagnose(root, task=task).findings if found.severity == "error"
    ]


def agree(root: Path, task: str, ndim: int = 3, *, same_words: bool = True) -> list[str]:
    """The errors of doctor, which a training refuses in the same words."""
    found, said = faults(root, task), refused(root, task, ndim)
    assert bool(found) == (said is not None), (task, found, said)
    if said is not None and same_words:
        assert said in found
    return found


def of_grid(array, space):
    return array, space.crop((1, 0, 0), space.shape)


def with_nan(array, space):
    array = array.astype(np.float32)
    array[0, 3, 4:6] = np.nan
    return array, space


def turn_and_number(root: Path) -> None:
    """Labels along other axes and reversed, ids with gaps and -1, a case without objects, files of no one."""
    rewrite(
        root / f"labels/{ODD}.nii.gz",
        lambda array, space: (array[:, ::-1].transpose(0, 2, 1, 3), space.reorder((1, 0, 2), (False, True, False))),
    )
    rewrite(
        root / f"instances/{ODD}.nii.gz",
        lambda array, space: (np.where(array == 3, 70_000, array.astype(np.int32) - (array == 0)), space),
    )
    rewrite(root / "instances/1.nii.gz", lambda array, space: (array * 0, space))
    write_image(root / "labels/others.nii.gz", np.zeros((1, 3, 3, 3), np.uint8), Space.from_spacing((3, 3, 3)))
    (root / "volumes/._1.nii.gz").write_bytes(b"\0\5\x16\7")


def colour(root: Path) -> None:
    rewrite(root / f"volumes/{ODD}.nii.gz", lambda array, space: (np.repeat(array, 3, axis=0), space))


def two_cases(root: Path) -> None:
    for path in (root / "volumes").iterdir():
        if path.name[0] > "1":
            path.unlink()


def one_case(root: Path) -> None:
    two_cases(root)
    (root / "volumes" / "1.nii.gz").unlink()


BAD = {
    "image": (TASKS, lambda root: (root / f"volumes/{ODD}.nii.gz").write_bytes(b"no image")),
    "two channels": (
        TASKS,
        lambda root: rewrite(root / f"volumes/{ODD}.nii.gz", lambda a, space: (np.repeat(a, 2, axis=0), space)),
    ),
    "nothing but NaN": (
        TASKS,
        lambda root: rewrite(root / f"volumes/{ODD}.nii.gz", lambda a, space: (np.full(a.shape, np.nan, "f4"), space)),
    ),
    "values that are none": (("translate",), lambda root: rewrite(root / f"volumes/{ODD}.nii.gz", with_nan)),
    "no contrast": (
        ("translate",),
        lambda root: rewrite(root / f"volumes/{ODD}.nii.gz", lambda a, space: (a * 0 + 7, space)),
    ),
    "no points": (("landmarks",), lambda root: (root / f"landmarks/{ODD}.csv").unlink()),
    "fewer points": (("landmarks",), lambda root: write_points(root, ODD, ("first",))),
    "other points": (("landmarks",), lambda root: write_points(root, ODD, ("first", "third"))),
    "one name twice": (("landmarks",), lambda root: write_points(root, ODD, ("first", "first"))),
    "no positions": (("landmarks",), lambda root: [write_nowhere(path) for path in (root / "landmarks").iterdir()]),
    "points in words": (("landmarks",), lambda root: write_points(root, ODD, ("first", "second,"))),
    "no instances": (("segment",), lambda root: (root / f"instances/{ODD}.nii.gz").unlink()),
    "no labels": (("reconstruct",), lambda root: (root / f"labels/{ODD}.nii.gz").unlink()),
    "instances on another grid": (("segment",), lambda root: rewrite(root / f"instances/{ODD}.nii.gz", of_grid)),
    "labels on another grid": (
        ("landmarks", "segment", "reconstruct"),
        lambda root: rewrite(root / f"labels/{ODD}.nii.gz", of_grid),
    ),
    "labels beside their image": (
        ("landmarks", "segment", "reconstruct"),
        lambda root: rewrite(
            root / f"labels/{ODD}.nii.gz",
            lambda array, space: (array, Space(space.shape, shifted(space, 0.5))),
        ),
    ),
    "fractions": (
        ("landmarks", "segment", "reconstruct"),
        lambda root: rewrite(root / f"labels/{ODD}.nii.gz", lambda array, space: (array.astype("f4") / 2, space)),
    ),
    "negative ids": (
        ("segment",),
        lambda root: rewrite(root / f"instances/{ODD}.nii.gz", lambda a, space: (a.astype(np.int16) - 2, space)),
    ),
    "another organ": (
        ("reconstruct",),
        lambda root: rewrite(root / f"labels/{ODD}.nii.gz", lambda array, space: (array * 5, space)),
    ),
    "another rank": (
        TASKS,
        lambda root: rewrite(
            root / f"volumes/{ODD}.nii.gz", lambda a, space: (a[:, :1], space.crop((0, 0, 0), (1, *a.shape[2:])))
        ),
    ),
}


ACROSS = (
    "two channels",
    "no points",
    "fewer points",
    "other points",
    "no positions",
    "another rank",
)  # told by comparison


def shifted(space: Space, part: float) -> np.ndarray:
    affine = space.affine.copy()
    affine[:3, 3] += part * affine[:3, 0]
    return affine


@pytest.mark.parametrize("change", [turn_and_number, colour, two_cases, one_case])
def test_what_can_be_trained_on_is_not_faulted(change, volumes):
    change(volumes)
    for task in TASKS:
        assert agree(volumes, task) == []


@pytest.mark.parametrize("name", BAD)
def test_what_is_faulted_for_a_task_is_refused_by_it_alone(name, volumes):
    tasks, spoil = BAD[name]
    spoil(volumes)
    for task in {*tasks, "pretrain"}:
        found = agree(volumes, task, same_words=name not in ACROSS)
        assert bool(found) == (task in tasks), (task, found)


def test_planes(tmp_path):
    for number in range(4):
        write_case(tmp_path, number, (30 + number, 40), ".png", channels=3 if number == 1 else 1)
    for task in ("landmarks", "segment", "pretrain"):
        assert agree(tmp_path, task, ndim=2) == []
    colours = np.zeros((4, 32, 40), np.uint8)
    write_image(tmp_path / "volumes/2.png", colours, Space.from_spacing((32, 40)))
    for task in ("landmarks", "segment", "pretrain"):
        assert agree(tmp_path, task, ndim=2, same_words=False)


def test_an_unknown_task(volumes):
    with pytest.raises(SettingError, match="task: expected one of landmarks"):
        diagnose(volumes, task="sort")

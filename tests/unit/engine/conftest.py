"""Small phantoms and short trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from voxelry.core.records import write_records
from voxelry.engine.compose import compose_training
from voxelry.engine.report import evaluate_folder, evaluation_dataset
from voxelry.io import read_image
from voxelry.phantoms import LABEL_NAMES, write_phantoms
from voxelry.tasks.evaluate import evaluate_task

LIVER = LABEL_NAMES.index("liver")


@pytest.fixture(scope="module", autouse=True)
def _undrawn(undrawn: object) -> None:
    """Reports without figures, where `drawn` isn't asked for."""


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "volumes3", 4, seed=5, shape=(24, 28, 32))


@pytest.fixture(scope="module")
def scan(phantoms):
    """A volume, and a place inside its liver."""
    image = sorted((phantoms / "volumes").iterdir())[0]
    labels = read_image(phantoms / "labels" / image.name)
    inside = np.argwhere(np.asarray(labels.array)[0] == LIVER)
    return image, tuple(np.asarray(labels.space.to_world(inside[len(inside) // 2].astype(float))).tolist())


@pytest.fixture
def training(phantoms, tmp_path, quick_training):
    """A configuration of a very short training, with overrides."""

    def configured(experiment: str, *overrides: str):
        return compose_training(
            [
                f"experiment={experiment}",
                f"data.root={phantoms}",
                f"output_dir={tmp_path / 'run'}",
                *quick_training,
                "data.preprocess.image_size=16",
                *overrides,
            ]
        )

    return configured


@pytest.fixture
def evaluated(tmp_path):
    """Measures a model on a folder, and compares what was kept of each case with what is measured all at once."""

    def plain(rows):
        """As text, in which NaN is NaN, and without the time that it took."""
        return [
            json.dumps({name: value for name, value in row.items() if name not in ("seen", "seconds")}) for row in rows
        ]

    def written(model, prediction, name):
        untimed = replace(prediction, seconds=0.0) if hasattr(prediction, "seconds") else prediction
        write_records(tmp_path / name, {}, [model.recipe.to_store(untimed)], model.recipe.stored)
        return (tmp_path / name).read_bytes()

    def measure(model, root, out):
        found = evaluate_folder(model, root, out)
        at_once = evaluate_task(model.task, evaluation_dataset(model, root))
        assert plain(found.rows) == plain(at_once.rows)
        assert len(found.predictions) == len(at_once.predictions) == len(found.rows) > 0
        for one, other in zip(found.predictions, at_once.predictions, strict=True):
            assert type(one) is type(other)
            assert written(model, one, "kept") == written(model, other, "at_once")
        return found

    return measure

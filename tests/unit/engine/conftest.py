"""Small phantoms and short trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelry.engine.compose import compose_training
from voxelry.io import read_image
from voxelry.phantoms import LABEL_NAMES, write_phantoms

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

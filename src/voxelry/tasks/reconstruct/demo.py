"""The demo: an organ of phantoms, a short training, one click in each of those that are new."""

from pathlib import Path
from typing import Any

import numpy as np

from voxelry.io import read_image
from voxelry.phantoms import LABEL_NAMES
from voxelry.tasks.demo import UNSEEN, Demo, DemoTraining, Rank

__all__ = ["DEMO"]

ORGAN = LABEL_NAMES.index("liver")


def click_inside(labels: Path) -> dict[str, Any]:
    """A click within the organ, in world mm, on an axial slice."""
    image = read_image(labels)
    inside = np.argwhere(np.asarray(image.array)[0] == ORGAN)
    place = image.space.to_world(inside[len(inside) // 2].astype(np.float64))
    return {"click": tuple(round(float(value), 1) for value in place), "plane": "axial"}


DEMO = Demo(
    title="voxelry demo: shapes",
    subtitle="The liver of phantoms from one click on one slice",
    kind="torso",
    size=48,
    phantoms={"labelled": 24, UNSEEN: 6},
    trainings=(
        DemoTraining(
            folder="reconstruct",
            heading="Training",
            experiment="reconstruct",
            data="labelled",
            minutes=1.8,
            overrides=(
                "data.split.fractions=[0.85,0.15,0.0]",
                f"data.slices.organs=[{ORGAN}]",
                "model.grid=32",
                "model.image_size=48",
                "trainer.max_steps=2000",
                "trainer.validate_every=200",
                "trainer.log_every=5",
                "task.curriculum_batches=60",
            ),
        ),
    ),
    ranks={3: Rank(format=".nii.gz")},  # a shape has no other
    asks=click_inside,
)

"""What is written of a shape that is known."""

import json
import logging

import numpy as np
import pytest

from voxelry.core.space import Space
from voxelry.ops.sdf import signed_distance
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.prompt import write_reconstruction

OBLIQUE = Space((16, 18, 20), np.array([[0.1, 0.2, -1.0, 3], [0.1, 1.0, 0.1, -8], [1.5, -0.1, 0.1, 5], [0, 0, 0, 1.0]]))


def of(inside: np.ndarray) -> ReconstructPrediction:
    """The shape of some voxels, told on their own grid."""
    sdf = signed_distance(inside, OBLIQUE.spacing)
    click = np.asarray(OBLIQUE.to_world(np.argwhere(inside).mean(0)))[None]
    nothing = np.zeros((0, 4, 4), dtype=np.float32)
    return ReconstructPrediction("case", 2, sdf.astype(np.float32), OBLIQUE, OBLIQUE, click, (), (), nothing)


@pytest.mark.parametrize(("planes", "lines"), [(slice(4, 12), 0), (slice(7, 8), 1)], ids=["block", "sheet"])
def test_a_mesh_without_the_volume_of_its_organ_is_named(planes, lines, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(ReconstructPrediction, "on_slice_mm", 0.0)  # without a slice there is no contour
    inside = np.zeros(OBLIQUE.shape, dtype=bool)
    inside[planes, 4:14, 4:16] = True
    prediction = of(inside)
    with caplog.at_level(logging.WARNING):
        write_reconstruction(prediction, tmp_path)
    voxels = inside.sum() * abs(np.linalg.det(OBLIQUE.affine[:3, :3])) / 1000
    mesh = json.loads((tmp_path / "case.json").read_text())["volume_ml"]
    assert (abs(mesh / voxels - 1) > 0.1) == bool(lines)
    assert [f"encloses {mesh:.3g} ml, its voxels {voxels:.3g} ml" in line for line in caplog.messages] == [True] * lines

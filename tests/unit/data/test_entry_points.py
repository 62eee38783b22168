"""Formats and degradations of another package, by entry points that are named after the suffix."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.degrade import Degrade
from voxelry.data.degrade.steps import STEPS
from voxelry.io import POINT_FORMATS, READERS, WRITERS, is_image, open_image, read_landmarks, write_image
from voxelry.io.meshes import MESH_FORMATS, read_mesh

CODE = """
from dataclasses import dataclass, replace
from functools import partial
import numpy as np
from voxelry.core.space import Space
from voxelry.io.images.record import ImageFile
from voxelry.io.meshes import MeshFormat
from voxelry.io.points.format import PointFormat
from voxelry.io.points.landmark_set import FilePoints
from voxelry.ops.surface import Mesh

def load(path, window):
    return np.loadtxt(path, dtype=np.float32)[None][(slice(None), *window)]

def open_file(path, *, dataset, channel_axis, ndim):
    shape = np.loadtxt(path).shape
    return ImageFile(path, Space.from_spacing(shape), 1, np.dtype(np.float32), "toy", partial(load, path))

def write_file(path, array, space, channel_names):
    with path.open("w") as stream:
        np.savetxt(stream, array[0])

POINTS = PointFormat(lambda path, text, system: FilePoints(np.array([[float(v) for v in text.split()]]), "RAS"))
SURFACE = MeshFormat(lambda mesh: b"", lambda path, content: Mesh(np.eye(3), np.array([[0, 1, 2]])))

@dataclass(frozen=True, kw_only=True)
class Scaled:
    factor: float

    def __call__(self, scan):
        return replace(scan, image=scan.image * self.factor)
"""
ENTRIES = """
[voxelry.readers]
.toy = toy_formats:open_file
[voxelry.writers]
.toy = toy_formats:write_file
[voxelry.point_formats]
toypoints = toy_formats:POINTS
[voxelry.mesh_formats]
.toymesh = toy_formats:SURFACE
[voxelry.degradations]
scaled = toy_formats:Scaled
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package, as an installer leaves it, for the length of a test."""
    (tmp_path / "toy_formats.py").write_text(CODE)
    about = tmp_path / "toy_formats-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-formats\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    known = (READERS, WRITERS, POINT_FORMATS, MESH_FORMATS, STEPS)
    for registry in known:
        vars(registry).pop("_places", None)
    yield
    for registry in known:
        vars(registry).pop("_places", None)


def test_images_are_written_and_read(installed, tmp_path):
    path = write_image(tmp_path / "a.toy", np.arange(6.0).reshape(1, 2, 3), Space.from_spacing((2, 3)))
    assert is_image(path)
    assert open_image(path).read((slice(1, 2), slice(0, 3))).tolist() == [[[3, 4, 5]]]
    other = path.rename(tmp_path / "a.other")
    with pytest.raises(FileError, match=r"unknown image format \(known: \.nii\.gz .* \.toy"):
        open_image(other)


def test_points_surfaces_and_degradations(installed, tmp_path):
    (tmp_path / "a.toypoints").write_text("1 2 3")
    assert read_landmarks(tmp_path / "a.toypoints").world.tolist() == [[1, 2, 3]]
    (tmp_path / "a.toymesh").write_bytes(b"")
    assert len(read_mesh(tmp_path / "a.toymesh").faces) == 1
    scaled = Degrade([{"name": "scaled", "factor": 2}])
    image = scaled(torch.ones(1, 2, 2), Space.from_spacing((2, 2)), np.random.default_rng(0))
    assert image.unique().tolist() == [2]

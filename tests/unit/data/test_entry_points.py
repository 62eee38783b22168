"""Formats and degradations of another package, by entry points that are named after the suffix."""

import numpy as np
import pytest
import torch

from voxelry.bundle.registry import recipe_named
from voxelry.core.errors import FileError
from voxelry.core.space import Space
from voxelry.data.degrade import Degrade
from voxelry.data.degrade.steps import STEPS
from voxelry.data.fingerprint.take import take_fingerprint
from voxelry.data.layouts.find import find_cases
from voxelry.data.sample import Sample
from voxelry.io import POINT_FORMATS, READERS, WRITERS, is_image, open_image, read_landmarks, write_image
from voxelry.io.meshes import MESH_FORMATS, read_mesh
from voxelry.ops.instances import Instances
from voxelry.tasks.segment.predict import InstancePrediction

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

def planes(window):
    depth, height, width = (part.stop - part.start for part in window)
    return np.broadcast_to(np.arange(8)[window[0], None, None], (depth, height, width))[None].astype(np.uint8)

def open_planes(path, *, dataset, channel_axis, ndim):
    space = Space.from_spacing((8, 512, 512))
    return ImageFile(path, space, 1, np.dtype(np.uint8), "toy", planes, in_windows=path.suffix == ".planes")

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
.planes = toy_formats:open_planes
.stream = toy_formats:open_planes
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


@pytest.mark.parametrize("task", ["segment", "pretrain", "masked_pretrain", "translate"])
def test_tasks_write_images_in_it(installed, task):
    assert recipe_named(task).formats[0] == "nii.gz"
    assert recipe_named(task).formats[-1] == "toy"


def test_tasks_write_points_and_surfaces_in_it(installed):
    assert recipe_named("landmarks").formats == (
        "mrk.json",
        "fcsv",
        "csv",
        "json",
        "txt",
        "pts",
    )  # toypoints: read only
    assert recipe_named("reconstruct").formats == ("ply", "stl", "glb", "obj", "toymesh")


def test_instances_are_written_in_it(installed, tmp_path):
    space = Space.from_spacing((4, 5))
    mask = np.ones((2, 2), bool)
    cells = Instances(np.array([[1, 1, 3, 3]]), np.ones(1), np.ones(1, int), [((slice(1, 3), slice(1, 3)), mask)])
    prediction = InstancePrediction.from_instances("cells", space, cells)
    path = recipe_named("segment").write(prediction, Sample(torch.zeros(1, 4, 5), space, "cells"), tmp_path, "toy")
    assert path == tmp_path / "cells.toy"
    assert np.array_equal(open_image(path).read()[0], np.pad(mask, ((1, 1), (1, 2))))


@pytest.mark.parametrize(("suffix", "lowest"), [("planes", 1), ("stream", 2)])
def test_what_is_read_as_a_whole_is_sampled_in_the_middle_alone(installed, tmp_path, suffix, lowest):
    (tmp_path / f"a.{suffix}").write_text("")
    found = take_fingerprint(find_cases(tmp_path), tmp_path)
    assert found.cases[0].quantiles[0] == lowest


def test_points_surfaces_and_degradations(installed, tmp_path):
    (tmp_path / "a.toypoints").write_text("1 2 3")
    assert read_landmarks(tmp_path / "a.toypoints").world.tolist() == [[1, 2, 3]]
    (tmp_path / "a.toymesh").write_bytes(b"")
    assert len(read_mesh(tmp_path / "a.toymesh").faces) == 1
    scaled = Degrade([{"name": "scaled", "factor": 2}])
    image = scaled(torch.ones(1, 2, 2), Space.from_spacing((2, 2)), np.random.default_rng(0))
    assert image.unique().tolist() == [2]

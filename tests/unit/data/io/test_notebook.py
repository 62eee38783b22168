"""What a notebook is given to show lies where it lies in the world; a notebook that shows it is run."""

import sys

import numpy as np
import pytest
import torch

from voxelry.core.errors import MissingDependencyError
from voxelry.core.space import Space
from voxelry.data.sample import Sample
from voxelry.io import read_image
from voxelry.io.meshes import read_mesh
from voxelry.tasks.reconstruct.predict import ReconstructPrediction

AFFINE = np.array([[0.0, 0.2, -0.9, 5.0], [0.1, 1.1, 0.2, -7.0], [3.0, 0.0, 0.1, 40.0], [0, 0, 0, 1]])
CELL = """
import torch
from voxelry.core.space import Space
from voxelry.data.sample import Sample
Sample(torch.zeros(1, 4, 5, 6), Space.from_spacing((4, 5, 6)), "scan").show()
"""


@pytest.fixture
def sample():
    image = torch.rand((1, 6, 7, 8), generator=torch.Generator().manual_seed(0))
    return Sample(image, Space((6, 7, 8), AFFINE), "scan", labels=(image[0] > 0.8).long())


@pytest.fixture
def shape():
    """A ball of 8 mm in the middle of a tilted volume."""
    space = Space((12, 20, 20), AFFINE)
    frame = Space.from_spacing((24, 24, 24), 1.0, space.to_world(np.array([5.0, 9, 9])) - 11.5)
    grid = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), axis=-1)
    sdf = (np.linalg.norm(grid - 11.5, axis=-1) - 8).astype(np.float32)
    probability = np.zeros((0, 4, 4), np.float32)
    return ReconstructPrediction("scan", 1, sdf, frame, space, np.zeros((0, 3)), (), (), probability)


def read(data, path):
    path.write_bytes(data)
    return read_mesh(path) if path.suffix == ".ply" else read_image(path)


def test_a_sample_is_shown_where_it_lies_with_its_labels_over_it(sample, tmp_path):
    pytest.importorskip("ipyniivue", reason="ipyniivue is not installed (pip install 'voxelry[notebook]')")
    image, labels = sample.show().volumes
    for volume, expected in ((image, sample.image), (labels, sample.labels[None])):
        got = read(bytes(volume.data), tmp_path / volume.name)
        np.testing.assert_array_equal(got.array, expected.numpy())
        assert got.space.is_close(sample.space)


def test_a_shape_is_shown_as_its_mesh_over_its_voxels_or_over_an_image(shape, sample, tmp_path):
    pytest.importorskip("ipyniivue", reason="ipyniivue is not installed (pip install 'voxelry[notebook]')")
    widget = shape.show()
    (volume,), (mesh,) = widget.volumes, widget.meshes
    np.testing.assert_array_equal(read(bytes(volume.data), tmp_path / "mask.nii").array[0], shape.mask())
    np.testing.assert_allclose(read(bytes(mesh.data), tmp_path / "mesh.ply").vertices, shape.mesh.vertices, atol=1e-4)
    (tmp_path / "scan.nii").write_bytes(bytes(sample.show().volumes[0].data))
    (under,) = shape.show(tmp_path / "scan.nii").volumes
    np.testing.assert_array_equal(read(bytes(under.data), tmp_path / "under.nii").array, sample.image.numpy())


def test_a_notebook_shows_it(tmp_path):
    pytest.importorskip("ipyniivue", reason="ipyniivue is not installed (pip install 'voxelry[notebook]')")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in output.data


def test_without_the_package_it_is_said_how_to_get_it(sample, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(MissingDependencyError, match=r"^ipyniivue is not installed.*voxelry\[notebook\]'$"):
        sample.show()

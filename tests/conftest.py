"""Fixtures that every test may use."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import settings
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from voxelry.core.space import Space
from voxelry.io import write_image

settings.register_profile("voxelry", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("voxelry")

ROOT = Path(__file__).resolve().parents[1]

# Files that take long, the slowest first: none of them shall be left when all else is done.
SLOW = (
    "unit/engine/test_ray.py",
    "cli/test_cli.py",
    "smoke/test_few_shot_study.py",
    "unit/engine/test_reconstruct.py",
    "unit/engine/test_segment_train.py",
    "unit/engine/test_prepared_data.py",
    "unit/engine/test_reconstruct_flow.py",
    "unit/engine/test_reconstruct_sam3d.py",
    "unit/engine/test_translate.py",
    "smoke/test_page.py",
    "smoke/test_page_view.py",
    "smoke/test_page_prompt.py",
    "unit/engine/test_train.py",
    "contracts/test_extending.py",
    "cli/test_nnunet.py",
    "cli/test_predict_resume.py",
    "cli/test_readme.py",
    "unit/engine/test_slurm.py",
    "contracts/test_docs_commands.py",
    "contracts/test_papers.py",
    "contracts/test_originals_doc.py",
    "cli/test_fast_ddpm.py",
    "unit/engine/test_template.py",
    "unit/data/prepare/test_prepare.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one worker, which makes once what its tests share; in the order above."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _living_log() -> None:
    """A training gives the root logger the standard error of its test, which is closed when that is over."""
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if not getattr(getattr(one, "stream", None), "closed", False)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def undrawn() -> Iterator[dict[str, Callable[..., None]]]:
    """Leave the figures out of reports, which take as long as short trainings; gives what draws them, see `drawn`."""
    from voxelry.engine import report

    draws = {"add_results": report.add_results, "add_curves": report.add_curves}
    with pytest.MonkeyPatch.context() as patch:
        for name in draws:
            patch.setattr(report, name, lambda *_: None)
        yield draws


@pytest.fixture
def drawn(undrawn: dict[str, Callable[..., None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw them in this test."""
    for name, draw in undrawn.items():
        monkeypatch.setattr(f"voxelry.engine.report.{name}", draw)


def _folder(variable: str, beside: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / beside))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; set {variable} to where it is")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real volumes, see the conventions in CONTRIBUTING.md."""
    return _folder("VOXELRY_DATA", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs, weights and outputs of the originals."""
    return _folder("VOXELRY_GOLDEN", "golden")


@pytest.fixture(scope="session")
def write_series() -> Callable[[Path, np.ndarray, Space], Path]:
    """Writes a volume `(planes, rows, columns)` of whole numbers as one DICOM file a plane, in a folder."""

    def write(folder: Path, volume: np.ndarray, space: Space) -> Path:
        folder.mkdir(parents=True)
        to_lps = np.diag([-1.0, -1.0, 1.0])
        directions = to_lps @ space.affine[:3, :3] / space.spacing
        for number, plane in enumerate(volume):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
            meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
            data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
            data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
            data.SeriesInstanceUID, data.Modality, data.InstanceNumber = "1.2.3", "MR", number + 1
            data.Rows, data.Columns = plane.shape
            data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
            data.BitsAllocated = data.BitsStored = 16
            data.HighBit, data.PixelRepresentation = 15, 1
            data.PixelSpacing = list(space.spacing[1:])
            data.ImageOrientationPatient = [f"{value:.10f}" for value in directions[:, [2, 1]].T.ravel()]
            place = to_lps @ space.to_world(np.array([number, 0.0, 0.0]))
            data.ImagePositionPatient = [f"{value:.8f}" for value in place]
            data.PixelData = plane.astype("<i2").tobytes()
            data.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
        return folder

    return write


@pytest.fixture(scope="session")
def quick_training() -> tuple[str, ...]:
    """Overrides of a training that is over in seconds on a CPU."""
    return (
        "model=unet_tiny",
        "model.width=8",
        "model.multipliers=[1,2]",
        "trainer=smoke",
        "trainer.progress=false",
        "trainer.accelerator=cpu",
        "data.split.fractions=[0.5,0.25,0.25]",
    )


@pytest.fixture
def pyramid(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An OME-Zarr of 4 x 8 x 8 voxels of 2 x 0.5 x 0.5 mm, with two levels of every second and fourth along y and x."""
    array = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(1, 4, 8, 8)
    path = write_image(tmp_path / "pyramid.ome.zarr", array, Space.from_spacing(array.shape[1:], [2.0, 0.5, 0.5]))
    group = zarr.open_group(path, mode="r+")
    document: Any = dict(group.attrs["ome"])
    levels = document["multiscales"][0]["datasets"]
    for factor in (2, 4):
        group.create_array(str(factor), data=array[..., ::factor, ::factor])
        level = json.loads(json.dumps(levels[0])) | {"path": str(factor)}
        scale = next(one for one in level["coordinateTransformations"] if one["type"] == "scale")["scale"]
        scale[-2:] = [scale[-2] * factor, scale[-1] * factor]
        levels.append(level)
    group.attrs["ome"] = document
    return path, array

"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("voxelry", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("voxelry")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


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

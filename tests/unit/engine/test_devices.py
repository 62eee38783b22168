"""Devices that a machine doesn't have are refused before a run's folder is touched."""

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator, XLAAccelerator

from voxelry.core.errors import ConfigError
from voxelry.engine.devices import check_devices
from voxelry.engine.train import train


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA GPUs and nothing else."""

    def having(gpus: int) -> None:
        for kind in (MPSAccelerator, XLAAccelerator):
            monkeypatch.setattr(kind, "is_available", staticmethod(lambda: False))
        monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: gpus > 0))
        monkeypatch.setattr(CUDAAccelerator, "auto_device_count", staticmethod(lambda: gpus))

    return having


@pytest.mark.parametrize(
    ("gpus", "accelerator", "devices"),
    [(0, "auto", "auto"), (0, "cpu", 2), (2, "cpu", 1), (2, "auto", 2), (2, "gpu", [1]), (2, "cuda", -1)],
)
def test_what_is_here_is_taken(machine, gpus, accelerator, devices):
    machine(gpus)
    check_devices(accelerator, devices)


@pytest.mark.parametrize(
    ("gpus", "accelerator", "devices", "fault"),
    [
        (0, "cuda", "auto", r"^trainer\.accelerator: expected auto or cpu here, got 'cuda'$"),
        (0, "gpu", 1, r"^trainer\.accelerator: expected auto or cpu here, got 'gpu'$"),
        (2, "mps", 1, r"^trainer\.accelerator: expected auto or cpu or cuda here, got 'mps'$"),
        (0, "auto", [0], r"^trainer\.devices: expected auto or 1 to \d+ processes on this cpu, got \[0\]$"),
        (0, "cpu", 9999, r"^trainer\.devices: expected auto or 1 to \d+ processes on this cpu, got 9999$"),
        (2, "cpu", -1, r"^trainer\.devices: expected auto or 1 to \d+ processes on this cpu, got -1$"),
        (2, "auto", 3, r"^trainer\.devices: expected what there is, 2 of cuda with numbers from 0, got 3$"),
        (2, "gpu", [0, 2], r"^trainer\.devices: expected what there is, 2 of cuda with numbers from 0, got \[0, 2\]$"),
    ],
)
def test_what_is_not_here_is_refused(machine, gpus, accelerator, devices, fault):
    machine(gpus)
    with pytest.raises(ConfigError, match=fault):
        check_devices(accelerator, devices)


def test_an_earlier_run_outlives_a_refusal(machine, training, tmp_path):
    machine(0)
    kept = tmp_path / "run" / "summary.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    with pytest.raises(ConfigError, match=r"^trainer\.accelerator: "):
        train(training("landmarks_3d", "overwrite=true", "trainer.accelerator=cuda"))
    assert kept.read_text() == "{}"

"""Whether this machine has the devices that a training asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator

from voxelry.core.errors import ConfigError

__all__ = ["check_devices"]

_KINDS: dict[str, type[Accelerator]] = {"cuda": CUDAAccelerator, "mps": MPSAccelerator, "tpu": XLAAccelerator}


def check_devices(accelerator: str, devices: str | int | Sequence[int]) -> None:
    """Refuse an accelerator that isn't here, and other devices or more of them than there are.

    Args:
        accelerator: as the trainer's: auto, cpu, gpu (cuda or mps), cuda, mps or tpu.
        devices: auto, how many (-1 for all), or their numbers.

    Raises:
        ConfigError: names the setting and what there is.
    """
    here = {name: kind for name, kind in _KINDS.items() if kind.is_available()}
    meant = {"auto": (*here, "cpu"), "gpu": ("cuda", "mps")}.get(accelerator, (accelerator,))
    wanted = next((name for name in meant if name in here or name == "cpu"), None)
    if wanted is None:
        raise ConfigError(
            f"trainer.accelerator: expected {' or '.join(('auto', 'cpu', *here))} here, got {accelerator!r}"
        )
    if devices == "auto":
        return
    if wanted == "cpu":
        cores = os.cpu_count() or 1
        if not isinstance(devices, int) or not 1 <= devices <= cores:
            raise ConfigError(f"trainer.devices: expected auto or 1 to {cores} processes on this cpu, got {devices}")
        return
    count = here[wanted].auto_device_count()
    highest = devices if isinstance(devices, int) else max(map(int, devices)) + 1
    if highest > count:
        raise ConfigError(
            f"trainer.devices: expected what there is, {count} of {wanted} with numbers from 0, got {devices}"
        )

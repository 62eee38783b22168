"""How much memory there is, asked before more than that is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["available_memory", "control_group_memory", "memory_shortage", "process_limit", "resident_memory"]

# names of a group's files: the limit, what is used, and in memory.stat what of that can be given up
_OF_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_OF_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
# names of a process's limits, and of what they limit in its status
_LIMITED = {"Max address space": "VmSize", "Max data size": "VmData"}


def available_memory() -> int | None:
    """Bytes that may be taken: what is free by Linux's word and left of the limits that this process runs under.

    Elsewhere all that the machine has; None where unknown.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        known = hasattr(os, "sysconf")  # Windows doesn't tell so easily; there the allocation itself is refused
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None
    limits = [control_group_memory(), process_limit()]
    return min([free, *(left for left in limits if left is not None)])


def resident_memory(status: Path = Path("/proc/self/status")) -> int:
    """Bytes that this process holds; 0 where unknown."""
    return _status(status).get("VmRSS", 0)


def process_limit(status: Path = Path("/proc/self/status"), limits: Path = Path("/proc/self/limits")) -> int | None:
    """Bytes left under the limits of this process (`ulimit -v`, `ulimit -d`); None without any.

    Args:
        status, limits: files in which Linux says what it holds, and what it may.
    """
    try:
        lines = limits.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    taken, left = _status(status), []
    for line in lines:
        name = next((own for title, own in _LIMITED.items() if line.startswith(title)), None)
        most = line.split()[3] if name else "unlimited"
        if name and most.isdigit():
            left.append(max(0, int(most) - taken.get(name, 0)))
    return min(left, default=None)


def _status(path: Path) -> dict[str, int]:
    """The bytes of a process by their names in Linux's status."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    sizes = (line.split() for line in lines if line.startswith("Vm"))
    return {name.removesuffix(":"): int(size) * 1024 for name, size, *_ in sizes}


def control_group_memory(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes left under the limits of Linux's control groups, as containers and schedulers set them; None without any.

    Args:
        root: where the groups are mounted, of version 1 or 2.
        process: the file that says in which of them this process is.
    """
    try:
        lines = [line.split(":", 2) for line in process.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    left = []
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        base, names = (root / "memory", _OF_VERSION_1) if controllers else (root, _OF_VERSION_2)
        own = base / name.lstrip("/")
        for folder in (own, *own.parents):  # a limit holds for all groups below; a container sees its own as the root
            left += _left(folder, *names)
            if folder == base:
                break
    return min(left, default=None)


def _left(folder: Path, limit: str, used: str, cached: str) -> list[int]:
    """The limit of a group less what is used, but for files that are kept as long as nobody needs the room."""
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        taken = int((folder / used).read_text(encoding="ascii"))
        told = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return [max(0, most - taken + int(told.get(cached, 0)))]
    except (OSError, ValueError):  # no such group, or `max`
        return []


def memory_shortage(shape: Sequence[int], bytes_per_voxel: int) -> str:
    """What an array would need and what there is, for messages; empty where it fits.

    Args:
        shape: voxels along each axis.
        bytes_per_voxel: of everything that is held for one of them.
    """
    needed, available = bytes_per_voxel, available_memory()
    for length in shape:  # Python's own numbers: such sizes overflow others
        needed *= int(length)
    if available is None or needed <= available:
        return ""
    size = " x ".join(str(int(length)) for length in shape)
    return f"{size} voxels need about {needed / 1e9:.1f} GB, and there are {available / 1e9:.1f} GB"

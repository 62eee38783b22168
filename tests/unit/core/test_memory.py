"""How much memory is left under limits that control groups set."""

from __future__ import annotations

import pytest

from voxelry.core.memory import control_group_memory, process_limit, resident_memory

MIB = 1 << 20


def write_group(folder, names, limit, used, cached):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


@pytest.mark.parametrize(
    ("mount", "line", "names"),
    [
        ("", "0::/job/step", ("memory.max", "memory.current", "inactive_file")),
        ("memory", "4:memory:/job/step", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_the_tightest_group_above_the_process_counts(tmp_path, mount, line, names):
    process = tmp_path / "cgroup"
    process.write_text(f"{line}\n")
    root = tmp_path / "groups"
    base = root / mount
    write_group(base, names, 4000 * MIB, 0, 0)
    write_group(base / "job", names, 1000 * MIB, 700 * MIB, 100 * MIB)
    write_group(base / "job" / "step", names, "max", 600 * MIB, 0)
    assert control_group_memory(root, process) == 400 * MIB


def test_the_tightest_limit_of_the_process_counts(tmp_path):
    status, limits = tmp_path / "status", tmp_path / "limits"
    status.write_text("Name:\tpython\nVmSize:\t 3000 kB\nVmData:\t 1000 kB\nVmRSS:\t 500 kB\n")
    limits.write_text(
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max data size             1536000              unlimited            bytes\n"
        "Max address space         4096000              unlimited            bytes\n"
    )
    assert process_limit(status, limits) == 1536000 - 1024000
    assert resident_memory(status) == 512000
    limits.write_text("Max address space         unlimited            unlimited            bytes\n")
    assert process_limit(status, limits) is None
    assert process_limit(status, tmp_path / "none") is None
    assert resident_memory(tmp_path / "none") == 0


def test_without_limits_there_is_nothing_to_tell(tmp_path):
    process = tmp_path / "cgroup"
    process.write_text("0::/\n")
    assert control_group_memory(tmp_path, process) is None
    assert control_group_memory(tmp_path, tmp_path / "none") is None

"""How long `voxelry --help` takes, as a whole process.

python benchmarks/command_line.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT_S = 0.2


def main() -> None:
    command = [sys.executable, "-m", "voxelry", "--help"]
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    warm = seconds[1:]  # the first one fills the file cache
    print(f"voxelry --help: median {statistics.median(warm):.3f} s, worst {max(warm):.3f} s (limit {LIMIT_S} s)")


if __name__ == "__main__":
    main()

"""One volume, predicted locally, by Ray, and by Ray with everything killed once: the same bytes?

python benchmarks/killed_volume.py --model runs/demo/segment --size 512 [--tile 128] [--out runs/killed_volume]

A phantom OME-Zarr image of nuclei is predicted by `voxelry predict` in one process, then with `--launcher ray`, then
with it again while SIGKILL ends the command itself when a quarter of the tiles is done (and the same command goes on),
an actor at a half, and at last the actor that joins the tiles and writes the outputs, as soon as the first of them is
begun. All outputs of the three are compared byte by byte; all have the one thread that an actor has, as sums of two
threads differ in their last digits. A finished tile that is written a second time is listed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from segment_tiles import make_phantom

PERIOD = 0.02  # seconds between two looks at what runs


class Watched:
    """A command and what is known of its tiles from outside: their files and when each was written."""

    def __init__(self, command: list[str], out: Path, seen: dict[str, set[int]]):
        self.out, self.seen = out, seen
        self.log = (out.parent / f"{out.name}.log").open("a")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def look(self) -> None:
        """Note the tiles that are there."""
        for path in self.out.glob(".voxelry/parts/*/*/tile_*.npz"):
            try:
                self.seen.setdefault(path.name, set()).add(path.stat().st_mtime_ns)
            except FileNotFoundError:  # all are removed when the outputs have their place
                return

    def until(self, reached: Callable[[], bool]) -> bool:
        """Look until something is the case; whether that was before the command's end."""
        while self.process.poll() is None:
            self.look()
            if reached():
                return True
            time.sleep(PERIOD)
        return False

    def writes(self) -> bool:
        """Whether an output is begun that has no place yet."""
        names = (path.name for path in self.out.glob(".voxelry/*/*/[0-9]/*"))
        return any("ome.zarr" in name or "instances" in name for name in names)

    def actors(self) -> list[int]:
        """Processes that hold the model."""
        return [one for one in descendants(self.process.pid) if "_Predictor" in command_line(one)]

    def kill(self) -> None:
        """SIGKILL for the command alone; what it had started is waited for, and ends by itself."""
        left = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        ends = time.monotonic() + 120
        while any(Path(f"/proc/{one}").exists() for one in left) and time.monotonic() < ends:
            time.sleep(PERIOD)
        lasting = [command_line(one) for one in left if Path(f"/proc/{one}").exists()]
        if lasting:
            raise SystemExit(f"still there two minutes after the command was killed: {lasting}")

    def finished(self) -> None:
        """To its end."""
        self.until(lambda: False)
        if self.process.returncode:
            raise SystemExit(f"{self.log.name}: exit status {self.process.returncode}")


def descendants(process: int) -> list[int]:
    """A process's children and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        parents.setdefault(parent, []).append(int(entry.name))

    def below(one: int) -> Iterator[int]:
        for child in parents.get(one, ()):
            yield child
            yield from below(child)

    return list(below(process))


def command_line(process: int) -> str:
    """What a process calls itself."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def spent(process: int) -> int:
    """Ticks of the processor that a process took."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def busiest(processes: list[int]) -> int:
    """Which of them works now."""
    before = {one: spent(one) for one in processes}
    time.sleep(0.1)
    return max(processes, key=lambda one: spent(one) - before[one])


def tree(folder: Path) -> dict[str, str]:
    """Every output of a folder and the digest of what is in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in named.items()
        if not name.startswith(".voxelry/")
    }


def killed(command: list[str], out: Path, tiles: int) -> tuple[dict[str, set[int]], list[str]]:
    """The command with its driver, an actor and the writer killed once each, and what was done before each."""
    seen: dict[str, set[int]] = {}
    told = []
    watched = Watched(command, out, seen)
    if not watched.until(lambda: len(seen) >= tiles // 4):
        raise SystemExit("it ended before the command could be killed")
    watched.kill()
    watched.look()
    told.append(f"command killed after {len(seen)} of {tiles} tiles")
    watched = Watched(command, out, seen)
    if not watched.until(lambda: len(seen) >= tiles // 2 and bool(watched.actors())):
        raise SystemExit("it ended before an actor could be killed")
    os.kill(busiest(watched.actors()), signal.SIGKILL)
    told.append(f"an actor killed after {len(seen)} of {tiles} tiles")
    if not watched.until(watched.writes):
        raise SystemExit("it ended before the writer could be killed")
    os.kill(busiest(watched.actors()), signal.SIGKILL)
    told.append(f"the writer killed with {len(seen)} of {tiles} tiles done and an output begun")
    watched.finished()
    return seen, told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a bundle of the task segment, or a run's folder")
    parser.add_argument(
        "--size", type=int, default=256, help="voxels a side, a multiple of 128; from 256 on the tiles are shared out"
    )
    parser.add_argument("--tile", type=int, default=64, help="voxels a side of what the detector sees at once")
    parser.add_argument("--overlap", type=float, default=0.25, help="share of a tile that the next one sees as well")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/killed_volume"))
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    image = asked.out / f"volume_{asked.size}.ome.zarr"
    if not image.exists():
        make_phantom(argparse.Namespace(blocks=8), str(asked.size), str(image), str(asked.out / f"truth_{image.name}"))
    changes = [f"task.tile_size=[{asked.tile},{asked.tile},{asked.tile}]", f"task.tile_overlap={asked.overlap}"]
    begin = [sys.executable, "-m", "voxelry", "predict", str(image), "--model", str(asked.model), "--device", "cpu",
             "--format", "ome.zarr", *(word for change in changes for word in ("--set", change))]  # fmt: skip
    ray = ["--launcher", "ray", "--workers", str(asked.workers)]
    places = {name: asked.out / str(asked.size) / name for name in ("local", "ray", "killed")}
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
    tiles = 0
    for name, more in (("local", []), ("ray", ray)):
        started, seen = time.monotonic(), {}
        Watched([*begin, "--out", str(places[name]), *more], places[name], seen).finished()
        tiles = max(tiles, len(seen))
        print(f"{name}: {len(seen)} tiles, {time.monotonic() - started:.0f} s", flush=True)
    started = time.monotonic()
    seen, told = killed([*begin, "--out", str(places["killed"]), *ray], places["killed"], tiles)
    for line in told:
        print(line)
    again = sorted(name for name, times in seen.items() if len(times) > 1)
    print(f"killed: {time.monotonic() - started:.0f} s; {len(again)} finished tiles written again {again}")
    trees = {name: tree(place) for name, place in places.items()}
    same = trees["local"] == trees["ray"] == trees["killed"]
    print(f"{len(trees['local'])} files of outputs: {'the same bytes in all three' if same else 'they differ'}")
    for name in sorted(set().union(*trees.values())):
        if len({files.get(name) for files in trees.values()}) > 1:
            print(f"differs: {name}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

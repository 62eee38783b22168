"""The ledger and the scheduler of `voxelry predict` with a million tiles, and everything that can die dying.

    python benchmarks/scale_simulation.py --tiles 1000000 --kills 4

A command works through all tiles by the real ledger and keeper; its workers are simulated, so that nothing but the
bookkeeping takes time. They answer in another order than they were asked, some answers come twice, some workers die and
their tiles are given to others. The command itself is ended by SIGKILL when a random number of tiles is done, and begun
again, and at last runs to its end. Then every tile must have its one output with the right content and one row that
says `done`. Prints a row of the table in RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from voxelry.engine.jobs import Job, Places
from voxelry.engine.keeper import Keeper
from voxelry.engine.ledger import HOME, Dependencies, Ledger, Made

AT_ONCE = 64  # tiles that are with workers
LOST, TWICE = 0.001, 0.001  # shares of the tiles whose worker dies, and of the answers that come again


@dataclass(frozen=True, slots=True)
class Tile(Job):
    """One tile of an imagined volume."""

    def make(self, model: Any, folder: Path, progress: Callable[[int, int], None] | None) -> Path:
        """The workers write it, see `workers`."""
        raise NotImplementedError

    def dependencies(self, model: str) -> Dependencies:
        """Nothing that could change."""
        return Dependencies(str(self.path), self.name, model, "")


def workers(model: Any, jobs: Iterator[Job], tiles: object) -> Iterator[tuple[Job, Made]]:
    """What workers answer: a file for each tile, in any order, some of them late or twice."""
    chance = random.Random(os.getpid())
    while batch := list(islice(jobs, AT_ONCE)):
        chance.shuffle(batch)
        for job in sorted(batch, key=lambda _: chance.random() < LOST):  # the lost ones are done by others, last
            yield job, written(job)
            if chance.random() < TWICE:
                yield job, written(job)


def written(job: Job) -> Made:
    """The output of a tile, where a worker leaves it."""
    folder = job.places.staging / job.name
    folder.mkdir(exist_ok=True)
    (folder / f"{job.name}.tile").write_text(job.name)
    return Made(str(folder), f"{job.name}.tile", {f"{job.name}.tile": job.name}, 0.0)


def command(out: Path, count: int) -> None:
    """Do all tiles that aren't done; tells how many that were."""
    with Ledger(out) as ledger:
        places = Places.of(ledger)
        keeper = Keeper(ledger, "model")
        names = (f"{number:07d}" for number in range(count))
        keeper.run([Tile(Path("/volume") / name, (), name, places) for name in names], None, None, workers)
    rows = keeper.rows.values()
    print(sum(row.state == "done" for row in rows), sum(row.state == "kept" for row in rows), flush=True)


def killed(arguments: list[str], out: Path, after: int) -> bool:
    """Run the command and end it when so many tiles are done; whether it was still running."""
    process = subprocess.Popen([sys.executable, __file__, "--command", *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and counted(out) < after:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    return process.wait() != 0


def counted(out: Path) -> int:
    """Tiles that the ledger says are done; counting all of them each time would keep the command from writing."""
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"file:{out / HOME / 'ledger.sqlite'}?mode=ro", uri=True)) as rows,
    ):
        return int(rows.execute("SELECT MAX(rowid) FROM outputs").fetchone()[0] or 0)
    return 0


def check(out: Path, count: int) -> None:
    """Every tile once, with its content and its row, and nothing else."""
    found = {entry.name: Path(entry.path).read_text() for entry in os.scandir(out) if entry.name != HOME}
    assert found == {f"{number:07d}.tile": f"{number:07d}" for number in range(count)}, "outputs"
    with sqlite3.connect(out / HOME / "ledger.sqlite") as rows:
        states = dict(rows.execute("SELECT state, COUNT(*) FROM files GROUP BY state"))
        outputs = rows.execute("SELECT COUNT(*), COUNT(DISTINCT name) FROM outputs").fetchone()
    assert states == {"done": count}, states
    assert outputs == (count, count), outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", type=Path, help="work in this folder, in this process")
    asked = parser.parse_args()
    if asked.command is not None:
        command(asked.command, asked.tiles)
        return
    chance = random.Random(asked.seed)
    out = Path(tempfile.mkdtemp(prefix="scale_"))
    arguments = [str(out), "--tiles", str(asked.tiles)]
    try:
        begin = time.monotonic()
        moments = sorted(chance.randrange(asked.tiles) for _ in range(asked.kills))
        kills = sum(killed(arguments, out, moment) for moment in moments)
        last = subprocess.run(
            [sys.executable, __file__, "--command", *arguments], check=True, capture_output=True, text=True
        )
        wall, usage = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        done, kept = last.stdout.split()
        check(out, asked.tiles)
        size = (out / HOME / "ledger.sqlite").stat().st_size
    finally:
        shutil.rmtree(out)
    busy = usage.ru_utime + usage.ru_stime
    cells = [f"{asked.tiles:,}", f"{kills}", f"{wall:.0f} s", f"{busy:.0f} s", f"{usage.ru_maxrss / 1e6:.2f} GB"]
    print(f"| {' | '.join(cells)} | {size / asked.tiles:.0f} bytes | {int(kept):,} kept, {int(done):,} done at last |")


if __name__ == "__main__":
    main()

"""Hostile files by the thousand: nothing may crash, hang, run, read elsewhere, or be read as what it isn't.

python benchmarks/fuzz.py [--minutes 5] [--inputs N] [--seed 0] [--only tiff] [--out FILE.json]

A worker process with a cap on its memory makes one input after the other (`fuzz_inputs`) and reads it. Counted are:
crashes (the worker died), hangs (more than two seconds of its processor's time), tracebacks (an exception that isn't
ours), lines (a message of several lines or with control characters), executed, outside (a file beside the folder was
read), wrong (another reader has other pixels). What was found can be made again from its seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_inputs import MAKERS, Attempt, Place

LIMIT = 2.0  # seconds of the processor
MEMORY = 8 << 30  # bytes of address space; libraries alone take half of it
SECRET = 0x5A5A
SELDOM = {"bombs": 50}  # one of so many of its seeds: what unpacks a bomb's first bytes takes 60 times the others' time
COLUMNS = ("inputs", "read", "refused", "crashes", "hangs", "tracebacks", "lines", "executed", "outside", "wrong")


def try_one(family: str, seed: int, root: Path) -> tuple[str, str]:
    """Make an input and read it: what came of it, and the words."""
    from voxelry.core.errors import VoxelryError

    shutil.rmtree(root, ignore_errors=True)
    place = Place(root / "inputs", root / "secret.bin", root / "executed")
    place.folder.mkdir(parents=True)
    place.secret.write_bytes(np.full(4096, SECRET, "<u2").tobytes())
    try:
        attempt = MAKERS[family](random.Random(f"{family} {seed}"), place)
    except Exception:  # a library that refuses to write what it is asked to
        return "unmade", ""
    started = time.process_time()
    found, outcome, words = None, "read", ""
    try:
        found = attempt.read()
    except VoxelryError as error:
        outcome, words = "refused", str(error)
        if len(words.splitlines()) > 1 or any(not sign.isprintable() for sign in words):
            outcome = "lines"
    except Exception:
        outcome, words = "tracebacks", traceback.format_exc()
    if time.process_time() - started > LIMIT:
        return "hangs", f"{time.process_time() - started:.1f} s"
    if place.trace.exists():
        return "executed", ""
    if found is not None and (np.asarray(found) == SECRET).sum() > 2:
        return "outside", str(attempt.path)
    if found is not None and attempt.judge is not None and outcome == "read":
        return _judged(attempt, found)
    return outcome, words


def _judged(attempt: Attempt, found: np.ndarray) -> tuple[str, str]:
    try:
        expected = attempt.judge() if attempt.judge is not None else None
    except Exception:
        return "read", "the other reader refuses it"
    if expected is None:
        return "read", ""
    alike = expected.astype(found.dtype).ravel()  # what counts as a channel is each reader's own
    same = found.size == expected.size and np.array_equal(found.ravel(), alike, equal_nan=found.dtype.kind == "f")
    return (
        ("read", "")
        if same
        else ("wrong", f"{found.shape} {found.dtype}, another reader: {expected.shape} {expected.dtype}")
    )


def work(families: list[str], first: int, root: Path) -> None:
    """A worker: one line before each input and one after it, until it is ended."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seed = first
    for family in families:  # what the first file of a family takes is the import of its reader
        try_one(family, -1, root)
    while True:
        for family in (one for one in families if seed % SELDOM.get(one, 1) == 0):
            print(json.dumps([family, seed]), flush=True)
            print(json.dumps(try_one(family, seed, root)), flush=True)
        seed += 1


class Fuzzer:
    """Runs workers and counts what comes of their inputs."""

    def __init__(self, families: list[str], seed: int):
        self.families, self.seed = families, seed
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.found: list[dict[str, Any]] = []

    def run(self, seconds: float, inputs: int) -> None:
        """Until the time is over or so many were tried."""
        ends = time.monotonic() + seconds
        with tempfile.TemporaryDirectory() as folder:
            while time.monotonic() < ends and self._done() < inputs:
                self._worker(Path(folder), ends, inputs)

    def _done(self) -> int:
        return sum(counts["inputs"] for counts in self.counts.values())

    def _worker(self, folder: Path, ends: float, inputs: int) -> None:
        command = [sys.executable, __file__, "--worker", ",".join(self.families), str(self.seed), str(folder / "files")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            assert worker.stdout is not None
            watched = Watch(worker.pid)
            while time.monotonic() < ends and self._done() < inputs:
                line = watched.line(worker.stdout)
                if not line:
                    break
                family, self.seed = json.loads(line)
                answer = watched.line(worker.stdout)
                outcome, words = json.loads(answer) if answer else ("hangs" if watched.hung else "crashes", "")
                self.counts[family].update(["inputs", outcome] if outcome != "unmade" else ())
                if outcome not in ("read", "refused", "unmade"):
                    self.found.append({"family": family, "seed": self.seed, "outcome": outcome, "words": words})
                if not answer:
                    break
            worker.kill()
        self.seed += 1

    def table(self) -> str:
        """The counts by family, as Markdown."""
        rows = [(family, *(self.counts[family][name] for name in COLUMNS)) for family in self.families]
        rows.append(("all", *(sum(row[place] for row in rows) for place in range(1, len(COLUMNS) + 1))))
        lines = [("family", *COLUMNS), ("---",) * (len(COLUMNS) + 1), *rows]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


class Watch:
    """Reads a worker's lines, and ends it when one takes too much of its processor's time."""

    def __init__(self, process: int):
        self.process, self.hung = process, False

    def line(self, stream: Any) -> str:
        """The next line; nothing where the worker ended."""
        import select
        import signal

        before = None
        while not select.select([stream], [], [], 1.0)[0]:
            spent = self._spent()
            before = spent if before is None else before
            if spent - before > 4 * LIMIT:
                self.hung = True
                os.kill(self.process, signal.SIGKILL)
        return str(stream.readline())

    def _spent(self) -> float:
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2].split(","), int(sys.argv[3]), Path(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(MAKERS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    fuzzer = Fuzzer(asked.only.split(","), asked.seed)
    fuzzer.run(60 * asked.minutes, asked.inputs)
    print(fuzzer.table())
    for one in fuzzer.found[:40]:
        print(one["family"], one["seed"], one["outcome"], one["words"].strip().splitlines()[-1:])
    if asked.out is not None:
        asked.out.write_text(json.dumps({"counts": fuzzer.counts, "found": fuzzer.found}, indent=1))
    return 1 if fuzzer.found else 0


if __name__ == "__main__":
    sys.exit(main())

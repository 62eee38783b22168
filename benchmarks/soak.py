"""Trainings that are killed at random times, and go on: the same weights as undisturbed, bit for bit.

python benchmarks/soak.py [--tasks landmarks_3d,segment_2d] [--kills 3] [--seed 0] [--minutes 10] [--out FILE.json]

For each task a short training runs to its end once, and once more with deaths: SIGKILL at random times of its steps, a
last checkpoint that is cut short, and a full disk (`ulimit -f`). After each the same command with `resume=true` goes
on. At the end all tensors of the two bundles are compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from voxelry.phantoms import write_phantoms

STEPS = 12
HEADS = ("task", "kills", "torn", "full disk", "said", "faults", "same weights", "s")
COMMON = ("trainer=smoke", "trainer.progress=false", "trainer.accelerator=cpu", "metrics=default",
          "data.split.fractions=[0.5,0.25,0.25]", f"trainer.max_steps={STEPS}", "trainer.validate_every=4",
          "trainer.checkpoint_every=1", "data.num_workers=0")  # fmt: skip
UNET = ("model=unet_tiny", "model.width=8", "model.multipliers=[1,2]", "data.preprocess.image_size=16")
TASKS: dict[str, tuple[str, ...]] = {
    "landmarks_3d": (*UNET, "data.training_samples=2"),
    "pretrain_3d": UNET,
    "pretrain_mae_3d": ("data.preprocess.image_size=16", "model.encoder.embed_dim=8", "model.encoder.stages=[1,1]",
                        "model.encoder.q_pool=1", "model.encoder.mask_unit_size=2", "model.decoder_dim=16",
                        "model.decoder_depth=1", "model.decoder_heads=2"),
    "translate_3d": ("data=degraded", "data.preprocess.image_size=16", "model=translate_small", "model.width=8",
                     "model.multipliers=[1,2]", "model.groups=4"),
    "segment_2d": ("data.patches.size=32", "data.patches.margin=4", "data.batch_size=1", "backbone.backbone.width=4",
                   "backbone.out_channels=8"),
    "reconstruct_3d": ("model=shape_tiny",),
}  # fmt: skip


@dataclass
class Soak:
    """What became of one task."""

    task: str
    kills: int = 0
    torn: int = 0
    full: int = 0
    said: int = 0
    faults: list[str] = field(default_factory=list)
    same: bool = False
    seconds: float = 0.0

    def row(self) -> tuple[Any, ...]:
        """A line of the table."""
        return (
            self.task,
            self.kills,
            self.torn,
            self.full,
            self.said,
            len(self.faults),
            self.same,
            f"{self.seconds:.0f}",
        )


class Training:
    """A training of a task in a folder of its own, by its command."""

    def __init__(self, task: str, data: Path, output: Path):
        self.output = output
        self.command = [sys.executable, "-m", "voxelry", "train", f"experiment={task}", f"data.root={data}",
                        f"output_dir={output}", "resume=true", *COMMON, *TASKS[task]]  # fmt: skip

    @property
    def last(self) -> Path:
        """Its newest checkpoint."""
        return self.output / "checkpoints" / "last.ckpt"

    def run(self, limit: int | None = None) -> tuple[int, str]:
        """To its end; `limit` is the most bytes that a file of it may have."""

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        before = None if limit is None else limited
        ran = subprocess.run(self.command, capture_output=True, text=True, check=False, preexec_fn=before)
        return ran.returncode, ran.stdout + ran.stderr

    def killed(self, dice: random.Random) -> bool:
        """Until a random time after a checkpoint of a random step; whether it was still running."""
        seen, wanted, delay = set(), dice.randint(1, STEPS // 3), dice.random() * 0.3
        with subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(seen) < wanted:
                if self.last.exists():
                    seen.add(self.last.stat().st_mtime_ns)
                time.sleep(0.01)
            time.sleep(delay)
            running = process.poll() is None
            process.kill()
        return running


def soak(task: str, folder: Path, kills: int, dice: random.Random) -> Soak:
    """Train a task twice, once with deaths."""
    found, started = Soak(task), time.monotonic()
    kind = "nuclei" if task.startswith("segment") else "torso"
    shape, ndim = ((48, 56), 2) if kind == "nuclei" else ((24, 28, 32), 3)
    data = write_phantoms(
        folder / "data", 4, seed=5, ndim=ndim, shape=shape, kind=kind, format=".ome.tif" if ndim == 2 else ".nii.gz"
    )
    whole, deadly = (Training(task, data, folder / name) for name in ("whole", "deadly"))
    status, words = whole.run()
    if status:
        found.faults.append(words.strip()[-300:])
        return found
    for _ in range(kills):
        found.kills += deadly.killed(dice)
    if (deadly.output / "checkpoints" / "before_last.ckpt").exists():
        found.torn += 1
        content = deadly.last.read_bytes()
        deadly.last.write_bytes(content[: dice.randrange(len(content))])
    if deadly.last.exists() and not (deadly.output / "summary.json").exists():
        status, words = deadly.run(limit=10_000)
        found.full += 1
        lines = [line for line in words.splitlines() if line.startswith("voxelry: error")]
        if status != 1 or len(lines) != 1 or "Traceback" in words:
            found.faults.append(f"full disk: exit {status}: {words.strip()[-300:]}")
        found.said += "torn: going on from the one before" in words
    status, words = deadly.run()
    found.said += "torn: going on from the one before" in words
    if status:
        found.faults.append(words.strip()[-300:])
        return found
    one, other = (load_file(run.output / "bundle" / "weights.safetensors") for run in (whole, deadly))
    found.same = one.keys() == other.keys() and all(
        value.numpy().tobytes() == other[name].numpy().tobytes() for name, value in one.items()
    )
    found.seconds = time.monotonic() - started
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    ends, found = time.monotonic() + 60 * asked.minutes, []
    print(f"| {' | '.join(HEADS)} |\n| {' | '.join('---' for _ in HEADS)} |")
    for number, task in enumerate(asked.tasks.split(",")):
        if time.monotonic() > ends:
            break
        with tempfile.TemporaryDirectory() as folder:
            found.append(soak(task, Path(folder), asked.kills, random.Random(asked.seed + number)))
        print(f"| {' | '.join(map(str, found[-1].row()))} |", flush=True)
        for fault in found[-1].faults:
            print(fault, file=sys.stderr)
    if asked.out is not None:
        asked.out.write_text(json.dumps([vars(one) for one in found], indent=1))
    return 0 if all(one.same and not one.faults for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())

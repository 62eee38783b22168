"""Memory that a plan predicts, against what the commands take at their peak; one default network at a time.

Phantoms are made, a training of three steps on them is planned and run, and one of them is predicted, each in a process
of its own whose peak the system tells. Prints a row of the table in RESULTS.md.

    python benchmarks/memory_plan.py landmarks_3d --size 96 --batch 2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from voxelry.engine.plan.plan import Plan, plan_folder
from voxelry.io import open_image
from voxelry.phantoms import write_phantoms

KIND = {"reconstruct": "organ", "segment": "nuclei"}
STEPS = 3


def peak_of(*command: str) -> int:
    """Bytes that a command of voxelry holds at its peak."""
    process = subprocess.Popen(
        [sys.executable, "-m", "voxelry", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"voxelry {' '.join(command)}: {message[-2000:]}")
    return usage.ru_maxrss * 1024


def measured(plan: Plan, settings: list[str], place: Path) -> tuple[int, int]:
    """Bytes that the training and a prediction take."""
    run, data = place / "run", place / "data"
    training = peak_of("train", *settings, f"data.root={data}", f"output_dir={run}")
    image = next(path for path in sorted((data / "volumes").iterdir()) if path.is_file())
    space = open_image(image).space
    centre = space.to_world([(size - 1) / 2 for size in space.shape]).tolist()
    prompt = [f"--click={','.join(map(str, centre))}"] if "reconstruct" in str(plan.config.name) else []
    return training, peak_of("predict", "--model", str(run), str(image), "--out", str(place / "out"), *prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("settings", nargs="*", help="further settings, as of voxelry train")
    asked = parser.parse_args()
    task = asked.experiment.rpartition("_")[0]
    ndim = int(asked.experiment[-2])
    settings = [
        f"experiment={asked.experiment}",
        f"data.batch_size={asked.batch}",
        f"trainer.max_steps={STEPS}",
        "trainer.accelerator=cpu",
        "trainer.progress=false",
        "data.split.fractions=[1,0,0]",
        "data.preprocess.spacing=null",
        "plan=null",
        *([] if task in ("segment", "reconstruct", "reconstruct_flow") else ["data.patches=null"]),
        *asked.settings,
    ]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kind = KIND.get(task.partition("_")[0], "torso")
        write_phantoms(place / "data", 2, ndim=ndim, shape=(asked.size,) * ndim, kind=kind, format=".nii.gz")
        plan = plan_folder(place / "data", task, settings)
        peaks = measured(plan, settings, place)
    cells = [asked.experiment, f"{asked.size}{'²³'[ndim - 2]} x {asked.batch}"]
    for told, found in zip((plan.training_memory, plan.prediction_memory), peaks, strict=True):
        ratio = "" if told is None else f"{told / found:.2f}"
        cells += ["unknown" if told is None else f"{told / 1e9:.2f}", f"{found / 1e9:.2f}", ratio]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

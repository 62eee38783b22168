"""A stranger's folder, `data.root` and some minutes: what is planned, and what comes of it.

    python benchmarks/first_contact.py --minutes 0.5                  # all data sets
    python benchmarks/first_contact.py bbbc050 thick --memory 4       # two of them, with 4 GB allowed
    python benchmarks/first_contact.py bbbc050 --without all          # the experiment's defaults instead
    python benchmarks/first_contact.py --without data.preprocess.spacing  # which decision matters
    python benchmarks/first_contact.py --set data.split.fractions=[0.6,0.2,0.2] # to compare on the same cases

Each data set is planned and trained as `voxelry plan` and `voxelry train plan=FILE trainer.max_minutes=N` do, in
processes of their own, whose peak the system tells. Real volumes lie in `$VOXELRY_DATA` (sorted into `volumes/` and
`instances/` where they are single files, as anybody would); the others are invented. Prints a row of the table in
RESULTS.md for each, as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxelry.core.space import Space
from voxelry.engine.plan_file import Decision, in_yaml, read_plan, write_plan
from voxelry.io import open_image, write_image
from voxelry.phantoms import write_phantoms

DATA = Path(os.environ.get("VOXELRY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SHOWN = ("spacing", "size", "batch_size", "width", "strides", "normalise", "folds")
Make = Callable[[Path], Path]


def real(name: str) -> Make:
    """A folder of the real data as it is."""
    return lambda place: DATA / name


def sorted_by_hand(files: Mapping[str, str]) -> Make:
    """Single files in the folders that they belong in."""

    def make(place: Path) -> Path:
        for target, source in files.items():
            (place / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DATA / source, place / target)
        return place

    return make


def phantoms(count: int, kind: str = "torso", **settings: object) -> Make:
    """Invented volumes."""
    return lambda place: write_phantoms(place, count, kind=kind, **settings)  # type: ignore[arg-type]


def mixed(place: Path) -> Path:
    """Sizes and spacings that differ from volume to volume."""
    for number in range(6):
        part = place / f"part{number}"
        size, step = (20 + 6 * number, 40, 44 - 3 * number), (1.0 + number / 2, 2.0, 2.0 - number / 10)
        write_phantoms(part, 1, seed=number, shape=size, spacing=step)
        for file in part.rglob("case_000*"):
            target = place / file.relative_to(part).parent / file.name.replace("case_000", f"case_{number:03d}")
            target.parent.mkdir(exist_ok=True)
            file.rename(target)
        shutil.rmtree(part)
    return place


def four_channels(place: Path) -> Path:
    """Volumes of four channels."""
    write_phantoms(place, 6, shape=(32, 32, 32))
    for file in sorted((place / "volumes").iterdir()):
        image = open_image(file)
        array = image.read()
        write_image(file, np.concatenate([array, array**2, 1 - array, array * 0.5]), image.space)
    return place


def wide(place: Path) -> Path:
    """Images of 1 x 2048 x 2048."""
    for number in range(4):
        coarse = np.random.default_rng(number).random((1, 1, 64, 64), np.float32)
        image = coarse.repeat(32, axis=2).repeat(32, axis=3)
        write_image(place / "volumes" / f"wide{number}.nii.gz", image, Space.from_spacing(image.shape[1:], 0.5))
    return place


def larger_than_memory(place: Path) -> Path:
    """A volume of 64 GB, of which nothing but the header is on the disk."""
    import zarr

    group = zarr.create_group(place / "volumes" / "huge.ome.zarr", zarr_format=2)
    group.create_array("0", shape=(4096, 4096, 4096), chunks=(128, 128, 128), dtype="uint8", fill_value=0)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "name": "huge", "axes": axes, "datasets": levels}]
    return place


@dataclass(frozen=True)
class DataSet:
    """A folder, and what is to be learned from it."""

    task: str
    make: Make


DATA_SETS = {
    "hippocampus": DataSet("landmarks", real("hippocampus")),
    "hippocampus_organ": DataSet("reconstruct", real("hippocampus")),
    "hippocampus_denoise": DataSet("translate", real("hippocampus")),
    "bbbc050": DataSet("segment", real("bbbc050")),
    "usiigaci_phase": DataSet("segment", real("usiigaci_phase")),
    "drosophila_eggs": DataSet("segment", real("drosophila_eggs")),
    "go_nuclear": DataSet("segment", real("go_nuclear")),
    "plantseg": DataSet("segment", sorted_by_hand({"sample_ovule.h5": "plantseg/sample_ovule.h5"})),
    "stardist": DataSet(
        "segment", sorted_by_hand({"volumes/a.tif": "stardist/img3d.tif", "instances/a.tif": "stardist/mask3d.tif"})
    ),
    "qcanet": DataSet(
        "segment",
        sorted_by_hand(
            {
                "volumes/a.tif": "qcanet/images_raw/8_cell_stage.tif",
                "instances/a.tif": "qcanet/images_nsn/8_cell_stage.tif",
            }
        ),
    ),
    "thick": DataSet("landmarks", phantoms(8, shape=(20, 96, 96), spacing=(5.0, 0.5, 0.5))),
    "wide": DataSet("pretrain", wide),
    "four_channels": DataSet("landmarks", four_channels),
    "one_case": DataSet("landmarks", phantoms(1, shape=(32, 32, 32))),
    "sixteen_voxels": DataSet("landmarks", phantoms(4, shape=(16, 16, 16))),
    "mixed": DataSet("landmarks", mixed),
    "microscopy": DataSet("segment", phantoms(3, kind="nuclei", spacing=0.009)),
    "larger_than_memory": DataSet("pretrain", larger_than_memory),
}


def run(command: list[str], memory: float | None) -> tuple[str, str, int]:
    """What a command of voxelry prints, the error that it ends with, and its peak in bytes."""

    def limit() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 1e9),) * 2)

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "voxelry", *command], stdout=out, stderr=err, preexec_fn=limit
        )
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        err.seek(0)
        printed, message = out.read().decode(), err.read().decode().strip()
    return printed, message.splitlines()[-1] if status and message else "", usage.ru_maxrss * 1024


def leave_out(plan: Path, settings: Sequence[str], typed: Sequence[str]) -> None:
    """Take decisions out of a plan (`all` of them), so that the experiment's own values count."""
    basic = ("experiment", "data.root", "data", "trainer.max_steps", *typed)
    drop = "all" in settings
    kept = [
        one for one in read_plan(plan) if one.setting in basic or not (drop or one.setting.startswith(tuple(settings)))
    ]
    write_plan(plan, kept)


def first_contact(
    name: str, minutes: float, memory: float | None, without: Sequence[str] = (), typed: Sequence[str] = ()
) -> list[str]:
    """The cells of a row."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        chosen = DATA_SETS[name]
        (place / "data").mkdir()
        root = chosen.make(place / "data")
        plan = place / "plan.yaml"
        settings = [f"trainer.max_minutes={minutes:g}", "trainer.progress=false", *typed]
        told, error, _ = run(["plan", str(root), "--task", chosen.task, *settings, "--out", str(plan)], memory)
        if error:
            return [name, chosen.task, "", "", "", "", error]
        leave_out(plan, without, [setting.partition("=")[0] for setting in settings])
        predicted = re.search(r"training about ([\d.]+) GB", told)
        _, error, peak = run(["train", f"plan={plan}", f"output_dir={place / 'run'}"], memory)
        decided = "; ".join(_cell(one) for one in read_plan(plan) if one.setting.rpartition(".")[2] in SHOWN)
        measured = f"{peak / 1e9:.2f}"
        return [name, chosen.task, decided, predicted[1] if predicted else "", measured, _metric(place / "run"), error]


def _cell(one: Decision) -> str:
    return f"{one.setting.rpartition('.')[2]} {in_yaml(one.value)}"


def _metric(folder: Path) -> str:
    """The metric that decides about checkpoints, on the held-out cases."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except OSError:
        return ""
    numbers = {key: value for key, value in summary.items() if isinstance(value, float)}
    key = next((key for key in ("mre_mm", "ap_50", "ap50", "dice", "psnr", "loss") if key in numbers), None)
    key = key or next(iter(numbers), None)
    return "" if key is None else f"{key} {numbers[key]:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DATA_SETS)}; all by default")
    parser.add_argument("--minutes", type=float, default=0.5, help="of each training")
    parser.add_argument("--memory", type=float, help="GB that a process may take")
    parser.add_argument(
        "--without", nargs="+", default=(), metavar="SETTING", help="decisions that are left out, or all"
    )
    parser.add_argument("--set", nargs="+", default=(), metavar="SETTING", help="typed beside data.root and minutes")
    asked = parser.parse_args()
    print(
        "| data | task | plan | predicted GB | measured GB | metric | error |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in asked.names or DATA_SETS:
        print(
            f"| {' | '.join(first_contact(name, asked.minutes, asked.memory, asked.without, asked.set))} |", flush=True
        )


if __name__ == "__main__":
    main()

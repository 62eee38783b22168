"""A detector on images of other microscopes and species: as it is, told the size of the objects, and estimating it.

    voxelry train experiment=segment_3d data.root=$VOXELRY_DATA/bbbc050 trainer.max_minutes=15 output_dir=runs/embryos
    python benchmarks/object_sizes.py runs/embryos/bundle

Prints a row of the table in RESULTS.md for each data set of the same rank: the median size of its objects, the estimate
(`ops.blobs.blob_size`), and AP at IoU 0.5 over its images three times.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import voxelry
from first_contact import DATA_SETS
from voxelry.data.collate import collate
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.sample import Sample
from voxelry.ops.blobs import blob_size
from voxelry.tasks.segment.rescale import common_object_size

SETS = ("bbbc050", "stardist", "go_nuclear", "plantseg", "usiigaci_phase", "drosophila_eggs")
NOISE = "1137_mini"  # no image, see segment_nuclei.py


def samples_of(name: str, model: Any, place: Path) -> list[Sample]:
    """The cases of a data set as the model is shown them; none where they are of another rank."""
    root = DATA_SETS[name].make(place)
    cases = [case for case in find_cases(root) if case.name != NOISE]
    dataset = VolumeDataset(cases, preprocess=model.bundle.preprocess, need=("masks",))
    found = [dataset[index] for index in range(len(dataset))]
    return [sample for sample in found if sample.ndim == model.task.ndim]


def accuracy(task: Any, samples: Sequence[Sample], size: float | str | None) -> float:
    """AP at IoU 0.5 over some images where objects are said to be of that size."""
    task.object_size = size
    rows = []
    for sample in samples:
        batch = collate([sample])
        rows += task.metrics(task.predict(batch), batch)
    task.object_size = None
    return float(task.summary(rows)["ap_50"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = voxelry.load(asked.model, "cpu")
    task: Any = model.task
    print("| data | size | estimated | as it is | told the size | estimating it |\n|---|---|---|---|---|---|")
    for name in SETS:
        with tempfile.TemporaryDirectory() as place:
            samples = samples_of(name, model, Path(place))
            size = common_object_size(samples) if samples else None
            if size is None:
                continue
            seen = [blob_size([sample.image.numpy().mean(axis=0)], sample.space.spacing) for sample in samples]
            found = [accuracy(task, samples, said) for said in (None, size, "auto")]
        cells = [f"{value:.3g}" for value in (size, float(np.median([one for one in seen if one is not None])))]
        print(f"| {name} | {' | '.join(cells)} | {' | '.join(f'{one:.3f}' for one in found)} |", flush=True)


if __name__ == "__main__":
    main()

"""What the program must know of the task: its data, network, files and report."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voxelry.core.atomic import replacing
from voxelry.data.sample import Sample
from voxelry.tasks.recipe import DenseRecipe, make_folder
from voxelry.viz.report import Report
from voxelry_volumetry.options import OPTIONS
from voxelry_volumetry.task import Volume, VolumetryTask


class VolumetryRecipe(DenseRecipe):
    """Learned from labels, answered as a file with one number."""

    task = VolumetryTask
    needs = ("labels",)  # beside the images, to learn from
    truth = ("labels",)  # to measure by
    required = "labels"  # a case without them is refused
    formats = ("json",)
    options = OPTIONS

    def out_channels(self, sample: Sample, config: Any) -> int:
        return 1

    def write(self, prediction: Volume, sample: Sample, folder: Path, format: str) -> Path:
        path = make_folder(folder) / f"{sample.name}.{format}"
        with replacing(path, "the volume can't be written") as place:
            place.write_text(json.dumps(asdict(prediction)), encoding="utf-8")
        return path

    def add_results(self, report: Report, task: Any, evaluation: Any, history: Any) -> None:
        report.section("Volumes", f"Of {len(evaluation.rows)} held-out cases.")
        report.table(evaluation.rows, caption="Each case")

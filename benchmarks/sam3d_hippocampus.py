"""Hippocampus from one click by the two stages of SAM 3D Objects (`sam3d_tiny`), beside the compact network.

    python benchmarks/sam3d_hippocampus.py --minutes 30 --reader-minutes 12 --repeats 1
    python benchmarks/sam3d_hippocampus.py --lora --minutes 20 --reader-minutes 8 --adapt-minutes 8 --repeats 1

The compact network, which reads the prompts, is trained for a part of the time, the two stages around it for the rest.
Cases and prompts are those of `reconstruct_hippocampus.py`.

`--lora` trains all that on phantoms of one organ and adapts it to 10 cases by LoRA (rank 4, alpha 8) on both stages and
on the reader, beside the same 10 cases from scratch for the same time. The base is asked as it is, and once more with
the mean shape of the 10 cases, which an adapter is given, too.
"""

from __future__ import annotations

import argparse
from typing import Any

from reconstruct_hippocampus import (
    ORGAN,
    PRIOR_GRID,
    arguments_of,
    cases_of,
    finer,
    headings,
    held_out_data,
    measure,
    new_task,
    phantoms,
    show,
    slices_of,
    train,
    training_data,
    write_report,
)
from voxelry.core.settings import keywords
from voxelry.data.layouts.case import Case
from voxelry.data.slices.dataset import SliceDataset
from voxelry.data.slices.sources import VolumeSlices
from voxelry.data.splits import few_shot
from voxelry.engine.compose import compose_training
from voxelry.models.sam3d.net import TwoStageNet
from voxelry.tasks.reconstruct import ReconstructTask, ReconstructTwoStageTask
from voxelry.tasks.reconstruct.sam3d import STAGES

PROMPTS = ((0.0, "click"), (1.0, "click and mask"))


def two_stages_of(compact: ReconstructTask, arguments: argparse.Namespace, **settings: Any) -> ReconstructTwoStageTask:
    """Two untrained stages around a compact network."""
    model = compose_training(["experiment=reconstruct_sam3d_3d", "data.root=."]).model
    described = {name: value for name, value in keywords(model).items() if not name.startswith("_")}
    network = TwoStageNet(**{**described, "prior_grid": PRIOR_GRID, "image_size": arguments.image_size})
    network.load_state_dict(compact.network.state_dict(), strict=False)
    own = {
        **compact.settings(),
        **looks(arguments),
        "samples": arguments.samples,
        "draws": 1,
        "curriculum_batches": 100,
    }
    return ReconstructTwoStageTask(network, **{**own, **settings})


def looks(arguments: argparse.Namespace) -> dict[str, Any]:
    """How answers are made of what a network says."""
    return {"contour": arguments.contour, "contour_predicted": True, "recentre": True}


def trained(
    source: VolumeSlices, arguments: argparse.Namespace, minutes: float, reader_minutes: float
) -> tuple[ReconstructTask, ReconstructTwoStageTask]:
    """The compact network, and the two stages around it, from scratch."""
    data = training_data(source, ORGAN, arguments)
    compact = new_task(source, data, arguments, **looks(arguments))
    print(f"compact: {train(compact, data, arguments, minutes=reader_minutes)} steps", flush=True)
    task = two_stages_of(compact, arguments, autoencoder_share=0.5, stages=["structure", "surface"])
    steps = train(task, fine_data(source, arguments), fine(arguments), minutes=minutes - reader_minutes)
    print(f"two stages: {steps} steps", flush=True)
    return compact, task


def fine(arguments: argparse.Namespace) -> argparse.Namespace:
    """What the two stages learn from: batches of two, on their own grid."""
    grid = int(compose_training(["experiment=reconstruct_sam3d_3d", "data.root=."]).model.grid)
    return argparse.Namespace(**{**vars(arguments), "grid": grid, "batch": 2})


def fine_data(source: VolumeSlices, arguments: argparse.Namespace) -> SliceDataset:
    """Prompts on the grid of the two stages."""
    return training_data(source, ORGAN, fine(arguments))


def compare(arguments: argparse.Namespace, training_cases: list[Case], test_cases: list[Case]) -> None:
    """The two stages beside the compact network that reads their prompts."""
    source, held_out = slices_of(training_cases), slices_of(test_cases)
    compact, task = trained(source, arguments, arguments.minutes, arguments.reader_minutes)
    parameters = [sum(parameter.numel() for parameter in one.network.parameters()) / 1e6 for one in (compact, task)]
    print(f"{parameters[0]:.2f} and {parameters[1]:.2f} million parameters")
    finer(compact, arguments.answer_grid)
    data = fine_data(source, arguments)
    truths = held_out_data(source, data, mask=0.0, slices=1, repeats=1)
    for one in (compact, task):
        one.fit_baseline(truths[index] for index in range(min(len(truths), len(one.baselines.shapes))))
    headings()
    for mask, prompt in PROMPTS:
        dataset = held_out_data(held_out, data, mask=mask, slices=1, repeats=arguments.repeats)
        for name, one in (("compact", compact), ("its reader alone", task.without_flow()), ("two stages", task)):
            predictions, rows = measure(one, dataset)
            show(f"{name}, {prompt}", rows)
        if arguments.report and not mask:
            write_report("Hippocampus in two stages", arguments.report, task, (dataset, predictions, rows))


def lora(arguments: argparse.Namespace, training_cases: list[Case], test_cases: list[Case]) -> None:
    """A base trained on phantoms, adapted to few cases, beside the base itself and the same cases from scratch."""
    few, held_out = slices_of(few_shot(training_cases, arguments.shots, arguments.seed)), slices_of(test_cases)
    with phantoms(arguments) as source:
        base = trained(source, arguments, arguments.minutes, arguments.reader_minutes)[1].network.state_dict()
    data = fine_data(few, arguments)
    untrained = new_task(few, data, arguments)
    mean = untrained.network.state_dict()["prior.distances"]

    def of_base(weights: dict[str, Any], **settings: Any) -> ReconstructTwoStageTask:
        task = two_stages_of(untrained, arguments, **settings)
        task.network.load_state_dict(weights)
        return task

    def table(name: str, task: ReconstructTask) -> None:
        for mask, prompt in PROMPTS:
            dataset = held_out_data(held_out, data, mask=mask, slices=1, repeats=arguments.repeats)
            predictions, rows = measure(task, dataset)
            show(f"{name}, {prompt}", rows)
            if arguments.report and not mask and name == "LoRA":
                write_report("A base of phantoms, adapted", arguments.report, task, (dataset, predictions, rows))

    headings()
    table("base", of_base(base))
    base = {**base, "prior.distances": mean}
    table("base, mean shape of the few", of_base(base))
    share = arguments.reader_minutes / arguments.minutes
    table("scratch", trained(few, arguments, arguments.adapt_minutes, share * arguments.adapt_minutes)[1])
    task = of_base(base, stages=list(STAGES))
    task.adapt("hippocampus", {"rank": 4, "alpha": 8.0})
    assert task.adapters is not None
    own, whole = task.adapters.trainable()
    print(f"LoRA trains {own} numbers, {own / whole:.1%} of the base")
    groups, rate = task.parameter_groups, arguments.adapter_rate
    steps = train(task, data, fine(arguments), minutes=arguments.adapt_minutes, groups=groups, rate=rate)
    print(f"LoRA: {steps} steps")
    table("LoRA", task)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--reader-minutes", type=float, default=10.0, help="of these, for the compact network")
    parser.add_argument("--samples", type=int, default=4, help="hypotheses of the two stages")
    arguments = parser.parse_args()
    (lora if arguments.lora else compare)(arguments, *cases_of(arguments))


if __name__ == "__main__":
    main()

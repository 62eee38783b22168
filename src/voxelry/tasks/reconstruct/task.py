"""The reconstruction task: one to a few slices, a click on each, and the whole organ as a signed distance in mm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelry.core.choice import unknown_choice
from voxelry.core.errors import DataError, SettingError
from voxelry.core.settings import settle
from voxelry.core.space import Space
from voxelry.data.slices.case import SliceBatch, SliceCase
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.metrics.slices import mask_metrics
from voxelry.metrics.surfaces import METRICS, SURFACE_METRICS, reconstruction_metrics
from voxelry.models.adapters.adapters import Adapters, AdapterSettings
from voxelry.models.shape import Prompt, ShapeNet, ShapeOutput
from voxelry.tasks.base import Row, Task
from voxelry.tasks.reconstruct import losses
from voxelry.tasks.reconstruct.baselines import BASELINE_METRICS, Baselines
from voxelry.tasks.reconstruct.predict import (
    ReconstructPrediction,
    cut_iou,
    meet_contours,
    one_part,
    plane_distances,
)
from voxelry.tasks.reconstruct.summary import summarise
from voxelry.tasks.reconstruct.targets import Targets, class_of, make_targets
from voxelry.tasks.reconstruct.views import Views, frame_space

__all__ = ["WEIGHTS", "ReconstructTask"]

WEIGHTS = {
    "mask": 1.0,
    "occupancy": 1.0,
    "overlap": 1.0,
    "size": 0.5,
    "offset": 4.0,
    "plane": 0.3,
    "sdf": 0.2,
    "eikonal": 0.0,
    "chamfer": 0.0,
    "smoothness": 0.0,
}

_AGREEMENT = 0.5  # IoU


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """How shapes are learned from slices.

    Attributes:
        organs: label values of the network's classes from the first on, each a number or several that count as one
            organ; the first is the organ's value in predicted label volumes.
        edges: mm, the frame's usual edge for each organ; see `data.slices.dataset.usual_edges`.
        organ_names: for reports; by default the label values.
        image_size: pixels of a slice's view; by default the network's.
        view: a view's side in edges.
        slices: the most slices of a prompt.
        evaluation: how a trained model is measured: `slices` of each organ of each case, `clicks` on each, `seed`.
        weights: of the losses, by name; those that aren't named keep their value in `WEIGHTS`.
        curriculum_batches: batches over which the dense losses come in: first masks, occupancy, place and size, then
            distances and meshes. 0 starts with everything.
        tau: mm, the width of a soft surface.
        band: mm around the surface in which distances matter most.
        contour: mm over which the answer is bent so that its cut meets the slice's mask, the given one or, with
            `contour_predicted`, else the predicted one where cut and mask agree (intersection over union 0.5); 0
            leaves it as it is.
        contour_predicted: see `contour`.
        recentre: look again with the frame around the first answer, and average. Looks of one network are no
            hypotheses: how far they differ says nothing of what is possible.
        mirror: look also at the mirror image, and average.
        baseline_shapes: training shapes that are kept to compare with; see `baselines`.
    """

    organs: Sequence[int | Sequence[int]] = (1,)
    edges: Sequence[float] = (100.0,)
    organ_names: Sequence[str] | None = None
    image_size: int | None = None
    view: float = 1.0
    slices: int = 3
    evaluation: Mapping[str, int] | None = None
    weights: Mapping[str, float] | None = None
    curriculum_batches: int = 0
    tau: float = 1.0
    band: float = 12.0
    contour: float = 3.0
    contour_predicted: bool = False
    recentre: bool = False
    mirror: bool = False
    baseline_shapes: int = 32

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights or {}) - set(WEIGHTS))
        if unknown:
            raise SettingError(f"weights: expected names of {', '.join(WEIGHTS)}, got {unknown[0]!r}")
        for name in ("tau", "band", "view", "slices"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.contour < 0 or self.curriculum_batches < 0 or self.baseline_shapes < 0:
            raise SettingError("contour, curriculum_batches, baseline_shapes: expected 0 or more")


class ReconstructTask(Task[SliceBatch, ReconstructPrediction]):
    """Shapes from slices.

    Args:
        network: a `models.shape.ShapeNet`, with the organs' mean shapes set.

    Raises:
        SettingError: a setting out of its range; the message names it.
    """

    Settings = ReconstructSettings

    name = "reconstruct"
    draws_hypotheses = False
    monitor = "dice"
    higher_is_better = True
    slow = (*SURFACE_METRICS, *BASELINE_METRICS)
    network: ShapeNet
    seen: Tensor

    def __init__(self, network: ShapeNet, **settings: Any):
        super().__init__()
        own = self._settings = settle(ReconstructSettings, settings)
        self.network = network
        self.organs = [(organ,) if isinstance(organ, int) else tuple(int(one) for one in organ) for organ in own.organs]
        self.edges = [float(edge) for edge in own.edges]
        classes = network.classes
        if not all(self.organs) or not 1 <= len(self.organs) <= classes:
            raise SettingError(f"organs: expected 1 to {classes}, as the network has classes, got {list(own.organs)}")
        if len(self.edges) != len(self.organs) or min(self.edges) <= 0:
            raise SettingError(f"edges: expected {len(self.organs)} positive lengths in mm, got {list(own.edges)}")
        self.names = [
            "+".join(map(str, organ)) if own.organ_names is None else str(own.organ_names[place])
            for place, organ in enumerate(self.organs)
        ]
        self.weights = {**WEIGHTS, **{name: float(value) for name, value in (own.weights or {}).items()}}
        self.image_size = int(network.image_size if own.image_size is None else own.image_size)
        self.evaluation = dict(own.evaluation or {})
        self.view, self.slices, self.tau, self.band = float(own.view), int(own.slices), float(own.tau), float(own.band)
        self.contour, self.contour_predicted = float(own.contour), own.contour_predicted
        self.recentre, self.mirror, self.curriculum_batches = own.recentre, own.mirror, int(own.curriculum_batches)
        self.baselines = Baselines(own.baseline_shapes)
        self.adapters: Adapters | None = None
        self._head_rate: float | None = None
        self.register_buffer("seen", torch.zeros(()))
        self._settings = replace(
            own,
            weights=self.weights,
            image_size=self.image_size,
            organ_names=self.names,
            organs=self.organs,
            edges=self.edges,
        )

    def adapt(self, name: str, settings: Mapping[str, Any], *, head_rate: float | None = None) -> None:
        """Freeze the network and train an adapter on it.

        Args:
            name: of the adapter, such as the organ's.
            settings: of `models.adapters.adapters.AdapterSettings`.
            head_rate: learning rate of the network's last layers, which an adapter holds whole; None for that of all.

        Raises:
            SettingError: settings that there aren't, or targets that match no layer.
        """
        try:
            chosen = AdapterSettings(**settings)
        except TypeError as error:
            raise SettingError(f"adapter: {error}") from error
        self.adapters, self._head_rate = Adapters(self.network), head_rate
        self.adapters.add(name, chosen)

    def merge_adapter(self) -> None:
        """Put the active adapter into the network's weights for good; it is an ordinary network then."""
        if self.adapters is None:
            return
        network = self.network
        state = self.adapters.merged_state()
        plain_network = type(network)(**network.settings())
        plain_network.load_state_dict(state)
        self.network = plain_network.to(next(iter(state.values())).device).train(network.training)
        self.adapters = None

    def parameter_groups(self) -> Iterable[Any]:
        """All parameters, or of an adapter its additions and its heads, which may have a learning rate of their own."""
        if self.adapters is None:
            return super().parameter_groups()
        groups = self.adapters.parameter_groups(0.0, heads=self._head_rate or 0.0)
        return [{name: value for name, value in group.items() if name != "lr" or value} for group in groups]

    def prompt(self, batch: SliceBatch) -> Prompt:
        """The network's prompt of a batch, its labels as classes.

        Raises:
            DataError: a label that is none of the organs.
        """
        return Prompt(**{**batch.prompt(), "label": class_of(batch.label, self.organs)})

    def training_loss(self, batch: SliceBatch) -> dict[str, Tensor]:
        """The weighted sum of the losses, and each that has a weight.

        Raises:
            DataError: the batch has no truth.
        """
        prompt = self.prompt(batch)
        network = self.network
        assert prompt.label is not None
        targets = make_targets(batch, network.prior, prompt.label, network.truncation)
        return self._losses(network(prompt), targets, prompt)

    def _losses(self, output: ShapeOutput, targets: Targets, prompt: Prompt) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        total = output.sdf.new_zeros(())
        seen = float(self.seen)
        for name, weight in self.weights.items():
            share = weight * losses.stage_of(name, seen, self.curriculum_batches)
            if share > 0:
                result[name] = self._loss(name, output, targets, prompt)
                total = total + share * result[name]
        if self.training:
            self.seen += 1
        return {"loss": total, **result}

    def _loss(self, name: str, output: ShapeOutput, targets: Targets, prompt: Prompt) -> Tensor:
        sdf, truth = output.sdf * targets.edge, targets.sdf
        step = targets.edge / sdf.shape[-1]
        band = (0.9 * targets.limit).clamp(max=self.band)  # where the truth isn't clipped
        match name:
            case "mask":
                return losses.mask_loss(output.mask_logits, targets.mask, targets.pixels)
            case "occupancy":
                return losses.occupancy_loss(sdf, truth, self.tau, band)
            case "overlap":
                return losses.overlap_loss(sdf, truth, self.tau)
            case "size":
                return (output.log_edge - targets.log_edge).abs().mean()
            case "offset":
                return (output.offset - targets.offset).abs().sum(dim=1).mean()
            case "plane":
                return losses.on_plane_loss(sdf, prompt.pointmap, targets.mask, targets.pixels, self.tau)
            case "sdf":
                return losses.sdf_loss(sdf, truth, band)
            case "eikonal":
                return losses.eikonal_loss(sdf, truth, step, band)
            case "chamfer":
                return losses.chamfer_loss(sdf, truth, step)
            case "smoothness":
                return losses.smoothness_loss(sdf, truth, step, band)
        raise unknown_choice("weights", name, losses.LOSSES)

    @torch.no_grad()
    def predict(self, batch: SliceBatch) -> list[ReconstructPrediction]:
        """A shape for every prompt; the truth in the batch is not looked at.

        Raises:
            DataError: a label that is none of the organs.
        """
        prompt = self.prompt(batch)
        looks, probability, frames = self._looks(batch, prompt)
        looks = torch.cat((looks.mean(dim=0, keepdim=True), looks))
        if self.contour:
            wanted = self._outlines(batch, prompt, probability, looks[0]).to(looks)
            edge = batch.edge.flatten()
            bent = [meet_contours(look, prompt, edge, wanted, reach=self.contour, most=self.band) for look in looks]
            looks = torch.stack(bent)
        return [
            self._prediction(batch, place, looks[:, place, 0], probability[place], frames[place])
            for place in range(len(batch))
        ]

    def _looks(self, batch: SliceBatch, prompt: Prompt) -> tuple[Tensor, Tensor, list[Space]]:
        """Shapes that are each an answer, `(K, B, 1, n, n, n)` mm, the predicted masks, and the frames."""
        sdf, probability = self._answer(batch, prompt)
        frames = [frame_space(batch, place, sdf.shape[-1]) for place in range(len(batch))]
        if not self.recentre and not self.mirror:
            return sdf.movedim(1, 0)[:, :, None], probability, frames
        again = Views(self._answer_again, self.image_size, self.view)
        looks = again.answers(batch, sdf, frames, mirror=self.mirror, recentre=self.recentre)
        return looks.movedim(2, 0).flatten(0, 1)[:, :, None], probability, frames

    def _answer(self, batch: SliceBatch, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Distances in mm, `(B, 1, n, n, n)`, or with several answers in place of the 1, and the predicted masks."""
        output: ShapeOutput = self.network(prompt)
        return output.sdf * batch.edge.view(-1, 1, 1, 1, 1), output.mask_logits.sigmoid()

    def _answer_again(self, batch: SliceBatch) -> Tensor:
        return self._answer(batch, self.prompt(batch))[0]

    def _prediction(
        self, batch: SliceBatch, place: int, looks: Tensor, probability: Tensor, frame: Space
    ) -> ReconstructPrediction:
        sdf, *others = [one_part(look) for look in looks.float().cpu().numpy()]
        count = len(batch.slices[place])
        given = batch.has_mask[place, :count]
        clicks = [slice.click_world for slice in batch.slices[place] if slice.click is not None]
        return ReconstructPrediction(
            name=batch.names[place],
            label=int(batch.label[place]),
            sdf=sdf,
            frame=frame,
            space=batch.spaces[place],
            clicks=np.array(clicks).reshape(-1, 3),
            planes=tuple(one.space for one in batch.slices[place]),
            views=batch.views[place],
            probability=probability[:count].float().cpu().numpy(),
            given=(batch.mask[place, :count] > 0.5).cpu().numpy() if bool(given.all()) else None,
            hypotheses=tuple(others) if self.draws_hypotheses and len(others) > 1 else (),
        )

    def _outlines(self, batch: SliceBatch, prompt: Prompt, probability: Tensor, look: Tensor) -> Tensor:
        """Signed distances within the slices, `(B, S, H, W)` mm; NaN where nothing is known.

        A predicted mask that has little in common with the shape's cut is no better than it, and is passed over.
        """
        wanted = torch.full(probability.shape, torch.nan)
        agree = (cut_iou(look, prompt, probability >= 0.5) >= _AGREEMENT).cpu() & self.contour_predicted
        for place, views in enumerate(batch.views):
            count = len(views)
            given = batch.has_mask[place, :count].cpu()
            masks = torch.where(given[:, None, None], batch.mask[place, :count].cpu(), probability[place, :count].cpu())
            near = plane_distances(masks >= 0.5, views, self.band)
            keep = given | agree[place, :count]
            wanted[place, :count] = torch.where(keep[:, None, None], near, torch.nan)
        return wanted

    def fit_baseline(self, samples: Iterable[Any]) -> None:
        """Keep some training shapes for the baseline of the nearest one.

        Args:
            samples: `SliceCase`s with truth.
        """
        cases: Iterable[SliceCase] = samples
        self.baselines.fit(cases, self.organs, self.edges)

    def metrics(
        self, predictions: Sequence[ReconstructPrediction], batch: SliceBatch, wanted: Wanted = ALL
    ) -> list[Row]:
        """One row per prompt: `metrics.surfaces`, the 2-D masks, and the baselines' Dice.

        Raises:
            DataError: the batch has no voxels to compare with.
        """
        rows: list[Row] = []
        surfaces, baselines = (wanted(*names, *self._by_organ(names)) for names in (SURFACE_METRICS, BASELINE_METRICS))
        for place, prediction in enumerate(predictions):
            given = batch.truths[place]
            if given is None:
                raise DataError(f"{batch.names[place]}: no labels to compare with")
            truth = given.cpu().numpy().astype(bool)
            count = len(batch.slices[place])
            row: Row = {
                "name": prediction.name,
                "organ": self.names[int(class_of(batch.label[place : place + 1], self.organs))],
                "plane": batch.slices[place][0].plane,
                "slice": _slice_name(batch, place),
                "click": ", ".join(f"{value:.2f}" for value in batch.slices[place][0].click_world),
                "slices": float(count),
                "mask_given": float(bool(batch.has_mask[place].any())),
            }
            row |= reconstruction_metrics(
                prediction.distances(prediction.space),
                truth,
                prediction.space,
                planes=prediction.planes,
                prediction_mesh=prediction.mesh if surfaces else None,
                surfaces=surfaces,
            )
            masks = [
                mask_metrics(prediction.probability[one], batch.mask_target[place, one].cpu().numpy() > 0.5)
                for one in range(count)
            ]
            row |= {name: float(np.mean([mask[name] for mask in masks])) for name in masks[0]}
            row["answer_on_slice_mm"] = prediction.on_slice_mm
            rows.append(row | (self.baselines.dice(self, batch, place, truth) if baselines else {}))
        return rows

    def summary(self, rows: Sequence[Mapping[str, float | str]]) -> dict[str, float]:
        """Means over the rows of every number, and of each organ; see `summary.summarise`.

        Rows of organs that don't count (`MetricChoice.classes`) are left out.
        """
        return summarise([row for row in rows if self.chosen.counts(str(row.get("organ")))])

    def measured_classes(self) -> Sequence[str]:
        """The names of the organs."""
        return self.names

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold."""
        own = ("slices", "mask_given", "mask_iou", "mask_mse", "answer_on_slice_mm")
        names = [*METRICS, *own, *BASELINE_METRICS]
        return [*names, "dice_low", "dice_high", *self._by_organ(["prompts", *names])]

    def _by_organ(self, names: Sequence[str]) -> list[str]:
        organs = self.names if len(self.names) > 1 else ()
        return [f"{organ}/{name}" for organ in organs for name in names]


def _slice_name(batch: SliceBatch, place: int) -> str:
    """Axis and voxel of a prompt's first slice, such as `axial 41`."""
    first = batch.slices[place][0]
    return first.plane if first.slice_idx is None else f"{first.plane} {first.slice_idx}"

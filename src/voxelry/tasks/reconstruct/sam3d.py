"""The reconstruction in the two stages of SAM 3D Objects: coarse structure, then its surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.settings import check_fraction
from voxelry.core.space import Space
from voxelry.data.slices.case import SliceBatch
from voxelry.diffusion.flow import draw_times, interpolate, velocity
from voxelry.diffusion.guidance import Guidance
from voxelry.diffusion.latents import Latents
from voxelry.diffusion.shortcut import draw_steps, shortcut_loss
from voxelry.metrics.choice import ALL, MetricChoice, Wanted
from voxelry.models.sam3d.generate import TICKS, Generation, ask
from voxelry.models.sam3d.net import SURFACE, Sampled, TwoStageCondition, TwoStageNet
from voxelry.models.sam3d.pose import (
    POSE_DECODERS,
    POSE_METRICS,
    decode_pose,
    identity_pose,
    pose_latents,
    pose_metrics,
)
from voxelry.models.sam3d.structure import Structure
from voxelry.models.sam3d.structure_flow import SHAPE
from voxelry.models.shape import Prompt, ShapeNet, ShapeOutput
from voxelry.nn.moments import RunningMoments, divergence, drawn
from voxelry.nn.sparse import SparseTensor
from voxelry.tasks.base import Row
from voxelry.tasks.reconstruct import losses
from voxelry.tasks.reconstruct.flow import ReconstructFlowSettings, ReconstructFlowTask
from voxelry.tasks.reconstruct.predict import ReconstructPrediction
from voxelry.tasks.reconstruct.targets import Targets, make_targets
from voxelry.tasks.reconstruct.task import ReconstructSettings

__all__ = ["STAGES", "ReconstructTwoStageTask"]

STAGES = ("reader", "structure", "surface")

Losses = dict[str, tuple[float, Tensor]]
"""Weights and losses by name."""


@dataclass(frozen=True, kw_only=True)
class ReconstructTwoStageSettings(ReconstructFlowSettings):
    """How the two stages learn and are sampled; everything of `ReconstructFlowSettings`, and:

    Attributes:
        stages: which of `STAGES` a training trains; the others keep their weights. The reader is what reads prompts.
        frozen: whether flows and decoders stand still, and only what is new around published ones learns: the reader,
            what leads the flows, and both encoders, whose latents keep the moments that these networks know.
        surface_items: prompts of a batch that the second stage learns from: it is the costly one.
        surface_distance, surface_mesh, surface_regulariser: weights of the mesh decoder's losses: its distances' error
            in mm, the Chamfer distance of its mesh in mm, which comes in over `curriculum_batches`, and its own.
        condition_drop: share of prompts that the flows learn without, so that they can be guided.
        guidance: strength with which flows are led away from what they would answer without the prompt; 0 for none.
        guidance_interval: times between which they are, 1 being noise.
        pose_weight: weight of the pose's latents, for networks that have them; they learn the identity.
        pose_decoder: what is said of a pose, see `models.sam3d.pose.decode_pose`.
    """

    stages: Sequence[str] = STAGES
    frozen: bool = False
    surface_items: int = 1
    surface_distance: float = 1.0
    surface_mesh: float = 0.5
    surface_regulariser: float = 0.1
    condition_drop: float = 0.1
    guidance: float = 0.0
    guidance_interval: Sequence[float] = field(default=(0.5, 1.0))
    pose_weight: float = 0.0
    pose_decoder: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in self.stages:
            check_choice("stages", stage, STAGES)
        if not self.stages or self.surface_items < 1:
            raise SettingError("stages, surface_items: expected at least one of each")
        check_choice("pose_decoder", self.pose_decoder, POSE_DECODERS)
        check_fraction(self.condition_drop, "condition_drop")
        for name in ("surface_distance", "surface_mesh", "surface_regulariser", "guidance", "pose_weight"):
            if not getattr(self, name) >= 0:
                raise SettingError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        Guidance(self.guidance, tuple(self.guidance_interval))


class ReconstructTwoStageTask(ReconstructFlowTask):
    """Organs from slices by coarse structure and surface, `samples` of them for every prompt; the answer is their mean.

    In the first part of a training the reader learns masks and coarse shapes, the autoencoder of occupancies and the
    encoder and decoder of surfaces learn the training shapes. In the second part the encoders are kept, both flows
    learn their latents, and the decoders go on.

    Args:
        network: a `models.sam3d.net.TwoStageNet`, with the organs' mean shapes set.

    Raises:
        SettingError: a setting out of its range; the message names it.
    """

    Settings: ClassVar[type[ReconstructSettings]] = ReconstructTwoStageSettings

    name = "reconstruct_sam3d"
    network_type: ClassVar[type[ShapeNet]] = TwoStageNet

    def __init__(self, network: nn.Module, **settings: Any):
        super().__init__(network, **settings)
        self._pose: dict[str, Tensor] = {}
        if self.own.frozen:
            both: Any = network
            for part in (both.structure.decoder, both.structure_flow, both.surface.decoder, both.latent_flow):
                part.requires_grad_(False)

    @property
    def own(self) -> ReconstructTwoStageSettings:
        """The settings."""
        settings: ReconstructTwoStageSettings = self._settings
        return settings

    def adapt(self, name: str, settings: Mapping[str, Any], *, head_rate: float | None = None) -> None:
        """As `ReconstructFlowTask.adapt`.

        Raises:
            SettingError: with `frozen`; or see there.
        """
        if self.own.frozen:
            raise SettingError("frozen: expected without an adapter, for which the whole network stands still")
        super().adapt(name, settings, head_rate=head_rate)

    def training_loss(self, batch: SliceBatch) -> dict[str, Tensor]:
        """The losses of the stages that learn.

        Raises:
            DataError: the batch has no truth.
            SettingError: `frozen` networks that have learned nothing.
        """
        if self.own.frozen and not int(self.network.structure.batches) * int(self.network.surface.batches):
            raise SettingError("frozen: expected pretrained=BUNDLE with both stages trained or imported, got new ones")
        if "reader" in self.own.stages:
            return super().training_loss(batch)
        prompt, network = self.prompt(batch), self.network
        assert prompt.label is not None
        targets = make_targets(batch, network.prior, prompt.label, network.truncation)
        condition = None if self.learns_coders else network.read(prompt, learn=False)
        part = self._coders if condition is None else self._flows
        found = part(targets, None, prompt, condition)
        if self.training:
            self.seen += 1
        values = {name: value for name, (_, value) in found.items()}
        nothing = 0 * next(value for value in network.parameters() if value.requires_grad).sum()  # of no organ in sight
        return {"loss": sum((weight * value for weight, value in found.values()), nothing), **values}

    @property
    def learns_coders(self) -> bool:
        """As the parent's, and as long as the second stage has seen no shape."""
        return super().learns_coders or ("surface" in self.own.stages and not int(self.network.surface.batches))

    def _coders(
        self, targets: Targets, output: ShapeOutput | None, prompt: Prompt, condition: TwoStageCondition | None
    ) -> Losses:
        found: Losses = {}
        if "structure" in self.own.stages:
            coder = self.network.structure
            occupied = self.network.occupancy(targets.sdf / targets.edge)
            mean, log_variance = coder.encode(occupied)
            found["divergence"] = self.divergence, self._divergence(coder, mean, log_variance)
            logits = coder.decoder(drawn(mean, log_variance) if self.training else mean)
            found["coded"] = 1.0, losses.structure_loss(logits, occupied)
        return found | self._surface_losses(targets, condition)

    def _flows(
        self, targets: Targets, output: ShapeOutput | None, prompt: Prompt, condition: TwoStageCondition | None
    ) -> Losses:
        assert condition is not None
        network, truth = self.network, targets.sdf / targets.edge
        kept = torch.rand(len(truth), 1, 1, device=truth.device) >= self.own.condition_drop
        condition = replace(condition, tokens=condition.tokens * kept)
        found: Losses = {}
        if "structure" in self.own.stages:
            latents = network.latents(truth)
            found["flow"] = self.flow_weight, self._structure_flow(latents.flatten(2).mT, condition)
            if not self.own.frozen:
                logits = network.structure.shape(latents + self.blur * torch.randn_like(latents))
                found["coded"] = 1.0, losses.structure_loss(logits, network.occupancy(truth))
        return found | self._surface_losses(targets, condition)

    def _divergence(self, coder: RunningMoments, mean: Tensor, log_variance: Tensor) -> Tensor:
        """That of an encoder's latents, whose moments are kept or, of frozen networks, given."""
        if self.own.frozen:
            return coder.divergence(mean, log_variance)
        coder.observe(mean.detach())
        return divergence(mean, log_variance)

    def _structure_flow(self, latents: Tensor, condition: TwoStageCondition) -> Tensor:
        """The first stage's loss over times and noises drawn for every prompt, `latents` `(B, g³, C)`."""
        network = self.network
        if self.adapters is None:  # what isn't a weight is the base's, also in an adapter's training
            network.observe(SHAPE, latents, condition.estimate)
        data, estimate, tokens = (
            each.repeat_interleave(self.draws, dim=0) for each in (latents, condition.estimate, condition.tokens)
        )
        t = draw_times(len(data), method=self.times).to(data)
        ends = self._ends(data)
        if network.structure_flow.step is not None:
            return self._shortcut(ends, t, estimate, tokens)
        x_t = {name: interpolate(ends[0][name], ends[1][name], t) for name in ends[0]}
        found = ask(network.structure_flow, x_t, t, tokens, None)
        mean, deviation = network.expected(SHAPE, x_t[SHAPE], t, estimate)
        wanted = {name: velocity(ends[0][name], ends[1][name]) for name in ends[0]}
        loss = (found[SHAPE] - (wanted[SHAPE] - mean) / deviation).square().mean()
        poses = [(found[name] - wanted[name]).square().mean() for name in wanted if name != SHAPE]
        return loss + self.own.pose_weight * torch.stack(poses).sum() if poses else loss

    def _ends(self, data: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Data and noise of all latents of the first stage."""
        ends = {SHAPE: data}
        if self.network.structure_flow.settings()["include_pose"]:
            ends |= {name: each.to(data) for name, each in pose_latents(identity_pose(len(data))).items()}
        return ends, {name: torch.randn_like(each) for name, each in ends.items()}

    def _shortcut(self, ends: tuple[Latents, Latents], t: Tensor, estimate: Tensor, tokens: Tensor) -> Tensor:
        """The loss of a network that is told the length of its steps."""
        network = self.network

        def predict(x: Latents, t: Tensor, step: Tensor) -> Latents:
            found = ask(network.structure_flow, x, t, tokens, step)
            mean, deviation = network.expected(SHAPE, x[SHAPE], t, estimate)
            return {**found, SHAPE: mean + deviation * found[SHAPE]}

        weights = {name: self.own.pose_weight for name in ends[0] if name != SHAPE}
        return shortcut_loss(predict, predict, ends, draw_steps(t), weights=weights).total

    def _surface_losses(self, targets: Targets, condition: TwoStageCondition | None) -> Losses:
        """The second stage's losses, of the first prompts of the batch; those of its flow where it is led."""
        network, own = self.network, self.own
        occupied = network.occupancy(targets.sdf / targets.edge)
        rows = occupied.flatten(1).any(dim=1).nonzero()[: own.surface_items, 0]
        if "surface" not in own.stages or not len(rows):
            return {}
        truth, edge = targets.sdf[rows], targets.edge[rows]
        structure = network.structure_of(occupied[rows])
        mean, log_variance = network.surface.encode(truth / edge, structure)
        found: Losses = {}
        if condition is None:
            found["surface_divergence"] = self.divergence, self._divergence(network.surface, mean, log_variance)
            latents = drawn(mean, log_variance)
        else:
            known = network.surface.standardised(mean.detach())
            estimate = known
            if network.begin == "answer":
                estimate = network.surface_latents(condition.output.sdf.detach()[rows], structure)
            led = condition.tokens[rows], network.added(condition, rows, structure)
            loss = self._surface_flow(known, estimate, led, structure)
            found["surface_flow"] = self.flow_weight, loss
            if own.frozen:
                return found
            latents = network.surface.restored(known + self.blur * torch.randn_like(known))
        return found | self._decoded(latents, structure, truth, edge)

    def _surface_flow(
        self, latents: Tensor, estimate: Tensor, led: tuple[Tensor, Tensor | None], structure: Structure
    ) -> Tensor:
        """The second stage's loss at one time for each item, `latents` `(N, C)`; led by tokens and by pointmaps."""
        network, item = self.network, structure.cells.coords[:, 0]
        if self.adapters is None:
            network.observe(SURFACE, latents, estimate)
        times = draw_times(structure.cells.items, method=self.times).to(latents)
        t, noise = times[item], torch.randn_like(latents)
        x_t = interpolate(latents, noise, t)
        mean, deviation = network.expected(SURFACE, x_t, t, estimate)
        tokens, added = led
        x = SparseTensor(x_t, structure.cells)
        answer = network.latent_flow(x, (1 - times) * TICKS, tokens, added=added).features
        return (answer + (velocity(latents, noise) - mean) / deviation).square().mean()  # it answers towards the data

    def _decoded(self, latents: Tensor, structure: Structure, truth: Tensor, edge: Tensor) -> Losses:
        """The mesh decoder's losses."""
        own = self.own
        surfaces = self.network.surface.decode(latents, structure)
        share = losses.stage_of("chamfer", float(self.seen), self.curriculum_batches)
        wanted = {
            "surface_distance": (own.surface_distance, losses.surface_distance_loss),
            "surface_mesh": (own.surface_mesh * share, losses.surface_mesh_loss),
        }
        found: Losses = {}
        for name, (weight, loss) in wanted.items():
            if weight:
                each = [
                    loss(one, true[0], size.flatten()[0]) for one, true, size in zip(surfaces, truth, edge, strict=True)
                ]
                found[name] = weight, torch.stack(each).mean()
        if own.surface_regulariser:
            found["surface_regulariser"] = (
                own.surface_regulariser,
                torch.stack([s.regulariser for s in surfaces]).mean(),
            )
        return found

    def _sampled(self, condition: TwoStageCondition, count: int) -> Tensor:
        own = self.own
        how = Generation(
            steps=self.steps,
            shift=self.shift,
            sampler=self.sampler,
            guidance=Guidance(own.guidance, tuple(own.guidance_interval)),
            shortcut="none" if self.network.structure_flow.step is None else "step",
            keeps_step=True,
        )
        noise: Sequence[Mapping[str, Tensor]] = self.network.noise(count, self._noise)
        decoder = self.own.pose_decoder
        found: Sampled = self.network.sample(condition, noise, how, pose=decoder != "none")
        if decoder == "zero" or found.pose:
            self._pose = decode_pose(found.pose or condition_like(condition), decoder)
        return found.distances

    def _prediction(
        self, batch: SliceBatch, place: int, looks: Tensor, probability: Tensor, frame: Space
    ) -> ReconstructPrediction:
        found = super()._prediction(batch, place, looks, probability, frame)
        return replace(found, pose={name: each[place].flatten().tolist() for name, each in self._pose.items()})

    def metrics(
        self, predictions: Sequence[ReconstructPrediction], batch: SliceBatch, wanted: Wanted = ALL
    ) -> list[Row]:
        """As `ReconstructFlowTask.metrics`, and the errors of poses (`POSE_METRICS`) where the network says them.

        Raises:
            DataError: the batch has no voxels to compare with.
        """
        rows = super().metrics(predictions, batch, wanted)
        for row, prediction in zip(rows, predictions, strict=True):
            row |= pose_metrics(prediction.pose) if prediction.pose else {}
        return rows

    def metric_names(self, chosen: MetricChoice) -> list[str]:
        """Names of everything that `summary` may hold."""
        return [*super().metric_names(chosen), *POSE_METRICS, *self._by_organ(POSE_METRICS)]


def condition_like(condition: TwoStageCondition) -> Latents:
    """Something of the prompts' number."""
    return {SHAPE: condition.tokens}

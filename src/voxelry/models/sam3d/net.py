"""One slice and a click to a whole organ in the two stages of SAM 3D Objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.settings import own_fields, settle
from voxelry.core.space import Space
from voxelry.diffusion.flow import expected_velocity
from voxelry.diffusion.latents import Latents
from voxelry.models.adapters.adapters import TARGETS
from voxelry.models.sam3d.generate import TICKS, Generation, generate
from voxelry.models.sam3d.image_tokens import ImageTokens
from voxelry.models.sam3d.latent_flow import LatentFlow, LatentFlowSettings
from voxelry.models.sam3d.mesh_decoder import MeshDecoderSettings
from voxelry.models.sam3d.point_condition import PointCondition
from voxelry.models.sam3d.prompt_tokens import PromptTokens
from voxelry.models.sam3d.structure import KINDS, MOST_CELLS, Structure, occupancy, structure_of
from voxelry.models.sam3d.structure_flow import SHAPE, StructureFlow, StructureFlowSettings
from voxelry.models.sam3d.structure_vae import StructureCoder, StructureSettings
from voxelry.models.sam3d.surface import DecodedSurface
from voxelry.models.sam3d.surface_coder import SurfaceCoder, frame_mesh
from voxelry.models.shape.shape_net import RANK, ShapeNet, ShapeNetSettings, ShapeOutput
from voxelry.nn import nd
from voxelry.nn.sparse import SparseTensor
from voxelry.ops.mesh_sdf import mesh_distances
from voxelry.ops.prompt import Prompt
from voxelry.ops.sdf import canonical_space, signed_distance
from voxelry.ops.surface import Mesh

__all__ = ["BEGINNINGS", "Sampled", "TwoStageCondition", "TwoStageNet"]

BEGINNINGS = ("answer", "noise")
SURFACE = "surface"
FORGET = 0.03  # share of a batch in the running errors, once there are many
POINT_SIZE = 64  # pixels per axis of pointmaps for the second stage
LEAST_ERROR = 0.05  # of an estimated latent, in deviations of the latents
LAYERS = r"blocks\.\d+\.(attention\.(qkv|out)(\.\w+)?|cross(\.\w+)?\.(q|kv|out)|mlp(\.\w+)?\.layers\.\d+)"


@dataclass(frozen=True, kw_only=True)
class TwoStageSettings(ShapeNetSettings):
    """Two stages, and the `ShapeNet` that reads the prompt.

    Attributes:
        structure: autoencoder of occupancies.
        structure_flow: first stage.
        latent_flow: second stage.
        mesh_decoder: from structured latents to a surface.
        encoder_width: features of the encoder of structured latents.
        kind: what an occupancy is, one of `structure.KINDS`; "shell" of published weights.
        begin: "answer": flows begin with a normal distribution around the reader's own answer, as wide as its error in
            training, and learn what is missing: for trainings from scratch. "noise": they begin with nothing, as
            published weights do.
        most_cells: of an organ's surface.
        surface_points: whether the second stage sees the slices' pointmaps; see `point_condition`.
        image_encoder: folder or file of a DINOv2 encoder whose tokens lead the flows beside the reader's, see
            `image_encoder.read_encoder`; None for none.
        image_encoder_width: channels of its tokens.
        image_encoder_size: pixels per axis that it sees.
    """

    structure: StructureSettings = field(default_factory=StructureSettings)
    structure_flow: StructureFlowSettings = field(default_factory=StructureFlowSettings)
    latent_flow: LatentFlowSettings = field(default_factory=LatentFlowSettings)
    mesh_decoder: MeshDecoderSettings = field(default_factory=MeshDecoderSettings)
    encoder_width: int = 64
    kind: str = "filled"
    begin: str = "answer"
    most_cells: int = MOST_CELLS
    surface_points: bool = False
    image_encoder: str | None = None
    image_encoder_width: int = 1024
    image_encoder_size: int = 518

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, KINDS)
        check_choice("begin", self.begin, BEGINNINGS)
        cells = self.structure_flow.grid * 2 ** (len(self.structure.widths) - 1)
        if not cells == self.mesh_decoder.grid or self.grid % cells or self.grid == cells:
            raise SettingError(
                f"grid: expected structure_flow.grid times 2 for each halving of structure.widths, here {cells}, as "
                f"mesh_decoder.grid, and grid a multiple of it; got {self.mesh_decoder.grid} and {self.grid}"
            )
        for one, other in (("structure", "structure_flow"), ("mesh_decoder", "latent_flow")):
            channels = [getattr(self, name).latent_channels for name in (one, other)]
            if channels[0] != channels[1]:
                raise SettingError(f"{other}.latent_channels: expected {channels[0]}, as of {one}, got {channels[1]}")
        widths = self.structure_flow.condition_channels, self.latent_flow.condition_channels
        if widths[0] != widths[1]:
            raise SettingError(f"latent_flow.condition_channels: expected {widths[0]}, as in stage 1, got {widths[1]}")


@dataclass
class TwoStageCondition:
    """What a prompt tells the flows, found once for any number of samples and steps.

    Attributes:
        output: what the reader answers.
        estimate: `(B, g³, C)`, the standardised latents of that answer.
        tokens: `(B, M, K)`.
        points: `(B, P, W)`, tokens of the pointmaps for the second stage; None where it doesn't see them.
    """

    output: ShapeOutput
    estimate: Tensor
    tokens: Tensor
    points: Tensor | None = None


@dataclass
class Sampled:
    """Organs that prompts leave possible.

    Attributes:
        distances: `(B, K, n, n, n)`, signed, in edges; the truncation everywhere where nothing was found.
        pose: latents of where the objects stand, `(B, 1, numbers)` each; of the first hypothesis, empty without a pose.
    """

    distances: Tensor
    pose: dict[str, Tensor]


class TwoStageNet(ShapeNet):
    """A prompt to an organ by its coarse structure and then its surface, `Prompt -> ShapeOutput` and `-> Sampled`.

    A `ShapeNet` reads the prompt: its features lead both flows, and its answer is what they begin with. The first flow
    samples latents of the occupied cells, the second one latents of the surface at these; a decoder makes a mesh of
    them, whose distances are the answer. Until a stage was trained, or loaded, what is before it answers alone: the
    reader, or the first stage.

    Raises:
        SettingError: parts that don't fit together; or as those parts.
    """

    Settings: ClassVar[type[ShapeNetSettings]] = TwoStageSettings

    structure_error: Tensor
    surface_error: Tensor
    seen: Tensor

    def __init__(self, **settings: Any):
        own = settle(TwoStageSettings, settings)
        super().__init__(**own_fields(own, ShapeNetSettings))
        self._settings = own
        self.kind, self.begin, self.most_cells = own.kind, own.begin, own.most_cells
        self.structure, self.structure_flow = StructureCoder(own.structure), StructureFlow(**vars(own.structure_flow))
        fold = own.grid // own.mesh_decoder.grid
        self.surface = SurfaceCoder(own.mesh_decoder, width=own.encoder_width, fold=fold)
        self.latent_flow = LatentFlow(**vars(own.latent_flow))
        self.condition = PromptTokens(self, own.structure.latent_channels, own.structure_flow.condition_channels)
        width = own.structure_flow.condition_channels
        self.images = None
        if own.image_encoder is not None:
            size, inner = own.image_encoder_size, own.image_encoder_width
            self.images = ImageTokens(own.image_encoder, width=inner, channels=width, image_size=size)
        finest = (own.latent_flow.widths or [own.latent_flow.channels])[0]
        self.points = PointCondition(finest, image_size=POINT_SIZE) if own.surface_points else None
        self.register_buffer("structure_error", torch.ones(own.structure.latent_channels))
        self.register_buffer("surface_error", torch.ones(own.mesh_decoder.latent_channels))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))

    @property
    def autoencoder(self) -> StructureCoder:
        """The first stage's."""
        return self.structure

    @property
    def adapter_heads(self) -> tuple[str, ...]:
        """Those of a `ShapeNet`, and the last layers of the flows and of the mesh decoder."""
        own = ("structure_flow.latents.shape.leave", "latent_flow.leave", "surface.decoder.leave")
        return (*super().adapter_heads, *own, *(["points.leave"] if self.points is not None else []))

    @property
    def adapter_targets(self) -> str:
        """Attention and linear layers of both flows and the mesh decoder, and those of the reader."""
        reader = super().adapter_targets
        flows = rf"(structure_flow|latent_flow|surface\.decoder)\.{LAYERS}"
        return rf"{flows}|(encoder|decoder)\.({TARGETS.get(reader, reader)})|.*points"

    def read(self, prompt: Prompt, tokens: Tensor | None = None, *, learn: bool = True) -> TwoStageCondition:
        """Everything that the flows need of a prompt.

        Args:
            prompt: `B` prompts.
            tokens: `(B, M, K)` of an encoder of images instead of the reader's own.
            learn: whether gradients reach the reader; those of its tokens always flow.

        Raises:
            SettingError: tokens of another width; or as `forward`.
        """
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            output, encoded = self.look(prompt)
        latents = self.latents(output.sdf.detach())
        wanted = self.condition.channels
        if tokens is not None and tokens.shape[-1] != wanted:
            raise SettingError(f"tokens: expected {wanted} channels, got {tokens.shape[-1]}")
        found = self.condition(prompt, encoded, latents) if tokens is None else tokens
        if self.images is not None and tokens is None:
            found = torch.cat((found, self.images(prompt)), dim=1)
        points = None if self.points is None else self.points(prompt, output.mask_logits)
        return TwoStageCondition(output, latents.flatten(2).mT, found, points)

    def added(self, condition: TwoStageCondition, rows: Tensor, structure: Structure) -> Tensor | None:
        """What pointmaps say to a structure's cells, of the prompts in `rows`; None where they say nothing."""
        if self.points is None or condition.points is None:
            return None
        found: Tensor = self.points.cells(condition.points[rows], structure.cells)
        return found

    def occupancy(self, distances: Tensor) -> Tensor:
        """Occupied cells of shapes, `(B, 1, n, n, n)` edges to `(B, 1, G, G, G)` bool."""
        return occupancy(distances, self.surface.grid, self.kind)

    def structure_of(self, occupied: Tensor) -> Structure:
        """The cells that the second stage works on; see `structure.structure_of`."""
        return structure_of(occupied, self.kind, self.most_cells)

    def latents(self, distances: Tensor) -> Tensor:
        """The first stage's standardised latents of shapes, `(B, C, g, g, g)`; no gradients."""
        with torch.no_grad():
            return self.structure.standardised(self.structure.encode(self.occupancy(distances))[0])

    def surface_latents(self, distances: Tensor, structure: Structure) -> Tensor:
        """The second stage's standardised latents of shapes at a structure's cells, `(N, C)`; no gradients."""
        with torch.no_grad():
            return self.surface.standardised(self.surface.encode(distances, structure)[0])

    def expected(self, stage: str, x_t: Tensor, t: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of a velocity before the network is asked; see `diffusion.flow.expected_velocity`."""
        if self.begin == "noise":
            return torch.zeros_like(x_t), torch.ones_like(x_t)
        error = self.structure_error if stage == SHAPE else self.surface_error
        return expected_velocity(x_t, t, estimate, error.clamp(min=LEAST_ERROR))

    @torch.no_grad()
    def observe(self, stage: str, latents: Tensor, estimate: Tensor) -> None:
        """Take the error of a batch's estimates, `(..., C)`, into that which a flow begins with."""
        error, place = (self.structure_error, 0) if stage == SHAPE else (self.surface_error, 1)
        square = (latents - estimate).square().flatten(0, -2).mean(dim=0)
        share = max(FORGET, 1 / (int(self.seen[place]) + 1))
        error.copy_(error.square().lerp(square, share).sqrt())
        self.seen[place] += 1

    def noise(self, count: int, generator: torch.Generator | None = None) -> list[dict[str, Tensor]]:
        """What so many hypotheses begin with, one drawn after the other: the first ones are always the same."""
        own = self._settings
        grid, cells = own.structure_flow.grid, self.surface.grid
        shapes = {SHAPE: (grid**RANK, own.structure.latent_channels)}
        shapes |= {SURFACE: (own.mesh_decoder.latent_channels, *(cells,) * RANK)}
        if own.structure_flow.include_pose:
            shapes |= {name: (1, numbers) for name, numbers in own.structure_flow.pose.items()}
        return [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(count)]

    @torch.no_grad()
    def sample(
        self,
        condition: TwoStageCondition,
        noise: Sequence[Mapping[str, Tensor]],
        how: Generation,
        *,
        pose: bool = False,
    ) -> Sampled:
        """Organs that the prompts leave possible.

        Args:
            condition: of `B` prompts.
            noise: of `K` hypotheses, see `noise`; the same for every prompt.
            how: steps, sampler, guidance, of both stages.
            pose: whether the pose is sampled, too.
        """
        if not int(self.structure.batches):
            return Sampled(condition.output.sdf.expand(-1, len(noise), -1, -1, -1), {})
        batch, each = len(condition.tokens), []
        first: dict[str, Tensor] = {}
        for one in noise:
            names = [name for name in one if name != SURFACE and (pose or name == SHAPE)]
            start = {name: one[name].to(condition.tokens).expand(batch, -1, -1) for name in names}
            latents = generate(self._first(condition.estimate), start, condition.tokens, how.by_shortcuts())
            grid = round(latents[SHAPE].shape[1] ** (1 / RANK))
            logits = self.structure.shape(latents.pop(SHAPE).mT.unflatten(2, (grid,) * RANK))
            each.append(self._surfaces(condition, logits, one[SURFACE], how))
            first = first or latents
        return Sampled(torch.stack(each, dim=1), first)

    def _first(self, estimate: Tensor) -> Callable[..., Latents]:
        """The first stage's velocities towards the data."""

        def velocities(x: Latents, ticks: Tensor, tokens: Tensor, step: Tensor | None) -> Latents:
            found = self.structure_flow(x, ticks, tokens, step)
            mean, deviation = self.expected(SHAPE, x[SHAPE], 1 - ticks / TICKS, estimate)
            return {**found, SHAPE: deviation * found[SHAPE] - mean}

        return velocities

    def _second(self, structure: Structure, estimate: Tensor, added: Tensor | None) -> Callable[..., Latents]:
        """The second stage's velocities towards the data."""
        items = structure.cells.items

        def velocities(x: Latents, ticks: Tensor, tokens: Tensor, step: Tensor | None) -> Latents:
            latents = SparseTensor(x[SURFACE], structure.cells)
            found = self.latent_flow(latents, ticks[:1].expand(items), tokens, added=added).features
            mean, deviation = self.expected(SURFACE, x[SURFACE], 1 - ticks / TICKS, estimate)
            return {SURFACE: deviation * found - mean}

        return velocities

    def _surfaces(self, condition: TwoStageCondition, logits: Tensor, noise: Tensor, how: Generation) -> Tensor:
        """Distances of each item, `(B, n, n, n)`."""
        occupied = logits > 0
        found = logits.new_full((len(logits), *(self.grid,) * RANK), self.truncation)
        present = occupied.flatten(1).any(dim=1).nonzero()[:, 0]
        if not len(present):
            return found
        if not int(self.surface.batches):
            found[present] = self._coarse(logits[present])
            return found
        structure = self.structure_of(occupied[present])
        start = noise.to(logits).movedim(0, -1)[structure.cells.coords[:, 1:].unbind(1)]
        estimate = start
        if self.begin == "answer":
            estimate = self.surface_latents(condition.output.sdf[present], structure)
        flow = self._second(structure, estimate, self.added(condition, present, structure))
        latents = generate(flow, {SURFACE: start}, condition.tokens[present], how.without_shortcut())[SURFACE]
        surfaces = self.surface.decode(self.surface.restored(latents), structure)
        for place, item in enumerate(present.tolist()):
            found[item] = self._distances(surfaces[place], structure, place).to(found)
        return found

    def _distances(self, surface: DecodedSurface, structure: Structure, item: int) -> Tensor:
        """Distances to a mesh, `(n, n, n)` in edges."""
        vertices, faces = frame_mesh(surface, structure, item)
        mesh = Mesh(vertices.double().cpu().numpy(), faces.cpu().numpy())
        return torch.from_numpy(mesh_distances(mesh, unit_frame(self.grid), truncation=self.truncation))

    def _coarse(self, logits: Tensor) -> Tensor:
        """Distances of an occupancy alone, `(B, n, n, n)`."""
        size = (self.grid,) * RANK
        inside = F.interpolate(logits, size=size, mode=nd.interpolation_mode(RANK), align_corners=False)[:, 0] > 0
        each = [signed_distance(one.cpu().numpy(), 1 / self.grid, truncation=self.truncation) for one in inside]
        blank = torch.full(size, self.truncation)
        return torch.stack([blank if one is None else torch.from_numpy(one) for one in each]).to(logits)


def unit_frame(grid: int) -> Space:
    """The frame in its own edges."""
    return canonical_space((0.0, 0.0, 0.0), 1.0, grid)

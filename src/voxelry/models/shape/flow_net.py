"""Many whole organs from one slice: a rectified flow among the latents of shapes, led by what a prompt tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.core.choice import check_choice
from voxelry.core.settings import own_fields, settle
from voxelry.diffusion.flow import FLOW_SAMPLERS, expected_velocity
from voxelry.models.adapters.adapters import TARGETS
from voxelry.models.shape.autoencoder import ShapeAutoencoder
from voxelry.models.shape.decoder import LIFTED, CrossBlock, LiftDecoder
from voxelry.models.shape.encoder import OCTAVES, Encoded, fourier, zeroed
from voxelry.models.shape.prior import truncate
from voxelry.models.shape.shape_net import RANK, ShapeNet, ShapeNetSettings, ShapeOutput
from voxelry.models.unet import UNet
from voxelry.nn import nd
from voxelry.nn.time import TimeEmbedding
from voxelry.ops.fold import fold_voxels
from voxelry.ops.prompt import Prompt, frame_points

__all__ = ["FlowCondition", "ShapeFlow"]

TICKS = 1000.0  # sinusoids are made for integer steps of this many
LEAST_ERROR = 0.05  # of an estimated latent, in deviations of the latents
FORGET = 0.03  # share of a batch in the running error, once there are many


@dataclass
class FlowCondition:
    """What a prompt tells the flow, found once for any number of samples and steps.

    Attributes:
        output: what the network answers without the flow.
        estimate: `(B, C, m, m, m)`, the standardised latents of that answer.
        told: what else the flow reads: `(B, F, m, m, m)` for convolutions; tokens `(B, N, dim)` for a transformer.
        valid: `(B, N)` bool of the tokens; None for convolutions.
        context: `(B, E)`.
        plane: of the prompt, for its type and device.
    """

    output: ShapeOutput
    estimate: Tensor
    told: Tensor
    valid: Tensor | None
    context: Tensor
    plane: Tensor

    def repeated(self, count: int) -> FlowCondition:
        """Every sample `count` times in a row; of the answer only what it is for stays."""
        again = {name: getattr(self, name).repeat_interleave(count, dim=0) for name in ("estimate", "told", "context")}
        valid = None if self.valid is None else self.valid.repeat_interleave(count, dim=0)
        return FlowCondition(self.output, valid=valid, plane=self.plane, **again)


@dataclass(frozen=True, kw_only=True)
class ShapeFlowSettings(ShapeNetSettings):
    """Shapes from slices.

    Attributes:
        latent_grid: latents per axis.
        latent_channels: numbers of a latent.
        autoencoder_width: channels of the autoencoder's finest level.
        flow_width: channels of the flow's finest level (decoder "conv"); a "transformer" has `dim`.
        flow_multipliers: "conv": channels of the flow's levels as multiples of it.
        flow_depth: "conv": residual blocks of a level; "transformer": blocks.
    """

    latent_grid: int = 8
    latent_channels: int = 4
    autoencoder_width: int = 24
    flow_width: int = 48
    flow_multipliers: Sequence[int] = (1, 2)
    flow_depth: int = 1


class ShapeFlow(ShapeNet):
    """A `ShapeNet` that answers more than once, `Prompt -> ShapeOutput` and `Prompt -> shapes`.

    The answer of the `ShapeNet` becomes latents of an autoencoder; a flow leads noise to the latents of organs that
    the prompt leaves possible. To begin with the flow is that of a normal distribution around the answer, as wide as
    the answer's error in training, whose velocity is known; a network corrects it (the skip and the scalings of
    Karras et al. 2022, arXiv:2206.00364, section 5, for a straight path). An untrained flow is thus the answer with
    noise on its latents.

    Raises:
        SettingError: as `ShapeNet`, `ShapeAutoencoder` and `UNet`.
    """

    Settings: ClassVar[type[ShapeNetSettings]] = ShapeFlowSettings

    error: Tensor
    batches: Tensor

    def __init__(self, **settings: Any):
        own = settle(ShapeFlowSettings, settings)
        super().__init__(**own_fields(own, ShapeNetSettings))
        self._settings = own
        self.autoencoder = ShapeAutoencoder(
            grid=self.grid,
            latent_grid=own.latent_grid,
            channels=own.latent_channels,
            width=own.autoencoder_width,
            truncation=self.truncation,
        )
        if isinstance(self.decoder, LiftDecoder):
            lifted = LiftCondition(self, own.latent_grid, own.flow_width)
            self.condition: LiftCondition | None = lifted
            self.flow: LatentUNet | LatentTransformer = LatentUNet(
                own.latent_channels,
                own.flow_width,
                own.flow_multipliers,
                own.flow_depth,
                condition_channels=own.flow_width,
            )
        else:
            self.condition = None
            self.flow = LatentTransformer(
                own.latent_channels,
                own.latent_grid,
                dim=own.dim,
                depth=own.flow_depth,
                heads=own.heads,
                context=own.context,
                checkpointing=own.checkpointing,
            )
        self.register_buffer("error", torch.ones(own.latent_channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @property
    def adapter_heads(self) -> tuple[str, ...]:
        """Those of a `ShapeNet`, and the flow's own last layer."""
        return (*super().adapter_heads, "flow.unet.head" if self.condition is not None else "flow.head")

    @property
    def adapter_targets(self) -> str:
        """Those of a `ShapeNet`; never the encoder of shapes, by which latents mean the same for every adapter."""
        wanted = super().adapter_targets
        return rf"(?!autoencoder\.(down|narrow)\b)({TARGETS.get(wanted, wanted)})"

    def latents(self, sdf: Tensor) -> Tensor:
        """The standardised latents of shapes, `(B, 1, n, n, n)` edges to `(B, C, m, m, m)`; no gradients."""
        with torch.no_grad():
            return self.autoencoder.standardised(self.autoencoder.encode(sdf)[0])

    def shapes(self, latents: Tensor) -> Tensor:
        """The inverse of `latents`; gradients reach the autoencoder."""
        return self.autoencoder.decode(self.autoencoder.restored(latents))

    def read(self, prompt: Prompt) -> FlowCondition:
        """Everything that the flow needs of a prompt.

        Raises:
            SettingError: as `forward`.
        """
        output, encoded = self.look(prompt)
        estimate = self.latents(output.sdf.detach())
        if self.condition is None:
            assert encoded.tokens is not None
            told, valid = encoded.tokens, encoded.token_valid
        else:
            told, valid = self.condition(self, prompt, encoded, output), None
        return FlowCondition(output, estimate, told, valid, encoded.context, prompt.plane)

    def correction(self, x_t: Tensor, t: Tensor, condition: FlowCondition) -> Tensor:
        """What the flow's network answers, `(B, C, m, m, m)`: the velocity's distance from the expected one.

        It is in units of what is uncertain in the velocity (see `expected`), so that it has variance 1 at all times.
        """
        answer: Tensor = self.flow(x_t, t * TICKS, condition)
        return answer.float()

    def expected(self, x_t: Tensor, t: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the velocity at `x_t` if latents were normal around the estimate."""
        return expected_velocity(x_t, t, estimate, nd.per_channel(self.error, x_t).clamp(min=LEAST_ERROR))

    @torch.no_grad()
    def observe(self, latents: Tensor, estimate: Tensor) -> None:
        """Take the error of a batch's estimates into that which the flow begins with."""
        square = (latents - estimate).square().transpose(0, 1).flatten(1).mean(dim=1)
        share = max(FORGET, 1 / (int(self.batches) + 1))
        self.error.copy_(self.error.square().lerp(square, share).sqrt())
        self.batches += 1

    @torch.no_grad()
    def sample(
        self, condition: FlowCondition, noise: Tensor, times: Sequence[float], *, sampler: str = "euler"
    ) -> Tensor:
        """Organs that the prompts leave possible.

        Args:
            condition: of `B` prompts.
            noise: `(K, C, m, m, m)`, standard normal; the same for every prompt.
            times: of the sampler, from 1 to 0; see `diffusion.flow.flow_times`.
            sampler: one of `diffusion.flow.FLOW_SAMPLERS`.

        Returns:
            Signed distances in edges, `(B, K, n, n, n)`.

        Raises:
            SettingError: an unknown sampler.
        """
        check_choice("sampler", sampler, FLOW_SAMPLERS)
        batch, count = len(condition.estimate), len(noise)
        each = condition.repeated(count)

        def predict(x_t: Tensor, t: float) -> Tensor:
            now = x_t.new_full((len(x_t),), t)
            mean, deviation = self.expected(x_t, now, each.estimate)
            return mean + deviation * self.correction(x_t, now, each)

        start = noise.to(condition.estimate).repeat(batch, 1, 1, 1, 1)
        found = FLOW_SAMPLERS[sampler](predict, start, times)
        return torch.cat([self.shapes(one) for one in found.split(count)]).view(batch, count, *(self.grid,) * RANK)


class LiftCondition(nn.Module):
    """What slices and the answer say of each latent's cells, `(B, F, m, m, m)`.

    The decoder's lifting, at twice the latents' resolution where that divides the grid.
    """

    def __init__(self, network: ShapeNet, latent_grid: int, channels: int):
        super().__init__()
        self.fold = 2 if network.grid % (2 * latent_grid) == 0 else 1
        self.cells = self.fold * latent_grid
        self.step = network.grid // self.cells
        encoder: Any = network.encoder
        lifted = encoder.features + network.in_channels + LIFTED + 2  # beside the answer and the mean shape
        self.mix = nd.conv(RANK)(lifted * self.fold**RANK, channels, 3, padding=1)
        self.context = nn.Linear(network.settings()["context"], channels)

    def forward(self, network: ShapeNet, prompt: Prompt, encoded: Encoded, output: ShapeOutput) -> Tensor:
        """Gather."""
        assert isinstance(network.decoder, LiftDecoder)
        assert encoded.maps is not None
        points = frame_points(self.cells, prompt.plane).flatten(0, 2)
        seen = network.decoder.lift(prompt, encoded.maps, points).unflatten(-1, (self.cells,) * RANK)
        shapes = torch.cat((output.sdf, truncate(output.placed, network.truncation)), dim=1).detach()
        coarse = nd.average_pool(shapes, (self.step,) * RANK) / network.truncation
        mixed = self.mix(fold_voxels(torch.cat((seen, coarse.to(seen)), dim=1), (self.fold,) * RANK))
        return mixed + nd.per_channel(self.context(encoded.context), mixed)


class LatentUNet(nn.Module):
    """A small U-Net on latents, their estimate and what is told of each cell."""

    def __init__(self, channels: int, width: int, multipliers: Sequence[int], depth: int, *, condition_channels: int):
        super().__init__()
        self.unet = UNet(
            ndim=RANK,
            in_channels=2 * channels + condition_channels + RANK,
            out_channels=channels,
            width=width,
            multipliers=tuple(multipliers),
            blocks_per_level=depth,
            block="pre_norm",
            attention="none",
            middle_attention="none",
            groups=math.gcd(8, width),
            checkpointing="none",
        )
        zeroed(self.unet.head)

    def forward(self, x_t: Tensor, ticks: Tensor, condition: FlowCondition) -> Tensor:
        """Correct."""
        where = frame_points(x_t.shape[-1], x_t).movedim(-1, 0).expand(len(x_t), -1, -1, -1, -1)
        known = torch.cat((x_t, condition.estimate.to(x_t), condition.told.to(x_t), where), dim=1)
        answer: Tensor = self.unet(known, ticks)
        return answer


class LatentTransformer(nn.Module):
    """Blocks that attend to the prompt's tokens, on one token for each latent."""

    def __init__(
        self, channels: int, grid: int, *, dim: int, depth: int, heads: int, context: int, checkpointing: bool
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.latents = nn.Linear(2 * channels, dim)
        self.place = nn.Linear(6 * OCTAVES + RANK, dim)
        self.told = nn.Linear(context, dim)
        self.time = TimeEmbedding(dim, dim, activation="silu")
        self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, channels)
        self.grid = grid
        zeroed(self.head)

    def forward(self, x_t: Tensor, ticks: Tensor, condition: FlowCondition) -> Tensor:
        """Correct."""
        assert condition.valid is not None
        known = torch.cat((x_t, condition.estimate.to(x_t)), dim=1).flatten(2).mT
        places = frame_points(self.grid, x_t).flatten(0, 2)
        each = self.time(ticks) + self.told(condition.context)
        x = self.latents(known) + self.place(fourier(places)) + each[:, None]
        for block in self.blocks:
            args = (x, condition.told, condition.valid)
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        return self.head(self.norm(x)).mT.unflatten(2, x_t.shape[2:])

"""First stage: the velocity of coarse structure, and of where an object stands, in one transformer.

SAM 3D Objects (2025, arXiv:2511.16624, section 2): latents of several kinds are streams with weights of their own. The
stream of the shape sees itself alone; the others see each other and the shape, whose keys and values get no gradient
from them. So the shape is the same with and without the others: `include_pose=False` leaves them and their parameters
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelry.core.errors import SettingError
from voxelry.core.settings import Configured, settle
from voxelry.diffusion.latents import Latents
from voxelry.models.sam3d.flow_settings import FlowSettings
from voxelry.nn.position import sine_positions
from voxelry.nn.time import TimeEmbedding
from voxelry.nn.transformer import (
    CrossAttention,
    FeedForward,
    Modulation,
    attention_heads,
    head_norm,
    heads_of,
    modulated,
    plain_norm,
)

__all__ = ["POSE_LATENTS", "SHAPE", "StructureFlow", "StructureFlowSettings"]

SHAPE = "shape"
RANK = 3  # of shapes
TIME_CHANNELS = 256
LAYER_EPS, OUT_EPS = 1e-6, 1e-5
SPREAD = 0.02  # of learned positions at first

POSE_LATENTS = {"6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1}
"""The original's latents of where an object stands, one token each, and their numbers."""


@dataclass(frozen=True, kw_only=True)
class StructureFlowSettings(FlowSettings):
    """The first stage's network.

    Attributes:
        grid: latents of the shape per axis.
        pose: the other latents by name, one token of so many numbers each.
        streams: names of streams besides the shape's, and the latents that each is made of, in this order; what isn't
            named is a stream of its own.
        include_pose: whether there are other latents than the shape's.
    """

    grid: int = 16
    pose: Mapping[str, int] = field(default_factory=lambda: dict(POSE_LATENTS))
    streams: Mapping[str, Sequence[str]] = field(default_factory=lambda: {next(iter(POSE_LATENTS)): [*POSE_LATENTS]})
    include_pose: bool = True
    shortcut: bool = True


class StructureFlow(Configured, nn.Module):
    """Latents at a time to their velocities, `{name: (B, tokens, C_name)} -> the same`.

    Raises:
        SettingError: heads that don't divide the channels, a stream of latents that there aren't.
    """

    Settings: ClassVar[type[StructureFlowSettings]] = StructureFlowSettings

    def __init__(self, **settings: Any):
        super().__init__()
        own = settle(StructureFlowSettings, settings)
        self._settings, self.checkpointing = own, own.checkpointing
        self.streams = streams_of(own)
        self.time = TimeEmbedding(TIME_CHANNELS, own.channels, activation="silu", order="cosines_first")
        self.step = (
            TimeEmbedding(TIME_CHANNELS, own.channels, activation="silu", order="cosines_first")
            if own.shortcut
            else None
        )
        self.latents = nn.ModuleDict({SHAPE: ShapeTokens(own.latent_channels, own.channels, own.grid)})
        if own.include_pose:
            for name, numbers in own.pose.items():
                self.latents[name] = PoseToken(numbers, own.channels)
        self.blocks = nn.ModuleList(StreamBlock(own, list(self.streams)) for _ in range(own.depth))

    def forward(
        self, latents: Latents, ticks: Tensor, condition: Tensor, step: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Velocities towards the data.

        Args:
            latents: of every kind, or of the shape alone; its tokens are those of the grid, the last axis fastest.
                Without `include_pose` others are left out of the answer.
            ticks: `(B,)`, 0 at noise and 1000 at data.
            condition: `(B, M, K)` tokens.
            step: `(B,)` length of the step, in the same unit; None as 0 is told by a model without shortcuts.

        Raises:
            SettingError: latents that are missing.
        """
        alone = set(latents) == {SHAPE}
        streams = {SHAPE: [SHAPE]} if alone else self.streams
        missing = [name for names in streams.values() for name in names if name not in latents]
        if missing:
            raise SettingError(f"latents: expected {', '.join(self.latents)}, got no {', '.join(missing)}")
        embedding = self.time(ticks)
        if self.step is not None and step is not None:
            embedding = embedding + self.step(step)
        tokens = {name: self.latents[name](latents[name]) for names in streams.values() for name in names}
        h = {stream: torch.cat([tokens[name] for name in names], dim=1) for stream, names in streams.items()}
        for block in self.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            args = (h, embedding, condition)
            h = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        return self._answers(h, streams)

    def _answers(self, h: Mapping[str, Tensor], streams: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        found, layers = {}, cast(Mapping[str, LatentTokens], self.latents)
        for stream, names in streams.items():
            counts = [len(layers[name].positions) for name in names]
            for name, own in zip(names, h[stream].split(counts, dim=1), strict=True):
                found[name] = layers[name].answer(own)
        return {name: found[name] for name in layers if name in found}


def streams_of(own: StructureFlowSettings) -> dict[str, list[str]]:
    """Every stream and its latents, the shape's first.

    Raises:
        SettingError: a stream of latents that there aren't, or of some that are in another already.
    """
    if not own.include_pose:
        return {SHAPE: [SHAPE]}
    merged = [name for names in own.streams.values() for name in names]
    wrong = [name for name in merged if name not in own.pose or merged.count(name) > 1]
    if wrong:
        raise SettingError(f"streams: expected each of {', '.join(own.pose)} at most once, got {', '.join(wrong)}")
    alone = {name: [name] for name in own.pose if name not in merged}
    return {SHAPE: [SHAPE], **{stream: list(names) for stream, names in own.streams.items()}, **alone}


class LatentTokens(nn.Module):
    """Numbers of latents to tokens at their positions, and tokens to numbers."""

    positions: Tensor

    def __init__(self, numbers: int, channels: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(numbers, channels), nn.Linear(channels, numbers)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, `(B, tokens, numbers) -> (B, tokens, C)`."""
        return self.enter(x) + self.positions

    def answer(self, h: Tensor) -> Tensor:
        """The inverse, for velocities."""
        return self.leave(plain_norm(h, OUT_EPS))


class ShapeTokens(LatentTokens):
    """Latents on a grid, at fixed positions."""

    def __init__(self, numbers: int, channels: int, grid: int):
        super().__init__(numbers, channels)
        places = torch.tensor(list(product(range(grid), repeat=RANK)))
        self.register_buffer("positions", sine_positions(places, channels))


class PoseToken(LatentTokens):
    """Latents of one token, at a learned position."""

    def __init__(self, numbers: int, channels: int):
        super().__init__(numbers, channels)
        self.positions = nn.Parameter(SPREAD * torch.randn(1, channels))


class StreamAttention(nn.Module):
    """Attention of streams: the shape to itself, all others to themselves and, without gradients, to the shape."""

    def __init__(self, channels: int, heads: int, streams: Sequence[str], *, normed: bool):
        super().__init__()
        self.heads = attention_heads(channels, heads)
        self.qkv = nn.ModuleDict({name: nn.Linear(channels, 3 * channels) for name in streams})
        self.q_norm = nn.ModuleDict({name: head_norm(normed, heads, channels) for name in streams})
        self.k_norm = nn.ModuleDict({name: head_norm(normed, heads, channels) for name in streams})
        self.out = nn.ModuleDict({name: nn.Linear(channels, channels) for name in streams})

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Attend, `{stream: (B, L, C)}`."""
        each = {}
        for name, own in x.items():
            q, k, v = self.qkv[name](own).unflatten(-1, (3, self.heads, -1)).unbind(-3)
            each[name] = (self.q_norm[name](q), self.k_norm[name](k), v)
        mixed = {SHAPE: heads_of(*each[SHAPE])}
        others = [name for name in x if name != SHAPE]
        if others:
            q, k, v = (torch.cat([each[name][part] for name in others], dim=1) for part in range(3))
            k, v = (torch.cat((own, each[SHAPE][part].detach()), dim=1) for own, part in ((k, 1), (v, 2)))
            counts = [x[name].shape[1] for name in others]
            mixed.update(zip(others, heads_of(q, k, v).split(counts, dim=1), strict=True))
        return {name: self.out[name](own) for name, own in mixed.items()}


class StreamBlock(nn.Module):
    """Attention of the streams, attention to the condition, linear layers; time scales, shifts and gates."""

    def __init__(self, own: StructureFlowSettings, streams: Sequence[str]):
        super().__init__()
        self.attention = StreamAttention(own.channels, own.heads, streams, normed=own.normed)
        self.cross_norm = nn.ModuleDict({name: nn.LayerNorm(own.channels, eps=LAYER_EPS) for name in streams})
        self.cross = nn.ModuleDict(
            {
                name: CrossAttention(own.channels, own.condition_channels, own.heads, normed=own.normed_cross)
                for name in streams
            }
        )
        self.mlp = nn.ModuleDict({name: FeedForward(own.channels, own.mlp_ratio) for name in streams})
        self.modulation = Modulation(own.channels)

    def forward(self, x: Mapping[str, Tensor], embedding: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Transform."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (each[:, None] for each in self.modulation(embedding))
        mixed = self.attention({name: modulated(own, shift, scale) for name, own in x.items()})
        found = {}
        for name, own in x.items():
            h = own + gate * mixed[name]
            h = h + self.cross[name](self.cross_norm[name](h), condition)
            found[name] = h + mlp_gate * self.mlp[name](modulated(h, mlp_shift, mlp_scale))
        return found

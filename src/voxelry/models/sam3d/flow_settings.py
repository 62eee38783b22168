"""What the networks of both stages have alike."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FlowSettings"]


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """A transformer that answers velocities.

    Attributes:
        latent_channels: numbers of a latent.
        channels: of a token.
        condition_channels: of a token of the condition.
        depth, heads: blocks and attention heads.
        mlp_ratio: channels between a block's linear layers as a multiple of `channels`.
        normed, normed_cross: whether queries and keys of attention, and of that to the condition, are normalised.
        shortcut: whether the network is told the length of the step.
        checkpointing: whether the backward pass computes the blocks again.
    """

    latent_channels: int = 8
    channels: int = 1024
    condition_channels: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    normed: bool = True
    normed_cross: bool = False
    shortcut: bool = False
    checkpointing: bool = False

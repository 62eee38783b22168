"""The parts of the U-Net by name, and how its two wirings put them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from voxelry.core.choice import check_choice, unknown_choice
from voxelry.core.errors import SettingError
from voxelry.core.rank import per_axis
from voxelry.models.unet.settings import UNetSettings
from voxelry.nn import nd
from voxelry.nn.attention import ATTENTION, NoAttention
from voxelry.nn.blocks import BLOCKS
from voxelry.nn.conv import DOWN, UP
from voxelry.nn.lean.fused import norm_silu
from voxelry.nn.norm import GroupNorm

__all__ = [
    "CHECKPOINTING",
    "WIRINGS",
    "Level",
    "NormAct",
    "Parts",
    "build_levels",
    "checkpointing_for",
    "level_strides",
]

CHECKPOINTING = ("auto", "none", "norms", "blocks")
WIRINGS = ("paired", "dense")


class Level(nn.Module):
    """One level of the encoder or decoder: blocks, an attention after each, and the way to the next level."""

    def __init__(
        self, blocks: list[nn.Module], attentions: list[nn.Module], resample: nn.Module, is_skip: bool = False
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample
        self.resample_is_skip = is_skip


class NormAct(nn.Module):
    """Group normalisation and SiLU, `(B, C, *S) -> (B, C, *S)`."""

    def __init__(self, channels: int, *, groups: int, eps: float):
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=eps)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """Normalise and activate."""
        return norm_silu(x, self.norm, recompute=recompute)


@dataclass(frozen=True)
class Parts:
    """Makes the parts that the settings name."""

    chosen: UNetSettings

    @property
    def embedding(self) -> int:
        """Channels of the time's embedding."""
        return 4 * self.chosen.width

    def make_block(self, in_channels: int, out_channels: int) -> nn.Module:
        """A residual block that takes the time embedding."""
        own = self.chosen
        kind = chosen(BLOCKS, own.block, "block")
        for channels in (in_channels, out_channels) if own.block != "weight_standardised" else (out_channels,):
            divides("groups", own.groups, channels)
        return kind(
            in_channels,
            out_channels,
            ndim=own.ndim,
            embedding=self.embedding,
            groups=own.groups,
            eps=own.eps,
            dropout=own.dropout,
            shortcut_kernel=own.shortcut_kernel,
        )

    def make_attention(self, attention: str, channels: int) -> nn.Module:
        """Attention with its residual, or nothing for "none"."""
        if attention == "none":
            return NoAttention()
        part = chosen(ATTENTION, attention, "attention", also=("none",))
        own = self.chosen
        groups = own.attention_groups or own.groups
        divides("attention_groups", groups, channels)
        more = {"window": per_axis(own.window, own.ndim, "window")} if attention == "window" else {}
        return part(
            channels,
            ndim=own.ndim,
            heads=own.heads,
            head_dim=own.head_dim,
            bias=own.attention_bias,
            groups=groups,
            eps=own.eps,
            **more,
        )

    def make_down(self, in_channels: int, out_channels: int, stride: tuple[int, ...]) -> nn.Module:
        """The way to the next coarser level."""
        part = chosen(DOWN, self.chosen.down, "down")
        return part(in_channels, out_channels, ndim=self.chosen.ndim, stride=stride)

    def make_up(self, in_channels: int, out_channels: int, stride: tuple[int, ...]) -> nn.Module:
        """The way to the next finer level."""
        part = chosen(UP, self.chosen.up, "up")
        return part(in_channels, out_channels, ndim=self.chosen.ndim, stride=stride)

    def make_conv(self, in_channels: int, out_channels: int) -> nn.Module:
        """A 3-wide convolution, where there is no further level to go to."""
        return nd.conv(self.chosen.ndim)(in_channels, out_channels, 3, padding=1)


def build_levels(parts: Parts, strides: Sequence[tuple[int, ...]]) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Encoder levels, finest first, and decoder levels, coarsest first.

    Raises:
        SettingError: an unknown wiring, levels without blocks, or more or fewer attentions than levels.
    """
    own = parts.chosen
    check_choice("wiring", own.wiring, WIRINGS)
    if own.blocks_per_level < 1:
        raise SettingError(f"blocks_per_level: expected at least 1, got {own.blocks_per_level}")
    count = len(own.multipliers)
    attention = [own.attention] * count if isinstance(own.attention, str) else list(own.attention)
    if len(attention) != count:
        raise SettingError(f"attention: expected 1 or {count} names (one per level), got {len(attention)}")
    widths = [own.width, *(own.width * factor for factor in own.multipliers)]
    build = _paired if own.wiring == "paired" else _dense
    down, up = build(parts, widths, attention, own.blocks_per_level, strides)
    return nn.ModuleList(down), nn.ModuleList(up)


def _paired(
    parts: Parts, widths: Sequence[int], attention: Sequence[str], count: int, strides: Sequence[tuple[int, ...]]
) -> tuple[list[Level], list[Level]]:
    """A level keeps the width of the level above; the step after it changes the width."""
    down, up = [], []
    for index, kind in enumerate(attention):
        fine, coarse = widths[index], widths[index + 1]
        last = index == len(attention) - 1
        step = parts.make_conv(fine, coarse) if last else parts.make_down(fine, coarse, strides[index])
        kinds = ["none"] * (count - 1) + [kind]
        blocks = [parts.make_block(fine, fine) for _ in kinds]
        down.append(Level(blocks, [parts.make_attention(each, fine) for each in kinds], step))
        back = parts.make_up(coarse, fine, strides[index - 1]) if index else parts.make_conv(coarse, fine)
        blocks = [parts.make_block(coarse + fine, coarse) for _ in kinds]
        up.append(Level(blocks, [parts.make_attention(each, coarse) for each in kinds], back))
    return down, up[::-1]


def _dense(
    parts: Parts, widths: Sequence[int], attention: Sequence[str], count: int, strides: Sequence[tuple[int, ...]]
) -> tuple[list[Level], list[Level]]:
    """Blocks change the width, steps keep it; the decoder has one block more, for the skip of the step or stem."""
    down, up = [], []
    for index, kind in enumerate(attention):
        fine, own = widths[index], widths[index + 1]
        last = index == len(attention) - 1
        step = nn.Identity() if last else parts.make_down(own, own, strides[index])
        blocks = [parts.make_block(fine if place == 0 else own, own) for place in range(count)]
        down.append(Level(blocks, [parts.make_attention(kind, own) for _ in blocks], step, is_skip=not last))
        below = own if last else widths[index + 2]
        inputs = [below + own, *[own + own] * (count - 1), own + fine]
        blocks = [parts.make_block(channels, own) for channels in inputs]
        back = parts.make_up(own, own, strides[index - 1]) if index else nn.Identity()
        up.append(Level(blocks, [parts.make_attention(kind, own) for _ in blocks], back))
    return down, up[::-1]


def level_strides(strides: int | Sequence[int | Sequence[int]], steps: int, ndim: int) -> list[tuple[int, ...]]:
    """Strides of each step between levels, per axis.

    Raises:
        SettingError: not one entry per step, or an entry below 1.
    """
    each = [strides] * steps if isinstance(strides, int) else list(strides)
    if len(each) != steps:
        raise SettingError(f"strides: expected 1 or {steps} entries (one per step between levels), got {len(each)}")
    expanded = [per_axis(step, ndim, "strides") for step in each]
    if any(size < 1 for step in expanded for size in step):
        raise SettingError(f"strides: expected at least 1 everywhere, got {strides}")
    return expanded


def checkpointing_for(policy: str, size: int) -> str:
    """What "auto" means for an input, by the bytes of one feature map of the finest level.

    Below 4 MB nothing is worth saving; up to 128 MB the cheap parts are computed again; above it whole
    blocks are.
    """
    if policy != "auto":
        return policy
    return "none" if size < 4e6 else "norms" if size <= 128e6 else "blocks"


def chosen(table: dict[str, type[nn.Module]], name: str, setting: str, also: tuple[str, ...] = ()) -> type[nn.Module]:
    """The part of that name.

    Raises:
        SettingError: no such part; the message lists those there are.
    """
    if name not in table:
        raise unknown_choice(setting, name, (*table, *also))
    return table[name]


def divides(setting: str, groups: int, channels: int) -> None:
    """Check that groups share the channels evenly.

    Raises:
        SettingError: they do not.
    """
    if groups < 1 or channels % groups:
        raise SettingError(f"{setting}: {groups} groups can't share {channels} channels evenly")

"""What leads the flows: tokens of images, masks and pointmaps, brought to one width and told apart.

SAM 3D Objects (2025, arXiv:2511.16624, appendix C): an embedder for each kind of input, a gated projection behind each
(Shazeer 2020, arXiv:2002.05202), and a learned vector for what belongs to the crop around the object and what to the
whole image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.backbones.vit import TransformerBlock
from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.settings import Configured, settle
from voxelry.ops.pointmaps import REMAPS, remap_points

__all__ = ["ConditionFuser", "Input", "PointEmbedder", "PointEmbedderSettings", "TokenEmbedder"]

ROUND = 256  # hidden channels of projections are a multiple of this
SPREAD = 0.02  # of learned vectors at first
HEADS = 16


@dataclass(frozen=True)
class Input:
    """One input of an embedder.

    Attributes:
        name: such as "image" or "rgb_pointmap".
        group: its learned vector, such as "cropped" or "full"; None for none.
    """

    name: str
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class PointEmbedderSettings:
    """Pointmaps to tokens.

    Attributes:
        image_size: pixels per axis that a pointmap is resized to, the nearest ones.
        patch_size: pixels per axis of a token.
        channels: of a token.
        mlp_ratio: channels between the linear layers of the block as a multiple.
        remap: how points become numbers, one of `ops.pointmaps.REMAPS`. "linear" for medical images: others are made
            for depths in front of a camera, and are NaN behind it.
        dropout: share of pointmaps that training leaves out.
    """

    image_size: int = 256
    patch_size: int = 8
    channels: int = 512
    mlp_ratio: float = 2.0
    remap: str = "linear"
    dropout: float = 0.0


class PointEmbedder(Configured, nn.Module):
    """Pointmaps to a token for each patch, `(B, 3, H, W) -> (B, tokens, C)`.

    A pixel with any NaN is unknown, and has a learned vector instead. Pixels of a patch attend to each other and to the
    token that stays.

    Raises:
        SettingError: patches that don't divide the size, an unknown remap, a share out of range.
    """

    Settings: ClassVar[type[PointEmbedderSettings]] = PointEmbedderSettings

    unknown: Tensor
    dropped: Tensor
    token: Tensor
    patch_positions: Tensor
    pixel_positions: Tensor

    def __init__(self, **settings: Any):
        super().__init__()
        own = settle(PointEmbedderSettings, settings)
        if own.image_size % own.patch_size:
            raise SettingError(f"patch_size: expected a divisor of {own.image_size}, got {own.patch_size}")
        check_choice("remap", own.remap, REMAPS)
        if not 0 <= own.dropout <= 1:
            raise SettingError(f"dropout: expected a share in [0, 1], got {own.dropout}")
        self._settings = own
        side = own.image_size // own.patch_size
        self.channels = own.channels
        self.points = nn.Linear(3, own.channels)
        for name, shape in (
            ("unknown", (own.channels,)),
            ("dropped", (own.channels,)),
            ("token", (1, 1, own.channels)),
            ("patch_positions", (1, own.channels, side, side)),
            ("pixel_positions", (1, 1 + own.patch_size**2, own.channels)),
        ):
            self.register_parameter(name, nn.Parameter(SPREAD * torch.randn(shape)))
        self.block = TransformerBlock(own.channels, HEADS, ndim=2, mlp_ratio=own.mlp_ratio)

    def forward(self, points: Tensor, valid: Tensor | None = None, *, drop: bool = False) -> Tensor:
        """Embed.

        Args:
            points: NaN where unknown.
            valid: `(B, image_size, image_size)` bool, which resized pixels to use at most; None for all.
            drop: leave the pointmaps out, as training does for some.
        """
        own, size = self._settings, (self._settings.image_size,) * 2
        x = F.interpolate(points, size=size, mode="nearest").movedim(1, -1)
        known = torch.isfinite(x).all(dim=-1)
        if valid is not None:
            known = known & valid
        x = torch.where(known[..., None], remap_points(torch.where(known[..., None], x, 0.5), own.remap), 0.0)
        each = torch.where(known[..., None], self.points(x), self.unknown)
        side, patch = own.image_size // own.patch_size, own.patch_size
        pixels = (
            each.unflatten(2, (side, patch))
            .unflatten(1, (side, patch))
            .transpose(2, 3)
            .reshape(-1, patch**2, own.channels)
        )
        tokens = torch.cat((self.token.expand(len(pixels), -1, -1), pixels), dim=1)
        found = self.block(tokens + self.pixel_positions)[:, 0].unflatten(0, (len(points), -1))
        dropped = torch.rand(len(points), 1, 1, device=points.device) < (1.0 if drop else own.dropout * self.training)
        found = torch.where(dropped, self.dropped, found)
        return found + self.patch_positions.flatten(2).mT


class TokenEmbedder(nn.Module):
    """Given tokens, such as those of a frozen network, `(B, M, channels) -> (B, M, C)`."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.channels = channels
        self.proj = nn.Linear(in_channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project."""
        return self.proj(tokens)


class GatedProjection(nn.Module):
    """`out(silu(gate(x)) * value(x))` without biases, behind a layer normalisation or not."""

    def __init__(self, in_channels: int, channels: int, ratio: float, *, normed: bool):
        super().__init__()
        hidden = -(-int(2 * int(channels * ratio) / 3) // ROUND) * ROUND
        self.norm = nn.LayerNorm(in_channels) if normed else nn.Identity()
        self.gate, self.value = (nn.Linear(in_channels, hidden, bias=False) for _ in range(2))
        self.out = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Project."""
        x = self.norm(x)
        return self.out(F.silu(self.gate(x)) * self.value(x))


class ConditionFuser(nn.Module):
    """Tokens of all inputs, one after the other, `{name: input} -> (B, tokens, C)`.

    Args:
        embedders: a module for each kind of input, with its `channels`.
        inputs: the inputs of each embedder.
        projection_ratio: hidden channels of a projection as a multiple of its output's, before two thirds are taken and
            rounded up to a multiple of 256; 0 for no projection.
        normed: whether a projection is normalised first.
        compression_ratio: as `projection_ratio`, of a projection that makes one sequence of inputs with equally many
            tokens; 0 to put the sequences one behind the other.
        group_vectors: number of learned vectors, at least as many as groups; None for one of each embedder.

    Raises:
        SettingError: not as many lists of inputs as embedders, no embedder, or fewer vectors than groups.
    """

    def __init__(
        self,
        embedders: Sequence[nn.Module],
        inputs: Sequence[Sequence[Input | Sequence[str | None]]],
        *,
        projection_ratio: float = 4.0,
        normed: bool = True,
        compression_ratio: float = 0.0,
        group_vectors: int | None = None,
    ):
        super().__init__()
        if not embedders or len(embedders) != len(inputs):
            raise SettingError(f"inputs: expected a list for each of {len(embedders)} embedders, got {len(inputs)}")
        self.inputs = [[one if isinstance(one, Input) else Input(*map(_text, one)) for one in own] for own in inputs]
        widths = [int(cast(Any, embedder).channels) for embedder in embedders]
        self.channels = max(widths)
        names = [one.group for own in self.inputs for one in own if one.group is not None]
        self.group_names = list(dict.fromkeys(names))
        vectors = len(embedders) if group_vectors is None else group_vectors
        if vectors < len(self.group_names):
            raise SettingError(f"group_vectors: expected at least {len(self.group_names)}, got {vectors}")
        self.groups = nn.Parameter(SPREAD * torch.randn(vectors, self.channels))
        self.embedders = nn.ModuleList(embedders)
        self.projections = nn.ModuleList(
            GatedProjection(width, self.channels, projection_ratio, normed=normed)
            if projection_ratio
            else nn.Identity()
            for width in widths
        )
        together = self.channels * sum(map(len, self.inputs))
        self.compression = (
            GatedProjection(together, self.channels, compression_ratio, normed=normed) if compression_ratio else None
        )

    def forward(self, given: Mapping[str, Any], drop: Collection[str] = ()) -> Tensor:
        """Fuse.

        Args:
            given: what each embedder takes, by the input's name; names without an embedder are left out.
            drop: inputs whose tokens become zeros.

        Raises:
            SettingError: no input that there is an embedder for, or with a compression one that is missing.
        """
        found = []
        for own, embedder, projection in zip(self.inputs, self.embedders, self.projections, strict=True):
            for one in own:
                if one.name not in given:
                    continue
                tokens = projection(embedder(given[one.name]))
                if one.group is not None:
                    tokens = tokens + self.groups[self.group_names.index(one.group)]
                found.append(torch.zeros_like(tokens) if one.name in drop else tokens)
        names = [one.name for own in self.inputs for one in own]
        if not found or (self.compression is not None and len(found) < len(names)):
            raise SettingError(f"condition: expected {', '.join(names)}, got {', '.join(given) or 'none'}")
        if self.compression is not None:
            return self.compression(torch.cat(found, dim=-1))
        return torch.cat(found, dim=1)


def _text(value: Any) -> Any:
    return None if value is None else str(value)

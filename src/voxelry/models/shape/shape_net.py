"""One slice and a click to a whole organ: a prompt encoder, a shape decoder and a mean shape between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.core.settings import Configured, settle
from voxelry.models.shape.decoder import LiftDecoder, TokenDecoder
from voxelry.models.shape.encoder import Encoded, PatchEncoder, PlaneEncoder, zeroed
from voxelry.models.shape.prior import MeanShape, truncate
from voxelry.ops.prompt import Prompt, frame_points

__all__ = ["DECODERS", "ShapeNet", "ShapeOutput"]

RANK = 3  # of shapes, whatever the rank of what they are seen in
DECODERS = ("conv", "transformer")
CAREFUL = 0.25  # the size head's hidden layer takes small steps first: a mean shape in the middle is no bad start
SURE = 0.75  # a predicted mask counts where its probability is higher
LEAST = 1e-3  # area, in edges squared, of a mask whose centroid counts in full
SEEN, FIELD = 4, 13  # numbers of `organ_on_slices` and `field_numbers`
TOLD = 2 * SEEN + FIELD
UNIT = 8.0  # places and lengths in edges are small numbers; so many times they are of size one
LARGEST = math.log(4.0)  # the size head answers within a factor of four


@dataclass
class ShapeOutput:
    """What a `ShapeNet` answers.

    Attributes:
        sdf: `(B, 1, n, n, n)`, signed distance in units of the frame's edge, negative inside, truncated; array order
            z, y, x.
        mask_logits: `(B, S, H, W)`, whether a pixel of a slice is inside the organ.
        log_edge: `(B,)`, the logarithm of the organ's size over that of its class's mean shape.
        offset: `(B, 3)`, where the organ's centroid is in the frame, x, y, z.
        placed: `(B, 1, n, n, n)`, the mean shape so moved and scaled, not truncated: what `sdf` corrects.
    """

    sdf: Tensor
    mask_logits: Tensor
    log_edge: Tensor
    offset: Tensor
    placed: Tensor


@dataclass(frozen=True, kw_only=True)
class ShapeNetSettings:
    """A shape from slices.

    Attributes:
        ndim: 3, the rank of the shape; here so that a run can build any network alike.
        in_channels: of the image.
        out_channels: 1 or None, likewise.
        image_size: pixels per axis that slices are brought to before they come here; larger and smaller ones work.
        grid: cells per axis of the answer.
        classes: number of organs.
        truncation: the largest distance that is told apart, in edges.
        decoder: "conv": features of the slices lifted into space, then a 3-D U-Net; learns from few cases, runs on a
            CPU. "transformer": latents that attend to the slices' tokens; for many cases and a GPU.
        context: channels in which all slices are summed up.
        prior_grid: cells per axis of the stored mean shapes.
        checkpointing: whether the backward pass computes blocks again instead of keeping what is in them.
        width: "conv": channels of the finest level of the 2-D network.
        multipliers: "conv": channels of its levels as multiples of it.
        features: "conv": channels that a place of a slice hands to the cells above it.
        image_fold: "conv": pixels per axis that its finest level takes as one.
        volume_width: channels of the finest 3-D level, of either decoder.
        volume_multipliers: "conv": channels of the 3-D levels as multiples of it.
        volume_fold: "conv": cells per axis that its finest level takes as one.
        focus: "conv": side of the cube around the placed shape, in edges, at the mean shape's size.
        focus_grid: "conv": cells per axis of that cube.
        patch: "transformer": pixels of a patch per axis.
        dim: "transformer": channels of a token.
        depth: "transformer": blocks of the encoder.
        decoder_depth: "transformer": blocks of the decoder.
        heads: "transformer": attention heads.
        tokens: "transformer": latents per axis.
    """

    ndim: int = 3
    in_channels: int = 1
    out_channels: int | None = None
    image_size: int = 64
    grid: int = 64
    classes: int = 1
    truncation: float = 0.2
    decoder: str = "conv"
    context: int = 64
    prior_grid: int = 32
    checkpointing: bool = False
    width: int = 16
    multipliers: Sequence[int] = (1, 2, 4, 4)
    features: int = 8
    image_fold: int = 1
    volume_width: int = 16
    volume_multipliers: Sequence[int] = (1, 2, 4)
    volume_fold: int = 2
    focus: float = 0.65
    focus_grid: int = 32
    patch: int = 16
    dim: int = 256
    depth: int = 4
    decoder_depth: int = 4
    heads: int = 4
    tokens: int = 8

    def __post_init__(self) -> None:
        if self.ndim != RANK:
            raise SettingError(f"ndim: a shape has rank {RANK}, got {self.ndim}")
        if self.out_channels not in (None, 1):
            raise SettingError(f"out_channels: expected 1, one signed distance, got {self.out_channels}")
        check_choice("decoder", self.decoder, DECODERS)
        for name in ("classes", "truncation", "focus"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name}: expected a positive number, got {getattr(self, name)}")


class ShapeNet(Configured, nn.Module):
    """Signed distance of an organ in the frame of a prompt, `Prompt -> ShapeOutput`.

    The mean shape of the class is moved to where the slices' masks, given or predicted, have their centroid, and on by
    the size head, which scales it too; a decoder adds what the slices tell. The convolutional one works in a cube
    around the shape so placed, as the frame is mostly empty: it has room for an organ on any side of a click. All last
    layers start at zero: an untrained
    network answers the mean shape in the middle of the frame, or on the given mask, and a ball until
    `set_mean_shape` was called. Everything it knows of where a slice lies comes from `Prompt.plane`, so that slices of
    any orientation, spacing and number are taken by the same weights.

    Raises:
        SettingError: an unknown name or numbers that do not fit together.
    """

    Settings = ShapeNetSettings

    def __init__(self, **settings: Any):
        super().__init__()
        own = self._settings = settle(ShapeNetSettings, settings)
        self.ndim, self.in_channels, self.image_size, self.focus = own.ndim, own.in_channels, own.image_size, own.focus
        self.grid, self.classes, self.truncation = own.grid, own.classes, own.truncation
        shared: dict[str, Any] = {
            "in_channels": own.in_channels,
            "context": own.context,
            "checkpointing": own.checkpointing,
        }
        if own.decoder == "conv":
            self.encoder: nn.Module = PlaneEncoder(
                width=own.width, multipliers=own.multipliers, fold=own.image_fold, features=own.features, **shared
            )
            self.decoder: nn.Module = LiftDecoder(
                grid=own.focus_grid,
                fold=own.volume_fold,
                features=own.features,
                width=own.volume_width,
                multipliers=own.volume_multipliers,
                **shared,
            )
        else:
            self.encoder = PatchEncoder(patch=own.patch, dim=own.dim, depth=own.depth, heads=own.heads, **shared)
            self.decoder = TokenDecoder(
                grid=own.grid,
                tokens=own.tokens,
                dim=own.dim,
                depth=own.decoder_depth,
                heads=own.heads,
                context=own.context,
                width=own.volume_width,
                checkpointing=own.checkpointing,
            )
        self.organ_embedding = nn.Embedding(own.classes, own.context)
        nn.init.zeros_(self.organ_embedding.weight)
        self.size_head = SizeHead(own.context)
        self.prior = MeanShape(own.classes, own.prior_grid)

    @property
    def adapter_heads(self) -> tuple[str, ...]:
        """Modules that an adapter for another organ holds whole: the last layers and the mean shape."""
        last = "decoder.volume.head" if isinstance(self.decoder, LiftDecoder) else "decoder.head"
        return ("encoder.mask_head", "size_head", "organ_embedding", "prior", last)

    @property
    def adapter_targets(self) -> str:
        """Layers that an adapter changes: attention; without any so many convolutions that it remains small."""
        return r"(.*\.)?(conv2|resample|down)" if isinstance(self.decoder, LiftDecoder) else "attention"

    def set_mean_shape(self, distances: Tensor, label: int = 0) -> None:
        """Keep the mean shape of a class; see `MeanShape.set`."""
        self.prior.set(distances, label)

    def forward(self, prompt: Prompt) -> ShapeOutput:
        """Run the network.

        Raises:
            SettingError: other channels than the network's, or a label that it doesn't have.
        """
        return self.look(prompt)[0]

    def look(self, prompt: Prompt) -> tuple[ShapeOutput, Encoded]:
        """The answer, and what the encoder knows of the slices; errors as `forward`."""
        label = self.labels(prompt)
        encoded: Encoded = self.encoder(prompt)
        encoded.context = encoded.context + self.organ_embedding(label)
        seen = organ_on_slices(prompt, encoded.mask_logits.detach())
        answer = self.size_head(encoded.context.float(), seen.float(), field_numbers(prompt).float())
        log_edge = LARGEST * torch.tanh(answer[:, 0] / LARGEST)
        offset = (seen[:, :3] + answer[:, 1:]).clamp(-0.5, 0.5)
        placed = self.prior(frame_points(self.grid, offset), offset, log_edge, label)
        bounded = truncate(placed, self.truncation)
        if isinstance(self.decoder, LiftDecoder):
            correction = self._focused(prompt, encoded, offset, log_edge, label)
        else:
            correction = self.decoder(prompt, encoded, bounded.to(prompt.image)).float()
        sdf = truncate(bounded + correction, self.truncation)
        return ShapeOutput(sdf, encoded.mask_logits.float(), log_edge, offset, placed), encoded

    def _focused(self, prompt: Prompt, encoded: Encoded, offset: Tensor, log_edge: Tensor, label: Tensor) -> Tensor:
        """The correction from a cube around the placed shape, in which the mean shape is always the same."""
        scale = log_edge.exp()
        side = self.focus * scale
        cube = prompt.around(offset.detach(), side.detach())
        cells = frame_points(self.decoder.grid, offset)  # type: ignore[arg-type]
        mean = self.prior(self.focus * cells, torch.zeros_like(offset), torch.zeros_like(log_edge), label)
        answer = self.decoder(cube, encoded, mean.clamp(-self.truncation, self.truncation).to(prompt.image)).float()
        places = (frame_points(self.grid, offset) - offset[:, None, None, None]) / side[:, None, None, None, None]
        return scale[:, None, None, None, None] * F.grid_sample(answer, 2 * places, align_corners=False)

    def labels(self, prompt: Prompt) -> Tensor:
        """The class of each sample, `(B,)`."""
        if prompt.image.ndim != 5 or prompt.image.shape[2] != self.in_channels:
            raise SettingError(
                f"image: expected shape (B, S, {self.in_channels}, H, W), got {tuple(prompt.image.shape)}"
            )
        if prompt.label is None:
            return torch.zeros(len(prompt), dtype=torch.long, device=prompt.image.device)
        if not bool(((prompt.label >= 0) & (prompt.label < self.classes)).all()):
            raise SettingError(f"label: expected 0 to {self.classes - 1}, got {prompt.label.tolist()}")
        return prompt.label.long()


class SizeHead(nn.Module):
    """Size and place of the organ: one hidden layer on all that is known, and a straight way for lengths and places.

    What is seen on the slices has weights of its own where no field of view is known: there it is all there is.

    Args:
        context: channels of the context.
    """

    def __init__(self, context: int):
        super().__init__()
        last, self.straight = nn.Linear(context, 4), nn.Linear(TOLD, 4)
        self.hidden = nn.Sequential(nn.Linear(context + TOLD, context), nn.SiLU(), last)
        zeroed(last)
        zeroed(self.straight)

    def forward(self, context: Tensor, seen: Tensor, field: Tensor) -> Tensor:
        """`(B, context), (B, SEEN), (B, FIELD) -> (B, 4)`."""
        known = field[:, -1:]
        told = UNIT * torch.cat((seen * known, seen * (1 - known), field), dim=-1)
        return CAREFUL * self.hidden(torch.cat((context, told), dim=-1)) + self.straight(told)


def field_numbers(prompt: Prompt) -> Tensor:
    """The field of view and whether it is known, `(B, 13)`; zeros where it isn't."""
    box, known = prompt.box()
    flag = known[:, None].to(box)
    return torch.cat((box.flatten(1) * flag, flag), dim=-1)


def organ_on_slices(prompt: Prompt, mask_logits: Tensor) -> Tensor:
    """Where the organ is on the slices and how large, `(B, 4)`: its centroid in the frame, the root of its mean area.

    By the mask where one is given, else by the pixels that are surely inside; zeros where there are none.
    """
    predicted = ((mask_logits.float().sigmoid() - SURE) / (1 - SURE)).clamp(min=0) * prompt.validity
    inside = torch.where(prompt.has_mask[..., None, None], prompt.mask.to(predicted), predicted)
    inside = inside * prompt.slice_valid[..., None, None]
    down, right, _ = prompt.plane.float().unbind(-1)
    pixel = torch.linalg.cross(down, right).norm(dim=-1)[..., None, None]
    area = inside * pixel
    total = area.sum(dim=(1, 2, 3))
    centroid = (area[:, :, None] * prompt.pointmap).sum(dim=(1, 3, 4)) / total.clamp(min=LEAST)[:, None]
    mean = total / prompt.slice_valid.sum(dim=1)
    return torch.cat((centroid, mean[:, None].clamp(min=1e-12).sqrt()), dim=-1)

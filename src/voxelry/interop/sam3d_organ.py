"""Networks of a SAM 3D Objects checkpoint as the two stages of `models.sam3d.net.TwoStageNet`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.errors import CheckpointError
from voxelry.interop.sam3d import Sam3dCheckpoint
from voxelry.models.sam3d.net import TwoStageNet

__all__ = ["modules_of", "organ_network"]

NEEDED = ("ss_generator", "ss_decoder", "slat_generator", "slat_decoder_mesh")
FINE = 2  # cells of the answer per cell of the structure, along an axis


def organ_network(checkpoint: Sam3dCheckpoint, **reader: Any) -> TwoStageNet:
    """A network for organs with the checkpoint's weights; what reads its prompts is new.

    Latents of the second stage are standardised as the pipeline says (`slat_mean`, `slat_std`). Without an `ss_encoder`
    the encoder of occupancies is new, too.

    Args:
        checkpoint: with both flows and both decoders.
        reader: settings of `models.shape.shape_net.ShapeNetSettings`.

    Raises:
        CheckpointError: modules that are missing, or numbers of the pipeline that don't fit its decoder.
    """
    missing = [name for name in NEEDED if name not in checkpoint.modules]
    if missing:
        raise CheckpointError(f"checkpoint: expected {', '.join(NEEDED)}, got no {', '.join(missing)}")
    known: dict[str, Any] = checkpoint.networks
    settings = {name: known[name].settings() for name in NEEDED}
    network = TwoStageNet(
        **{"grid": FINE * settings["slat_decoder_mesh"]["grid"], **reader},
        structure=settings["ss_decoder"],
        structure_flow=settings["ss_generator"],
        latent_flow=settings["slat_generator"],
        mesh_decoder=settings["slat_decoder_mesh"],
        kind="shell",
        begin="noise",
    )
    network.structure_flow, network.latent_flow = known["ss_generator"], known["slat_generator"]
    network.structure.decoder, network.surface.decoder = known["ss_decoder"], known["slat_decoder_mesh"]
    if "ss_encoder" in known:
        network.structure.encoder = known["ss_encoder"]
    for name, own in (("slat_mean", network.surface.latent_mean), ("slat_std", network.surface.latent_std)):
        if name in checkpoint.pipeline:
            _copy(own, checkpoint.pipeline[name], name)
    network.structure.batches.fill_(1)
    network.surface.batches.fill_(1)
    return network.eval()


def modules_of(network: TwoStageNet) -> dict[str, nn.Module]:
    """A network's modules by the pipeline's names; see `Sam3dCheckpoint.with_networks`."""
    return {
        "ss_generator": network.structure_flow,
        "ss_encoder": network.structure.encoder,
        "ss_decoder": network.structure.decoder,
        "slat_generator": network.latent_flow,
        "slat_decoder_mesh": network.surface.decoder,
    }


def _copy(own: Tensor, given: Any, name: str) -> None:
    """Numbers of the pipeline into a buffer.

    Raises:
        CheckpointError: not as many as there are channels.
    """
    values = torch.as_tensor(given, dtype=own.dtype).flatten()
    if values.shape != own.shape:
        raise CheckpointError(f"pipeline.yaml: {name}: expected {len(own)} numbers, got {len(values)}")
    own.copy_(values)

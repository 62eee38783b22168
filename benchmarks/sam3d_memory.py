"""Peak memory of the networks of SAM 3D Objects at their published sizes, each in a process of its own.

    python benchmarks/sam3d_memory.py
    python benchmarks/sam3d_memory.py --part mesh_decoder --voxels 42000

Random weights, float32, one forward pass without gradients on a CPU; `mesh_decoder` includes the mesh. Peaks are those
that the operating system saw (resident set), Python and PyTorch themselves included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

from voxelry.models.sam3d.latent_flow import LatentFlow
from voxelry.models.sam3d.mesh_decoder import MeshDecoder
from voxelry.models.sam3d.structure_flow import StructureFlow
from voxelry.models.sam3d.structure_vae import StructureDecoder, StructureEncoder
from voxelry.models.sam3d.surface import decode_surface
from voxelry.nn.sparse import SparseTensor

GRID = 64
TOKENS = 2048  # of a condition


def shell(voxels: int) -> Tensor:
    """So many cells around a sphere, `(N, 4)`."""
    axis = (torch.arange(GRID) + 0.5) / GRID - 0.5
    away = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).norm(dim=-1)
    nearest = (away - 0.4).abs().flatten().argsort()[:voxels].sort().values
    places = torch.stack(torch.unravel_index(nearest, (GRID,) * 3), dim=1)
    return nn.functional.pad(places, (1, 0))


def mesh_decoder(voxels: int) -> nn.Module:
    """Latents to a mesh."""
    network = MeshDecoder()
    cells = shell(voxels)
    nn.init.normal_(network.leave.weight, std=0.02)
    found = network(SparseTensor.of(torch.randn(len(cells), 8), cells))
    surface = decode_surface(found.cells.coords[:, 1:], found.features, network.surface_grid)
    print(f"  {len(cells)} voxels, {len(found.cells)} fine cells, {len(surface.vertices)} vertices")
    return network


def latent_flow(voxels: int) -> nn.Module:
    """One step of stage 2."""
    network, cells = LatentFlow(), shell(voxels)
    network(SparseTensor.of(torch.randn(len(cells), 8), cells), torch.tensor([500.0]), torch.randn(1, TOKENS, 1024))
    return network


def structure_flow(voxels: int, *, include_pose: bool = True) -> nn.Module:
    """One step of stage 1."""
    network = StructureFlow(include_pose=include_pose)
    x = {"shape": torch.randn(1, 16**3, 8)}
    if include_pose:
        x |= {name: torch.randn(1, 1, numbers) for name, numbers in network.settings()["pose"].items()}
    network(x, torch.tensor([500.0]), torch.randn(1, TOKENS, 1024), torch.tensor([0.0]))
    return network


def structure_flow_without_pose(voxels: int) -> nn.Module:
    """One step of stage 1, shape only."""
    return structure_flow(voxels, include_pose=False)


def structure_encoder(voxels: int) -> nn.Module:
    """Occupancy to latents."""
    network = StructureEncoder()
    network(torch.zeros(1, 1, GRID, GRID, GRID))
    return network


def structure_decoder(voxels: int) -> nn.Module:
    """Latents to occupancy."""
    network = StructureDecoder()
    network(torch.randn(1, 8, 16, 16, 16))
    return network


PARTS = {
    part.__name__: part
    for part in (
        structure_encoder, structure_decoder, structure_flow_without_pose, structure_flow, latent_flow, mesh_decoder,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process")
    parser.add_argument("--voxels", type=int, default=42_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.part is None:
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--voxels", str(arguments.voxels)]
            subprocess.run([*command, "--threads", str(arguments.threads)], check=True)
        return
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    begin = time.process_time()
    with torch.no_grad():
        network = PARTS[arguments.part](arguments.voxels)
    weights = sum(parameter.numel() for parameter in network.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = time.process_time() - begin
    print(f"{arguments.part}: {weights / 1e6:.0f} million parameters, peak {peak:.2f} GB, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()

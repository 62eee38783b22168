"""Peak GPU memory and time of one training step in bf16: pretraining, and landmarks.

    python benchmarks/unet_gpu.py [--checkpointing auto] [--compile]

Goals: pretraining at batch 2 of 64³ at most 1.5 GB, landmarks at batch 1 of 64³ with 10 points at most 1 GB,
optimiser (AdamW), gradients and weights included; the pretraining also holds an averaged copy (EMA).
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torch.nn.functional as F

from voxelry.models.unet import UNet

GOALS_GB = {"pretrain": 1.5, "landmarks": 1.0}


def step_of(job: str, network: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """Loss of one step on random data."""
    if job == "pretrain":
        x = torch.randn(2, 1, 64, 64, 64, device=device)
        return F.mse_loss(network(x, torch.tensor([10, 400], device=device)).float(), torch.randn_like(x))
    logits = network(torch.randn(1, 1, 64, 64, 64, device=device)).flatten(2).float()
    return -logits.log_softmax(dim=2)[:, :, 0].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpointing", nargs="+", default=["auto", "none", "norms", "blocks"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device; this benchmark measures the memory of one")
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for job, outputs in (("pretrain", 1), ("landmarks", 10)):
        for policy in options.checkpointing:
            torch.cuda.empty_cache()
            torch.manual_seed(0)
            network: torch.nn.Module = UNet(ndim=3, out_channels=outputs, checkpointing=policy).to(device)
            average = copy.deepcopy(network) if job == "pretrain" else None
            optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
            run = torch.compile(network) if options.compile else network
            for index in range(options.steps):
                if index == 1:
                    torch.cuda.synchronize()
                    begin = time.perf_counter()
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = step_of(job, run, device)
                loss.backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            seconds = (time.perf_counter() - begin) / max(options.steps - 1, 1)
            peak = torch.cuda.max_memory_allocated() / 2**30
            reserved = torch.cuda.max_memory_reserved() / 2**30
            print(
                f"{job:9s} {policy:6s} peak {peak:.2f} GB (reserved {reserved:.2f}, goal {GOALS_GB[job]})  "
                f"{seconds:.3f} s a step  loss {loss.item():.4f}",
                flush=True,
            )
            del network, average, optimiser, run, loss
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()

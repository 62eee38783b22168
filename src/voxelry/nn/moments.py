"""Latents of mean 0 and deviation 1: what samples them needn't know how large an encoder makes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from voxelry.nn import nd

__all__ = ["RunningMoments", "divergence", "drawn"]

FORGET = 0.02  # share of a batch in the running moments, once there are many
LEAST_STD = 1e-3


class RunningMoments(nn.Module):
    """An autoencoder's mean and deviation of each channel of its latents, `(B, C, *S)` or `(N, C)`.

    Args:
        channels: of a latent, C.
    """

    latent_mean: Tensor
    latent_std: Tensor
    batches: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def standardised(self, latents: Tensor) -> Tensor:
        """Latents as they are sampled: each channel of mean 0 and deviation 1 over the training shapes."""
        mean, std = (nd.per_channel(value, latents).to(latents) for value in (self.latent_mean, self.latent_std))
        return (latents - mean) / std

    def restored(self, latents: Tensor) -> Tensor:
        """The inverse of `standardised`."""
        mean, std = (nd.per_channel(value, latents).to(latents) for value in (self.latent_mean, self.latent_std))
        return latents * std + mean

    def divergence(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """As `divergence`, of the latents once they are standardised."""
        spread = nd.per_channel(self.latent_std, mean).to(mean)
        return divergence(self.standardised(mean), log_variance - 2 * spread.log())

    @torch.no_grad()
    def observe(self, latents: Tensor) -> None:
        """Take a batch of training latents into the moments that `standardised` uses: recent ones count the most."""
        each = latents.float().transpose(0, 1).flatten(1)
        share = max(FORGET, 1 / (int(self.batches) + 1))
        mean, square = each.mean(dim=1), each.square().mean(dim=1)
        before = self.latent_std.square() + self.latent_mean.square()
        self.latent_mean.lerp_(mean, share)
        variance = before.lerp(square, share) - self.latent_mean.square()
        self.latent_std.copy_(variance.clamp(min=LEAST_STD**2).sqrt())
        self.batches += 1


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of latents' distributions from standard normal ones, the mean over all numbers.

    Kingma & Welling 2014 (arXiv:1312.6114), appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def drawn(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One draw of latents; of torch's own generator without one."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + noise * (0.5 * log_variance).exp()

"""What a diffusion network predicts, and how its error is weighed.

With `a = sqrt(alpha_bar_t)` and `s = sqrt(1 - alpha_bar_t)`, so `a^2 + s^2 = 1`:

- the noised image is `x_t = a * x0 + s * epsilon` (Ho et al. 2020, arXiv:2006.11239, eq. 4);
- the velocity is `v = a * epsilon - s * x0` (Salimans & Ho 2022, arXiv:2202.00512, appendix D).

Any one of epsilon, x0 and v gives the other two. Images are `(B, C, *spatial)`, times are an int or `(B,)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from voxelry.core.choice import check_choice, unknown_choice
from voxelry.diffusion.schedules import Schedule, Time

__all__ = [
    "LOSSES",
    "PREDICTIONS",
    "WEIGHTINGS",
    "Objective",
    "convert",
    "mean_errors",
    "noise_like",
    "q_sample",
    "sample_times",
]

PREDICTIONS = ("epsilon", "x0", "v")
LOSSES = ("l1", "l2", "huber")
WEIGHTINGS = ("snr", "truncated_snr", "min_snr", "p2")


def noise_like(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of the shape, type and device of `image`.

    It is drawn on the generator's own device, so that a CPU generator gives the same noise everywhere.
    """
    device = image.device if generator is None else generator.device
    return torch.randn(image.shape, generator=generator, dtype=image.dtype, device=device).to(image.device)


def sample_times(
    count: int, steps: int, *, generator: torch.Generator | None = None, stratified: bool = False
) -> Tensor:
    """Random time steps, uniform over `[0, steps)`, `(count,)` int64 on the generator's device (or the CPU).

    The original never draws step 0, but its sampler ends with it; here every step a sampler may visit is trained.

    Args:
        count: how many.
        steps: time steps of the schedule.
        generator: torch's own when None.
        stratified: one draw from each `count`-th of the range, in random order: each is still uniform, the batch
            covers the range evenly, and the loss varies less (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
    """
    device = torch.device("cpu") if generator is None else generator.device
    if not stratified:
        return torch.randint(0, steps, (count,), generator=generator, device=device)
    place = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    order = torch.randperm(count, generator=generator, device=device)
    return ((place + order / count) % 1 * steps).long().clamp(max=steps - 1)


def q_sample(x0: Tensor, t: Time, noise: Tensor, schedule: Schedule) -> Tensor:
    """The image after `t + 1` additions of noise, `(B, C, *spatial)` (Ho et al. 2020, eq. 4)."""
    return schedule.signal(t, x0) * x0 + schedule.noise(t, x0) * noise


def convert(value: Tensor, x_t: Tensor, t: Time, schedule: Schedule, source: str, to: str) -> Tensor:
    """Turn a prediction of `source` into what it says of `to`; both one of `PREDICTIONS`.

    Args:
        value: the prediction, `(B, C, *spatial)`.
        x_t: the noised image it was made from, same shape.
        t: its time step.
        schedule: of the diffusion.
        source: what `value` predicts.
        to: what is wanted.

    Raises:
        SettingError: an unknown name.
    """
    check_choice("objective", source, PREDICTIONS)
    if source == to:
        return value
    a, s = schedule.signal(t, x_t), schedule.noise(t, x_t)
    match source, to:
        case "epsilon", "x0":
            return (x_t - s * value) / a
        case "v", "x0":
            return a * x_t - s * value
        case "x0", "epsilon":
            return (x_t - a * value) / s
        case "v", "epsilon":
            return s * x_t + a * value
        case "x0", "v":
            return (a * x_t - value) / s
        case "epsilon", "v":
            return (value - s * x_t) / a
    raise unknown_choice("objective", to, PREDICTIONS)


def mean_errors(output: Tensor, target: Tensor, loss: str = "l2") -> Tensor:
    """Error of each sample, mean over its channels and voxels, `(B,)` float32 or wider; `loss` one of `LOSSES`.

    Raises:
        SettingError: an unknown loss.
    """
    output, target = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (output, target))
    match loss:
        case "l2":
            errors = (output - target) ** 2
        case "l1":
            errors = (output - target).abs()
        case "huber":
            errors = F.smooth_l1_loss(output, target, reduction="none")
        case _:
            raise unknown_choice("loss_type", loss, LOSSES)
    return errors.flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Objective:
    """What the network answers and what an error costs.

    Args:
        prediction: `epsilon`, `x0` or `v`.
        loss: `l2` (mean square), `l1` (mean absolute) or `huber` (quadratic below 1, linear above).
        weighting: how time steps count, as a weight of the squared error *of x0*; it is converted to the space of
            `prediction`, so that one weighting means the same for all three. With `l1` and `huber` the same factor is
            used. None leaves every step its own error, unweighted.

            - `snr`: SNR, which for epsilon is no weighting at all;
            - `truncated_snr`: max(SNR, 1) (Salimans & Ho 2022, section 4);
            - `min_snr`: min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556, eq. 10);
            - `p2`: SNR / (k + SNR)^gamma (Choi et al. 2022, arXiv:2204.00227, eq. 8).
        gamma: of `min_snr` (its authors use 5) or of `p2` (1); None takes the authors' value.
        k: of `p2`.

    Raises:
        SettingError: an unknown name.
    """

    prediction: str = "epsilon"
    loss: str = "l2"
    weighting: str | None = None
    gamma: float | None = None
    k: float = 1.0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("objective", self.prediction, PREDICTIONS),
            ("loss_type", self.loss, LOSSES),
            ("weighting", self.weighting, (*WEIGHTINGS, None)),
        ):
            check_choice(name, value, allowed)

    def target(self, x0: Tensor, noise: Tensor, t: Time, schedule: Schedule) -> Tensor:
        """What the network should answer, `(B, C, *spatial)`."""
        match self.prediction:
            case "x0":
                return x0
            case "epsilon":
                return noise
            case "v":
                return schedule.signal(t, x0) * noise - schedule.noise(t, x0) * x0
        raise unknown_choice("objective", self.prediction, PREDICTIONS)

    def errors(self, output: Tensor, target: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """Weighted loss of each sample, mean over its channels and voxels, `(B,)` float32 or wider.

        A mean, so that learning rates carry over between image sizes; the sum that some codes use does not.
        """
        errors = mean_errors(output, target, self.loss)
        return errors * self.weights(schedule)[t.cpu()].to(errors.dtype).to(errors.device)

    def weights(self, schedule: Schedule) -> Tensor:
        """Weight of each time step in the space of `prediction`, `(steps,)` float64."""
        snr = schedule.snr
        match self.weighting:
            case None:
                return torch.ones_like(snr)
            case "snr":
                of_x0 = snr
            case "truncated_snr":
                of_x0 = snr.clamp(min=1)
            case "min_snr":
                of_x0 = snr.clamp(max=5.0 if self.gamma is None else self.gamma)
            case "p2":
                of_x0 = snr / (self.k + snr) ** (1.0 if self.gamma is None else self.gamma)
            case _:
                raise unknown_choice("weighting", self.weighting, (*WEIGHTINGS, None))
        # the same error in x0 is this much larger, squared, in the space of the prediction
        return of_x0 / {"x0": torch.ones_like(snr), "epsilon": snr, "v": snr + 1}[self.prediction]

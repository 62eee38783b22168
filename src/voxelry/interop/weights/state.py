"""Another project's state dict on its way into one of our networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from voxelry.core.errors import CheckpointError
from voxelry.models.inflate import inflate

__all__ = ["build", "check_state", "strip_prefix"]


def build(
    source: str,
    make: Callable[..., nn.Module],
    settings: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    rank: int,
    ndim: int | None,
) -> nn.Module:
    """Make a network, load `state` (our names) into it, lifted where the network has one axis more.

    Args:
        source: name of the other project, for messages.
        make: class or function of the network, called with `ndim` and `settings`.
        settings: its other keywords.
        state: its weights.
        rank: rank of the weights.
        ndim: rank of the network; None for that of the weights.

    Returns:
        The network, in eval mode.

    Raises:
        CheckpointError: the rank can't be had, or the tensors don't fit; names the first at fault.
    """
    check_rank(source, rank, ndim)
    network = make(ndim=ndim or rank, **settings)
    loaded = inflate(network, state) if (ndim or rank) > rank else dict(state)
    check_state(source, network, loaded)
    network.load_state_dict(loaded)
    return network.eval()


def check_rank(source: str, rank: int, ndim: int | None) -> None:
    """Raise a CheckpointError where weights of rank `rank` would have to lose axes."""
    if ndim is not None and ndim < rank:
        raise CheckpointError(f"{source}: the weights are {rank}-D and can't make a {ndim}-D network")


def strip_prefix(weights: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """Drop what stands before `stem` (`module.`, `model.`, ...) from every key, and keys without it.

    Raises:
        CheckpointError: no key ends in `stem`.
    """
    for key in weights:
        if key == stem or key.endswith("." + stem):
            prefix = key[: -len(stem)]
            return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    raise CheckpointError(f"weights: expected a tensor named {stem}, found {', '.join(list(weights)[:3]) or 'none'}")


def check_state(source: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with the network's own.

    Raises:
        CheckpointError: the first missing, unknown or misshapen tensors.
    """
    own = network.state_dict()
    faults = [f"{key} is missing" for key in own if key not in state]
    faults += [f"{key} is unknown" for key in state if key not in own]
    faults += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 2} more" if len(faults) > 2 else ""
        raise CheckpointError(f"{source}: weights don't fit the case: {'; '.join(faults[:2])}{more}")

"""How much memory a training step will take, before it is taken.

The step is run with tensors that have a shape and no values (PyTorch's meta device), while every allocation is
written down as it comes and goes. What counts is what a GPU would hold: kernels of attention that never make the
matrix of all pairs, and the recomputation that the network's `checkpointing` asks for. The work space of a library's
kernels comes on top: on a CPU, a real process took 1.1 to 1.6 times the estimate, with separable blocks 2.7 times.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voxelry.core.errors import SettingError

__all__ = ["Growth", "check_memory", "estimate", "kept", "peak_of", "prediction_growth", "training_growth"]

SMALLEST = 32  # voxels per axis of the patches that are suggested


def estimate(
    network: nn.Module,
    shape: Sequence[int],
    *,
    in_channels: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    optimiser_states: int = 2,
    average: bool = True,
    checkpointing: str | None = None,
) -> int:
    """Bytes of one training step at its peak: weights, what is kept beside each, activations and gradients.

    Args:
        network: called as `network(x, time)` with `x` `(batch, in_channels, *shape)`.
        shape: spatial size of the input.
        in_channels: its channels.
        batch: samples of a step.
        dtype: of the activations; weights and what is beside them are float32 (mixed precision).
        optimiser_states: values that the optimiser keeps for each weight, 2 for Adam.
        average: whether an averaged copy of the weights is kept (EMA).
        checkpointing: in place of the network's own, see `UNet`.
    """
    weights = _weights(network)
    peak = _run(network, _input(shape, in_channels, batch, dtype), checkpointing).peak
    return weights * (1 + optimiser_states + average) + max(peak, weights)  # in the end, all gradients alone


def kept(
    network: nn.Module,
    shape: Sequence[int],
    *,
    in_channels: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    checkpointing: str | None = None,
) -> int:
    """Bytes of the activations that the forward pass keeps for the backward pass; arguments as of `estimate`."""
    return _run(network, _input(shape, in_channels, batch, dtype), checkpointing).kept


@dataclass(frozen=True)
class Growth:
    """Bytes alive at the peak as they grow with the voxels of a batch, those of the weights aside.

    Attributes:
        weights: bytes of the weights.
        lines: a constant and a part for each voxel, of every moment that may be the peak.
    """

    weights: int
    lines: tuple[tuple[float, float], ...]

    def peak(self, voxels: int) -> int:
        """Bytes for so many voxels."""
        return int(max(constant + each * voxels for constant, each in self.lines))


def training_growth(network: nn.Module, shape: Sequence[int], **settings: Any) -> Growth:
    """What `estimate` would say of any size, from steps on a small image and on one that is twice as long.

    The gradients of all weights are counted as one of the moments, what is kept beside the weights isn't.

    Args:
        network: called as by `estimate`; its `checkpointing` should be settled, which `auto` isn't.
        shape: of the small image; the last axis is doubled.
        settings: in_channels, dtype and device of `_input`; "cpu" counts what is alive in a processor's own way of
            computing, "meta" what a GPU would hold.
    """
    small, large = (_run(network, _input(size, **settings)) for size in _two_sizes(shape))
    weights = _weights(network)
    forward, backward = _line(shape, small.forward, large.forward), _line(shape, small.peak, large.peak)
    return Growth(weights, (forward, backward, (float(weights), 0.0)))


def prediction_growth(network: nn.Module, shape: Sequence[int], **settings: Any) -> Growth:
    """The same of a pass without gradients; arguments as of `training_growth`."""
    small, large = (_predict(network, _input(size, **settings)) for size in _two_sizes(shape))
    return Growth(_weights(network), (_line(shape, small, large),))


def peak_of(network: nn.Module, work: Callable[[], object]) -> int:
    """Bytes that some work with a network allocates at the peak, computed with all values; the weights aside."""
    with _Ledger(known=[*network.parameters(), *network.buffers()]) as ledger:
        work()
    return ledger.peak


def _two_sizes(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(shape), (*shape[:-1], 2 * shape[-1])


def _line(shape: Sequence[int], small: int, large: int) -> tuple[float, float]:
    """Constant and part for each voxel, from the bytes of an image and of one that is twice as long."""
    each = max(0, large - small) / prod(shape)
    return max(0.0, small - each * prod(shape)), each


def _weights(network: nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class _Pass:
    """Bytes of one forward and backward pass: kept between both, and the most of the first, and of both."""

    kept: int
    forward: int
    peak: int


def _run(network: nn.Module, x: Tensor, checkpointing: str | None = None) -> _Pass:
    """What a training step allocates, the input included."""
    hollow: Any = _hollow(network, x)
    if checkpointing is not None and hasattr(hollow, "checkpointing"):
        hollow.checkpointing = checkpointing
    with _Ledger(known=[*hollow.parameters(), *hollow.buffers()]) as ledger, _lean_attention():
        loss = hollow(x, _time(x)).square().mean()
        alive, most = ledger.now, ledger.peak
        loss.backward()
    return _Pass(alive + x.nbytes, most + x.nbytes, ledger.peak + x.nbytes)


def _predict(network: nn.Module, x: Tensor) -> int:
    """The most bytes of a pass without gradients, the input included."""
    hollow = _hollow(network, x)
    with _Ledger(known=[*hollow.parameters(), *hollow.buffers()]) as ledger, _lean_attention(), torch.no_grad():
        hollow(x, _time(x))
    return ledger.peak + x.nbytes


def _input(
    shape: Sequence[int],
    in_channels: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "meta",
) -> Tensor:
    return torch.zeros((batch, in_channels, *shape), dtype=dtype, device=device)


def _time(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long, device=x.device)


def check_memory(
    network: nn.Module, shape: Sequence[int], *, in_channels: int, available: int, **settings: Any
) -> None:
    """Refuse a training that can't fit, and say what would.

    Args:
        network, shape, in_channels, settings: see `estimate`.
        available: bytes of the device.

    Raises:
        SettingError: the estimate is more than there is; names the estimate and the changes that would fit.
    """
    needed = estimate(network, shape, in_channels=in_channels, **settings)
    if needed <= available:
        return
    leaner = {"checkpointing": "blocks"} if hasattr(network, "checkpointing") else {}
    half = {"dtype": torch.bfloat16}
    changes: list[tuple[str, Sequence[int], dict[str, Any]]] = [
        ("checkpointing=blocks", shape, leaner),
        ("precision=bf16-mixed", shape, half),
        ("both", shape, leaner | half),
    ]
    size = list(shape)
    while max(size) > SMALLEST:
        size = [max(-(-length // 2), min(length, SMALLEST)) for length in size]
        changes.append((f"patches of {'×'.join(map(str, size))}", tuple(size), {}))
    fitting = []
    for name, smaller, change in changes:
        bytes_needed = estimate(network, smaller, in_channels=in_channels, **{**settings, **change})
        if bytes_needed <= available:
            fitting.append(f"{name} ({_gigabytes(bytes_needed)})")
        if fitting and smaller is not shape:
            break  # the largest patches that fit
    hint = f"it would fit with {' or '.join(fitting)}" if fitting else "take a smaller network"
    raise SettingError(
        f"memory: a training step on {'×'.join(map(str, shape))} needs about {_gigabytes(needed)}, "
        f"and there are {_gigabytes(available)}; {hint}"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _hollow(network: nn.Module, x: Tensor) -> nn.Module:
    """A copy of the network on the device and in the type of its input: on "meta" without its values."""

    def other(tensor: Tensor) -> Tensor:
        return tensor.detach().to(x.device, x.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    # what deepcopy finds in its memo it does not copy
    parameters = {id(value): nn.Parameter(other(value), value.requires_grad) for value in network.parameters()}
    return copy.deepcopy(network, {**parameters, **{id(value): other(value) for value in network.buffers()}})


class _Ledger(TorchDispatchMode):
    """Writes down the bytes that are alive, and the most there were."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and not value.is_mkldnn:  # what only passes through a library's own layout
                self._enter(value.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.alive or key in self.known:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


@contextmanager
def _lean_attention() -> Iterator[None]:
    """Attention in linear memory, as the kernels that run later have it; without values any product will do.

    A function mode of PyTorch would be left within `backward`, where checkpointed parts run again.
    """
    real = F.scaled_dot_product_attention

    def stand_in(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        return q @ (k.transpose(-1, -2) @ v)

    F.scaled_dot_product_attention = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real

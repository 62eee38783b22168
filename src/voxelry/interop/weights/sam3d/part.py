"""One module of the original: how its arguments, its names and its kernels become ours, and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.errors import CheckpointError
from voxelry.interop.weights.sam3d.names import Names
from voxelry.interop.weights.state import strip_prefix

__all__ = ["Kernel", "Part", "arguments", "count"]


@dataclass(frozen=True)
class Kernel:
    """Another layout of some tensors.

    Attributes:
        ours: their tensor to ours.
        theirs: our tensor to theirs.
    """

    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """A module of the original and what it is here.

    Attributes:
        source: as in `from_reference`.
        stem: name of a tensor that it always has, by which a prefix is known.
        make: our class.
        names: the translation.
        infer_settings: our settings from the original's constructor arguments and its tensors.
        kernels: the other layout of a tensor by our name; None for most.
        select: the tensors that a case asks for.
    """

    source: str
    stem: str
    make: Callable[..., nn.Module]
    names: Names
    infer_settings: Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Any]]
    kernels: Callable[[str, Tensor], Kernel | None] = lambda name, tensor: None
    select: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda case, weights: weights

    def infer(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Our settings, as far as tensors show them; the rest is that of the published networks."""
        return self.infer_settings({}, strip_prefix(weights, self.stem))

    def rebuild(self, case: Mapping[str, Any], weights: Mapping[str, Tensor], ndim: int | None = None) -> nn.Module:
        """Our network with these weights, in eval mode; see `voxelry.interop.from_reference`."""
        stripped = {name: tensor.float() for name, tensor in strip_prefix(weights, self.stem).items()}
        if ndim not in (None, 3):
            raise CheckpointError(f"{self.source}: the weights are 3-D and can't make a {ndim}-D network")
        chosen = self.select(case, stripped)
        network = self.make(**self.infer_settings(case, chosen))
        state = self.state(chosen)
        self._check(network, state)
        network.load_state_dict(state)
        return network.eval()

    def _check(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Compare names and shapes with the network's own.

        Raises:
            CheckpointError: what is missing, foreign or of another shape, by group.
        """
        own = network.state_dict()
        odd = [name for name in own if name in state and state[name].shape != own[name].shape]
        groups = {
            "missing": grouped(self.names.theirs(name) for name in own if name not in state),
            "foreign": grouped(self.names.theirs(name) for name in state if name not in own),
            "of another shape": grouped(self.names.theirs(name) for name in odd),
        }
        faults = [f"{what}: {names}" for what, names in groups.items() if names]
        if faults:
            raise CheckpointError(f"{self.source}: weights don't fit the case: {'; '.join(faults)}")

    def state(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict under our names, in our layouts."""
        found = {}
        for name, tensor in weights.items():
            ours = self.names.ours(name)
            kernel = self.kernels(ours, tensor)
            found[ours] = tensor if kernel is None else kernel.ours(tensor)
        return found

    def export(self, network: nn.Module) -> dict[str, Tensor]:
        """Our network's tensors under their names, in their layouts: the inverse of `state`."""
        found = {}
        for name, tensor in network.state_dict().items():
            kernel = self.kernels(name, tensor)
            back = tensor.detach() if kernel is None else kernel.theirs(tensor.detach())
            found[self.names.theirs(name)] = back.contiguous().to(torch.float32)
        return found


def grouped(names: Iterable[str]) -> str:
    """Names with `#` for their numbers, each once, with how many there are."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names)
    return ", ".join(name if number == 1 else f"{name} ({number})" for name, number in counts.items())


def arguments(case: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a case, which are under `args` where the case says more than those."""
    given = case.get("args", case)
    return dict(given)


def count(weights: Mapping[str, Tensor], stem: str) -> int:
    """How many of `stem.0`, `stem.1`, ... there are."""
    depth = stem.count(".") + 1
    numbers = [name.split(".")[depth] for name in weights if name.startswith(stem + ".")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)

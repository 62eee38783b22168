"""Networks of one architecture that learn beside each other and answer by their mean (Lakshminarayanan et al. 2017,
arXiv:1612.01474).

Networks that begin with other weights make other mistakes. Where a single one has learned what it can from few cases,
further time is better spent on more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from voxelry.core.errors import SettingError
from voxelry.models.networks import build_network, describe_network, image_rank, input_channels

__all__ = ["Members", "members_of"]


class Members(nn.Module):
    """Networks that take and answer the same; what they are called with is theirs, `(B, C, *S) -> (B, K, *S)`.

    Args:
        count: how many.
        network: the `name` of each in `networks.NETWORKS`, and its settings.

    Raises:
        SettingError: fewer than one; or as their networks.
    """

    networks: nn.ModuleList

    def __init__(self, *, count: int, network: Mapping[str, Any]):
        super().__init__()
        if count < 1:
            raise SettingError(f"members: expected at least 1, got {count}")
        described = dict(network)
        name = described.pop("name")
        self.networks = nn.ModuleList(build_network(name, described) for _ in range(count))

    @classmethod
    def of(cls, networks: Sequence[nn.Module]) -> Self:
        """Networks that there are, with their weights."""
        members = cls.__new__(cls)
        nn.Module.__init__(members)
        members.networks = nn.ModuleList(networks)
        return members

    @property
    def ndim(self) -> int:
        """Rank of the images."""
        return image_rank(self.networks[0])

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return input_channels(self.networks[0])

    def settings(self) -> dict[str, Any]:
        """What builds them again, without their weights."""
        return {"count": len(self.networks), "network": describe_network(self.networks[0])}

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The mean of their answers."""
        total: Tensor = self.networks[0](x, *rest)
        for network in list(self.networks)[1:]:
            total = total + network(x, *rest)
        return total / len(self.networks)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each, as they are called one by one in a training."""
        for network in self.networks:
            network.compile(*args, **kwargs)


def members_of(network: nn.Module) -> list[nn.Module]:
    """The networks that learn for themselves: those of `Members`, or the one."""
    return list(network.networks) if isinstance(network, Members) else [network]

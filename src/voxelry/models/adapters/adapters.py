"""Low-rank adapters around any network: one frozen base, a small file for every organ.

LoRA (Hu et al. 2022, arXiv:2106.09685): a layer's weight `W` becomes `W + alpha / rank * B A`, and only `A` and `B`
are trained. Rank-stabilised LoRA divides by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732); DoRA trains
the length of each output's weights apart (Liu et al. 2024, arXiv:2402.09353). The layers are PEFT's; here is what
chooses them and keeps the base and its adapters apart.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from voxelry.core.choice import check_choice, unknown_choice
from voxelry.core.errors import CheckpointError, SettingError
from voxelry.core.rank import RANKS
from voxelry.models.adapters.file import read_adapter, write_adapter
from voxelry.models.adapters.layers import adapted_layers
from voxelry.models.adapters.names import base_hash, base_modules, base_state, inner, is_of, without
from voxelry.nn.nd import conv

__all__ = ["TARGETS", "AdapterSettings", "Adapters", "base_hash"]

_PLACE = r"(attn|attention|attentions\.\d+|middle_attention|cross)"
TARGETS = {
    "attention": rf"(.*\.)?({_PLACE}\.(qkv|kv|q|out|proj)|mlp\.(\d+|fc\d+))",
    "convolutions": r"(.*\.)?(conv\d*|resample|down|narrow|ups\.\d+\.\d+)",
}
_TAKEN = (nn.Linear, *(conv(ndim) for ndim in RANKS))
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class AdapterSettings:
    """How a network is adapted.

    Attributes:
        rank: of the additions.
        alpha: their scale is `alpha / rank`, or `alpha / sqrt(rank)` where `rank_stabilised`.
        dropout: on the input of the additions, in training.
        targets: layers that are given one: "attention" (attention and feed-forward layers), "convolutions", "all" of
            both, or a regular expression that a layer's whole name must match. Linear layers and convolutions of one
            group are taken, whatever else matches is left out. None for what the network names in `adapter_targets`,
            else "attention".
        kind: "lora" or "dora".
        rank_stabilised: see `alpha`.
        heads: modules trained and stored whole; None for what the network names in `adapter_heads`.
    """

    rank: int = 4
    alpha: float = 8.0
    dropout: float = 0.0
    targets: str | None = None
    kind: str = "lora"
    rank_stabilised: bool = False
    heads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingError(f"rank: expected at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"dropout: expected a probability from 0 to below 1, got {self.dropout}")
        check_choice("kind", self.kind, ("lora", "dora"))
        if self.heads is not None:
            object.__setattr__(self, "heads", tuple(self.heads))

    def pattern(self) -> re.Pattern[str]:
        """The regular expression behind `targets`.

        Raises:
            SettingError: it is none.
        """
        wanted = self.targets or "attention"
        text = "|".join(TARGETS.values()) if wanted == "all" else TARGETS.get(wanted, wanted)
        try:
            return re.compile(text)
        except re.error as error:
            raise SettingError(f"targets: {self.targets!r} is no regular expression: {error}") from error


@dataclass
class _State:
    tuner: Any = None
    settings: dict[str, AdapterSettings] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)


class Adapters:
    """The adapters of one network, which is changed in place and called as before.

    Args:
        network: the base; frozen from the first adapter on, running statistics of its normalisations too.

    Example:
        >>> adapters = Adapters(network)
        >>> adapters.add("liver", AdapterSettings(rank=4))
        >>> optimizer = torch.optim.AdamW(adapters.parameter_groups(1e-4, heads=1e-5))
        >>> adapters.save("liver_adapter")
    """

    def __init__(self, network: nn.Module):
        if any(hasattr(module, "lora_A") for module in network.modules()):
            raise SettingError("network: has adapters already; use the object that added them")
        self.network = network
        self.base = base_hash(network)
        self.active: str | None = None
        self._state = _State()

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters, in the order they were added."""
        return tuple(self._state.settings)

    @property
    def merged(self) -> bool:
        """Whether the active adapter is inside the base's weights."""
        return bool(self._state.originals)

    def settings(self, name: str | None = None) -> AdapterSettings:
        """How an adapter was made, by default the active one, its heads by name."""
        return self._state.settings[self._known(name)]

    def add(self, name: str, settings: AdapterSettings | None = None) -> None:
        """Add an adapter that changes nothing yet, and make it the active one, to be trained.

        Raises:
            SettingError: a name that is taken or is more than letters, digits, `-` and `_`; targets that match no
                layer, or heads that the network doesn't have.
        """
        from peft import LoraConfig, LoraModel

        settings = settings or AdapterSettings()
        if settings.targets is None:
            settings = replace(settings, targets=getattr(self.network, "adapter_targets", "attention"))
        if not _NAME.fullmatch(name):
            raise SettingError(f"name: expected letters, digits, - and _, got {name!r}")
        if name in self._state.settings:
            raise SettingError(f"name: there is an adapter {name!r} already")
        self.unmerge()
        heads = self._heads(settings)
        layers = self._layers(settings, heads)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT only divides by it
            lora_dropout=settings.dropout,
            target_modules="|".join(re.escape(layer) for layer in layers),
            use_dora=settings.kind == "dora",
            use_rslora=settings.rank_stabilised,
            modules_to_save=list(heads) or None,
        )
        config._register_custom_module(adapted_layers())
        training = self.network.training
        if self._state.tuner is None:
            self._state.tuner = LoraModel(self.network, config, inner(name))
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.register_forward_pre_hook(_as_in_evaluation)
        else:
            self._state.tuner.peft_config[inner(name)] = config
            self._state.tuner.active_adapter = inner(name)  # there may be none left
            self._state.tuner.inject_adapter(self.network, inner(name))
        self.network.train(training)
        self._state.settings[name] = replace(settings, heads=heads)
        self.switch(name)

    def switch(self, name: str | None) -> None:
        """Make an adapter the active one, to be used and trained; None for the base alone.

        Raises:
            SettingError: there is no such adapter.
        """
        self.unmerge()
        if name is None:
            if self._state.tuner is not None:
                self._state.tuner.disable_adapter_layers()
        else:
            self._known(name)
            self._state.tuner.enable_adapter_layers()
            self._state.tuner.set_adapter(inner(name))
        self.active = name
        own = set() if name is None else {id(parameter) for _, parameter in self._own(name)}
        for parameter in self.network.parameters():
            parameter.requires_grad_(id(parameter) in own)

    def remove(self, name: str) -> None:
        """Forget an adapter; where it was the active one, the base alone is left active.

        Raises:
            SettingError: there is no such adapter.
        """
        self._known(name)
        following = None if self.active == name else self.active
        self.switch(None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT says which one it takes instead; that is decided below
            self._state.tuner.delete_adapter(inner(name))
        del self._state.settings[name]
        self.switch(following)

    def merge(self) -> None:
        """Put the active adapter into the base's weights: the same answers, without the additions' cost.

        The base's own weights are kept aside for `unmerge`, which gives them back bit by bit.
        """
        if self.active is None or self.merged:
            return
        for name, module in self._adapted():
            self._state.originals[name] = module.get_base_layer().weight.detach().clone()
            module.merge()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo `merge`; nothing where nothing is merged."""
        for name, module in self._adapted() if self.merged else ():
            module.merged_adapters.clear()
            if "_caches" in vars(module):
                module._caches.clear()
            module.get_base_layer().weight.copy_(self._state.originals[name])
        self._state.originals = {}

    def merged_state(self) -> dict[str, Tensor]:
        """Weights under the base's own names with the active adapter inside, for a network without adapters."""
        was = self.merged
        self.merge()
        state = base_state(self.network, self.active)
        state = {name: value.clone() for name, value in state.items()}
        if not was:
            self.unmerge()
        return state

    def parameter_groups(self, rate: float, *, heads: float | None = None) -> list[dict[str, Any]]:
        """What an optimizer trains of the active adapter: the additions at `rate`, the heads at `heads`.

        Args:
            rate: learning rate of the additions.
            heads: of the modules stored whole; None for `rate` too.
        """
        name = self._known(None)
        groups: dict[str, list[nn.Parameter]] = {"adapter": [], "heads": []}
        for path, parameter in self._own(name):
            groups["heads" if ".modules_to_save." in path else "adapter"].append(parameter)
        rates = {"adapter": rate, "heads": rate if heads is None else heads}
        return [{"name": key, "params": params, "lr": rates[key]} for key, params in groups.items() if params]

    def trainable(self) -> tuple[int, int]:
        """Numbers trained of the active adapter, and numbers of the base."""
        own = sum(parameter.numel() for _, parameter in self._own(self._known(None)))
        return own, sum(value.numel() for value in base_state(self.network, None).values())

    def save(
        self,
        folder: str | Path,
        name: str | None = None,
        *,
        record: Mapping[str, Any] | None = None,
        beside: Mapping[str, Callable[[Path], Any]] | None = None,
    ) -> Path:
        """Write an adapter, by default the active one: `adapter.safetensors` and `adapter.yaml`, both or neither.

        Args:
            folder: the adapter's.
            name: the adapter.
            record: plain values to keep with it, such as what it is for.
            beside: further files by their names, each written by a function of its place.

        Raises:
            FileError: the folder holds something else, or can't be written.
        """
        name = self._known(name)
        settings = asdict(self._state.settings[name])
        kept: dict[str, Any] = {"base_sha256": self.base, "network": type(self.network).__name__, "name": name}
        kept["settings"] = settings | {"heads": list(settings["heads"])}
        return write_adapter(Path(folder), {**kept, **(record or {})}, self._tensors(name), beside)

    def load(self, folder: str | Path, name: str | None = None) -> str:
        """Read an adapter of this base and make it the active one; return its name.

        Args:
            folder: what `save` wrote.
            name: what it shall be called; None for the name it was saved under.

        Raises:
            CheckpointError: of another base, changed since it was written, or not an adapter.
        """
        folder = Path(folder)
        record, state = read_adapter(folder)
        if record["base_sha256"] != self.base:
            raise CheckpointError(
                f"{folder}: trained on another base ({record['network']} {record['base_sha256'][:12]}), "
                f"this one is {type(self.network).__name__} {self.base[:12]}"
            )
        try:
            settings = AdapterSettings(**record["settings"])
        except (TypeError, SettingError) as error:
            raise CheckpointError(f"{folder}: settings: {error}") from error
        name = str(record["name"]) if name is None else name
        before = self.active
        self.add(name, settings)
        own = self._tensors(name)
        for key in sorted(set(own) | set(state)):
            if key not in own or key not in state or own[key].shape != state[key].shape:
                found, wanted = (tuple(part[key].shape) if key in part else "nothing" for part in (state, own))
                self.remove(name)
                self.switch(before)
                raise CheckpointError(f"{folder}: {key}: expected {wanted}, got {found}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])
        return name

    @contextmanager
    def using(self, name: str | None) -> Iterator[nn.Module]:
        """Another adapter, or the base alone, for the length of a block."""
        before = self.active
        self.switch(name)
        try:
            yield self.network
        finally:
            self.switch(before)

    def _known(self, name: str | None) -> str:
        name = self.active if name is None else name
        if name is None or name not in self._state.settings:
            raise unknown_choice("adapter", name, self.names)
        return name

    def _heads(self, settings: AdapterSettings) -> tuple[str, ...]:
        asked = settings.heads
        heads: Sequence[str] = getattr(self.network, "adapter_heads", ()) if asked is None else asked
        modules = [name for name in base_modules(self.network) if name]
        for head in heads:
            meant = [name for name in modules if name.endswith(head)]  # PEFT goes by the end of a name
            if head not in modules or len(meant) > 1:
                hint = f"{', '.join(meant)} end so too; give more of the name" if head in modules else "no such module"
                raise SettingError(f"heads: {head}: {hint}")
        return tuple(heads)

    def _layers(self, settings: AdapterSettings, heads: Sequence[str]) -> list[str]:
        pattern = settings.pattern()
        found = [
            name
            for name, module in base_modules(self.network).items()
            if pattern.fullmatch(name)
            and isinstance(module, _TAKEN)
            and getattr(module, "groups", 1) == 1
            and not any(name == head or name.startswith(f"{head}.") for head in heads)
        ]
        if not found:
            raise SettingError(
                f"targets: no layer of {type(self.network).__name__} matches {settings.targets!r}; there are "
                f"{', '.join(TARGETS)}, all and regular expressions"
            )
        return found

    def _adapted(self) -> list[tuple[str, Any]]:
        return [(name, module) for name, module in self.network.named_modules() if hasattr(module, "lora_A")]

    def _own(self, name: str) -> list[tuple[str, nn.Parameter]]:
        return [(path, value) for path, value in self.network.named_parameters() if is_of(path, name)]

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """Everything of an adapter, buffers too, under names that don't hold its own."""
        state = self.network.state_dict(keep_vars=False)
        return {without(path, name): value for path, value in state.items() if is_of(path, name)}


def _as_in_evaluation(module: nn.Module, args: Any) -> None:
    """A frozen base normalises by the statistics it was trained with, whatever `train()` says."""
    module.training = False

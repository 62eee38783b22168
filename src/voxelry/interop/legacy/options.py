"""What a command line says beside a configuration file of the X-ray originals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxelry.core.errors import ConfigError

__all__ = ["OriginalOptions", "read_original_options"]

_LOAD_PATH = ("--load_path", "--load-path", "-p")


@dataclass(frozen=True)
class OriginalOptions:
    """Settings that decide which runs a file means.

    Attributes:
        pretrained: weights to fine-tune, by the override `pretrained=`; None where it isn't given, empty for `null`.
        load_path: the model to measure, by the original's own `--load_path`.
    """

    pretrained: str | None = None
    load_path: Path | None = None

    def refuse(self, path: Path, what: str) -> None:
        """Refuse options that a file has no use for.

        Raises:
            ConfigError: names the option and the file.
        """
        if self.load_path is not None:
            raise ConfigError(f"--load_path: {path} is {what}; expected a file of the landmark task beside it")


def read_original_options(arguments: Sequence[str]) -> tuple[OriginalOptions, list[str]]:
    """The options among a command line's arguments, and the arguments that are overrides of ours.

    Raises:
        ConfigError: an option without its value, or a sweep over pretrained weights.
    """
    rest: list[str] = []
    load_path: Path | None = None
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        flag, equals, value = argument.partition("=")
        if flag not in _LOAD_PATH:
            rest.append(argument)
            continue
        if not equals:
            value = waiting.pop(0) if waiting else ""
        if not value:
            raise ConfigError(f"{flag}: expected a bundle, a run's folder or a checkpoint after it")
        load_path = Path(value)
    return OriginalOptions(_pretrained(rest), load_path), rest


def _pretrained(overrides: Sequence[str]) -> str | None:
    values = [text.partition("=")[2].strip("'\"") for text in overrides if text.startswith("pretrained=")]
    if not values:
        return None
    if "," in values[-1]:
        raise ConfigError(
            f"pretrained={values[-1]}: each of them has its own learning rate and folder; expected one of them, and "
            "--config once for each"
        )
    return "" if values[-1] in ("null", "") else values[-1]

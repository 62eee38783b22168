"""The command line of Fast-DDPM: every option of its argument parser, by what it does.

Its commands run with `voxelry train` in place of `python fast_ddpm_main.py`; what isn't one of these options is an
override of ours and is handed on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from voxelry.core.errors import ConfigError
from voxelry.interop.legacy.overrides import Translation

__all__ = ["SEED", "Options", "find_config", "read_options"]

SEED = 1244
STEPS = 10
SCHEDULERS = {"uniform": "fast_ddpm_uniform", "non-uniform": "fast_ddpm_non_uniform"}
SAMPLERS = {"generalized": "ddim", "ddpm_noisy": "ddpm"}
_UNDEFINED = ("interpolation", "sequence")


@dataclass(frozen=True)
class Options:
    """What was given on the command line; None for what was not.

    Attributes:
        dataset: BRATS, LDFDCT or PMUB, whatever the file says.
        seed: of everything random.
        exp, doc: the run's folder is `exp/logs/doc`.
        comment: a remark for the log.
        verbose: how much is logged.
        test, sample, fid: measure a trained model instead of training one.
        interpolation, sequence: samplers that are named in the original and defined nowhere.
        resume_training: go on with the run in that folder.
        image_folder: where sampled images go, unless `fid` names the place.
        ni: no questions are asked.
        use_pretrained: start from published weights.
        sample_type: generalized (DDIM) or ddpm_noisy (ancestral).
        scheduler_type: uniform or non-uniform.
        timesteps: that are trained and sampled.
        eta: share of noise in DDIM.
    """

    dataset: str | None = None
    seed: int | None = None
    exp: str | None = None
    doc: str | None = None
    comment: str | None = None
    verbose: str | None = None
    test: bool = False
    sample: bool = False
    fid: bool = False
    interpolation: bool = False
    sequence: bool = False
    resume_training: bool = False
    image_folder: str | None = None
    ni: bool = False
    use_pretrained: bool = False
    sample_type: str | None = None
    scheduler_type: str | None = None
    timesteps: int | None = None
    eta: float | None = None

    @property
    def measures(self) -> bool:
        """Whether a trained model is to be measured, and nothing is trained."""
        return self.sample or self.test

    @property
    def folder(self) -> Path | None:
        """Where the original keeps a run; None where neither of its two parts was given."""
        if self.exp is None and self.doc is None:
            return None
        return Path(self.exp or "exp") / "logs" / (self.doc or "Fast-DDPM_experiments")

    @property
    def images(self) -> Path:
        """Where the original puts sampled images."""
        if self.fid:
            return Path(self.exp or "exp") / "image_samples" / (self.doc or "Fast-DDPM_experiments") / "images_fid"
        return Path(self.image_folder or "images")

    @property
    def sampling(self) -> dict[str, Any]:
        """Keywords of a translation's prediction; what wasn't given is as it was trained."""
        chosen = {
            "steps": self.timesteps,
            "sampler": None if self.sample_type is None else SAMPLERS[self.sample_type],
            "eta": self.eta if self.sample_type != "ddpm_noisy" else None,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def add_to(self, result: Translation) -> None:
        """The overrides of a training that they ask for, with a note for each."""
        given = "" if self.timesteps is None else "--timesteps"
        result.set("task.spacing", SCHEDULERS[self.scheduler_type or "uniform"], "--scheduler_type")
        result.set("task.steps", STEPS if self.timesteps is None else self.timesteps, given)
        if self.timesteps is None:
            result.notes.append(
                f"--timesteps {STEPS} assumed, as its readme says (its parser's own default is 100); spaced "
                "uniformly they are 11 with 0 and 999"
            )
        result.set("seed", SEED if self.seed is None else self.seed, "--seed")
        if self.sample_type is not None:
            result.set("task.sampler", SAMPLERS[self.sample_type], "--sample_type", "at the steps that were trained")
        if self.eta is not None and self.sample_type != "ddpm_noisy":
            result.set("task.eta", self.eta, "--eta")
        if self.resume_training:
            result.set("resume", True, "--resume_training")
        self._explain(result)

    def _explain(self, result: Translation) -> None:
        """Notes of the options that change nothing."""
        if self.ni:
            result.ignore("--ni", "nothing is asked; a run that is there is only written over by overwrite=true")
        if self.use_pretrained:
            result.ignore("--use_pretrained", "it loads photographs' networks; pretrained=FILE.pth starts from weights")
        if self.comment:
            result.notes.append(f"--comment: {self.comment}")
        if self.verbose is not None:
            result.ignore("--verbose", "losses are in logs/metrics.csv")
        for name in ("image_folder", "fid", *_UNDEFINED):
            if getattr(self, name):
                result.ignore(f"--{name}", "of --sample")


class _Parser(argparse.ArgumentParser):
    """One that raises."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message.removeprefix('argument ')}")


def read_options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """The original's options among arguments, and all others.

    Raises:
        ConfigError: an option without its value or with one that it doesn't take; or a sampler that the original
            names and doesn't have.
    """
    parser = _Parser(prog="Fast-DDPM's options", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in ("exp", "doc", "comment", "dataset"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--verbose", choices=("info", "debug", "warning", "critical"))
    parser.add_argument("-i", "--image_folder")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--timesteps", type=int)
    parser.add_argument("--eta", type=float)
    parser.add_argument("--sample_type", choices=tuple(SAMPLERS))
    parser.add_argument("--scheduler_type", choices=tuple(SCHEDULERS))
    for name in ("test", "sample", "fid", "resume_training", "ni", "use_pretrained", *_UNDEFINED):
        parser.add_argument(f"--{name}", action="store_true")
    known, rest = parser.parse_known_args(list(arguments))
    options = Options(**vars(known))
    if options.timesteps is not None and options.timesteps < 1:
        raise ConfigError(f"--timesteps: expected at least 1, got {options.timesteps}")
    for name in _UNDEFINED:
        if options.sample and getattr(options, name) and not options.fid:
            raise ConfigError(f"--{name}: the original names this sampler and doesn't define it; expected --fid")
    return options, rest


def find_config(path: Path) -> Path:
    """The file, or the one of that name in `configs/`, where the original looks for it."""
    inside = Path("configs") / path
    return inside if not path.exists() and inside.is_file() else path

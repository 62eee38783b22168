"""`voxelry train`: Hydra around `engine.train`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from voxelry.core.errors import ConfigError, FileError, SettingError, VoxelryError
from voxelry.engine.checkpoints import StoppedError
from voxelry.engine.compose import compose_training, in_one_line, settle
from voxelry.engine.configs import OWN
from voxelry.engine.fast_ddpm import sample_run
from voxelry.engine.held_out import measure_held_out
from voxelry.engine.indexed import indexed_first
from voxelry.engine.plan.auto import planned
from voxelry.engine.train import train
from voxelry.engine.unlabelled import pretrained_first
from voxelry.interop.legacy import fast_ddpm_config
from voxelry.interop.legacy.config import translate
from voxelry.interop.legacy.fast_ddpm_config import is_theirs
from voxelry.interop.legacy.fast_ddpm_options import find_config, read_options
from voxelry.interop.legacy.options import read_original_options
from voxelry.interop.legacy.overrides import read_settings

__all__ = ["launch", "launch_file"]

_FULL_ERROR = "HYDRA_FULL_ERROR"
INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended


def launch(arguments: list[str], *, debug: bool = False) -> None:
    """Compose the configuration from Hydra's arguments and train; ends the process with an exit status.

    Args:
        arguments: overrides and Hydra's own flags, such as `experiment=landmarks_3d --multirun seed=0,1`.
        debug: let tracebacks through.

    Raises:
        ConfigError: an argument that can't be read, or an unknown entry of a group.
        SettingError: flags of Hydra that exclude each other, such as `--multirun --cfg job`.
        FileError: the run's folder can't be made.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr, force=True)
    try:
        settled = settle(pretrained_first(indexed_first(planned(arguments))))
    except StoppedError as error:
        print(f"voxelry: {error}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    sys.argv = ["voxelry train", *settled, *_sweep_folder(settled)]

    failed: list[str] = []  # runs of a sweep; the others go on
    ours: list[Exception] = []  # faults of the program, which are no matter of Hydra's arguments
    process = os.getpid()

    def job(config: DictConfig) -> dict[str, Any] | None:
        try:
            return _run(config)
        except StoppedError as error:
            print(f"voxelry: {error}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except (VoxelryError, OmegaConfBaseException) as error:
            if debug:
                raise
            launched = HydraConfig.get()
            sweeping = launched.mode == RunMode.MULTIRUN
            where = f"{launched.runtime.output_dir}: " if sweeping else ""
            print(f"voxelry: error: {where}{' '.join(str(error).split())}", file=sys.stderr)
            if not sweeping or os.getpid() != process:  # a launcher's own process answers for one run
                raise SystemExit(1) from None
            failed.append(launched.runtime.output_dir)
            return None
        except Exception as error:
            ours.append(error)
            raise

    with _errors_of_hydra(ours, debug=debug):
        hydra.main(version_base="1.3", config_path=f"pkg://{OWN}", config_name="train")(job)()
    if failed:
        raise SystemExit(1)


def _sweep_folder(arguments: Sequence[str]) -> list[str]:
    """Where a sweep lies whose `output_dir` has settings of its runs in it, as `runs/${seed}`: in the part before them.

    Hydra would take the folder of the first run for that of all, and the summary would miss the others.
    """
    given = [argument.partition("=")[2].strip("'\"") for argument in arguments if argument.startswith("++output_dir=")]
    if not {"--multirun", "-m"} & set(arguments) or not given or "${" not in given[-1]:
        return []
    head, mark, tail = given[-1].partition("${")
    folder, _, begun = head.rpartition("/")
    return [f"hydra.sweep.dir='{folder or '.'}'", f"hydra.sweep.subdir='{begun}{mark}{tail}/${{hydra.job.num}}'"]


@contextmanager
def _errors_of_hydra(ours: Sequence[Exception], *, debug: bool) -> Iterator[None]:
    """Raise what Hydra would print over several lines, in one line of ours.

    Args:
        ours: what no argument is to blame for; stays what it is.
        debug: everything stays what it is.
    """
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        yield
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if debug or error in ours or isinstance(error, VoxelryError):
            raise
        if isinstance(error, HydraException | OmegaConfBaseException):
            raise ConfigError(in_one_line(error)) from error
        if isinstance(error, OSError):  # the run's folder, which Hydra makes
            fault = f"no folder for a run: {error.strerror or error}"
            raise FileError(error.filename or "output_dir", fault) from error
        raise SettingError(str(error)) from error  # flags that exclude each other
    finally:
        if before is None:
            del os.environ[_FULL_ERROR]
        else:
            os.environ[_FULL_ERROR] = before


def _run(config: DictConfig) -> dict[str, Any]:
    launched = HydraConfig.get()
    if launched.mode == RunMode.MULTIRUN:
        config.output_dir = launched.runtime.output_dir  # each run of a sweep has a folder of its own
    run = train(config)
    if run.interrupted:
        print(f"stopped; go on with the same command and resume=true ({run.checkpoint})", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    if run.bundle is not None:
        print(f"bundle: {run.bundle}")
        print(f"report: {Path(config.output_dir) / 'report.html'}")
    return {"task": launched.runtime.choices.get("task"), **run.summary}


def launch_file(path: Path, arguments: list[str], *, debug: bool = False) -> None:
    """Train from a JSON or YAML file of the original projects; says what was taken over, changed, ignored.

    Args:
        path: the file; Fast-DDPM's are looked for in `configs/`, too.
        arguments: overrides of ours, and the original's own options.
        debug: let tracebacks through.

    Raises:
        ConfigError, FileError: the file can't be read as one of theirs.
        CheckpointError: Fast-DDPM's `--sample`, and its run was never trained.
    """
    path = find_config(path)
    content = read_settings(path)
    if is_theirs(content):
        _launch_fast_ddpm(path, content, arguments, debug=debug)
        return
    options, arguments = read_original_options(arguments)
    for number, translation in enumerate(translate(path, options)):
        if number:
            print(f"{path}: next run", file=sys.stderr)
        for line in translation.notes:
            print(f"{path}: {line}", file=sys.stderr)
        overrides = ["plan=null", *translation.overrides, *arguments]
        if translation.measure:
            _measure(overrides, translation.measure, options.load_path)
        else:
            launch(overrides, debug=debug)


def _measure(overrides: list[str], part: str, model: Path | None) -> None:
    """Measure a run's model, or another one, on its held-out cases.

    Raises:
        ConfigError: an override that names nothing.
    """
    try:
        config = compose_training(overrides)
    except HydraException as error:
        raise ConfigError(str(error)) from error
    print(f"report: {measure_held_out(config, part, model)}")


def _launch_fast_ddpm(path: Path, content: dict[str, Any], arguments: list[str], *, debug: bool) -> None:
    """Train, or with its `--sample` measure, what a file of Fast-DDPM and the options of its command line say."""
    options, overrides = read_options(arguments)
    if options.measures:
        sample_run(path, content, options, overrides)
        return
    translation = fast_ddpm_config.translate(path, content, options)
    for line in translation.notes:
        print(f"{path}: {line}", file=sys.stderr)
    launch(["plan=null", *translation.overrides, *overrides], debug=debug)

"""Predictions one after the other in the background, which can be looked after and given up."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from voxelry.core.errors import VoxelryError

__all__ = ["Job", "Jobs", "Progress"]

log = logging.getLogger("voxelry")


class Progress(Protocol):
    """What work tells how far it is."""

    def __call__(self, done: int, total: int, doing: str = "") -> None:
        """Take note of the parts that are done, how many there are (0: nobody knows), and what is being done."""


class _GivenUp(Exception):
    """The job was cancelled."""


@dataclass
class Job:
    """Work in the background.

    Attributes:
        state: `waiting`, `running`, `done`, `failed` or `cancelled`.
        done, total: parts, of work that goes part by part.
        doing: what is being done, of work that says so.
        message: why it failed.
        answer: what came out.
    """

    state: str = "waiting"
    done: int = 0
    total: int = 0
    doing: str = ""
    message: str = ""
    answer: Any = None
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _watchers: list[Callable[[], None]] = field(default_factory=list, repr=False)

    @property
    def over(self) -> bool:
        """Whether nothing will change any longer."""
        return self.state not in ("waiting", "running")

    @contextmanager
    def watched(self, changed: Callable[[], None]) -> Iterator[None]:
        """Have something called, by the thread that works, whenever the record changes, for the length of a block."""
        self._watchers.append(changed)
        try:
            yield
        finally:
            self._watchers.remove(changed)

    def note(self, **changes: Any) -> None:
        """Change attributes; `state` last of all, so that who sees that a job is over sees all of it."""
        for name, value in sorted(changes.items(), key=lambda change: change[0] == "state"):
            setattr(self, name, value)
        for changed in list(self._watchers):
            changed()

    def record(self) -> dict[str, Any]:
        """For the page."""
        names = ("state", "done", "total", "doing", "message", "answer")
        return {name: getattr(self, name) for name in names}

    def progress(self, done: int, total: int, doing: str = "") -> None:
        """Note the parts that are done."""
        if self.stop.is_set():
            raise _GivenUp
        self.note(done=done, total=total, doing=doing)


class Jobs:
    """A queue with one worker: a model answers one question at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="voxelry-job")
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}

    def start(self, work: Callable[[Progress], Any]) -> int:
        """Queue work, which is called with what it tells its progress to; the job's number."""
        number, job = next(self._numbers), Job()
        self._jobs[number] = job
        self._pool.submit(_run, job, work)
        return number

    def __getitem__(self, number: int) -> Job:
        """The job of that number.

        Raises:
            KeyError: there is none.
        """
        return self._jobs[number]

    def cancel(self, number: int) -> None:
        """Give a job up; one that is running ends with the part that it is at."""
        self._jobs[number].stop.set()

    def close(self) -> None:
        """Give all jobs up and wait for the one that is running."""
        for job in self._jobs.values():
            job.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _run(job: Job, work: Callable[[Progress], Any]) -> None:
    try:
        job.progress(0, 0)
        job.note(state="running")
        job.note(answer=work(job.progress), state="done")
    except _GivenUp:
        job.note(state="cancelled")
    except VoxelryError as error:
        job.note(message=str(error), state="failed")
    except Exception:  # whatever it was, the page must not wait for ever
        log.exception("a prediction failed")
        job.note(message="an error of the program; its log has more", state="failed")

"""Jobs that are over share steps of the ledger, and nothing of them is lost or done twice."""

from contextlib import suppress
from pathlib import Path

import pytest

from voxelry.engine.jobs import Job, Places
from voxelry.engine.keeper import Keeper
from voxelry.engine.ledger import Dependencies, Ledger, Made


class Note(Job):
    """Writes its name."""

    def make(self, model, folder, progress):
        raise NotImplementedError

    def dependencies(self, model):
        return Dependencies(str(self.path), self.name, model, "")


def made(job, error=""):
    folder = job.places.staging / job.name
    folder.mkdir(exist_ok=True)
    (folder / f"{job.name}.txt").write_text(job.name)
    return Made(str(folder), f"{job.name}.txt", {f"{job.name}.txt": job.name}, 0.0, error)


def run(out, names, pool):
    with Ledger(out) as ledger:
        keeper = Keeper(ledger, "model")
        jobs = [Note(Path("/images") / name, (), name, Places.of(ledger)) for name in names]
        with suppress(KeyboardInterrupt):
            keeper.run(jobs, None, None, pool)
        return {path.name: row.state for (path, _), row in keeper.rows.items()}


NAMES = [f"n{number:03d}" for number in range(300)]


def test_answers_that_come_late_or_twice_count_once(tmp_path):
    def pool(model, jobs, tiles):
        late = []
        for job in jobs:
            if job.name.endswith("7"):
                late.append(job)
                continue
            yield job, made(job, error="broken" if job.name == "n012" else "")
            if job.name.endswith("3"):
                yield job, made(job)
        yield from ((job, made(job)) for job in late)

    first = run(tmp_path, NAMES, pool)
    assert first == {name: "failed" if name == "n012" else "done" for name in NAMES}
    again = run(tmp_path, NAMES, pool)
    assert {name for name, state in again.items() if state != "kept"} == {"n012"}
    assert {path.name for path in tmp_path.iterdir() if path.suffix} == {
        f"{name}.txt" for name in NAMES if name != "n012"
    }


@pytest.mark.parametrize("at", ["n000", "n005", "n250"])
def test_what_is_done_is_known_after_an_interrupt(tmp_path, at):
    def pool(model, jobs, tiles):
        for job in jobs:
            if job.name == at:
                raise KeyboardInterrupt
            yield job, made(job)

    done = run(tmp_path, NAMES, pool)
    before = NAMES[: NAMES.index(at)]
    assert done == dict.fromkeys(before, "done")
    again = run(tmp_path, NAMES, lambda model, jobs, tiles: ((job, made(job)) for job in jobs))
    assert [name for name, state in again.items() if state == "kept"] == before
    assert [name for name, state in again.items() if state == "done"] == NAMES[len(before) :]

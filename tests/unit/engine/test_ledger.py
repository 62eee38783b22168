"""The ledger of a folder of outputs, without a model."""

import sqlite3
import subprocess
import sys
from textwrap import dedent

import pytest

from voxelry.core.errors import DataError, FileError, VoxelryError
from voxelry.data.cache import content_hash
from voxelry.engine.ledger import HOME, Dependencies, Ledger, Made

FACTS = Dependencies(input="/data/a.nii", files="[1]", model="m", settings="s")

KILLED_ANYWHERE = """
    import os, signal, sys
    from pathlib import Path

    from voxelry.data.cache import content_hash
    from voxelry.engine import ledger as module
    from voxelry.engine.ledger import Dependencies, Ledger, Made


    def work(out):
        with Ledger(out) as ledger:
            names = ("a", "b")
            facts = [(name, Dependencies(f"/data/{name}", "[1]", "m", "s")) for name in names]
            over = []
            for name, claim in zip(names, ledger.claim(facts)):
                if claim.state != "ours":
                    continue
                folder = ledger.staging / name
                folder.mkdir()
                (folder / f"{name}.csv").write_text(name)
                (folder / f"{name}.zarr").mkdir()
                (folder / f"{name}.zarr" / "c").write_text(name * 2)
                outputs = {entry.name: content_hash(entry) for entry in folder.iterdir()}
                over.append((name, Made(str(folder), f"{name}.csv", outputs)))
            ledger.settle(over)


    def killed_at(out, line):
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if frame.f_code.co_filename != module.__file__:
                return None
            count += event == "line"
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        work(out)


    def child(function, *arguments):
        pid = os.fork()
        if pid == 0:
            try:
                function(*arguments)
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


    root, line, stride = Path(sys.argv[1]), 1, int(sys.argv[2])
    while True:
        out = root / str(line)
        first = child(killed_at, out, line)
        assert first in (0, -signal.SIGKILL), (line, first)
        assert child(work, out) == 0, line
        files = [path for one in out.glob("[ab].*") for path in (one, *one.rglob("*")) if path.is_file()]
        found = {str(path.relative_to(out)): path.read_text() for path in files}
        assert found == {"a.csv": "a", "a.zarr/c": "aa", "b.csv": "b", "b.zarr/c": "bb"}, (line, found)
        assert [path.name for path in (out / ".voxelry").iterdir()] == ["ledger.sqlite"], line
        if first == 0:
            break
        line += stride
    print(line)
"""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def claimed(ledger, name, facts):
    """A claim of one file."""
    (answer,) = ledger.claim([(name, facts)])
    if isinstance(answer, DataError):
        raise answer
    return answer


def settled(ledger, name, outputs):
    """Its main output."""
    (answer,) = ledger.settle([(name, outputs)])
    if isinstance(answer, VoxelryError):
        raise answer
    return answer


def made(ledger, name="a", text="1", output=None):
    """Outputs of a file, as a prediction leaves them."""
    folder = ledger.staging / name
    folder.mkdir()
    output = output or f"{name}.csv"
    (folder / output).write_text(text)
    return Made(str(folder), output, {output: content_hash(folder / output)})


def do(ledger, name="a", facts=FACTS, **more):
    assert claimed(ledger, name, facts).state == "ours"
    return settled(ledger, name, made(ledger, name, **more))


def test_a_command_killed_at_any_line_of_the_ledger_is_made_good_by_the_next(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", dedent(KILLED_ANYWHERE), tmp_path, "17"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 100


def test_what_is_done_is_kept_until_something_changes(out):
    with Ledger(out) as ledger:
        assert do(ledger) == out / "a.csv"
    for name, note in (("files", "another input"), ("model", "another model"), ("settings", "other settings")):
        with Ledger(out) as ledger:
            claim = claimed(ledger, "a", FACTS)
            assert (claim.state, claim.note, claim.main) == ("kept", "", out / "a.csv")
            changed = Dependencies(**{**vars(FACTS), name: "[2]"})
            claim = claimed(ledger, "a", changed)
            assert (claim.state, claim.note) == ("ours", note)
            settled(ledger, "a", made(ledger))
            assert do_again(ledger) == note


def test_finished_parts_are_for_the_same_input_alone(out):
    left = []
    for files in ("[1]", "[1]", "[2]"):  # each killed after a part
        with Ledger(out) as ledger:
            claimed(ledger, "a", Dependencies(**{**vars(FACTS), "files": files}))
            left.append(ledger.parts("a").exists())
            ledger.parts("a").mkdir(parents=True, exist_ok=True)
            (ledger.parts("a") / "tile").touch()
    assert left == [False, True, False]


def do_again(ledger):
    claim = claimed(ledger, "a", FACTS)
    settled(ledger, "a", made(ledger))
    return claim.note


def test_a_file_whose_state_is_unknown_is_always_done(out):
    unknown = Dependencies(**{**vars(FACTS), "files": ""})
    with Ledger(out) as ledger:
        do(ledger, facts=unknown)
        assert claimed(ledger, "a", unknown).state == "ours"


def test_what_failed_is_tried_again(out):
    with Ledger(out) as ledger:
        assert claimed(ledger, "a", FACTS).state == "ours"
        with pytest.raises(VoxelryError, match="it broke"):
            settled(ledger, "a", Made(str(ledger.staging / "a"), error="it broke"))
        assert claimed(ledger, "a", FACTS).state == "ours"


def test_outputs_that_are_gone_are_made_again(out):
    with Ledger(out) as ledger:
        do(ledger).unlink()
        claim = claimed(ledger, "a", FACTS)
    assert (claim.state, claim.note) == ("ours", "its outputs were gone")


def test_outputs_that_were_changed_by_hand_are_not_overwritten(out):
    with Ledger(out) as ledger:
        do(ledger).write_text("by hand")
        claim = claimed(ledger, "a", FACTS)
        assert (claim.state, claim.note) == ("kept", "changed since it was written")
        with pytest.raises(DataError, match=r"a\.csv: changed since it was written; delete it"):
            claimed(ledger, "a", Dependencies(**{**vars(FACTS), "model": "other"}))


def test_a_copied_folder_is_still_done(out):
    with Ledger(out) as ledger:
        text = do(ledger).read_text()
        (out / "a.csv").unlink()
        (out / "a.csv").write_text(text)
        assert claimed(ledger, "a", FACTS).note == ""


def test_another_file_of_the_same_name_is_refused_while_the_first_is_there(out, tmp_path):
    first, second = (
        Dependencies(**{**vars(FACTS), "input": str(tmp_path / folder / "a.nii")}) for folder in ("one", "two")
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.nii").touch()
    with Ledger(out) as ledger:
        do(ledger, facts=first)
        with pytest.raises(DataError, match=r"two/a\.nii: its output would overwrite that of .*one/a\.nii"):
            claimed(ledger, "a", second)
        (tmp_path / "one" / "a.nii").rename(tmp_path / "a.nii")  # moved: the same file elsewhere
        assert claimed(ledger, "a", second).state == "kept"


def test_without_a_guard_whatever_is_not_as_it_was_left_is_done_anew(out, tmp_path):
    (tmp_path / "a.nii").touch()
    facts = Dependencies(**{**vars(FACTS), "input": str(tmp_path / "a.nii")})
    with Ledger(out, guarded=False) as ledger:
        written = do(ledger, facts=facts)
        assert claimed(ledger, "a", facts).state == "kept"
        claim = claimed(ledger, "a", FACTS)  # its input is elsewhere, though the other is there, too
        assert (claim.state, claim.note) == ("ours", "another input")
        settled(ledger, "a", made(ledger))
        written.write_text("by hand")
        claim = claimed(ledger, "a", FACTS)
        assert (claim.state, claim.note) == ("ours", "what was kept of it was changed")


def test_what_is_asked_for_no_more_is_forgotten_unless_another_command_is_at_it(out):
    with Ledger(out) as other:
        claimed(other, "busy", FACTS)
        with Ledger(out) as ledger:
            gone, kept = do(ledger, "gone"), do(ledger, "kept")
            ledger.forget_others(["kept"])
            assert (gone.exists(), kept.exists()) == (False, True)
            assert claimed(ledger, "kept", FACTS).state == "kept"
            assert claimed(ledger, "gone", FACTS).note == ""
            assert claimed(ledger, "busy", FACTS).state == "busy"


def test_an_output_that_is_another_files_is_refused(out):
    with Ledger(out) as ledger:
        do(ledger, output="a_spread.csv")
        assert claimed(ledger, "a_spread", FACTS).state == "ours"
        with pytest.raises(DataError, match=r"a_spread\.csv: it would overwrite an output of /data/a\.nii"):
            settled(ledger, "a_spread", made(ledger, "a_spread"))


def test_names_that_a_disk_can_not_tell_apart_are_one(out, monkeypatch):
    with Ledger(out) as ledger:
        assert ledger.key("Scan") != ledger.key("scan")
        monkeypatch.setattr(ledger, "_folds", True)
        assert ledger.key("Scan") == ledger.key("scan")


def test_a_file_that_another_command_is_at_is_left_to_it(out):
    with Ledger(out) as other:
        with Ledger(out) as ledger:
            assert claimed(ledger, "a", FACTS).state == "ours"
            claim = claimed(other, "a", FACTS)
            assert (claim.state, claim.owner) == ("busy", ledger.run)
            assert claimed(other, "b", FACTS).state == "ours"
        other.wait(claim.owner)  # it has ended without doing it
        assert claimed(other, "a", FACTS).state == "ours"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"no database, but long enough to be one" * 100), "damaged: file is not a"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 9"), "a ledger of version 9, expected 1"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA application_id = 9"), "no ledger of voxelry"),
        (lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(8192)), "damaged: "),
    ],
)
def test_a_ledger_that_can_not_be_used_is_one_line(out, change, message):
    with Ledger(out):
        pass
    change(out / HOME / "ledger.sqlite")
    with pytest.raises(FileError, match=rf"ledger\.sqlite: {message}.*\(delete it to do everything anew"), Ledger(out):
        pass


def test_a_folder_that_can_not_be_made_is_one_line(out):
    out.write_text("a file")
    with pytest.raises(FileError, match="out: the folder can't be made"), Ledger(out):
        pass

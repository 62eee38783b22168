from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import FileError, SettingError
from voxelry.core.space import Space
from voxelry.data import cache as cache_module
from voxelry.data import cache_fill
from voxelry.data.cache import Cache, content_hash
from voxelry.data.cache_fill import fill_cache
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.find import find_cases
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.io import write_image


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    affine = np.array([[0, 0.1, -1.2, 5], [0.2, 1.5, 0.1, -7], [3, 0, 0, 40], [0, 0, 0, 1.0]])  # oblique, mirrored
    for name in ("a", "b", "c"):
        space = Space((5, 6, 7), affine)
        write_image(root / "volumes" / f"{name}.nii.gz", rng.random((1, 5, 6, 7)).astype(np.float32), space)
        write_image(root / "instances" / f"{name}.nii.gz", rng.integers(0, 3, (1, 5, 6, 7)).astype(np.uint8), space)
        (root / "landmarks").mkdir(exist_ok=True)
        (root / "landmarks" / f"{name}.txt").write_text("2\n0.1 0.2 0.3\nnan nan nan\n")
    return root


def dataset_of(folder, root, **settings) -> VolumeDataset:
    return VolumeDataset(find_cases(folder), cache=root, **settings)


def entries(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.safetensors") if not path.parent.name.endswith(".part"))


def leftovers(root: Path) -> list[Path]:
    """Anything that isn't a finished entry or note."""
    parts = list(root.rglob("*.part"))
    return parts + [path for path in root.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".json")]


def assert_same(one: Sample, other: Sample) -> None:
    for name in ("image", "landmarks", "labels", "boxes", "masks"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        if first is not None:
            assert first.dtype == second.dtype
            assert_close(first, second, atol=0, rtol=0, equal_nan=True)
    assert np.array_equal(one.space.affine, other.space.affine)
    assert (one.name, one.source, one.landmark_names) == (other.name, other.source, other.landmark_names)


def test_what_comes_back_is_what_was_made(folder, tmp_path):
    plain = dataset_of(folder, None)
    for _ in range(2):
        cached = dataset_of(folder, tmp_path / "cache")
        for index in range(3):
            assert_same(cached[index], plain[index])
    assert len(entries(tmp_path / "cache")) == 3
    assert not leftovers(tmp_path / "cache")


class Counting(VolumeDataset):
    reads = 0

    def read_volume(self, path):
        type(self).reads += 1
        return super().read_volume(path)


def test_an_entry_is_used_instead_of_reading(folder, tmp_path):
    Counting.reads = 0
    dataset = Counting(find_cases(folder), cache=tmp_path / "cache")
    names = dataset.landmark_names
    Counting.reads = 0
    for _ in range(3):
        assert dataset[0].landmark_names == names
    assert Counting.reads == 1


def test_settings_content_and_needs_make_another_entry(folder, tmp_path):
    root = tmp_path / "cache"
    dataset_of(folder, root)[0]
    for more, settings in enumerate(({"preprocess": Preprocess(image_size=4)}, {"need": ("landmarks",)}), 2):
        dataset_of(folder, root, **settings)[0]
        assert len(entries(root)) == more
    dataset_of(folder, root, seed=7)[0]
    assert len(entries(root)) == 3
    (folder / "landmarks" / "a.txt").write_text("2\n0.1 0.2 0.4\nnan nan nan\n")
    changed = dataset_of(folder, root)[0]
    assert len(entries(root)) == 4
    assert_same(changed, dataset_of(folder, None)[0])


@pytest.mark.parametrize("largest", [1, 255, 256, 40_000, 2**40])
@pytest.mark.parametrize("smallest", [0, -1])
def test_labels_of_any_size_come_back(tmp_path, smallest, largest):
    labels = torch.tensor([[smallest, 0, largest]])
    sample = Sample(torch.rand(1, 1, 3), Space.from_spacing((1, 3)), "", labels=labels, masks=labels.abs())
    cache = Cache(tmp_path)
    cache.store("ab" * 32, sample)
    assert_same(cache.load("ab" * 32), sample)


def test_moved_and_touched_files_keep_their_entry(folder, tmp_path):
    root = tmp_path / "cache"
    fill_cache(dataset_of(folder, root))
    moved = folder.rename(tmp_path / "elsewhere")
    for path in moved.rglob("*.nii.gz"):
        os.utime(path, ns=(1, 1))
    dataset = dataset_of(moved, root)
    fill_cache(dataset)
    assert len(entries(root)) == 3
    assert dataset[0].source == str(moved / "volumes" / "a.nii.gz")


def test_a_subclass_has_entries_of_its_own(folder, tmp_path):
    class Doubled(VolumeDataset):
        def read_volume(self, path):
            image = super().read_volume(path)
            image.array *= 2
            return image

    root = tmp_path / "cache"
    preprocess = Preprocess(normalise=None)
    ours = dataset_of(folder, root, preprocess=preprocess)[0]
    theirs = Doubled(find_cases(folder), preprocess=preprocess, cache=root)[0]
    assert_close(theirs.image, ours.image * 2)
    assert len(entries(root)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_build_makes_all_and_reports(folder, tmp_path, workers):
    root = tmp_path / "cache"
    steps = []
    count = fill_cache(
        dataset_of(folder, root), workers=workers, progress=lambda done, total: steps.append((done, total))
    )
    assert count == 3
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert len(entries(root)) == 3
    assert not leftovers(root)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_stops_the_build_with_one_line(folder, tmp_path, workers):
    (folder / "volumes" / "b.nii.gz").write_bytes(b"not an image")
    with pytest.raises(FileError, match=r"b\.nii\.gz") as caught:
        fill_cache(dataset_of(folder, tmp_path / "cache"), workers=workers)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not leftovers(tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "text"])
def test_a_damaged_entry_is_made_anew(folder, tmp_path, damage):
    root = tmp_path / "cache"
    expected = dataset_of(folder, root)[0]
    path = entries(root)[0]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[-40] ^= 4
    from safetensors.torch import save

    path.write_bytes(
        {
            "cut": good[: len(good) // 2],
            "bit": bytes(bad),
            "empty": b"",
            "other": save({"image": torch.zeros(3)}),
            "text": b"x" * 100,
        }[damage]
    )
    assert_same(dataset_of(folder, root)[0], expected)
    assert path.read_bytes() == good


def test_a_damaged_note_is_only_a_lost_shortcut(folder, tmp_path):
    root = tmp_path / "cache"
    dataset_of(folder, root)[0]
    for note in (root / "index").iterdir():
        note.write_text('{"stamp": ')
    dataset_of(folder, root)[0]
    assert len(entries(root)) == 1


def full_disk(self, data):
    """Like `Path.write_bytes` on a disk with room for a hundred bytes."""
    with open(self, "wb") as stream:  # noqa: PTH123
        stream.write(bytes(data)[:100])
        if len(data) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))


def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(FileError, match="No space left on device") as caught:
        dataset_of(folder, root)[0]
    assert "\n" not in str(caught.value)
    assert not entries(root)
    assert not leftovers(root)
    monkeypatch.undo()
    dataset_of(folder, root)[0]
    assert len(entries(root)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_is_really_full(folder, tmp_path, monkeypatch):
    """The kernel's own refusal, through a file name that leads to the device that is always full."""
    original = cache_module.replacing

    @contextmanager
    def onto_full(path):
        with original(path) as place:
            place.symlink_to("/dev/full")
            yield place

    monkeypatch.setattr(cache_module, "replacing", onto_full)
    sample = Sample(torch.zeros(1, 64, 64), Space.from_spacing((64, 64)), "a")
    with pytest.raises(FileError, match="No space left on device"):
        Cache(tmp_path / "cache").store("ab" * 32, sample)
    assert not entries(tmp_path / "cache")
    assert not leftovers(tmp_path / "cache")


def _build_in_process(folder, root, barrier):
    torch.set_num_threads(1)
    dataset = dataset_of(folder, root)
    barrier.wait()
    fill_cache(dataset)


def test_two_processes_build_the_same_cache(folder, tmp_path):
    root = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_build_in_process, args=(folder, root, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(entries(root)) == 3
    assert not leftovers(root)
    plain = dataset_of(folder, None)
    for index, sample in enumerate(dataset_of(folder, root)):
        assert_same(sample, plain[index])


def _killed_before_the_rename(folder, root):
    """Dies as by `kill -9` when an entry is written but not yet in its place."""
    written = Path.write_bytes

    def write_and_die(self, data):
        written(self, data)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes = write_and_die
    dataset_of(folder, root)[0]


def test_a_killed_writer_leaves_no_entry_and_the_next_build_cleans_up(folder, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=_killed_before_the_rename, args=(folder, root))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not entries(root)
    assert leftovers(root)
    fill_cache(dataset_of(folder, root))  # too fresh: another process may still be writing it
    assert leftovers(root)
    monkeypatch.setattr(cache_fill, "ABANDONED", 0.0)
    fill_cache(dataset_of(folder, root))
    assert not leftovers(root)
    assert len(entries(root)) == 3
    assert_same(dataset_of(folder, root)[0], dataset_of(folder, None)[0])


def test_an_interrupt_while_writing_leaves_nothing(folder, tmp_path, monkeypatch):
    def interrupted(self, data):
        full_disk(self, data[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dataset_of(folder, tmp_path / "cache")[0]
    assert not entries(tmp_path / "cache")
    assert not leftovers(tmp_path / "cache")


def test_a_folder_that_cannot_be_made(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(FileError) as caught:
        dataset_of(folder, tmp_path / "cache")[0]
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone(folder, tmp_path):
    dataset = dataset_of(folder, tmp_path / "cache")
    dataset.cases[0].image.unlink()
    with pytest.raises(FileError, match=r"a\.nii\.gz"):
        dataset[0]


def test_content_is_what_counts(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "a.mhd", np.zeros((1, 4, 4, 4), np.float32), Space.from_spacing((4, 4, 4)))
    one, two = tmp_path / "one" / "a.mhd", tmp_path / "two" / "a.mhd"
    assert content_hash(one) == content_hash(two)
    assert content_hash(one.parent) != content_hash(one)
    data = next(path for path in one.parent.iterdir() if path != one)
    data.write_bytes(b"\1" + data.read_bytes()[1:])  # the pixels beside the header
    assert content_hash(one) != content_hash(two)
    assert content_hash(one.parent) != content_hash(two.parent)


def test_build_needs_a_folder(folder):
    with pytest.raises(SettingError, match="cache: expected a folder"):
        fill_cache(dataset_of(folder, None))

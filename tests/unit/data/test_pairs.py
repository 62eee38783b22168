from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from voxelry.core.errors import DataError, FileError, SettingError, VoxelryError
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.layouts.case import PairCase
from voxelry.data.layouts.find import find_pairs
from voxelry.data.pairs import PairDataset
from voxelry.data.preprocess import Preprocess
from voxelry.data.preprocess.normalise import physical
from voxelry.io import write_image

AS_IT_IS = Preprocess(orientation=None, normalise=None)


def volume(seed: int, space: Space, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-5, 5, (channels, *space.shape)).astype(np.float32)


def write(path: Path, space: Space, seed: int = 0) -> np.ndarray:
    pixels = volume(seed, space)
    write_image(path, pixels, space)
    return pixels


def names(cases: list[PairCase]) -> list[str]:
    return [case.name for case in cases]


@pytest.fixture
def contrasts(tmp_path: Path, oblique: Space) -> Path:
    """t1 and t2 to become flair; `b` has no t1, `c` no t2."""
    for seed, (folder, cases) in enumerate({"t1": "ac", "t2": "ab", "flair": "abc"}.items()):
        for number, name in enumerate(cases):
            write(tmp_path / "brain" / folder / f"{name}.nii.gz", oblique, 10 * seed + number)
    return tmp_path / "brain"


def test_folders_a_and_b_by_name(tmp_path, oblique):
    for name in ("x", "y"):
        write(tmp_path / "A" / f"{name}.nii.gz", oblique)
        write(tmp_path / "B" / f"{name}.mha", oblique)
    cases = find_pairs(tmp_path)
    assert names(cases) == ["x", "y"]
    assert cases[0].images == (tmp_path / "A" / "x.nii.gz",)
    assert cases[0].image == cases[0].target == tmp_path / "B" / "x.mha"


def test_folders_a_and_b_by_order_where_no_name_is_in_both(tmp_path):
    for folder, kind in (("A", "t1"), ("B", "t2")):
        (tmp_path / folder).mkdir()
        for number in (1, 2, 10):
            np.save(tmp_path / folder / f"case{number:02}_{kind}.npy", np.full((3, 4, 5), number) + np.eye(4, 5))
    cases = find_pairs(tmp_path)
    assert [case.target.name for case in cases] == ["case01_t2.npy", "case02_t2.npy", "case10_t2.npy"]
    sample = PairDataset(cases, preprocess=AS_IT_IS)[2]
    assert torch.equal(sample.image, sample.target)
    assert sample.image.max() == 11
    (tmp_path / "B" / "case10_t2.npy").unlink()
    with pytest.raises(DataError, match=r"case01_t1.npy: unpaired, no target of the name case01_t1|case01_t2"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("lonely", ["A", "B"])
def test_unpaired_files_are_named(tmp_path, oblique, lonely):
    for folder in "AB":
        write(tmp_path / folder / "x.nii.gz", oblique)
    write(tmp_path / lonely / "z.nii.gz", oblique)
    with pytest.raises(DataError, match=rf"{lonely}/z.nii.gz: unpaired") as caught:
        find_pairs(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_per_case_is_told_from_one_per_contrast(tmp_path, oblique):
    for case in ("p1", "p2", "p3"):
        for name in ("t1", "t2"):
            write(tmp_path / case / f"{name}.nii.gz", oblique)
    with pytest.raises(SettingError, match=r"a folder for each contrast, such as t1/p1\.\*"):
        find_pairs(tmp_path)


def test_a_folder_per_contrast(contrasts):
    with pytest.raises(SettingError, match="target: expected one of the folders flair, t1, t2"):
        find_pairs(contrasts)
    cases = find_pairs(contrasts, target="flair")
    assert names(cases) == ["a", "b", "c"]
    assert cases[0].contrasts == ("t1", "t2")
    assert cases[1].images == (None, contrasts / "t2" / "b.nii.gz")
    assert cases[2].images == (contrasts / "t1" / "c.nii.gz", None)
    chosen = find_pairs(contrasts, target="flair", conditions=["t2", "t1"])
    assert chosen[1].images == (contrasts / "t2" / "b.nii.gz", None)
    with pytest.raises(DataError, match=r"flair/c.nii.gz: unpaired, no image c in t2"):
        find_pairs(contrasts, target="flair", conditions=["t2"])
    with pytest.raises(SettingError, match="conditions: expected folders of flair, t1, t2 but the target, got 'pd'"):
        find_pairs(contrasts, target="flair", conditions=["pd"])


def test_without_targets_where_they_are_not_needed(contrasts):
    cases = find_pairs(contrasts, conditions=["t1", "t2"], need_target=False)
    assert {case.target for case in cases} == {None}
    sample = PairDataset(cases)[1]
    assert sample.target is None
    assert sample.present.tolist() == [False, True]
    assert len(sample.levels) == 2


def test_absent_contrasts_are_zero_and_said_to_be(contrasts):
    dataset = PairDataset(
        find_pairs(contrasts, target="flair"), preprocess=Preprocess(normalise="window", window=(-5, 5))
    )
    dataset.check()
    batch = collate([dataset[index] for index in range(3)])
    assert batch.present.tolist() == [[True, True], [False, True], [True, False]]
    assert batch.image[1, 0].abs().max() == batch.image[2, 1].abs().max() == 0
    assert batch.image[0].min() > 0
    assert batch.target.shape == (3, 1, *batch.image.shape[2:])
    assert batch.levels.shape == (3, 3, 2)
    assert batch.to("cpu").target is not None


def test_levels_bring_the_physical_values_back(contrasts):
    cases = find_pairs(contrasts, target="flair")
    stored = PairDataset(cases, preprocess=Preprocess(normalise=None))[0]
    sample = PairDataset(cases, preprocess=Preprocess(normalise="percentile", outside="keep"))[0]
    values = torch.cat([sample.image, sample.target])
    assert values.min() < 0
    assert values.max() > 1
    assert_close(physical(values, sample.levels), torch.cat([stored.image, stored.target]), atol=1e-4, rtol=0)


def test_a_shared_range_keeps_equal_equal(tmp_path, oblique):
    noisy = volume(0, oblique)
    write_image(tmp_path / "A" / "x.nii.gz", noisy, oblique)
    write_image(tmp_path / "B" / "x.nii.gz", noisy / 2 + 1, oblique)
    cases = find_pairs(tmp_path)
    shared = PairDataset(cases, preprocess=Preprocess(intensity="shared"))[0]
    own = PairDataset(cases, preprocess=Preprocess(intensity="own"))[0]
    assert torch.equal(shared.levels[0], shared.levels[1])
    assert_close(physical(shared.target, shared.levels[1:]), physical(shared.image, shared.levels[:1]) / 2 + 1)
    assert_close(own.target, own.image, atol=1e-5, rtol=0)
    assert not torch.equal(own.levels[0], own.levels[1])


def test_the_target_may_have_a_window_of_its_own(contrasts):
    preprocess = Preprocess(normalise="percentile", intensity={"normalise": "window", "window": [-5.0, 5.0]})
    sample = PairDataset(find_pairs(contrasts, target="flair"), preprocess=preprocess)[0]
    assert sample.levels[2].tolist() == [-5, 5]
    assert sample.levels[0].tolist() != [-5, 5]
    assert Preprocess(**preprocess.settings()).settings() == preprocess.settings()


def test_values_outside_the_declared_window(contrasts):
    cases = find_pairs(contrasts, target="flair")
    strict = Preprocess(normalise="window", window=(-4, 4), outside="error")
    with pytest.raises(DataError, match=r"the image has values from -\d.* to \d.*, but the declared window is -4 to 4"):
        PairDataset(cases, preprocess=strict)[0]
    clipped = PairDataset(cases, preprocess=Preprocess(normalise="window", window=(-4, 4)))[0]
    assert (clipped.image.min(), clipped.target.max()) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outside": "error"}, "outside: 'error' needs normalise: window"),
        ({"outside": "wrap"}, "outside: expected one of clip, keep, error, got 'wrap'"),
        ({"intensity": "both"}, "intensity: expected own, shared or a mapping, got 'both'"),
        ({"intensity": {"windw": [0, 1]}}, "intensity: expected keys of .*, got 'windw'"),
        ({"intensity": {"normalise": "window"}}, "window: expected two numbers"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(SettingError, match=message):
        Preprocess(**settings)


def test_tables(tmp_path, oblique):
    for number, name in enumerate(("one", "two", "goal")):
        write(tmp_path / "files" / f"{name}.nii.gz", oblique, number)
    table = tmp_path / "pairs.csv"

    def fill(*rows: dict[str, str]) -> None:
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["name", "image_one", "image_two", "target", "split"])
            writer.writeheader()
            writer.writerows(rows)

    both = {
        "name": "p",
        "image_one": "files/one.nii.gz",
        "image_two": "files/two.nii.gz",
        "target": "files/goal.nii.gz",
    }
    fill({**both, "split": "val"}, {**both, "name": "q", "image_one": ""})
    cases = find_pairs(table)
    assert names(cases) == ["p", "q"]
    assert cases[0].contrasts == ("image_one", "image_two")
    assert cases[0].split == "validation"
    assert cases[1].images[0] is None
    for broken, message in (
        ({**both, "target": ""}, "unpaired, line 2: no target"),
        ({**both, "target": "files/none.nii.gz"}, "line 2: target: no file"),
        ({**both, "image_one": "", "image_two": ""}, "unpaired, line 2: no image"),
        ({**both, "split": "later"}, "line 2: split: expected one of"),
    ):
        fill(broken)
        with pytest.raises(VoxelryError, match=message):
            find_pairs(table)
    table.write_text("name,picture\np,a.png\n")
    with pytest.raises(FileError, match="expected the columns name, image and target, got name, picture"):
        find_pairs(table)


def slice_png(path: Path, value: int) -> None:
    pixels = np.full((1, 6, 8), value, np.uint8)
    pixels[0, 0, 0] = 0
    write_image(path, pixels, Space.from_spacing((6, 8)))


def test_low_and_full_dose_slices(tmp_path):
    for patient in ("L067", "L096"):
        for number in range(2):
            for ending in ("ld", "fd"):
                slice_png(tmp_path / patient / f"{number:03}_{ending}.png", 10 * number + 5)
    cases = find_pairs(tmp_path)
    assert names(cases) == ["L067_000", "L067_001", "L096_000", "L096_001"]
    assert cases[3].images[0].name == "001_ld.png"
    assert cases[3].target.name == "001_fd.png"
    assert [case.group for case in cases] == ["L067", "L067", "L096", "L096"]
    assert PairDataset(cases)[3].ndim == 2
    (tmp_path / "L067" / "000_fd.png").unlink()
    with pytest.raises(DataError, match=r"000_ld.png: unpaired"):
        find_pairs(tmp_path)


def test_slices_between_slices(tmp_path):
    for case, numbers in {"aa": (1, 2, 3, 4), "bb_2": (9, 10, 11)}.items():
        for number in numbers:
            slice_png(tmp_path / f"{case}_{number}.png", number)
    cases = find_pairs(tmp_path)
    assert names(cases) == ["aa_2", "aa_3", "bb_2_10"]  # the ends have one neighbour
    assert [case.group for case in cases] == ["aa", "aa", "bb_2"]
    sample = PairDataset(cases, preprocess=AS_IT_IS)[2]
    assert sample.image.amax(dim=(1, 2)).tolist() == [9, 11]
    assert sample.target.max() == 10


def test_slices_as_arrays(tmp_path):
    for folder in "AB":
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.random.default_rng(0).uniform(-1, 1, (12, 9)))
    sample = PairDataset(find_pairs(tmp_path), preprocess=Preprocess(normalise="window", window=(-1, 1)))[0]
    assert sample.ndim == 2
    assert sample.image.shape == sample.target.shape == (1, 12, 9)
    assert sample.levels.tolist() == [[-1, 1], [-1, 1]]


def test_subfolders_are_the_split(tmp_path, oblique):
    for part in ("train", "val"):
        for folder in "AB":
            write(tmp_path / part / folder / f"{part}1.nii.gz", oblique)
    assert {case.name: case.split for case in find_pairs(tmp_path)} == {"train1": "train", "val1": "validation"}


@pytest.mark.parametrize("layout", ["ab", "auto"])
def test_nothing_to_pair(tmp_path, layout):
    with pytest.raises(DataError, match="no pairs of images"):
        find_pairs(tmp_path, layout)
    with pytest.raises(FileError, match="no such file or folder"):
        find_pairs(tmp_path / "none")
    with pytest.raises(SettingError, match="layout: expected auto or one of"):
        find_pairs(tmp_path, "pix2pix")


@pytest.fixture
def shifted(tmp_path: Path, oblique: Space) -> list[PairCase]:
    """A condition of the same shape, half a slice away."""
    write(tmp_path / "A" / "x.nii.gz", oblique.crop((0.5, 0, 0), oblique.shape))
    write(tmp_path / "B" / "x.nii.gz", oblique)
    return find_pairs(tmp_path)


def test_other_grids_are_refused_by_the_header_and_by_the_pixels(shifted):
    dataset = PairDataset(shifted)
    for look in (dataset.check, lambda: dataset[0]):
        with pytest.raises(
            DataError, match=r"A/x.nii.gz: lies elsewhere than .*B/x.nii.gz: moved by .*expected one grid"
        ):
            look()


def test_a_condition_along_other_axes_is_turned(tmp_path, oblique):
    """The same voxels of the world, stored in other axes: exact, so no resampling has to be asked for."""
    pixels = np.random.default_rng(0).normal(size=(1, *oblique.shape)).astype(np.float32)
    write_image(tmp_path / "B" / "x.nii.gz", pixels, oblique)
    turned = np.ascontiguousarray(np.flip(pixels.transpose(0, 2, 3, 1), 1))
    write_image(tmp_path / "A" / "x.nii.gz", turned, oblique.reorder((1, 2, 0), (True, False, False)))
    dataset = PairDataset(find_pairs(tmp_path), preprocess=AS_IT_IS)
    dataset.check()
    assert torch.equal(dataset[0].image, dataset[0].target)


def test_other_grids_are_resampled_when_asked(tmp_path, oblique):
    """A linear field of the world is the same on any grid."""
    finer = oblique.resize((40, 20, 14)).crop((-6, -4, -4), (52, 28, 22))

    def field(space: Space) -> np.ndarray:
        index = np.stack(np.meshgrid(*[np.arange(count) for count in space.shape], indexing="ij"), axis=-1)
        return (space.to_world(index) @ [0.5, -0.2, 0.3]).astype(np.float32)[None]

    write_image(tmp_path / "A" / "x.nii.gz", field(finer), finer)
    write_image(tmp_path / "B" / "x.nii.gz", field(oblique), oblique)
    cases = find_pairs(tmp_path)
    with pytest.raises(DataError, match=r"shape \(52, 28, 22\), but .*B/x.nii.gz has \(20, 24, 28\)"):
        PairDataset(cases)[0]
    dataset = PairDataset(cases, resample=True, preprocess=AS_IT_IS)
    dataset.check()
    sample = dataset[0]
    inside = (slice(None), *[slice(1, -1)] * 3)
    assert_close(sample.image[inside], sample.target[inside], atol=0.02, rtol=0)


def test_arrays_without_orientation_share_their_field_of_view(tmp_path):
    for folder, size in (("A", 8), ("B", 16)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.linspace(0, 1, 2 * size + 1)[1::2, None, None] * np.ones((1, 4, 6)))
    sample = PairDataset(find_pairs(tmp_path), resample=True, preprocess=AS_IT_IS)[0]
    assert_close(sample.image[:, 1:-1], sample.target[:, 1:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", ["A", "B"])
@pytest.mark.parametrize(
    ("value", "message"), [(3.0, "constant, every voxel is 3"), (np.nan, "1 of .* voxels are NaN")]
)
def test_unusable_values_are_refused(tmp_path, oblique, folder, value, message):
    for other in "AB":
        write(tmp_path / other / "x.nii.gz", oblique)
    pixels = np.full((1, *oblique.shape), 3.0, np.float32) if value == 3 else volume(0, oblique)
    pixels[0, 0, 0, 0] = value
    write_image(tmp_path / folder / "x.nii.gz", pixels, oblique)
    with pytest.raises(DataError, match=rf"{folder}/x.nii.gz: {message}") as caught:
        PairDataset(find_pairs(tmp_path))[0]
    assert "\n" not in str(caught.value)


def test_a_cache_on_disk_keeps_everything(contrasts, tmp_path, oblique):
    cases = find_pairs(contrasts, target="flair")
    plain = PairDataset(cases)[1]
    for _ in range(2):
        cached = PairDataset(cases, cache=tmp_path / "cache")[1]
        for field in ("image", "target", "present", "levels"):
            assert torch.equal(getattr(cached, field), getattr(plain, field)), field
    entries = list((tmp_path / "cache").glob("*/*.safetensors"))
    assert len(entries) == 1
    write(contrasts / "t2" / "b.nii.gz", oblique, 99)  # a condition counts, not only the target
    assert not torch.equal(PairDataset(cases, cache=tmp_path / "cache")[1].image, plain.image)


def test_readers_of_ones_own(tmp_path, oblique):
    class Twice(PairDataset):
        def read_volume(self, path: Path) -> torch.Tensor:
            return torch.from_numpy(np.load(path)) * 2

    for folder in "AB":
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", volume(ord(folder), oblique))
    sample = Twice(find_pairs(tmp_path), preprocess=AS_IT_IS)[0]
    assert_close(sample.image.numpy(), volume(ord("A"), oblique) * 2)
    assert_close(sample.target.numpy(), volume(ord("B"), oblique) * 2)


def test_labels_lie_on_the_target(contrasts, oblique):
    labels = np.random.default_rng(0).integers(0, 3, (1, *oblique.shape)).astype(np.uint8)
    write_image(contrasts / "labels" / "a.nii.gz", labels, oblique)
    cases = find_pairs(contrasts, target="flair")
    assert [case.labels is None for case in cases] == [False, True, True]
    assert torch.equal(PairDataset(cases, preprocess=AS_IT_IS)[0].labels, torch.from_numpy(labels[0]).long())


def test_a_case_needs_an_image():
    with pytest.raises(DataError, match="none of the images"):
        PairCase.of("x", (None, None), Path("target.nii"))

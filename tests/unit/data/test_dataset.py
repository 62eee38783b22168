from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.orientation import orientation_steps
from voxelry.core.space import Space
from voxelry.data.collate import collate
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.patches import Patches
from voxelry.data.preprocess import Preprocess
from voxelry.data.sample import Sample
from voxelry.io import Image, write_image
from voxelry.io.points.landmarks import LandmarkSet, write_landmarks

SHAPE = (8, 10, 12)


def tilted(shape=SHAPE) -> Space:
    angle = np.radians(15)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    space = Space.from_spacing(shape, (2.0, 1.0, 0.8)[: len(shape)], (-5.0, -6.0, 30.0))
    affine = space.affine.copy()
    affine[:3] = turn @ affine[:3]
    return Space(shape, affine)


def write_case(root: Path, name: str, space: Space, seed: int, points: int = 3, **landmarks) -> None:
    rng = np.random.default_rng(seed)
    write_image(root / "volumes" / f"{name}.nii.gz", rng.normal(size=(1, *space.shape)).astype(np.float32), space)
    index = rng.uniform(1, np.asarray(space.shape) - 2, (points, space.ndim))
    labelled = LandmarkSet.from_index(index, space, **landmarks)
    write_landmarks(root / "landmarks" / f"{name}.fcsv", labelled)


@pytest.fixture
def folder(tmp_path):
    """Four copies of one volume in different axes, with the same world points and labels."""
    space = tilted()
    rng = np.random.default_rng(1)
    volume = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    labels = np.zeros((1, *SHAPE), np.uint8)
    labels[0, 2:4, 3:8, 5:9] = 2
    instances = np.zeros((1, *SHAPE), np.uint16)
    instances[0, 2:4, 3:8, 5:9] = 40
    instances[0, 6, 1:3, 1:3] = 7
    points = LandmarkSet(("a", "b", "c"), space.to_world(rng.uniform(1, 7, (3, 3))))
    for name, code in (("sar", "SAR"), ("sal", "SAL"), ("rsp", "RSP"), ("api", "ILA")):
        axes, flips = orientation_steps(space, code)
        turned = space.reorder(axes, flips)
        for kind, array in (("volumes", volume), ("labels", labels), ("instances", instances)):
            copy = np.flip(
                array.transpose(0, *[axis + 1 for axis in axes]), [i + 1 for i, flip in enumerate(flips) if flip]
            )
            write_image(tmp_path / kind / f"{name}.nii.gz", np.ascontiguousarray(copy), turned)
        write_landmarks(tmp_path / "landmarks" / f"{name}.mrk.json", points)
    return tmp_path


def test_copies_in_other_axes_are_the_same_sample(folder):
    dataset = VolumeDataset.from_folder(folder, need_landmarks=True)
    first = dataset[0]
    assert len(dataset) == 4
    assert first.landmark_names == dataset.landmark_names == ("a", "b", "c")
    assert first.space.orientation == "SAR"
    for sample in dataset:
        assert torch.equal(sample.image, first.image)
        assert torch.equal(sample.labels, first.labels)
        assert_close(sample.landmarks, first.landmarks, atol=1e-3, rtol=0)
        assert sample.space.is_close(first.space, tolerance=1e-3)
    batch = collate(list(dataset))
    assert batch.image.shape == (4, 1, *SHAPE)


def test_instances_are_numbered_with_a_box_each(folder):
    sample = VolumeDataset.from_folder(folder, preprocess=Preprocess(orientation=None))[3]
    assert sample.name == "sar"
    assert torch.unique(sample.masks).tolist() == [0, 1, 2]
    assert sample.boxes.tolist() == [[5.5, 0.5, 0.5, 6.5, 2.5, 2.5], [1.5, 2.5, 4.5, 3.5, 7.5, 8.5]]
    assert (sample.masks == 2).sum() == 2 * 5 * 4


def test_only_what_is_needed_is_read(folder):
    sample = VolumeDataset.from_folder(folder, need=("labels",))[0]
    assert sample.labels is not None
    assert sample.landmarks is None
    assert sample.masks is None
    assert sample.boxes is None
    with pytest.raises(SettingError, match=r"need: .*'boxes'"):
        VolumeDataset.from_folder(folder, need=("boxes",))


def test_a_plane(tmp_path):
    space = tilted((9, 11))
    write_case(tmp_path, "a", space, 0)
    dataset = VolumeDataset.from_folder(
        tmp_path, need_landmarks=True, preprocess=Preprocess(image_size=16), patches=Patches(8)
    )
    assert dataset[0].image.shape == (1, 8, 8)
    assert dataset[0].landmarks.shape == (3, 2)
    whole = dataset.preprocessed(0)
    expected = dataset.read(dataset.cases[0])
    assert_close(
        whole.space.to_world(whole.landmarks.double()),
        expected.space.to_world(expected.landmarks.double()),
        atol=1e-4,
        rtol=0,
    )


def jitter(sample: Sample, generator: np.random.Generator) -> Sample:
    return sample.replace(image=sample.image + float(generator.normal()))


def test_workers_epochs_and_order_do_not_matter(folder):
    dataset = VolumeDataset.from_folder(folder, patches=Patches(4), augment=jitter, seed=3)
    alone = [dataset[index] for index in range(4)]
    backwards = [dataset[index] for index in reversed(range(4))][::-1]
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    for one, other, third in zip(alone, backwards, loader, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.image, third.image)
    later = [dataset.sample(index, epoch=1) for index in range(4)]
    assert not any(torch.equal(one.image, other.image) for one, other in zip(alone, later, strict=True))
    assert torch.equal(alone[2].image, dataset.sample(2, epoch=0).image)


def test_the_margin_is_taken_off_after_the_augmentation(folder):
    seen = []

    def watch(sample, generator):
        seen.append(tuple(sample.image.shape[1:]))
        return sample

    dataset = VolumeDataset.from_folder(folder, patches=Patches(4, margin=2), augment=watch)
    assert dataset[0].image.shape == (1, 4, 4, 4)
    assert seen == [(8, 8, 8)]


def test_seeds_differ(folder):
    one, other = (VolumeDataset.from_folder(folder, augment=jitter, seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(one.image, other.image)


def test_memory_keeps_what_was_made(folder):
    dataset = VolumeDataset.from_folder(folder, cache="memory", augment=jitter)
    first = dataset[0]
    dataset.cases[0].image.unlink()
    assert torch.equal(dataset[0].image, first.image)


def test_absent_points_are_nan(tmp_path):
    space = tilted()
    write_image(tmp_path / "volumes" / "a.nii.gz", np.zeros((1, *SHAPE), np.float32), space)
    world = space.to_world(np.full((2, 3), 4.0))
    world[1] = np.nan
    write_landmarks(tmp_path / "landmarks" / "a.mrk.json", LandmarkSet(("a", "b"), world))
    landmarks = VolumeDataset.from_folder(tmp_path)[0].landmarks
    assert torch.isnan(landmarks[1]).all()
    assert_close(landmarks[0], torch.full((3,), 4.0), atol=1e-4, rtol=0)


def test_points_are_matched_by_name(tmp_path):
    write_case(tmp_path, "a", tilted(), 0, names=("p", "q", "r"))
    write_case(tmp_path, "b", tilted(), 0, names=("r", "p", "q"))
    dataset = VolumeDataset.from_folder(tmp_path)
    one, other = dataset[0].landmarks, dataset[1].landmarks
    assert_close(other, one[[1, 2, 0]], atol=1e-4, rtol=0)
    assert dataset[1].landmark_names == ("p", "q", "r")
    some = VolumeDataset.from_folder(tmp_path, landmark_names=("q", "new", "r"))
    assert_close(some[0].landmarks[[0, 2]], one[[1, 2]], atol=1e-4, rtol=0)
    assert torch.isnan(some[0].landmarks[1]).all()
    with pytest.raises(DataError, match=r"a\.fcsv: 3 landmarks, none of the 2 asked for"):
        VolumeDataset.from_folder(tmp_path, landmark_names=("x", "y"))[0]


def test_names_can_be_given_to_points_without_them(tmp_path):
    write_case(tmp_path, "a", tilted(), 0)
    dataset = VolumeDataset.from_folder(tmp_path, landmark_names=("x", "y", "z"))
    assert dataset[0].landmark_names == ("x", "y", "z")
    assert not torch.isnan(dataset[0].landmarks).any()


def test_points_with_other_names_are_not_taken_by_their_order(tmp_path):
    write_case(tmp_path, "a", tilted(), 0, names=("p", "q", "r"))
    with pytest.raises(DataError, match=r"a\.fcsv: 3 landmarks, none of the 3 asked for"):
        VolumeDataset.from_folder(tmp_path, landmark_names=("P", "Q", "R"))[0]


def test_a_check_wants_every_name_that_is_asked_for_in_any_order(tmp_path):
    write_case(tmp_path, "a", tilted(), 0, names=("p", "q", "r"))
    VolumeDataset.from_folder(tmp_path, landmark_names=("r", "p", "q")).check()
    for wanted in (("p", "q", "R"), ("p", "q"), ("p", "q", "r", "s")):
        with pytest.raises(DataError, match=rf"a\.fcsv: landmarks p, q, r; expected {', '.join(wanted)}$"):
            VolumeDataset.from_folder(tmp_path, landmark_names=wanted).check()


def test_two_landmarks_of_one_name_are_refused(tmp_path):
    write_case(tmp_path, "a", tilted(), 0, names=("p", "q", "p"))
    for names in (None, ("p", "q"), ("p", "q", "p")):
        with pytest.raises(FileError, match=r"a\.fcsv: two landmarks are called 'p'; expected a name for each"):
            VolumeDataset.from_folder(tmp_path, landmark_names=names)[0]


def test_points_without_any_position_are_refused_and_those_of_one_name_told(tmp_path, caplog):
    for name, last in (("a", 1), ("b", 2)):
        write_image(tmp_path / "volumes" / f"{name}.nii.gz", np.zeros((1, *SHAPE), np.float32), tilted())
        world = tilted().to_world(np.full((3, 3), 4.0))
        world[last:] = np.nan
        write_landmarks(tmp_path / "landmarks" / f"{name}.mrk.json", LandmarkSet(("p", "q", "r"), world))
    dataset = VolumeDataset.from_folder(tmp_path)
    dataset.check()
    assert caplog.messages == ["no case that is learned from has a position of r: it won't be found"]
    nowhere = LandmarkSet(("p", "q", "r"), np.full((3, 3), np.nan))
    for name in ("a", "b"):
        write_landmarks(tmp_path / "landmarks" / f"{name}.mrk.json", nowhere)
    with pytest.raises(DataError, match=r"a\.mrk\.json: no landmark has a position, here or in any other case"):
        VolumeDataset.from_folder(tmp_path).check()
    VolumeDataset.from_folder(tmp_path, landmark_names=("p", "q", "r")).check()


def test_points_outside_of_their_image_are_told(tmp_path, caplog):
    space = tilted()
    for name, far in (("a", 4.0), ("b", 400.0)):
        write_image(tmp_path / "volumes" / f"{name}.nii.gz", np.zeros((1, *SHAPE), np.float32), space)
        points = space.to_world(np.array([[4.0, 4.0, 4.0], [4.0, 4.0, far], [np.nan, 4.0, 4.0]]))
        write_landmarks(tmp_path / "landmarks" / f"{name}.mrk.json", LandmarkSet(("p", "q", "r"), points))
    VolumeDataset.from_folder(tmp_path, landmark_names=("r", "q", "p")).check()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("b.mrk.json: a landmark lies outside of the image (voxelry doctor names each)")


def test_counts_that_differ_name_both_files(tmp_path):
    write_case(tmp_path, "a", tilted(), 0, points=3)
    write_case(tmp_path, "b", tilted(), 1, points=4)
    dataset = VolumeDataset.from_folder(tmp_path)
    assert dataset[0].landmarks.shape == (3, 3)
    for fault in (dataset.check, lambda: dataset[1]):
        with pytest.raises(DataError, match=r"b\.fcsv: 4 landmarks, but .*a\.fcsv has 3$"):
            fault()


def test_names_that_differ_name_both_files(tmp_path):
    write_case(tmp_path, "a", tilted(), 0, names=("p", "q", "r"))
    write_case(tmp_path, "b", tilted(), 0, names=("p", "q", "s"))
    with pytest.raises(DataError, match=r"b\.fcsv: landmark 's' is not in .*a\.fcsv$"):
        VolumeDataset.from_folder(tmp_path).check()


class Halved(VolumeDataset):
    """A user's own format: numbers in a text file."""

    def read_volume(self, path):
        values = np.loadtxt(path, dtype=np.float32)
        return torch.from_numpy(values).reshape(1, 4, 5, 6) / 2


def write_own(root: Path) -> Case:
    (root / "mine").mkdir()
    np.savetxt(root / "mine" / "a.dat", np.arange(120.0))
    (root / "mine" / "a.txt").write_text("1\n0.5 0.2 0.25\n")
    return Case("a", root / "mine" / "a.dat", landmarks=(root / "mine" / "a.txt",))


def test_a_dataset_of_ones_own_overrides_read_volume(tmp_path):
    dataset = Halved([write_own(tmp_path)], preprocess=Preprocess(image_size=(8, 10, 12), normalise=None))
    sample = dataset[0]
    dataset.check()
    assert sample.image.shape == (1, 8, 10, 12)
    assert sample.image.max() == pytest.approx(119 / 2)
    assert_close(dataset.read(dataset.cases[0]).landmarks, torch.tensor([[1.0, 1.0, 3.0]]))
    assert sample.space.spacing == pytest.approx((0.5, 0.5, 0.5))


def test_a_subclass_may_give_an_image_with_its_own_space(tmp_path):
    space = tilted((4, 5, 6))

    class Placed(Halved):
        def read_volume(self, path):
            return Image(super().read_volume(path).numpy(), space, path)

    case = write_own(tmp_path)
    assert Placed([case], preprocess=Preprocess(orientation=None))[0].space.is_close(space)


@pytest.mark.parametrize("wrong", [torch.zeros(4, 5), torch.zeros(0, 4, 5, 6), "a string", torch.zeros(1, 1, 2, 3, 4)])
def test_what_read_volume_gives_is_checked(tmp_path, wrong):
    class Wrong(VolumeDataset):
        def read_volume(self, path):
            return wrong

    with pytest.raises(DataError, match=r"a\.dat: read_volume gave .*; expected a tensor \(C, D, H, W\)"):
        Wrong([write_own(tmp_path)])[0]


def test_labels_must_lie_on_their_image(folder):
    image = folder / "volumes" / "sar.nii.gz"
    space = tilted()
    shifted = Space(space.shape, space.affine + np.array([[0, 0, 0, 5.0], [0] * 4, [0] * 4, [0] * 4]))
    for name, array, where, message in (
        ("shift.nii.gz", np.zeros((1, *SHAPE), np.uint8), shifted, "lies elsewhere than its image"),
        ("shape.nii.gz", np.zeros((1, 4, 4, 4), np.uint8), tilted((4, 4, 4)), r"shape \(4, 4, 4\), but its image"),
        ("part.nii.gz", np.full((1, *SHAPE), 0.5, np.float32), space, "expected whole numbers"),
        ("rgb.nii.gz", np.zeros((3, *SHAPE), np.uint8), space, "3 channels, expected one number per voxel"),
    ):
        write_image(folder / name, array, where)
        with pytest.raises(DataError, match=message) as caught:
            VolumeDataset([Case("sar", image, labels=folder / name)])[0]
        assert str(folder / name) in str(caught.value)
    write_image(folder / "bare.npy", np.ones((1, *SHAPE), np.uint8), space)
    assert VolumeDataset([Case("sar", image, labels=folder / "bare.npy")])[0].labels.min() == 1


def test_unreadable_volumes_are_named_also_from_a_worker(folder):
    cases = find_cases(folder)
    cases[1].image.write_bytes(b"\x1f\x8b broken")
    dataset = VolumeDataset(cases)
    with pytest.raises(FileError, match=cases[1].image.name) as caught:
        dataset[1]
    assert "\n" not in str(caught.value)
    with pytest.raises(IndexError):
        dataset[4]
    with pytest.raises(DataError) as from_worker:
        list(DataLoader(dataset, batch_size=None, num_workers=1))
    assert str(from_worker.value) == str(caught.value)


def organ(space: Space) -> np.ndarray:
    """A box of voxels, and nothing else, `(1, *shape)`."""
    labels = np.zeros((1, *space.shape), np.uint8)
    labels[0, 3:6, 4:8, 2:9] = 1
    return labels


def test_points_stay_on_their_organ_in_a_batch_of_one_size(tmp_path):
    for number, size in enumerate([(8, 10, 12), (9, 12, 11), (10, 9, 13), (8, 11, 14)]):
        space = tilted(size)
        write_image(tmp_path / "volumes" / f"{number}.nii.gz", organ(space) * 9.0 + 1, space)
        write_image(tmp_path / "labels" / f"{number}.nii.gz", organ(space), space)
        points = LandmarkSet.from_index(np.array([[4.0, 5.5, 5.0], [0.0, 0.0, 0.0]]), space)  # the first: its middle
        write_landmarks(tmp_path / "landmarks" / f"{number}.fcsv", points)
    cases = find_cases(tmp_path, need_landmarks=True)
    batch = collate(list(VolumeDataset(cases, preprocess=Preprocess(image_size=(32, 48, 32)))))
    assert batch.image.shape == (4, 1, 32, 48, 32)
    assert batch.landmarks.shape == (4, 2, 3)
    for labels, points in zip(batch.labels, batch.landmarks, strict=True):
        middle = torch.nonzero(labels == 1).double().mean(dim=0)
        assert (middle - points[0]).norm() < 2.0


def test_a_copy_in_other_axes_lies_where_it_did(tmp_path):
    space = tilted()
    turned = space.reorder(*orientation_steps(space, "RSP"))
    image = write_image(tmp_path / "image.nii.gz", organ(turned) * 9.0 + 1, turned)
    case = Case("turned", image, labels=write_image(tmp_path / "labels.nii.gz", organ(turned), turned))
    dataset = VolumeDataset([case], preprocess=Preprocess(spacing=(1.0, 0.5, 0.4)))  # halves each voxel
    sample, raw = dataset[0], dataset.read(case)
    assert raw.space.orientation == "RSP"
    assert sample.space.orientation == "SAR"
    before = raw.space.to_world(torch.nonzero(raw.labels).double()).mean(0)
    after = sample.space.to_world(torch.nonzero(sample.labels).double()).mean(0)
    assert (before - after).norm() < 1e-3


def test_real_hippocampi(shared_data):
    cases = find_cases(shared_data / "hippocampus", need_landmarks=True)[:4]
    dataset = VolumeDataset(cases, preprocess=Preprocess(image_size=(32, 48, 32)))
    batch = collate(list(dataset))
    assert batch.image.shape == (4, 1, 32, 48, 32)
    assert batch.landmarks.shape == (4, 6, 3)
    # the head tip lies in the anterior part, label 1, or at most two voxels from it
    for labels, points in zip(batch.labels, batch.landmarks, strict=True):
        distance = (torch.nonzero(labels == 1) - points[1]).norm(dim=1).min()
        assert distance < 2.0


def test_real_copies_in_other_axes(shared_data):
    case = Case(
        "t2", shared_data / "sct" / "t2" / "t2.nii.gz", labels=shared_data / "sct" / "t2" / "t2_seg-manual.nii.gz"
    )
    dataset = VolumeDataset([case], preprocess=Preprocess(spacing=0.5))  # halves each voxel
    sample, raw = dataset[0], dataset.read(case)
    assert raw.space.orientation == "RSP"
    assert sample.space.orientation == "SAR"
    before = raw.space.to_world(torch.nonzero(raw.labels).double()).mean(0)
    after = sample.space.to_world(torch.nonzero(sample.labels).double()).mean(0)
    assert (before - after).norm() < 1e-3

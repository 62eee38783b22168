"""Prompts and truths of phantom volumes: reproducible, consistent, and stackable."""

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.loader import EndlessOrder
from voxelry.data.preprocess import Preprocess
from voxelry.data.slices.augment import SliceAugment
from voxelry.data.slices.case import ViewSettings, build_case, frame_of, view_box
from voxelry.data.slices.cut import take_slice
from voxelry.data.slices.dataset import SliceDataset, usual_edges
from voxelry.data.slices.sources import VolumeSlices
from voxelry.io import write_image
from voxelry.ops.sdf import canonical_sdf

SHAPE = (20, 24, 22)


def write_case(root, name, *, turn=0.1, labels=(1, 2)):
    """Two balls on an oblique, mirrored grid of 1.5 x 1 x 0.9 mm."""
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, 0, -0.9], [0, 1.0, 0], [1.5, 0, 0]])
    affine[:3, 3] = (40.0, -20.0, 100.0)
    space = Space(SHAPE, affine)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) * (1.5, 1.0, 0.9)
    found = np.zeros(SHAPE, np.uint8)
    for label, (centre, radius) in zip((1, 2), (((12, 12, 6), 5.0), ((16, 12, 14), 4.0)), strict=True):
        if label in labels:
            found[np.linalg.norm(places - centre, axis=-1) < radius] = label
    image = found * 0.4 + np.random.default_rng(0).normal(0, 0.05, SHAPE)
    write_image(root / "volumes" / f"{name}.nii.gz", image[None].astype(np.float32), space)
    write_image(root / "labels" / f"{name}.nii.gz", found[None], space)


@pytest.fixture
def source(tmp_path):
    for number, name in enumerate("abc"):
        write_case(tmp_path, name, turn=0.1 * number)
    return VolumeSlices(VolumeDataset.from_folder(tmp_path, preprocess=Preprocess(), cache="memory"))


def small(source, **settings):
    return SliceDataset(source, **{"image_size": 48, "grid": 20, "edge": 40.0, "truncation": 8.0, **settings})


def on_plane(case):
    """The true distances at every pixel of every view, in mm."""
    points = 2 * case.pointmap.permute(0, 2, 3, 1).reshape(1, -1, 1, 1, 3)
    read = grid_sample(case.sdf[None], points, align_corners=False, padding_mode="border")
    return read.reshape(case.validity.shape)


def test_the_field_of_view_is_where_the_volume_is_however_it_is_stored(source):
    space = source.volumes.preprocessed(1).space
    centre = np.array([3.0, -2.0, 5.0])
    box = view_box(space, centre, 40.0).double().numpy()
    index = np.stack(np.meshgrid(*[(-0.5, size - 0.5) for size in space.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    corners = np.asarray(space.to_world(index))
    sides = np.stack(np.meshgrid(*[(-1.0, 1.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    found = (sides @ box[:, :3].T + box[:, 3]) * 40.0 + centre
    gaps = np.linalg.norm(found[:, None] - corners, axis=-1)
    assert gaps.min(axis=0).max() < 1e-4
    assert np.all(np.diag(box[:, :3]) > 0)
    stored = space.reorder((2, 0, 1), (True, False, True))
    np.testing.assert_allclose(view_box(stored, centre, 40.0), box, atol=1e-6)


def test_a_field_of_view_is_told_as_often_as_asked_for_and_moves_with_the_world(source):
    assert not small(source, field_of_view=0.0)[0].field_of_view.isfinite().any()
    told = [bool(small(source, field_of_view=0.5, seed=seed)[0].field_of_view.isfinite().all()) for seed in range(20)]
    assert 3 < sum(told) < 17
    case = small(source, augment=SliceAugment(rotation=30.0, mirror=0.5))[1]
    grid = case.slices[0].volume_space
    torch.testing.assert_close(case.field_of_view, view_box(grid, case.centre.double().numpy(), 40.0))
    assert not grid.is_close(source.volumes.preprocessed(1).space)
    lone = build_case([case.slices[0].replace(volume_space=None)], edge=40.0, views=ViewSettings(image_size=16))
    assert not lone.field_of_view.isfinite().any()


def test_the_slice_fits_the_shape_it_was_cut_from(source):
    dataset = small(source, organs=[1, 2, (1, 2)], slices=3, oblique=0.4, grid=40, augment=SliceAugment(mirror=0.5))
    for index in range(len(dataset)):
        case = dataset[index]
        assert case.slice_valid.all()
        wrong = ((on_plane(case) < 0) != (case.mask_target > 0)) & (case.validity > 0)
        assert on_plane(case)[wrong].abs().max() < 1.6  # no pixel is wrong by more than a voxel
        assert wrong.float().mean() < 0.05
        for place, sample in enumerate(case.slices):
            peak = divmod(int(case.click[place].argmax()), 48)
            there = case.pointmap[place][:, peak[0], peak[1]] * case.edge + case.centre
            assert np.abs(there.numpy() - sample.click_world).max() < 1.2 * 40 / 48  # a pixel of a zoomed view


def test_a_patient_who_lies_otherwise_gives_the_same_prompt(source):
    straight = small(source, mask=1.0).sample(0, 3)
    for case in (1, 2):  # the same voxels, turned by so many tenths
        data = small(source, mask=1.0)
        data.items[0] = (case, None, None)
        turned = data.sample(0, 3)
        for name in ("image", "click", "pointmap", "validity", "plane", "field_of_view", "sdf"):
            torch.testing.assert_close(getattr(turned, name), getattr(straight, name), rtol=0, atol=1e-4, msg=name)


def test_fields_agree_with_each_other_and_with_the_frame(source):
    case = small(source, mask=0.0, truth=True)[0]
    grid = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij"), dim=-1)
    rows = torch.cat([grid, torch.ones(48, 48, 1)], dim=-1)
    torch.testing.assert_close((rows @ case.plane[0].T).movedim(-1, 0), case.pointmap[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(case.centre.numpy(), case.slices[0].click_world, atol=1e-4)
    expected = canonical_sdf(case.truth.numpy(), case.space, case.centre.double().numpy(), 40.0, 20, 8.0)
    near = expected < 5  # next to the truncation, linear interpolation of clipped distances is a little off
    np.testing.assert_allclose(case.sdf[0].numpy()[near], expected[near], atol=0.02)
    voxels = torch.nonzero(case.truth).double().numpy()
    np.testing.assert_allclose(case.centroid.numpy(), case.space.to_world(voxels).mean(axis=0), atol=1e-3)
    assert case.true_edge.item() == pytest.approx(20.0, abs=3.0)
    assert not case.has_mask.any()
    assert not case.mask.any()
    assert case.mask_target.any()


def test_a_given_mask_moves_and_widens_the_frame(source):
    case = small(source, mask=1.0, edge=5.0)[0]
    sample = case.slices[0]
    points = sample.space.to_world(torch.nonzero(sample.mask).double().numpy())
    np.testing.assert_allclose(case.centre.numpy(), points.mean(axis=0), atol=1e-4)
    assert case.edge.item() >= 1.3 * np.ptp(points, axis=0).max()
    assert torch.equal(case.mask, case.mask_target)
    with pytest.raises(DataError, match="click"):
        frame_of([sample.replace(click=None)], 5.0, given=[False])


def test_random_numbers_depend_on_seed_epoch_and_index_alone(source):
    dataset = small(source, slices=(1, 3), augment=SliceAugment(intensity={}), oblique=0.5, centre_jitter=0.1,
                    edge_jitter=0.2)  # fmt: skip
    again = small(source, slices=(1, 3), augment=SliceAugment(intensity={}), oblique=0.5, centre_jitter=0.1,
                  edge_jitter=0.2)  # fmt: skip
    first = dataset.sample(1, epoch=4)
    again.sample(0, epoch=0)
    for name, value in first.prompt().items():
        assert torch.equal(value, getattr(again.sample(1, epoch=4), name)), name
    assert not torch.equal(dataset.sample(1, epoch=5).pointmap, first.pointmap)
    assert not torch.equal(small(source, slices=(1, 3), seed=1).sample(1, 4).pointmap, first.pointmap)
    with pytest.raises(IndexError):
        dataset[3]


def test_batches_hold_cases_of_different_numbers_of_slices(source):
    dataset = small(source, slices=2)
    one, two = small(source, slices=1)[0], dataset[1]
    batch = dataset.collate([one, two])
    assert batch.image.shape == (2, 2, 1, 48, 48)
    assert batch.slice_valid.tolist() == [[True, False], [True, True]]
    assert torch.equal(batch.plane[0, 1], torch.eye(3))
    assert batch.sdf.shape == (2, 1, 20, 20, 20)
    assert (batch.names, len(batch), len(batch.to("cpu").truths)) == (["a", "b"], 2, 2)
    assert set(batch.prompt()) >= {"image", "click", "mask", "has_mask", "pointmap", "validity", "slice_valid", "plane"}
    with pytest.raises(DataError, match="can't share a batch"):
        dataset.collate([one, small(source, image_size=32)[0]])


def test_the_engines_loader_can_run_over_it(source):
    dataset = small(source, repeats=2)
    assert len(dataset) == 6
    numbers = [number for number, _ in zip(EndlessOrder(len(dataset), seed=0), range(6), strict=False)]
    assert sorted(numbers) == list(range(6))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=dataset.collate)
    assert [len(batch) for batch in loader] == [4, 2]


def test_listed_methods_have_an_item_for_every_plane(source):
    whole = small(source, method="all", axes=(2,), organs=[1])
    central = small(source, method="central", axes=(0, 1), organs=[1, 2])
    assert len(central) == 3 * 2 * 2
    assert len(whole) >= 3 * 5
    case = whole[0]
    assert (case.name, case.slices[0].plane) == ("a", "axial")
    assert case.slices[0].slice_idx != whole[1].slices[0].slice_idx


def test_usual_edges_are_a_multiple_of_the_extent(source):
    edges = usual_edges(source, [1, (2, 1)], margin=2.5)
    assert edges[1] == pytest.approx(25.0, rel=0.2)
    assert edges[2] > edges[1]
    with pytest.raises(DataError, match="no foreground of label 7"):
        usual_edges(source, [7])


def test_a_prompt_of_ones_own_needs_no_truth(source):
    sample = source.volumes.preprocessed(0)
    cut = take_slice(sample.image, None, sample.space, axis=0, index=8, name="mine").replace(
        click=torch.tensor([12.0, 7.0])
    )
    case = build_case([cut], edge=40.0, views=ViewSettings(image_size=32)).padded(2)
    assert case.sdf is None
    assert case.slice_valid.tolist() == [True, False]
    assert case.has_target.tolist() == [False, False]
    assert torch.isfinite(case.pointmap).all()
    with pytest.raises(SettingError, match="slices"):
        build_case([], edge=40.0)


def test_faults_are_named_in_one_line(tmp_path, source):
    with pytest.raises(SettingError, match=r"organs: expected each to have other label values"):
        small(source, organs=[[1, 2], 1, [2, 1]])
    with pytest.raises(SettingError, match="mask"):
        small(source, mask=2.0)
    with pytest.raises(SettingError, match="label 2"):
        small(source, organs=[1, 2], edge={1: 30.0})
    write_case(tmp_path / "empty", "a", labels=())
    nothing = VolumeSlices(VolumeDataset.from_folder(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"a\.nii\.gz: no foreground of label 1 \(it has none at all\)"):
        small(nothing)[0]
    (tmp_path / "bare" / "volumes").mkdir(parents=True)
    write_image(
        tmp_path / "bare" / "volumes" / "x.nii", np.zeros((1, 4, 4, 4), np.float32), Space.from_spacing((4,) * 3)
    )
    with pytest.raises(DataError, match=r"x\.nii: no labels"):
        VolumeSlices(VolumeDataset.from_folder(tmp_path / "bare"))


def test_every_organ_of_every_case_is_asked_for_with_several_slices_and_clicks(source, tmp_path):
    settings = {"organs": [1, 2], "every_organ": True, "repeats": 3, "clicks": 2, "seed": 5, "truth": True}
    dataset = small(source, **settings)
    assert len(dataset) == 3 * 2 * 3 * 2
    cases = [dataset[place] for place in range(len(dataset))]
    assert [(case.name, int(case.label)) for case in cases[::6]] == [
        (name, label) for name in "abc" for label in (1, 2)
    ]  # fmt: skip
    for block in range(0, len(cases), 6):
        cuts = [(case.slices[0].axis, case.slices[0].slice_idx) for case in cases[block : block + 6]]
        assert cuts[::2] == cuts[1::2]  # two clicks on each
        assert len(set(cuts)) == 3
        clicks = [tuple(case.slices[0].click.tolist()) for case in cases[block : block + 6]]
        assert any(first != second for first, second in zip(clicks[::2], clicks[1::2], strict=True))
    again, other = small(source, **settings), small(source, **{**settings, "seed": 6})
    assert torch.equal(again[7].click, cases[7].click)
    assert any(not torch.equal(other[place].click, cases[place].click) for place in range(6))
    with pytest.raises(SettingError, match="clicks: expected a positive number, got 0"):
        small(source, clicks=0)

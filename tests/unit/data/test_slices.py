"""Planes cut from a volume that is mirrored, oblique and anisotropic, checked voxel by voxel."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.slices.choice import Choice, choose_cuts
from voxelry.data.slices.cut import (
    array_axis,
    axis_plane,
    check_click,
    draw_click,
    oblique_plane,
    plane_name,
    plane_normal,
    read_slice,
    regrid,
    take_slice,
    view_plane,
)
from voxelry.io import write_image


@pytest.fixture
def space() -> Space:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3] = np.column_stack([turn * (3.0, 0.8, -1.7), (-40.0, 12.0, 300.0)])
    return Space((7, 9, 11), affine)


@pytest.fixture
def volume(rng) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.from_numpy(rng.normal(size=(2, 7, 9, 11)).astype(np.float32))
    labels = torch.zeros(7, 9, 11, dtype=torch.int64)
    labels[2:5, 3:7, 2:8] = 1
    labels[5, 3:7, 2:8] = 4
    return image, labels


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_of_voxels_is_the_volumes_own(axis, volume, space):
    image, labels = volume
    sample = take_slice(image, labels, space, axis=axis, index=4, label=1, name="a")
    assert torch.equal(sample.image, image.select(axis + 1, 4))
    assert torch.equal(sample.mask, labels.select(axis, 4) == 1)
    assert (sample.axis, sample.slice_idx, sample.volume_space) == (axis, 4, space)
    place = [2, 3, 2]
    place[axis] = 4
    pixel = [value for other, value in enumerate(place) if other != axis]
    np.testing.assert_allclose(sample.space.to_world(np.array(pixel, float)), space.to_world(np.array(place, float)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_along_voxels_is_interpolated_to_the_same_values(axis, volume, space):
    image, labels = volume
    exact = take_slice(image, labels, space, axis=axis, index=3, label=1)
    again = take_slice(image, labels, space, plane=axis_plane(space, axis, 3), label=1)
    torch.testing.assert_close(again.image, exact.image, atol=1e-4, rtol=0)
    assert torch.equal(again.mask, exact.mask)
    assert (again.axis, again.slice_idx) == (None, None)


def test_an_oblique_slice_reads_a_linear_field_exactly(space):
    index = np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1)
    field = space.to_world(index.astype(float)) @ (0.3, -0.5, 0.2)
    plane = oblique_plane(space.to_world(np.array([3.0, 4.0, 5.0])), (1.0, 2.0, -0.5), spacing=(0.7, 0.4), shape=(5, 8))
    sample = take_slice(torch.from_numpy(field[None].astype(np.float32)), None, space, plane=plane)
    pixels = np.stack(np.meshgrid(np.arange(5), np.arange(8), indexing="ij"), axis=-1).astype(float)
    np.testing.assert_allclose(sample.image[0].numpy(), plane.to_world(pixels) @ (0.3, -0.5, 0.2), atol=1e-3)
    assert sample.mask is None


def test_several_labels_are_one_organ(volume, space):
    sample = take_slice(*volume, space, axis=1, index=4, label=(4, 1))
    assert torch.equal(sample.mask, volume[1][:, 4] > 0)
    assert sample.label == 4


def test_an_oblique_plane_has_its_centre_its_normal_and_its_spacing():
    normal = np.array([0.2, -1.0, 0.4])
    plane = oblique_plane((5.0, -3.0, 8.0), normal, spacing=(1.5, 0.5), shape=(4, 7))
    np.testing.assert_allclose(plane.to_world(np.array([1.5, 3.0])), (5.0, -3.0, 8.0), atol=1e-9)
    np.testing.assert_allclose(plane.spacing, (1.5, 0.5))
    np.testing.assert_allclose(plane.directions.T @ plane.directions, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(np.abs(plane_normal(plane) @ normal), np.linalg.norm(normal))
    assert (plane_name(plane), plane.orientation) == ("coronal", "SR")
    assert plane_name(oblique_plane((0, 0, 0), (1, 1, 1), spacing=1.0, shape=3)) == "oblique"


@pytest.mark.parametrize(
    "settings",
    [
        {"normal": (0, 0, 0), "spacing": 1.0, "shape": 3},
        {"normal": (0, 0, 1), "spacing": -1.0, "shape": 3},
        {"normal": (0, 0, 1), "spacing": 1.0, "shape": 0},
    ],
)
def test_planes_that_are_none_are_refused(settings):
    with pytest.raises(SettingError, match="expected"):
        oblique_plane((0, 0, 0), **settings)


def test_a_slice_is_asked_for_in_one_way(volume, space):
    with pytest.raises(SettingError, match="and not both"):
        take_slice(*volume, space)
    with pytest.raises(SettingError, match="expected an axis and a voxel"):
        take_slice(*volume, space, axis=0, index=7)


def test_world_axes_find_their_array_axes():
    canonical = Space.from_spacing((4, 5, 6))
    assert [array_axis(canonical, world) for world in range(3)] == [2, 1, 0]
    with pytest.raises(SettingError, match="sagittal"):
        array_axis(canonical, 3)


def test_views_of_a_slice_do_not_depend_on_the_order_of_its_axes(volume, space):
    image, labels = volume
    one = take_slice(image, labels, space, axis=0, index=3)
    turned = take_slice(image.permute(0, 3, 1, 2).flip(1), labels.permute(2, 0, 1).flip(0),
                        space.reorder((2, 0, 1), (True, False, False)), axis=1, index=3)  # fmt: skip
    centre = space.to_world(np.array([2.0, 4.0, 6.0]))
    views = [view_plane(sample.space, centre, 8.0, 16) for sample in (one, turned)]
    np.testing.assert_allclose(views[0].affine, views[1].affine, atol=1e-9)
    (first, valid), (second, _) = (regrid(sample, view) for sample, view in zip((one, turned), views, strict=True))
    torch.testing.assert_close(first.image, second.image, atol=1e-5, rtol=0)
    assert torch.equal(first.mask, second.mask)
    assert 0 < valid.sum() < 256


def test_a_click_keeps_its_place_in_the_world_when_the_grid_changes(volume, space):
    sample = take_slice(*volume, space, axis=2, index=5).replace(click=torch.tensor([3.0, 4.5]))
    moved, _ = regrid(sample, view_plane(sample.space, sample.click_world + 1.0, 10.0, 20))
    np.testing.assert_allclose(moved.click_world, sample.click_world, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_smaller_than_the_new_pixels_does_not_vanish(axis, volume, space):
    whole = take_slice(*volume, space, axis=axis, index=2, label=1)
    target = view_plane(whole.space, whole.space.to_world((np.asarray(whole.space.shape) - 1) / 2), 60.0, 6)
    for row, column in np.argwhere(np.ones(whole.space.shape))[::5]:
        mask = torch.zeros(whole.space.shape, dtype=torch.bool)
        mask[row, column] = True
        small, _ = regrid(whole.replace(mask=mask), target)
        place = np.round(target.to_index(whole.space.to_world([float(row), float(column)]))).astype(int)
        assert torch.nonzero(small.mask).tolist() == [place.tolist()]
    outside = target.crop((-40, -40), (6, 6))
    assert not regrid(whole.replace(mask=mask), outside)[0].mask.any()


def test_clicks_fall_into_the_mask(rng):
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[2, 3:5] = True
    found = {tuple(draw_click(mask, rng).tolist()) for _ in range(30)}
    assert found == {(2.0, 3.0), (2.0, 4.0)}
    with pytest.raises(DataError, match="no foreground"):
        draw_click(torch.zeros(3, 3, dtype=torch.bool), rng)


def test_clicks_outside_or_in_air_are_refused_in_one_line():
    space = Space.from_spacing((8, 8, 8), 2.0, origin=(10.0, 0.0, 0.0))
    hounsfield = torch.full((1, 8, 8, 8), -1000.0)
    hounsfield[0, 2:6, 2:6, 2:6] = 40.0
    np.testing.assert_allclose(check_click(hounsfield, space, (16.0, 8.0, 10.0)), (5.0, 4.0, 3.0))
    with pytest.raises(DataError, match=r"a\.nii: click \(0, 0, 0\) mm is outside of the volume, which goes from \(10"):
        check_click(hounsfield, space, (0.0, 0.0, 0.0), source="a.nii")
    with pytest.raises(DataError, match="is in air"):
        check_click(hounsfield, space, (10.0, 0.0, 0.0))
    with pytest.raises(DataError, match="finite"):
        check_click(hounsfield, space, (float("nan"), 0.0, 0.0))
    scaled = (hounsfield + 1000) / 1040
    with pytest.raises(DataError, match="is in air"):
        check_click(scaled, space, (24.0, 14.0, 14.0))


def test_a_picture_needs_a_spacing(tmp_path):
    picture = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    path = write_image(tmp_path / "slice.png", picture, Space.from_spacing((4, 5)))
    with pytest.raises(DataError, match=r"slice\.png: says nothing of its spacing"):
        read_slice(path)
    sample = read_slice(path, spacing=(0.5, 0.25))
    assert sample.space.spacing == (0.5, 0.25)
    torch.testing.assert_close(sample.image[0], torch.from_numpy(picture.astype(np.float32).mean(axis=0)))
    placed = oblique_plane((1, 2, 3), (0.3, 0.1, 1.0), spacing=1.0, shape=(4, 5))
    known = read_slice(write_image(tmp_path / "slice.nii.gz", picture[:1], placed))
    assert known.space.is_close(placed)


def test_the_methods_choose_what_they_say(space, rng):
    mask = np.zeros(space.shape, bool)
    mask[2:5, 3:7, 2:8] = True
    mask[1, 3, 3] = True

    def chosen(method, **settings):
        cuts = choose_cuts(mask, space, Choice(**{"method": method, "min_pixels": 1, **settings}), rng)
        return [(cut.axis, cut.index) for cut in cuts]

    worlds = {array_axis(space, world): world for world in range(3)}
    assert set(chosen("all", axes=[worlds[0]])) == {(0, index) for index in range(1, 5)}
    assert set(chosen("all", axes=[worlds[0]], min_pixels=5)) == {(0, index) for index in range(2, 5)}
    assert chosen("central", axes=[worlds[0]]) == [(0, 3)]
    assert chosen("uniform", axes=[worlds[2]], count=2) == [(2, 3), (2, 6)]
    drawn = chosen("random", count=13)
    assert len(set(drawn)) == 13
    assert all(mask.take(index, axis).any() for axis, index in drawn)
    for cut in choose_cuts(mask, space, Choice(method="oblique", count=5, reach=6.0), rng):
        sample = cut.take(torch.zeros(1, *space.shape), torch.from_numpy(mask).long(), space)
        assert sample.mask[tuple(size // 2 for size in sample.mask.shape)]
    with pytest.raises(DataError, match="no foreground"):
        choose_cuts(np.zeros(space.shape, bool), space, Choice(), rng)

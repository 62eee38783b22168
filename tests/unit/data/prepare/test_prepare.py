"""Whole runs of `prepare` on small volumes: what is written, what is kept, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from voxelry.core.errors import DataError, FileError, SettingError
from voxelry.core.space import Space
from voxelry.data.dataset import VolumeDataset
from voxelry.data.layouts.case import Case
from voxelry.data.layouts.find import find_cases
from voxelry.data.layouts.prepared import read_manifest
from voxelry.data.prepare.case import PrepareSettings
from voxelry.data.prepare.files import read_sdf, read_slice_file
from voxelry.data.prepare.planes import PreparedPlanes
from voxelry.data.prepare.run import prepare_all
from voxelry.data.prepare.source import PreparedSlices
from voxelry.data.preprocess.modality import own_values, preprocess_like
from voxelry.data.slices.dataset import SliceDataset
from voxelry.data.slices.upright import upright
from voxelry.engine.prepare import prepare
from voxelry.io import open_image, read_image, write_image
from voxelry.io.meshes import read_mesh

SHAPE, SPACING, CENTRE, RADIUS = (14, 20, 18), (3.0, 1.2, 1.5), np.array([-18.0, 33.0, 60.0]), 9.0


def write_pair(root, name, *, classes=(1, 3), shape=SHAPE, shift=0.0):
    """A ball of class 1 with a small one of class 3 beside it, in axes P, S, L, turned by 15 degrees."""
    turn = np.deg2rad(15)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    axes = rotation @ np.array([[0, 0, -1.0], [-1.0, 0, 0], [0, 1.0, 0]]) * SPACING
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = CENTRE - axes @ ((np.asarray(SHAPE) - 1) / 2) + shift
    space = Space(shape, affine)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = space.to_world(index.astype(float)) - shift
    labels = np.zeros(shape, np.uint8)
    for label, (centre, radius) in {1: (CENTRE, RADIUS), 3: (CENTRE + np.array([13.0, 0, 0]), 3.5)}.items():
        if label in classes:
            labels[np.linalg.norm(world - centre, axis=-1) < radius] = label
    image = np.where(labels > 0, 40.0, -700.0)[None] + np.random.default_rng(1).normal(0, 5, (1, *shape))
    write_image(root / f"{name}-image.nii.gz", image.astype(np.float32), space)
    write_image(root / f"{name}-label.nii.gz", labels[None], space)
    return space


@pytest.fixture
def data(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path / "data", name)
    return tmp_path / "data"


def run(data, out, *, workers=0, on_error="raise", progress=None, **settings):
    chosen = PrepareSettings(**{"classes": 3, "slices_per_class": 3, "spacing": 1.5, "truncation": 10.0, **settings})
    return prepare_all(find_cases(data), out, chosen, workers=workers, on_error=on_error, progress=progress)


def test_everything_of_a_case_agrees_in_world_space(data, tmp_path):
    out = tmp_path / "out"
    record = run(data, out).records[0]
    volume, labels = (read_image(out / record[part]) for part in ("volume", "labels"))
    assert volume.space.orientation == "SAR"
    np.testing.assert_allclose(volume.space.spacing, 1.5, rtol=0.05)  # the extent is rounded to whole voxels
    assert labels.space.is_close(volume.space)
    assert (record["modality"], record["absent"]) == ("ct", [2])
    assert 0 <= volume.array.min() < volume.array.max() <= 1

    ball = 4 / 3 * np.pi * RADIUS**3 / 1000
    assert record["volumes_ml"]["1"] == pytest.approx(ball, rel=0.05)
    assert record["volumes_ml"]["2"] is None
    shape = read_sdf(out / record["sdf"], 1)
    assert shape.space.crop((0, 0, 0), (1, 1, 1)).ndim == 3
    places = np.stack(np.meshgrid(*map(np.arange, volume.space.shape), indexing="ij"), axis=-1).astype(float)
    exact = np.linalg.norm(volume.space.to_world(places) - CENTRE, axis=-1) - RADIUS
    near = np.abs(exact) < 6
    assert np.abs(shape.on(volume.space)[near] - exact[near]).mean() < 0.6
    assert read_sdf(out / record["sdf"], 2) is None
    with pytest.raises(FileError, match="knows nothing of class 7"):
        read_sdf(out / record["sdf"], 7)
    np.testing.assert_array_equal(labels.array[0] == 1, shape.on(volume.space) < 0)

    mesh = read_mesh(out / record["meshes"]["1"])
    assert mesh.is_watertight
    assert mesh.volume_ml == pytest.approx(ball, rel=0.08)  # positive: faces outward on mirrored grids
    np.testing.assert_allclose(mesh.vertices.mean(axis=0), CENTRE, atol=0.6)
    assert set(record["meshes"]) == {"1", "3"}


def test_slices_have_the_keys_of_the_original_and_exact_pointmaps(data, tmp_path):
    out = tmp_path / "out"
    record = run(data, out, slices="random", slices_per_class=6).records[0]
    affine = open_image(out / record["volume"]).space.affine
    for entry in record["slices"]:
        with np.load(out / entry["file"], allow_pickle=False) as found:
            assert {"image", "mask", "pointmap", "affine", "slice_idx", "gt_sdf_path"} <= set(found.files)
            axis, mask = int(found["axis"]), found["mask"]
            assert axis in (0, 1, 2)
            assert str(found["gt_sdf_path"]) == record["sdf"]
            assert found["pointmap"].shape == (3, *mask.shape) == (3, *found["image"].shape[1:])
            np.testing.assert_array_equal(np.isfinite(found["pointmap"]).all(axis=0), mask)
            for row, column in np.argwhere(mask)[::7]:
                voxel = [row, column]
                voxel.insert(2 - axis, int(found["slice_idx"]))  # array order is z, y, x
                world = found["affine"][:3, :3] @ voxel[::-1] + found["affine"][:3, 3]  # NIfTI's is i, j, k
                np.testing.assert_allclose(found["pointmap"][:, row, column], world, atol=1e-4)
            np.testing.assert_allclose(found["affine"][:, [2, 1, 0, 3]][:3], affine[:3], atol=1e-6)
    sample = read_slice_file(out / record["slices"][0]["file"])
    assert sample.mask[tuple(sample.click.long())]
    assert sample.volume_space.shape == open_image(out / record["volume"]).space.shape


@pytest.mark.parametrize(("method", "axes"), [("central", {0, 1}), ("uniform", {0, 1}), ("oblique", {-1})])
def test_other_ways_to_choose_slices(method, axes, data, tmp_path):
    record = run(data, tmp_path / "out", slices=method, axes=(0, 1), slices_per_class=2).records[0]
    assert {entry["axis"] for entry in record["slices"]} == axes
    sample = read_slice_file(tmp_path / "out" / record["slices"][0]["file"])
    assert (sample.plane == "oblique") == (method == "oblique") or method == "oblique"
    assert (sample.slice_idx is None) == (method == "oblique")


def test_finished_cases_are_kept_and_damaged_ones_made_again(data, tmp_path):
    out = tmp_path / "out"
    first = run(data, out)
    assert (sorted(first.made), first.kept) == (["a", "b"], [])
    again = run(data, out)
    assert (again.made, sorted(again.kept)) == ([], ["a", "b"])
    assert again.records == first.records

    damaged = out / first.records[0]["slices"][0]["file"]
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"is damaged \(run voxelry prepare again"):
        read_slice_file(damaged)
    sdf = out / first.records[1]["sdf"]
    flipped = bytearray(sdf.read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    sdf.write_bytes(flipped)
    repaired = run(data, out)
    assert sorted(repaired.made) == ["a", "b"]
    assert damaged.read_bytes() == content

    assert run(data, out, truncation=8.0).kept == []  # other settings
    write_pair(data, "b", classes=(1,))
    assert run(data, out, truncation=8.0).made == ["b"]  # other labels


def test_an_interrupted_run_goes_on_where_it_stopped(data, tmp_path):
    write_pair(data, "c")
    out = tmp_path / "out"

    def interrupt(done, total, name):
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data, out, progress=interrupt)
    manifest = read_manifest(out)
    assert (manifest["complete"], len(manifest["cases"])) == (False, 2)
    # what a kill leaves: an unfinished file, and a case without its record
    (out / "sdf" / ".c.npz.x.part").mkdir(parents=True)
    (out / "cases" / "b.json").unlink()
    report = run(data, out)
    assert (report.made, report.kept) == (["b", "c"], ["a"])
    assert not list(out.rglob("*.part"))
    assert read_manifest(out)["complete"]


def test_processes_share_the_work(data, tmp_path):
    seen = []
    report = run(data, tmp_path / "two", workers=2, progress=lambda *state: seen.append(state))
    assert [state[:2] for state in seen] == [(1, 2), (2, 2)]
    alone = run(data, tmp_path / "one")
    assert report.records == alone.records  # digests included


def test_two_runs_do_not_write_at_once(data, tmp_path):
    out = tmp_path / "out"

    def second(done, total, name):
        with pytest.raises(FileError, match="another voxelry prepare is writing there"):
            run(data, out)

    run(data, out, progress=second)


def test_faults_are_one_line_that_names_the_file(data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"a-label\.nii\.gz: label value 3, but classes is 2; .*--merge 1 --merge 3\)"):
        run(data, out, classes=2)
    write_pair(data, "c", classes=())
    with pytest.raises(DataError, match=r"c-label\.nii\.gz: no foreground, every label is 0"):
        run(data, out)
    report = run(data, out, on_error="skip")
    assert (len(report.records), len(report.faults)) == (2, 1)

    shutil.copy(data / "a-label.nii.gz", data / "c-label.nii.gz")
    write_pair(tmp_path / "other", "c", shape=(14, 20, 17))
    shutil.copy(tmp_path / "other" / "c-image.nii.gz", data / "c-image.nii.gz")
    with pytest.raises(DataError, match=r"c-label\.nii\.gz: shape \(14, 20, 18\), but its image .* has \(14, 20, 17\)"):
        run(data, out)
    write_pair(tmp_path / "other", "c", shift=40.0)
    shutil.copy(tmp_path / "other" / "c-image.nii.gz", data / "c-image.nii.gz")
    with pytest.raises(DataError, match=r"c-label\.nii\.gz: lies elsewhere than its image"):
        run(data, out)


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (lambda image: image * np.nan, "a-image.nii.gz: 5040 of 5040 voxels are NaN or infinite"),
        (lambda image: image * 0 + 7, "a-image.nii.gz: every voxel is 7; expected an image with contrast"),
        (lambda image: image + 9000, "a-image.nii.gz: no contrast from -1000 to 2000 Hounsfield units.*--window"),
    ],
)
def test_an_image_with_nothing_to_see_is_refused(pixels, fault, data, tmp_path):
    image = read_image(data / "a-image.nii.gz")
    write_image(data / "a-image.nii.gz", pixels(image.array), image.space)
    with pytest.raises(DataError, match=fault):
        run(data, tmp_path / "out", modality="ct")
    assert not list((tmp_path / "out").glob("[vls]*/*"))


def test_what_is_told_of_volumes_is_what_was_written(data, tmp_path):
    for spacing in (0.8, 2.0, 3.0):
        out = tmp_path / str(spacing)
        record = run(data, out, spacing=spacing).records[0]
        labels = read_image(out / record["labels"])
        voxel = np.prod(labels.space.spacing) / 1000
        for label in (1, 3):
            assert record["volumes_ml"][str(label)] == pytest.approx((labels.array == label).sum() * voxel)
        assert record["volumes_ml"]["1"] == pytest.approx(record["drawn_volumes_ml"]["1"], rel=0.02)
        ball = 4 / 3 * np.pi * RADIUS**3 / 1000
        assert read_mesh(out / record["meshes"]["1"]).volume_ml == pytest.approx(ball, rel=0.05)


def test_a_structure_that_the_grid_loses_is_warned_of_by_name(tmp_path):
    space = Space.from_spacing((20, 20, 20), 1.0)
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:15, 5:15, 5:15] = 1
    labels[2, 2, 2] = 2
    folder = tmp_path / "data"
    write_image(folder / "imagesTr" / "a.nii.gz", np.random.default_rng(0).normal(size=(1, 20, 20, 20)), space)
    write_image(folder / "labelsTr" / "a.nii.gz", labels[None], space)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "air", "1": "liver", "2": "duct"}}))
    record = run(folder, tmp_path / "out", classes=2, spacing=5.0).records[0]
    assert [line.split(" ")[:2] for line in record["warnings"]] == [["a:", "duct"]]
    assert "vanishes on the grid of 5 x 5 x 5 mm" in record["warnings"][0]
    assert (record["absent"], record["volumes_ml"]["2"]) == ([2], None)
    summary = prepare(folder, tmp_path / "out", classes=2, spacing=5.0, truncation=10.0, slices_per_class=3)
    assert record["warnings"][0] in summary.render()


def test_blocks_that_touch_go_on_touching(tmp_path):
    """Their faces lie in the middle of the new voxels: distances of exactly 0, for both."""
    space = Space.from_spacing((40, 40, 60), 1.0)
    labels = np.zeros(space.shape, np.uint8)
    labels[11:27, 11:27, 11:27], labels[11:27, 11:27, 27:43] = 1, 2
    image = np.random.default_rng(0).normal(size=(1, *space.shape))
    write_image(tmp_path / "data" / "a-image.nii.gz", image, space)
    write_image(tmp_path / "data" / "a-label.nii.gz", labels[None], space)
    record = run(tmp_path / "data", tmp_path / "out", classes=2, spacing=2.0).records[0]
    found = read_image(tmp_path / "out" / record["labels"]).array[0]
    for label in (1, 2):
        assert (found == label).sum() * 8 == pytest.approx(16**3, rel=0.02)
        inside = read_sdf(tmp_path / "out" / record["sdf"], label).on(
            open_image(tmp_path / "out" / record["labels"]).space
        )
        np.testing.assert_array_equal(inside < 0, found == label)
    assert ((found[..., :-1] == 1) & (found[..., 1:] == 2)).sum() >= 36


@pytest.mark.parametrize(
    "settings",
    [{"spacing": 0.0}, {"classes": 0}, {"axes": (3,)}, {"axes": ()}, {"slices": "some"}, {"modality": "pet"},
     {"window": "spleen"}, {"merge": [[0]]}, {"truncation": -1.0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingError, match="expected"):
        PrepareSettings(**settings)


def test_classes_can_be_merged(data, tmp_path):
    report = run(data, tmp_path / "out", classes=None, merge=[[1, 3]])
    assert list(report.records[0]["volumes_ml"]) == ["1"]
    assert read_image(tmp_path / "out" / report.records[0]["labels"]).array.max() == 1
    assert read_manifest(tmp_path / "out")["settings"]["classes"] == 1


def test_masks_of_one_organ_each_are_put_together(tmp_path):
    space = write_pair(tmp_path / "pairs", "a")
    labels = read_image(tmp_path / "pairs" / "a-label.nii.gz").array
    case = tmp_path / "total" / "s0001"
    case.mkdir(parents=True)
    shutil.copy(tmp_path / "pairs" / "a-image.nii.gz", case / "ct.nii.gz")
    for name, label in (("liver", 1), ("spleen", 3)):
        write_image(case / "segmentations" / f"{name}.nii.gz", (labels == label).astype(np.uint8), space)
    report = run(tmp_path / "total", tmp_path / "out", classes=None)
    assert report.records[0]["absent"] == []
    assert read_manifest(tmp_path / "out")["classes"] == {"1": "liver", "2": "spleen"}
    drawn = (labels == 3).sum() * np.prod(SPACING) / 1000
    assert report.records[0]["drawn_volumes_ml"]["2"] == pytest.approx(drawn)
    assert report.records[0]["volumes_ml"]["2"] == pytest.approx(drawn, rel=0.015)


def test_a_prepared_folder_is_a_source_of_prompts(data, tmp_path):
    out = tmp_path / "out"
    run(data, out, slices="uniform")
    source = PreparedSlices(out)
    dataset = SliceDataset(source, organs=[1], slices=2, grid=16, image_size=32, truncation=10.0, truth=True)
    case = dataset[1]
    assert (case.name, case.image.shape, case.truth.dtype) == ("b", (2, 1, 32, 32), torch.bool)
    assert float(case.image.min()) >= 0
    assert float(case.image.max()) <= 1
    points = case.pointmap[0][:, case.mask_target[0] > 0].T * case.edge + case.centre
    turn = upright(open_image(out / "labels" / "b.nii.gz").space)[:3, :3]
    assert not np.allclose(turn, np.eye(3))
    assert np.linalg.norm(points.numpy() @ turn - CENTRE, axis=1).max() < RADIUS + 2.0
    listed = SliceDataset(source, organs=[1], method="all", axes=(1,), edge=40.0, grid=None, image_size=16)
    assert len(listed) == 2 * 3
    assert {listed[place].slices[0].plane for place in range(6)} == {"coronal"}
    volumes = VolumeDataset.from_folder(out)  # it is a folder of volumes and labels as well
    assert [case.name for case in volumes.cases] == ["a", "b"]
    assert source.preprocess().settings()["window"] == [-1000.0, 2000.0]
    with pytest.raises(SettingError, match="merge"):
        source.organs_of(0, [(1, 3)])
    with pytest.raises(DataError, match="no case 'z'"):
        PreparedSlices(out, names=["z"])
    with pytest.raises(FileError, match="no such file; expected a folder made by voxelry prepare"):
        PreparedSlices(tmp_path / "data")
    (out / "manifest.json").write_text(json.dumps({"version": 0}))
    with pytest.raises(FileError, match="is damaged"):
        read_manifest(out)


def test_labels_in_another_order_of_axes_are_brought_to_the_image(data, tmp_path):
    straight = run(data, tmp_path / "straight")
    labels = read_image(data / "a-label.nii.gz")
    turned = labels.array.transpose(0, 3, 1, 2)[:, ::-1]
    write_image(data / "a-label.nii.gz", turned, labels.space.reorder((2, 0, 1), (True, False, False)))
    again = run(data, tmp_path / "turned")
    for part in ("labels", "sdf"):
        assert (
            again.records[0]["written"][again.records[0][part]]
            == straight.records[0]["written"][straight.records[0][part]]
        )


def test_slices_name_surface_and_scale_and_show_every_class(data, tmp_path):
    out = tmp_path / "out"
    record = run(data, out, sdf="full", oblique=0.5, slices_per_class=6).records[0]
    assert {entry["axis"] for entry in record["slices"]} > {-1}
    whole = read_image(out / record["labels"])
    full = np.load(out / record["sdf_full"], mmap_mode="r", allow_pickle=False)
    assert (full.shape, full.dtype, record["sdf_full"]) == ((3, *whole.space.shape), np.float32, "sdf/a_sdf.npy")
    for label in (1, 2, 3):
        np.testing.assert_array_equal(full[label - 1] < 0, whole.array[0] == label)
    np.testing.assert_allclose(full[0], read_sdf(out / record["sdf"], 1).on(whole.space), atol=0.17)
    assert (full[1] == 10.0).all()
    for entry in record["slices"]:
        with np.load(out / entry["file"], allow_pickle=False) as found:
            assert str(found["gt_sdf_path"]) == record["sdf_full"]
            assert str(found["gt_mesh_path"]) == record["meshes"][str(entry["label"])]
            assert read_mesh(out / str(found["gt_mesh_path"])).is_watertight
            np.testing.assert_array_equal(found["labels"] == entry["label"], found["mask"])
            shift, scale = found["pointmap_shift"], found["pointmap_scale"]
            assert shift.shape == scale.shape == (3,)
            normal = (found["pointmap"][:, found["mask"]] - shift[:, None]) / scale[:, None]
            np.testing.assert_allclose(np.median(normal, axis=1), 0, atol=1e-4)
            assert np.linalg.norm(normal, axis=0).mean() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("cached", [True, False])
def test_a_slice_shows_several_organs(cached, data, tmp_path):
    out = tmp_path / "out"
    run(data, out, slices="all")
    planes = PreparedPlanes(out, classes=[1, 3], method="central", axes=(2,), cache_slices=cached, distances=True)
    assert [(planes[place]["name"], planes[place]["label"]) for place in range(4)] == [
        ("a", 1), ("a", 3), ("b", 1), ("b", 3),
    ]  # fmt: skip
    both = planes[0]
    labels = read_image(out / "labels" / "a.nii.gz")
    wanted = labels.array[0][both["slice_idx"]]
    np.testing.assert_array_equal(both["masks"].numpy(), np.stack([wanted == 1, wanted == 3]))
    assert both["masks"][1].any()
    np.testing.assert_array_equal(both["mask"][0], both["masks"][0])
    assert both["mask_sdf"].shape == (2, *labels.space.shape)
    np.testing.assert_array_equal(both["mask_sdf"][1] < 0, labels.array[0] == 3)
    middle = labels.space.to_index(CENTRE)[0]
    assert abs(both["slice_idx"] - middle) <= 1
    row, column = both["click"].long().tolist()
    assert both["mask"][0, row, column] == 1
    square = PreparedPlanes(out, cache_slices=cached, image_size=48)
    first, again = square[1], square[1]
    assert first["image"].shape == (1, 48, 48)
    assert first["masks"].shape == (3, 48, 48)
    assert torch.equal(first["image"], again["image"])
    square.set_epoch(1)
    assert not torch.equal(first["click"], square[1]["click"])
    points = first["pointmap"][:, first["mask"][0] > 0]
    seen = torch.nonzero(first["mask"][0]).double()
    world = torch.cat([seen, torch.ones(len(seen), 1)], dim=1) @ first["plane_affine"].T
    np.testing.assert_allclose(points.T.numpy(), world[:, :3].numpy(), atol=1e-3)
    with pytest.raises(SettingError, match=r"classes: expected some of \[1, 2, 3\], got 9"):
        PreparedPlanes(out, classes=[9])
    with pytest.raises(DataError, match="no case of split 'train', none has one; leave split out"):
        PreparedPlanes(out, split="train")


def test_slices_on_disk_are_chosen_as_prepare_chooses_them(data, tmp_path):
    out = tmp_path / "out"
    run(data, out, slices="all")
    source, made = PreparedSlices(out), {}
    for method, count in (("all", 1), ("uniform", 2), ("central", 1), ("random_axis", 1)):
        dataset = SliceDataset(source, organs=[1], method=method, count=count, edge=40.0, grid=None, image_size=16)
        made[method] = [dataset[place].slices[0] for place in range(len(dataset))]
    assert len(made["uniform"]) == 2 * 3 * 2
    assert len(made["central"]) == 2 * 3
    assert len(made["random_axis"]) == 2
    assert len(made["all"]) > 60
    middle = open_image(out / "labels" / "a.nii.gz").space.to_index(CENTRE)
    for sample in made["central"][:3]:
        assert abs(sample.slice_idx - middle[sample.axis]) <= 1


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_volume_that_was_prepared_is_not_scaled_again(modality, data, tmp_path):
    out = tmp_path / "out"
    record = run(data, out, modality=modality).records[0]
    scanner = read_image(data / "a-image.nii.gz")
    like = preprocess_like(modality, 1.5)
    cases = [Case("a", path) for path in (out / record["volume"], data / "a-image.nii.gz")]
    found = [VolumeDataset([case], preprocess=like).preprocessed(0).image for case in cases]
    assert float(found[0].max() - found[0].min()) > 0.15
    assert found[0].shape == found[1].shape
    assert float((found[0] - found[1]).abs().mean()) < 0.01
    values = own_values(open_image(out / record["volume"]))
    assert values.min() == pytest.approx(scanner.array.min(), abs=15)
    raw = open_image(data / "a-image.nii.gz")
    np.testing.assert_array_equal(own_values(raw), raw.read())
    again = run_again(out, tmp_path / "again", modality)
    np.testing.assert_allclose(again, read_image(out / record["volume"]).array, atol=0.02)


def run_again(source, out, modality):
    """The volumes of a prepared folder prepared once more, on their own grid."""
    settings = PrepareSettings(spacing=1.5, classes=3, slices_per_class=1, truncation=10.0, modality=modality)
    record = prepare_all(find_cases(source), out, settings).records[0]
    return read_image(out / record["volume"]).array


def test_the_example_in_the_documentation_runs_on_data_without_a_split(data, tmp_path, monkeypatch, capsys):
    labels = read_image(data / "a-label.nii.gz")
    for name in ("a", "b"):
        write_image(data / f"{name}-label.nii.gz", np.minimum(labels.array, 2), labels.space)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    data.rename(tmp_path / "datasets" / "organs")
    page = (Path(__file__).parents[4] / "docs" / "prepare.md").read_text(encoding="utf-8")
    lines = page.split("## From Python")[1].splitlines()
    found: dict[str, object] = {}
    exec("\n".join(line[4:] for line in lines if line.startswith("    ")), found)
    assert "2 cases prepared" in capsys.readouterr().out
    assert found["case"].sdf.shape == (1, 64, 64, 64)
    assert found["plane"]["masks"].shape == (5, 256, 256)
    assert len(found["plane"]["mask_sdf"]) == 5


def test_a_mesh_that_lacks_of_its_organ_s_volume_is_told_by_name(tmp_path):
    """A single voxel of a diamond's mesh encloses a sixth of it; a ball keeps its volume, and isn't told of."""
    space = Space.from_spacing((20, 22, 24), (2.0, 1.5, 1.5))
    index = np.stack(np.meshgrid(*map(np.arange, space.shape), indexing="ij"), axis=-1)
    labels = np.zeros(space.shape, np.uint8)
    labels[np.linalg.norm(space.to_world(index.astype(float)) - 18.0, axis=-1) < 9] = 1
    labels[2, 3, 4] = 2
    (tmp_path / "data").mkdir()
    write_image(tmp_path / "data" / "a-image.nii.gz", labels[None] + np.float32(0.1) * index[None, ..., 0], space)
    write_image(tmp_path / "data" / "a-label.nii.gz", labels[None], space)
    record = run(tmp_path / "data", tmp_path / "out", spacing=1.5, classes=2).records[0]
    mesh = read_mesh(tmp_path / "out" / record["meshes"]["2"])
    voxel = 2.0 * 1.5 * 1.5 / 1000
    assert 0 < mesh.volume_ml < 0.9 * voxel
    told = f"a: class 2: its mesh encloses {mesh.volume_ml:.3g} ml, its voxels {voxel:.3g} ml; it is small or thin"
    assert [line for line in record["warnings"] if "encloses" in line] == [f"{told} for them"]


def test_a_grid_beyond_memory_is_refused_in_one_line(data, tmp_path, monkeypatch):
    monkeypatch.setattr("voxelry.core.memory.available_memory", lambda: 8_000_000_000)
    fault = (
        r"^.*a-image\.nii\.gz: too large a grid of 0.0\d+ x .* mm, \d+ x \d+ x \d+ voxels need about [\d.]+ GB, and "
    )
    with pytest.raises(
        DataError, match=fault + r"there are 8\.0 GB; give larger voxels \(the image's own are "
    ) as caught:
        run(data, tmp_path / "out", spacing=0.01)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "out" / "volumes").glob("*"))

"""The reconstruction task on balls whose geometry is known."""

import numpy as np
import pytest
import torch

from voxelry.core.errors import DataError, SettingError
from voxelry.core.space import Space
from voxelry.data.slices.case import ViewSettings, build_case, collate_slices
from voxelry.data.slices.cut import oblique_plane, take_slice
from voxelry.data.slices.organ_shape import OrganShape
from voxelry.models.shape import Prompt, ShapeNet
from voxelry.ops.sdf import canonical_space
from voxelry.tasks.reconstruct import ReconstructTask, losses
from voxelry.tasks.reconstruct.baselines import ellipsoid, nearest_shape
from voxelry.tasks.reconstruct.predict import cut_iou, meet_contours
from voxelry.tasks.reconstruct.targets import make_targets, mean_shape

SMALL = {
    "image_size": 32, "grid": 16, "prior_grid": 32, "width": 8, "multipliers": (1, 2), "volume_width": 8,
    "volume_multipliers": (1, 2), "context": 16,
}  # fmt: skip
SPACE = Space(
    (20, 24, 28),
    np.array([[0.1, 0.2, -1.5, 30.0], [0.1, 2.0, 0.1, -8.0], [2.5, -0.1, 0.1, 5.0], [0, 0, 0, 1.0]]),
)
MIDDLE = np.asarray(SPACE.to_world([10.0, 12.0, 14.0]))  # a voxel


def ball(centre, radius, space=SPACE):
    """Voxels of a ball in the world, on an oblique, mirrored, anisotropic grid."""
    index = np.stack(np.meshgrid(*[np.arange(size) for size in space.shape], indexing="ij"), axis=-1)
    return np.linalg.norm(space.to_world(index.astype(float)) - centre, axis=-1) < radius


def ball_case(radius=9.0, *, click=(0.0, 0.0, 0.0), give_mask=False, axis=0, grid=16, edge=48.0, plane=None):
    """A click in a ball around the middle of the volume, `click` mm from it."""
    mask = ball(MIDDLE, radius)
    image, labels = torch.from_numpy(mask.astype(np.float32))[None], torch.from_numpy(mask.astype(np.int64))
    place = MIDDLE + np.asarray(click)
    index = round(float(np.asarray(SPACE.to_index(place))[axis]))
    where = {"plane": plane} if plane is not None else {"axis": axis, "index": index}
    cut = take_slice(image, labels, SPACE, name="ball", **where)
    at = torch.from_numpy(np.asarray(cut.space.to_index(place))).float()
    shape = OrganShape.of_mask(mask, SPACE, 12.0)
    views = ViewSettings(image_size=32, grid=grid, truncation=12.0)
    case = build_case([cut.replace(click=at)], edge=edge, views=views, give_mask=give_mask, shape=shape)
    return case.replace(truth=torch.from_numpy(mask))


def small_task(*, grid=16, **settings):
    network = ShapeNet(**{**SMALL, "grid": grid})
    shape = OrganShape.of_mask(ball(MIDDLE, 9.0), SPACE, 12.0)
    network.set_mean_shape(mean_shape([shape], 48.0, 32, 12.0))
    return ReconstructTask(network, edges=[48.0], baseline_shapes=2, **settings)


def test_the_mean_of_one_shape_is_that_shape_and_its_own_size_is_no_change():
    task = small_task()
    batch = collate_slices([ball_case()])
    targets = make_targets(batch, task.network.prior, torch.tensor([0]), 0.2)
    assert targets.log_edge.abs() < 0.05  # cells of 3 mm in a ball of 9
    assert targets.offset.abs().max() < 0.05
    twice = collate_slices([ball_case(12.0)])
    grown = make_targets(twice, task.network.prior, torch.tensor([0]), 0.2)
    assert grown.log_edge.item() == pytest.approx(np.log(12 / 9), abs=0.06)


def test_a_mean_of_different_shapes_encloses_their_mean_volume():
    shapes = []
    for normal in np.eye(3):
        along = (np.stack(np.meshgrid(*[np.arange(size) for size in SPACE.shape], indexing="ij"), axis=-1)).astype(
            float
        )
        away = SPACE.to_world(along) - MIDDLE
        shapes.append(
            OrganShape.of_mask(np.linalg.norm(away + away @ np.outer(normal, normal), axis=-1) < 9, SPACE, 12.0)
        )
    edge = 40.0
    mean = mean_shape(shapes, edge, 40, 12.0)
    expected = np.exp(np.mean([np.log(shape.volume_ml) for shape in shapes]))
    assert float((mean < 0).float().mean()) * edge**3 / 1000 == pytest.approx(expected, rel=0.03)


def test_the_offset_target_is_where_the_centroid_is_from_the_click():
    case = ball_case(click=(3.0, -2.0, 4.0))
    targets = make_targets(collate_slices([case]), small_task().network.prior, torch.tensor([0]), 0.2)
    assert targets.offset[0].numpy() * 48 == pytest.approx([-3.0, 2.0, -4.0], abs=0.7)


def test_losses_of_the_truth_are_nothing_and_worse_shapes_cost_more():
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0) - 11.5] * 3, indexing="ij"))
    truth = (grid.norm(dim=0) - 6)[None, None]
    step = torch.ones(1, 1, 1, 1, 1)
    assert losses.sdf_loss(truth, truth, 4.0) == 0
    assert losses.overlap_loss(truth, truth, 0.01) < 0.01
    grown = [losses.overlap_loss(truth - change, truth, 0.3).item() for change in (-0.6, 0.0, 0.6)]
    assert grown.index(min(grown)) == 1
    assert losses.eikonal_loss(truth, truth, step, 4.0) < 0.01
    assert losses.eikonal_loss(2 * truth, truth, step, 4.0) == pytest.approx(1.0, abs=0.05)
    # 2 / r is the Laplacian of a ball's distance, about 1 / 3 at its surface
    assert losses.smoothness_loss(truth, truth, step, 1.0).sqrt() == pytest.approx(1 / 3, abs=0.05)
    moved = truth + 1
    for loss in (losses.overlap_loss(moved, truth, 1.0), losses.occupancy_loss(moved, truth, 1.0, 4.0)):
        assert loss > 0.1
    assert losses.sdf_loss(moved, truth, 4.0) == pytest.approx(1.0)


def test_the_chamfer_loss_is_the_distance_of_the_surfaces_and_moves_them():
    grid = torch.stack(torch.meshgrid(*[torch.arange(24.0) - 11.5] * 3, indexing="ij"))
    truth = (grid.norm(dim=0) - 6)[None, None]
    change = torch.tensor(1.0, requires_grad=True)
    loss = losses.chamfer_loss(truth + change, truth, torch.full((1, 1, 1, 1, 1), 2.0))
    loss.backward()
    assert loss.item() == pytest.approx(2.0, abs=0.2)  # a radius smaller by a cell of 2 mm
    assert change.grad > 0
    empty = losses.chamfer_loss(torch.ones_like(truth, requires_grad=True), truth, torch.ones(1, 1, 1, 1, 1))
    assert empty == 0


def test_the_curriculum_brings_dense_losses_in_slowly():
    assert [losses.stage_of("sdf", seen, 10) for seen in (0, 5, 20)] == [0.0, 0.5, 1.0]
    assert losses.stage_of("occupancy", 0, 10) == 1.0
    task = small_task(curriculum_batches=2).train()
    batch = collate_slices([ball_case()])
    assert "sdf" not in task.training_loss(batch)
    assert "sdf" in task.training_loss(batch)


def test_training_makes_the_answer_better():
    task = small_task(weights={"chamfer": 0.02, "smoothness": 0.1}).train()
    batch = collate_slices([ball_case(7.0, click=(2, 2, -2)), ball_case(12.0, axis=2, give_mask=True)])
    optimizer = torch.optim.Adam(task.network.parameters(), lr=3e-3)
    history = []
    for _ in range(16):
        found = task.training_loss(batch)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        history.append(found["overlap"].item())
    assert history[-1] < 0.85 * history[0]
    for part in (task.network.size_head, task.network.encoder.mask_head, task.network.decoder):
        assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in part.parameters())


def test_an_untrained_network_answers_the_mean_shape_at_the_click_in_the_world():
    task = small_task(contour=0, grid=32).eval()
    batch = collate_slices([ball_case(click=(4.0, 0.0, 0.0))])
    (found,) = task.predict(batch)
    assert found.mesh.is_watertight
    assert found.mesh.volume > 0
    assert found.mesh.vertices.mean(axis=0) == pytest.approx(found.clicks[0], abs=0.5)
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 9**3 / 1000, rel=0.1)
    voxel = abs(np.linalg.det(SPACE.affine[:3, :3])) / 1000
    assert found.mask().sum() * voxel == pytest.approx(found.volume_ml, rel=0.1)
    (row,) = task.metrics([found], batch)
    assert row["dice"] == pytest.approx(row["mean_shape_dice"], abs=0.03)
    assert 0.5 < row["dice"] < 0.8
    assert row["plane"] == "axial"


def test_averaging_frames_of_a_symmetric_answer_changes_little():
    batch = collate_slices([ball_case(click=(1.0, 2.0, 0.0))])
    network = ShapeNet(**{**SMALL, "grid": 32})  # answers an exact ball until it is told of other shapes
    plain, both = (
        ReconstructTask(network, edges=[48.0], contour=0, mirror=more, recentre=more).eval().predict(batch)[0]
        for more in (False, True)
    )
    near = np.abs(plain.sdf) < 4
    assert np.abs(plain.sdf - both.sdf)[near].max() < 0.5
    assert not plain.hypotheses
    assert not both.hypotheses  # four looks of one network say nothing of what else is possible
    assert not both.mesh.values


def test_a_summary_has_the_means_of_each_organ_and_an_interval_over_cases():
    task = small_task()
    rows = [
        {"name": name, "organ": organ, "plane": "axial", "dice": dice, "hd95_mm": far}
        for name, organ, dice, far in (
            ("a", "liver", 0.9, 2.0), ("a", "liver", 0.7, float("nan")), ("a", "spleen", 0.5, 8.0),
            ("b", "liver", 0.8, 4.0), ("b", "spleen", 0.1, 6.0),
        )
    ]  # fmt: skip
    found = task.summary(rows)
    assert found["dice"] == pytest.approx(0.6)
    assert (found["liver/dice"], found["liver/hd95_mm"], found["liver/prompts"]) == pytest.approx((0.8, 3.0, 3))
    assert (found["spleen/dice"], found["spleen/prompts"]) == pytest.approx((0.3, 2))
    assert found["dice_low"] == pytest.approx(0.45)  # both draws are b
    assert found["dice_high"] == pytest.approx(0.7)  # both are a
    assert not [name for name in task.summary(rows[:2]) if "/" in name]


@pytest.mark.parametrize("oblique", [False, True])
def test_a_given_mask_is_met_on_its_slice_and_not_far_from_it(oblique):
    plane = oblique_plane(MIDDLE, (1, 1, 0.5), spacing=1.0, shape=41) if oblique else None
    batch = collate_slices([ball_case(12.0, give_mask=True, grid=32, plane=plane)])
    network = small_task(grid=32).network
    loose, tight = (
        ReconstructTask(network, edges=[48.0], baseline_shapes=0, contour=reach).eval().predict(batch)[0]
        for reach in (0.0, 4.0)
    )
    assert loose.on_slice_mm == pytest.approx(3.0, abs=0.6)  # the mean ball's radius is 9 mm
    assert tight.on_slice_mm < 0.4
    assert np.allclose(loose.sdf[np.abs(loose.sdf - tight.sdf) < 1e-6], tight.sdf[np.abs(loose.sdf - tight.sdf) < 1e-6])
    assert np.abs(loose.sdf - tight.sdf).max() < 5.0


def test_contours_that_are_met_already_change_nothing():
    batch = collate_slices([ball_case(9.0, give_mask=True)])
    prompt = Prompt(**{**batch.prompt(), "label": torch.zeros(1, dtype=torch.long)})
    sdf = batch.sdf
    unknown = torch.full((1, 1, 32, 32), torch.nan)
    same = meet_contours(sdf, prompt, torch.tensor([48.0]), unknown, reach=4.0, most=8.0)
    assert torch.equal(same, sdf)


def test_a_predicted_mask_is_met_only_where_the_shape_has_much_in_common_with_it():
    batch = collate_slices([ball_case(9.0)])
    near = batch.mask_target.clone()
    far = torch.roll(near, 10, dims=-1)
    task = small_task(contour=3.0, contour_predicted=True)
    prompt = task.prompt(batch)
    assert float(cut_iou(batch.sdf, prompt, near > 0)) > 0.8
    assert 0 < float(cut_iou(batch.sdf, prompt, far > 0)) < 0.3
    assert float(cut_iou(batch.sdf, prompt, torch.zeros_like(near, dtype=torch.bool))) == 0
    assert task._outlines(batch, prompt, near, batch.sdf).isfinite().any()
    assert not task._outlines(batch, prompt, far, batch.sdf).isfinite().any()
    given = collate_slices([ball_case(9.0, give_mask=True)])
    assert task._outlines(given, prompt, far, batch.sdf).isfinite().any()  # what is known is met in any case


def test_the_ellipsoid_of_a_ball_through_its_middle_is_the_ball():
    case = ball_case(9.0)
    mask = case.slices[0].mask.numpy()
    found = ellipsoid(mask, case.slices[0].space, SPACE)
    truth = case.truth.numpy()
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93


def test_the_nearest_shape_is_the_one_of_the_same_size_put_at_the_slice():
    edge = 40.0
    cells = canonical_space((0, 0, 0), edge, 32)
    radii = np.linalg.norm(cells.to_world(np.argwhere(np.ones((32,) * 3)).astype(float)), axis=1).reshape((32,) * 3)
    shapes = np.stack([radii - radius for radius in (5.0, 9.0, 14.0)]).astype(np.float32)
    case = ball_case(9.0)
    found = nearest_shape(shapes, [edge] * 3, case.slices[0].mask.numpy(), case.slices[0].space, SPACE)
    truth = ball(MIDDLE, 9.0)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85


def test_baselines_are_kept_and_summaries_leave_out_what_is_unknown():
    task = small_task().eval()
    cases = [ball_case(9.0), ball_case(9.0, axis=1)]
    task.fit_baseline([case.replace(name=name) for case, name in zip(cases, "ab", strict=True)])
    assert task.baselines.kept_labels.tolist() == [1, 1]
    batch = collate_slices([cases[0]])
    rows = task.metrics(task.predict(batch), batch)
    assert rows[0]["nearest_shape_dice"] > 0.8
    summary = task.summary([*rows, {**rows[0], "dice": 0.5, "dice_20_mm_on": float("nan")}])
    assert summary["dice"] == pytest.approx((rows[0]["dice"] + 0.5) / 2)
    assert summary["dice_low"] <= summary["dice"] <= summary["dice_high"]


def test_settings_make_the_same_task_again():
    task = small_task(organ_names=["ball"], weights={"sdf": 0.7})
    again = ReconstructTask(ShapeNet(**SMALL), **task.settings())
    assert again.settings() == task.settings()
    assert again.weights["sdf"] == 0.7
    again.load_state_dict(task.state_dict())


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"weights": {"color": 1.0}}, "weights: expected names of"),
        ({"organs": [1, 2]}, "organs: expected 1"),
        ({"edges": [-1.0]}, "edges: expected 1 positive"),
        ({"tau": 0.0}, "tau: expected a positive"),
    ],
)
def test_settings_that_can_t_be_are_refused(settings, fault):
    with pytest.raises(SettingError, match=fault):
        ReconstructTask(ShapeNet(**SMALL), **{"edges": [48.0], **settings})


def test_a_label_that_is_no_organ_and_a_missing_truth_are_refused():
    task = small_task()
    case = ball_case()
    with pytest.raises(DataError, match="label 4: expected one of 1"):
        task.predict(collate_slices([case.replace(label=torch.tensor(4))]))
    with pytest.raises(DataError, match="no true shape"):
        task.training_loss(collate_slices([case.replace(sdf=None)]))


def test_an_adapter_trains_little_and_merges_into_an_ordinary_network():
    task = small_task().train()
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    task.adapt("ball", {"rank": 2, "alpha": 4, "targets": "convolutions"}, head_rate=1e-5)
    groups = list(task.parameter_groups())
    assert {group["name"] for group in groups} == {"adapter", "heads"}
    assert [group.get("lr") for group in groups if group["name"] == "heads"] == [1e-5]
    assert all("lr" not in group for group in groups if group["name"] == "adapter")
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    batch = collate_slices([ball_case(12.0)])
    for _ in range(2):
        task.training_loss(batch)["loss"].backward()
        optimizer.step()
    task.eval()
    with torch.no_grad():
        expected = task.network(task.prompt(batch)).sdf
    task.merge_adapter()
    assert set(task.network.state_dict()) == set(before)
    torch.testing.assert_close(task.eval().network(task.prompt(batch)).sdf, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(SettingError, match="adapter: "):
        small_task().adapt("ball", {"ranks": 2})

"""Shapes from slices: geometry by hand, and what must not depend on how a slice is stored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml
from torch.testing import assert_close

from voxelry.core.errors import SettingError
from voxelry.models.shape import Prompt, ShapeNet
from voxelry.models.shape.decoder import factors
from voxelry.models.shape.encoder import plane_geometry
from voxelry.models.shape.prior import MeanShape, truncate
from voxelry.ops.prompt import box_points, click_heatmap, frame_points, plane_points, project, sample_plane

SMALL = {
    "conv": {
        "decoder": "conv",
        "grid": 16,
        "image_size": 16,
        "width": 8,
        "multipliers": (1, 2),
        "volume_width": 8,
        "volume_multipliers": (1, 2),
        "focus_grid": 8,
        "context": 16,
        "prior_grid": 16,
    },
    "transformer": {
        "decoder": "transformer",
        "grid": 12,
        "image_size": 16,
        "patch": 4,
        "dim": 16,
        "depth": 1,
        "decoder_depth": 1,
        "heads": 2,
        "tokens": 3,
        "volume_width": 8,
        "context": 16,
        "prior_grid": 16,
    },
}
KINDS = sorted(SMALL)


def oblique(samples: int = 1, slices: int = 1) -> torch.Tensor:
    """Skewed, anisotropic, left-handed planes near the middle of the frame, all different."""
    axes = torch.tensor([[0.01, 0.05], [-0.06, 0.0], [0.01, 0.02]])
    axes = axes + 0.005 * torch.randn(samples, slices, 3, 2)
    middle = axes.sum(dim=-1, keepdim=True) * 7.5
    return torch.cat((axes, 0.1 * torch.randn(samples, slices, 3, 1) - middle), dim=-1)


def prompt(samples: int = 2, slices: int = 1, **given) -> Prompt:
    image = torch.randn(samples, slices, 1, 16, 16)
    return Prompt.build(image, oblique(samples, slices), click=torch.full((samples, slices, 2), 7.0), **given)


def trained(kind: str, **settings) -> ShapeNet:
    """A network whose last layers are not zero any more."""
    network = ShapeNet(**{**SMALL[kind], **settings})
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_cells_lie_in_array_order_with_coordinates_in_world_order():
    points = frame_points(4, torch.zeros(()))
    assert_close(points[3, 0, 1], torch.tensor([-0.125, -0.375, 0.375]))


def test_projection_is_at_a_right_angle_and_finds_the_foot():
    planes, points = oblique(3)[:, 0], torch.randn(5, 3)
    index, away = project(points, planes)
    foot = planes @ torch.cat((index, torch.ones(3, 5, 1)), dim=-1).mT
    assert_close(foot.mT + away, points.expand(3, -1, -1))
    assert_close(away @ planes[..., :2], torch.zeros(3, 5, 2), atol=1e-6, rtol=0)


def test_maps_are_read_where_their_pixels_are():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    pixels = torch.stack((rows, columns))[None]
    index = torch.tensor([[[2.5, 3.0], [6.0, 1.25]]])
    assert_close(sample_plane(pixels, index, (8, 6)).mT, index)
    folded = torch.nn.functional.avg_pool2d(pixels, 2)
    assert_close(sample_plane(folded, index, (8, 6)).mT, index)
    assert not sample_plane(pixels + 1, torch.tensor([[[-2.0, 3.0], [4.0, 8.0]]]), (8, 6)).any()


def test_a_plane_is_described_alike_however_it_is_stored():
    plane = oblique()[0, 0]
    flipped = torch.stack((-plane[:, 1], plane[:, 0], plane[:, 2] + 15 * plane[:, 1]), dim=-1)
    assert_close(plane_geometry(plane, (16, 16)), plane_geometry(flipped, (16, 16)), atol=1e-5, rtol=1e-5)


def test_a_field_of_view_is_a_box_with_its_sides_at_one():
    box = torch.tensor([[[0.2, 0.0, 0.05, 0.1], [0.0, 0.4, 0.0, 0.0], [-0.02, 0.0, 0.3, -0.2]]])
    corner = box[..., :3].sum(dim=-1) + box[..., 3]
    points = torch.cat((corner, box[..., 3], box[..., 3] - 2 * box[..., 1]))
    assert_close(box_points(box, points)[0].mT, torch.tensor([[1.0, 1, 1], [0, 0, 0], [0, -2, 0]]), atol=1e-5, rtol=0)


def test_a_prompt_seen_from_a_cube_lies_where_it_did():
    centre, edge = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.1, 0.0]]), torch.tensor([0.5, 0.8])
    field = torch.randn(2, 3, 4)
    field[1] = torch.nan
    request = prompt(2, 2, field_of_view=field)
    seen = request.around(centre, edge)
    back = seen.pointmap * edge[:, None, None, None, None] + centre[:, None, :, None, None]
    assert_close(back, request.pointmap, atol=1e-6, rtol=1e-5)
    assert_close(plane_points(seen.plane, (16, 16)), seen.pointmap, atol=1e-5, rtol=1e-5)
    box, known = seen.box()
    assert known.tolist() == [True, False]
    points = torch.randn(5, 3)
    outside = box_points(field[:1], centre[:1] + edge[0] * points)
    assert_close(box_points(box[:1], points), outside, atol=1e-3, rtol=1e-3)


def test_a_click_is_a_blob_and_no_click_is_nothing():
    blob = click_heatmap(torch.tensor([[3.0, 5.0], [float("nan"), float("nan")]]), (8, 9), 2.0)
    assert blob[0].argmax() == 3 * 9 + 5
    assert blob[0].max() == 1
    assert not blob[1].any()


def test_a_mean_shape_is_moved_and_scaled():
    shape = MeanShape(2, 32)
    shape.set(frame_points(24, torch.zeros(())).norm(dim=-1) - 0.1, label=1)
    points = frame_points(16, torch.zeros(()))
    offset, scale = torch.tensor([[0.1, -0.05, 0.2], [0.0, 0.0, 0.0]]), torch.tensor([1.5, 1.0])
    found = shape(points, offset, scale.log(), torch.tensor([1, 0]))
    expected = (points - offset[:, None, None, None]).norm(dim=-1) - torch.tensor([0.15, 0.2])[:, None, None, None]
    assert (found[:, 0] - expected)[expected.abs() < 0.04].abs().max() < 0.01


def test_the_centre_moves_by_gradient():
    shape, offset = MeanShape(1, 16), torch.zeros(1, 3, requires_grad=True)
    found = shape(frame_points(8, torch.zeros(())), offset, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    found[0, 0, :, :, 7].mean().backward()  # cells on the far side in x
    assert offset.grad is not None
    assert offset.grad[0, 0] < -0.5


@pytest.mark.parametrize("shape", [torch.ones(4, 4, 4), torch.zeros(4, 4, 5) - 1, torch.full((4, 4, 4), -torch.inf)])
def test_a_shape_without_an_inside_is_refused(shape):
    with pytest.raises(SettingError, match="distances"):
        MeanShape(1, 8).set(shape)


def test_truncation_lets_gradients_through():
    x = torch.tensor([-1.0, 0.1, 3.0], requires_grad=True)
    y = truncate(x, 0.2)
    assert_close(y.detach(), torch.tensor([-0.2, 0.1, 0.2]))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_network_answers_the_mean_shape_in_the_middle(kind):
    answer = ShapeNet(**SMALL[kind])(prompt(2, 2))
    grid = SMALL[kind]["grid"]
    ball = frame_points(grid, torch.zeros(())).norm(dim=-1) - 0.2
    assert answer.sdf.shape == (2, 1, grid, grid, grid)
    assert answer.mask_logits.shape == (2, 2, 16, 16)
    assert not answer.mask_logits.any()
    assert not answer.offset.any()
    assert not answer.log_edge.any()
    assert (answer.sdf[1, 0] - ball.clamp(-0.2, 0.2))[ball.abs() < 0.05].abs().max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_mask_moves_the_shape_to_its_centroid(kind):
    mask = torch.zeros(1, 1, 16, 16)
    mask[0, 0, 3:6, 10:12] = 1  # more than `LEAST` on these planes
    request = prompt(1, mask=mask)
    answer = ShapeNet(**SMALL[kind])(request)
    assert_close(answer.offset[0], request.plane[0, 0] @ torch.tensor([4.0, 10.5, 1.0]))


@pytest.mark.parametrize("kind", KINDS)
def test_slices_in_another_order_and_filled_up_say_the_same(kind):
    network, request = trained(kind), prompt(2, 3)
    turned = Prompt(**{name: value[:, [2, 0, 1]] for name, value in vars(request).items() if value is not None})
    with torch.no_grad():
        answer, again, filled = network(request), network(turned), network(request.padded(5))
    assert_close(again.sdf, answer.sdf, atol=2e-5, rtol=1e-4)
    assert_close(filled.sdf, answer.sdf, atol=2e-5, rtol=1e-4)
    assert_close(filled.log_edge, answer.log_edge, atol=2e-5, rtol=1e-4)
    assert_close(filled.mask_logits[:, :3], answer.mask_logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_view_counts_where_it_is_known_only(kind):
    network = trained(kind)
    field = torch.eye(3, 4).expand(2, -1, -1) * 0.4
    told, half = prompt(2, field_of_view=field), field.clone()
    half[1] = torch.nan
    with torch.no_grad():
        both, first, none = (network(replace(told, field_of_view=given)) for given in (field, half, None))
    assert_close(first.sdf[0], both.sdf[0], atol=1e-5, rtol=1e-4)
    assert_close(first.sdf[1], none.sdf[1], atol=1e-5, rtol=1e-4)
    assert (both.offset - none.offset).abs().min() > 1e-4
    joined = Prompt.collate([told.select([0]), replace(told.select([1]), field_of_view=None)])
    assert joined.box()[1].tolist() == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_learns_and_recomputing_changes_nothing(kind):
    network, request = trained(kind).train(), prompt(2, 2, label=torch.tensor([0, 0]))
    again = ShapeNet(**{**network.settings(), "checkpointing": True}).train()
    again.load_state_dict(network.state_dict())
    for each in (network, again):
        answer = each(request)
        (10 * answer.sdf.square().mean() + answer.mask_logits.mean() + answer.log_edge.mean()).backward()
    still = [name for name, value in network.named_parameters() if value.grad is None]
    # of the U-Nets: nothing feeds their time embedding, and the 2-D one ends at its last level
    assert all(".time." in name or name.startswith("encoder.backbone.network.up") for name in still), still
    for own, other in zip(network.parameters(), again.parameters(), strict=True):
        if own.grad is not None:
            assert_close(other.grad, own.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_build_it_again_and_any_image_size_is_taken(kind):
    network = trained(kind, classes=2)
    network.set_mean_shape(frame_points(8, torch.zeros(())).norm(dim=-1) - 0.3, label=1)
    again = ShapeNet(**json.loads(json.dumps(network.settings()))).eval()
    again.load_state_dict(network.state_dict())
    request = Prompt.build(torch.randn(2, 1, 1, 13, 18), oblique(2), label=torch.tensor([0, 1]))
    with torch.no_grad():
        answer = again(request)
        assert_close(answer.sdf, network(request).sdf)
    assert answer.mask_logits.shape == (2, 1, 13, 18)
    assert answer.sdf.abs().max() <= network.truncation + 1e-6


def test_a_lifted_pixel_reaches_the_cells_above_it_only():
    network, request = trained("conv"), prompt(1)
    points = frame_points(8, torch.zeros(())).flatten(0, 2)
    index, away = project(points, request.plane[0])
    maps = torch.zeros(1, network.encoder.features, 16, 16)
    maps[0, 0, 5, 9] = 1
    lifted = network.decoder.lift(request, maps, points)
    near = (index[0] - torch.tensor([5.0, 9.0])).abs().amax(dim=-1) < 1
    assert near.any()
    assert_close(lifted[0, 0] > 0, near)
    width = network.encoder.features
    assert_close(lifted[0, width + 5 : width + 8], away[0].mT, atol=1e-5, rtol=1e-4)


def test_batches_of_prompts():
    joined = Prompt.collate([prompt(1, 1), prompt(2, 3)])
    assert joined.slice_valid.tolist() == [[True, False, False], [True] * 3, [True] * 3]
    assert len(joined.select([0, 2])) == 2
    assert joined.to("cpu", torch.float64).image.dtype == torch.float64
    assert joined.to("cpu", torch.float64).has_mask.dtype == torch.bool
    assert joined.channels().shape == (3, 3, 8, 16, 16)


def test_what_does_not_fit_is_refused():
    with pytest.raises(SettingError, match="plane"):
        Prompt.build(torch.zeros(1, 1, 1, 4, 4), torch.eye(3))
    with pytest.raises(SettingError, match="mask"):
        Prompt.build(torch.zeros(1, 1, 1, 4, 4), torch.eye(3)[None, None], mask=torch.zeros(1, 1, 4, 5))
    with pytest.raises(SettingError, match="slice_valid"):
        Prompt.build(torch.zeros(1, 1, 1, 4, 4), torch.eye(3)[None, None], slice_valid=torch.zeros(1, 1))
    with pytest.raises(SettingError, match="label"):
        ShapeNet(**SMALL["conv"])(prompt(1, label=torch.tensor([1])))
    with pytest.raises(SettingError, match="image"):
        ShapeNet(**SMALL["conv"], in_channels=2)(prompt(1))
    for settings, match in (({"decoder": "other"}, "decoder"), ({"ndim": 2}, "ndim"), ({"focus": 0.0}, "focus")):
        with pytest.raises(SettingError, match=match):
            ShapeNet(**{**SMALL["conv"], **settings})
    with pytest.raises(SettingError, match="tokens"):
        ShapeNet(**{**SMALL["transformer"], "tokens": 5})


def test_steps_up():
    assert factors(12) == [3, 2, 2]
    assert factors(7) == [7]


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_presets_have_the_parameters_they_are_documented_with(preset):
    from importlib.resources import files

    text = (files("voxelry.configs") / "model" / f"shape_{preset}.yaml").read_text()
    settings = yaml.safe_load(text)
    settings.pop("_target_")
    with torch.device("meta"):
        network = ShapeNet(**settings)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert f"# {millions:.1f} million parameters" in text

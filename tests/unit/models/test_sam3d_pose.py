"""Poses in the original's conventions, and the latents of them."""

from dataclasses import replace

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.models.sam3d.pose import (
    CONVENTIONS,
    POSE_DECODERS,
    PoseTarget,
    convert_pose,
    decode_pose,
    identity_pose,
    pose_latents,
    pose_metrics,
)


@pytest.fixture
def pose():
    """Two objects, turned, in scenes of scale 1 with a shift."""
    draw = torch.Generator().manual_seed(0)
    rotation = torch.randn(2, 1, 4, generator=draw)
    return PoseTarget(
        x_instance_scale=torch.rand(2, 1, 3, generator=draw) + 0.5,
        x_instance_rotation=rotation / rotation.norm(dim=-1, keepdim=True) * rotation[..., :1].sign(),
        x_instance_translation=torch.randn(2, 1, 3, generator=draw) + torch.tensor([0.0, 0.0, 6.0]),
        x_scene_scale=torch.ones(2, 3),
        x_scene_center=torch.tensor([[0.1, -0.2, 0.5], [0.0, 0.0, 1.0]]),
        x_translation_scale=torch.ones(2, 1, 1),
        pose_target_convention="Identity",
    )


def test_the_identity_is_that_of_the_originals_datasets():
    values = identity_pose().values()
    expected = {
        "x_instance_scale": torch.ones(1, 1, 3),
        "x_instance_rotation": torch.tensor([1.0, 0.0, 0.0, 0.0]),
        "x_instance_translation": torch.zeros(1, 1, 3),
        "x_scene_scale": torch.ones(1, 1, 3),
        "x_scene_center": torch.zeros(1, 1, 3),
        "x_translation_scale": torch.ones(1, 1, 1),
    }
    assert values.pop("pose_target_convention") == "ScaleShiftInvariant"
    assert set(values) == set(expected)
    assert all(torch.equal(values[name], each) for name, each in expected.items())


@pytest.mark.parametrize("start", CONVENTIONS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conventions_go_there_and_back(pose, start, convention):
    first = convert_pose(pose, start)
    there = convert_pose(first, convention)
    assert there.pose_target_convention == convention
    back = convert_pose(there, start)
    for name, expected in first.values().items():
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(getattr(back, name), expected, msg=f"{name}: {{}}".format)


def test_what_conventions_say():
    pose = PoseTarget(
        x_instance_scale=torch.full((1, 1, 3), 6.0),
        x_instance_rotation=torch.tensor([1.0, 0, 0, 0]),
        x_instance_translation=torch.tensor([[[0.0, 6.0, 8.0]]]),
        x_scene_scale=torch.full((1, 3), 2.0),
        x_scene_center=torch.tensor([[0.0, 0.0, 2.0]]),
        x_translation_scale=torch.ones(1, 1, 1),
        pose_target_convention="Identity",
    )
    expected = {
        "ScaleShiftInvariant": (3.0, [0.0, 3.0, 3.0], 1.0),
        "NormalizedSceneScale": (3.0, [0.0, 3.0, 4.0], 1.0),
        "NormalizedSceneScaleAndTranslation": (3.0, [0.0, 0.6, 0.8], 5.0),
        "ApparentSize": (0.6, [0.0, 0.6, 0.8], 5.0),
        "Naive": (6.0, [0.0, 3.0, 4.0], 1.0),
    }
    for convention, (scale, translation, length) in expected.items():
        found = convert_pose(pose, convention)
        torch.testing.assert_close(found.x_instance_scale, torch.full((1, 1, 3), scale))
        torch.testing.assert_close(found.x_instance_translation, torch.tensor([[translation]]))
        torch.testing.assert_close(found.x_translation_scale, torch.full((1, 1, 1), length))
    alone = replace(pose, x_scene_scale=torch.ones(1, 3))
    found = convert_pose(alone, "DisparitySpace")
    torch.testing.assert_close(found.x_instance_scale, torch.full((1, 1, 3), 0.75))
    torch.testing.assert_close(found.x_instance_translation, torch.tensor([[[0.0, 0.75, 0.0]]]))
    torch.testing.assert_close(found.x_translation_scale, torch.tensor([[[8.0]]]) * torch.exp(torch.tensor(-2.0)))


@pytest.mark.parametrize("convention", ["ScaleShiftInvariant", "ApparentSize", "DisparitySpace"])
def test_latents_come_back_as_the_pose(pose, convention):
    latents = pose_latents(convert_pose(pose, convention))
    assert {name: each.shape[-1] for name, each in latents.items()} == {
        "6drotation_normalized": 6, "translation": 3, "scale": 3, "translation_scale": 1,
    }  # fmt: skip
    scene = {"scale": pose.x_scene_scale, "centre": pose.x_scene_center}
    found = decode_pose(latents, convention, scene)
    torch.testing.assert_close(found["scale"], pose.x_instance_scale)
    torch.testing.assert_close(found["rotation"], pose.x_instance_rotation)
    torch.testing.assert_close(found["translation"], pose.x_instance_translation)


def test_no_pose_and_the_identity(pose):
    latents = pose_latents(pose)
    assert decode_pose(latents, "default") == decode_pose({"shape": torch.zeros(2, 8, 8)}, "none") == {}
    found = decode_pose(latents, "zero")
    assert torch.equal(found["scale"], torch.ones(2, 1, 3))
    assert torch.equal(found["rotation"], torch.tensor([1.0, 0, 0, 0]).expand(2, 1, 4))
    assert torch.equal(found["translation"], torch.zeros(2, 1, 3))
    assert {"default", "zero", "none"} <= set(POSE_DECODERS)


def test_rotations_by_half_a_turn():
    for axis in range(3):
        quaternion = torch.zeros(1, 1, 4)
        quaternion[..., 1 + axis] = 1.0
        found = decode_pose(
            pose_latents(replace(identity_pose(), x_instance_rotation=quaternion)), "ScaleShiftInvariant"
        )
        torch.testing.assert_close(found["rotation"].abs(), quaternion, atol=1e-4, rtol=0)


def test_faults(pose):
    with pytest.raises(SettingError, match="convention"):
        convert_pose(pose, "Other")
    with pytest.raises(SettingError, match="pose_target_convention"):
        replace(pose, pose_target_convention="Other")
    with pytest.raises(SettingError, match="pose_decoder"):
        decode_pose({}, "mean")
    with pytest.raises(SettingError, match="one scale for all axes"):
        convert_pose(replace(pose, x_scene_scale=torch.tensor([[1.0, 2.0, 1.0]] * 2)), "Naive")
    behind = replace(pose, x_instance_translation=-pose.x_instance_translation)
    with pytest.raises(SettingError, match="in front of the camera"):
        convert_pose(behind, "DisparitySpace")


def test_errors_of_a_pose_are_those_of_its_parts():
    there = {"scale": [1.0, 1.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0], "translation": [0.0, 0.0, 0.0]}
    assert set(pose_metrics(there).values()) == {0.0}
    moved = {"scale": [2.0, 2.0, 2.0], "rotation": [0.0, 1.0, 0.0, 0.0], "translation": [0.3, 0.0, 0.0]}
    found = pose_metrics(moved)
    assert found == pytest.approx({"pose_scale_mse": 1.0, "pose_rotation_mse": 0.5, "pose_translation_mse": 0.03})

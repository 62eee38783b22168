"""Where an object stands in a scene, in the conventions of SAM 3D Objects, and its latents of that.

A pose takes points of the object's cube into the scene, `scale * rotation(point) + translation`. Scenes are known up to
their size, so poses are told relative to a scale and a centre of the scene, in one of several ways (`CONVENTIONS`).
Rotations are unit quaternions, real part first. Medical shapes need none of this: their frame is known from the slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelry.core.choice import check_choice
from voxelry.core.errors import SettingError
from voxelry.diffusion.latents import Latents

__all__ = [
    "CONVENTIONS",
    "POSE_DECODERS",
    "POSE_METRICS",
    "PoseTarget",
    "convert_pose",
    "decode_pose",
    "identity_pose",
    "pose_latents",
    "pose_metrics",
]

LEAST = 1e-8  # of a length that is divided by
USUAL = "ScaleShiftInvariant"

# mean and deviation of the original's training data, by which its latents of rotations are standardised
ROTATION_MEAN = (-0.06366085, 0.00843822, 0.00017085, 0.00071266, -0.00309167, 0.51660938)
ROTATION_STD = (0.66569720, 0.67870123, 0.30345011, 0.43945044, 0.39817974, 0.61762869)


@dataclass(frozen=True, kw_only=True)
class PoseTarget:
    """A pose as a network learns it; fields have the original's names, `B` items of `K` objects.

    Attributes:
        x_instance_scale: `(B, K, 3)`, or 1 for all axes.
        x_instance_rotation: `(B, K, 4)`, or `(4,)`.
        x_instance_translation: `(B, K, 3)`.
        x_scene_scale: `(B, 3)` or `(B, 1, 3)`, the same for all axes.
        x_scene_center: as the scale.
        x_translation_scale: `(B, K, 1)`, the length of a translation where the convention keeps it apart, else ones.
        pose_target_convention: one of `CONVENTIONS`.
    """

    x_instance_scale: Tensor
    x_instance_rotation: Tensor
    x_instance_translation: Tensor
    x_scene_scale: Tensor
    x_scene_center: Tensor
    x_translation_scale: Tensor
    pose_target_convention: str = USUAL

    def __post_init__(self) -> None:
        check_choice("pose_target_convention", self.pose_target_convention, CONVENTIONS)

    def values(self) -> dict[str, Any]:
        """All fields by name, as a dataset of the original hands them out."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def identity_pose(batch: int = 1) -> PoseTarget:
    """The pose of an object that fills its scene: unit scales, no rotation, no translation."""
    return PoseTarget(
        x_instance_scale=torch.ones(batch, 1, 3),
        x_instance_rotation=torch.tensor([1.0, 0.0, 0.0, 0.0]),
        x_instance_translation=torch.zeros(batch, 1, 3),
        x_scene_scale=torch.ones(batch, 1, 3),
        x_scene_center=torch.zeros(batch, 1, 3),
        x_translation_scale=torch.ones(batch, 1, 1),
    )


def convert_pose(pose: PoseTarget, convention: str) -> PoseTarget:
    """The same pose in another convention.

    Raises:
        SettingError: an unknown convention; a scene's scale that differs between axes, or isn't 1 where that is asked;
            an object that isn't in front of the camera of "DisparitySpace".
    """
    check_choice("convention", convention, CONVENTIONS)
    of_scene, to_scene = CONVENTIONS[pose.pose_target_convention][1], CONVENTIONS[convention][0]
    return replace(to_scene(of_scene(pose)), pose_target_convention=convention)


def _scene(pose: PoseTarget) -> tuple[Tensor, Tensor]:
    """Scale and centre of the scene, shaped to go with those of objects.

    Raises:
        SettingError: scales that differ.
    """
    scale, centre = pose.x_scene_scale, pose.x_scene_center
    if not torch.allclose(scale, scale[..., :1].expand_as(scale)):
        raise SettingError(f"x_scene_scale: expected one scale for all axes, got {scale.flatten().tolist()}")
    short = scale.ndim == pose.x_instance_scale.ndim - 1
    return (scale.unsqueeze(-2), centre.unsqueeze(-2)) if short else (scale, centre)


def _changed(pose: PoseTarget, scale: Tensor, translation: Tensor, length: Tensor | None = None) -> PoseTarget:
    ones = torch.ones_like(translation[..., :1])
    return replace(
        pose,
        x_instance_scale=scale,
        x_instance_translation=translation,
        x_translation_scale=ones if length is None else length,
    )


def _apart(translation: Tensor) -> tuple[Tensor, Tensor]:
    """Direction and length."""
    length = translation.norm(dim=-1, keepdim=True).clamp(min=LEAST)
    return translation / length, length


def _to_invariant(pose: PoseTarget) -> PoseTarget:
    scale, centre = _scene(pose)
    return _changed(pose, pose.x_instance_scale / scale, (pose.x_instance_translation - centre) / scale)


def _of_invariant(pose: PoseTarget) -> PoseTarget:
    scale, centre = _scene(pose)
    return _changed(pose, pose.x_instance_scale * scale, pose.x_instance_translation * scale + centre)


def _to_apart(pose: PoseTarget) -> PoseTarget:
    near = _to_invariant(pose)
    return _changed(pose, near.x_instance_scale, *_apart(near.x_instance_translation))


def _of_apart(pose: PoseTarget) -> PoseTarget:
    whole = F.normalize(pose.x_instance_translation, dim=-1) * pose.x_translation_scale
    return _of_invariant(replace(pose, x_instance_translation=whole))


def _to_disparity(pose: PoseTarget) -> PoseTarget:
    scene, centre = _scene(pose)
    place, depth = pose.x_instance_translation, pose.x_instance_translation[..., 2:]
    if not torch.allclose(scene, torch.ones_like(scene)) or depth.min() <= 0:
        raise SettingError("DisparitySpace: expected a scene of scale 1 and an object in front of the camera")
    seen = torch.cat((place[..., :2] / depth - centre[..., :2], torch.zeros_like(depth)), dim=-1)
    return _changed(pose, pose.x_instance_scale / depth, seen, depth * torch.exp(-centre[..., 2:]))


def _of_disparity(pose: PoseTarget) -> PoseTarget:
    scene, centre = _scene(pose)
    depth = pose.x_translation_scale * torch.exp(centre[..., 2:]) * scene[..., :1]
    seen = pose.x_instance_translation[..., :2] + centre[..., :2]
    place = torch.cat((seen, torch.ones_like(depth)), dim=-1) * depth
    return _changed(pose, pose.x_instance_scale * depth, place)


def _to_relative(pose: PoseTarget) -> PoseTarget:
    scale, _ = _scene(pose)
    return _changed(pose, pose.x_instance_scale / scale, pose.x_instance_translation / scale)


def _of_relative(pose: PoseTarget) -> PoseTarget:
    scale, _ = _scene(pose)
    return _changed(pose, pose.x_instance_scale * scale, pose.x_instance_translation * scale)


def _to_relative_apart(pose: PoseTarget) -> PoseTarget:
    near = _to_relative(pose)
    return _changed(pose, near.x_instance_scale, *_apart(near.x_instance_translation))


def _of_relative_apart(pose: PoseTarget) -> PoseTarget:
    return _of_relative(replace(pose, x_instance_translation=pose.x_instance_translation * pose.x_translation_scale))


def _to_apparent(pose: PoseTarget) -> PoseTarget:
    near = _to_relative_apart(pose)
    return replace(near, x_instance_scale=near.x_instance_scale / near.x_translation_scale)


def _of_apparent(pose: PoseTarget) -> PoseTarget:
    return _of_relative_apart(replace(pose, x_instance_scale=pose.x_instance_scale * pose.x_translation_scale))


def _to_naive(pose: PoseTarget) -> PoseTarget:
    return replace(_to_relative(pose), x_instance_scale=pose.x_instance_scale)


def _of_naive(pose: PoseTarget) -> PoseTarget:
    return replace(_of_relative(pose), x_instance_scale=pose.x_instance_scale)


def _as_it_is(pose: PoseTarget) -> PoseTarget:
    return _changed(pose, pose.x_instance_scale, pose.x_instance_translation)


Change = Callable[[PoseTarget], PoseTarget]

CONVENTIONS: dict[str, tuple[Change, Change]] = {
    USUAL: (_to_invariant, _of_invariant),
    "ScaleShiftInvariantWTranslationScale": (_to_apart, _of_apart),
    "DisparitySpace": (_to_disparity, _of_disparity),
    "NormalizedSceneScale": (_to_relative, _of_relative),
    "NormalizedSceneScaleAndTranslation": (_to_relative_apart, _of_relative_apart),
    "ApparentSize": (_to_apparent, _of_apparent),
    "Naive": (_to_naive, _of_naive),
    "Identity": (_as_it_is, _as_it_is),
}
"""By the original's name: from the scene's own units to the convention, and back."""

POSE_METRICS = ("pose_scale_mse", "pose_rotation_mse", "pose_translation_mse")

POSE_DECODERS = ("default", "zero", "none", USUAL, "DisparitySpace", "ApparentSize")
"""What is made of the latents of a pose: see `decode_pose`."""


def pose_latents(pose: PoseTarget) -> dict[str, Tensor]:
    """A pose as latents of the first stage, `{name: (B, 1, numbers)}`: the inverse of `decode_pose`.

    Args:
        pose: of one object each, in any convention.
    """
    columns = _matrix(pose.x_instance_rotation)[..., :2].mT.flatten(-2)
    mean, std = (columns.new_tensor(each) for each in (ROTATION_MEAN, ROTATION_STD))
    size = pose.x_instance_translation.shape
    return {
        "6drotation_normalized": ((columns - mean) / std).expand(*size[:-1], -1),
        "translation": pose.x_instance_translation,
        "scale": pose.x_instance_scale.expand(size).log(),
        "translation_scale": pose.x_translation_scale.log(),
    }


def decode_pose(latents: Latents, decoder: str, scene: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What is said of where an object stands.

    Args:
        latents: of the first stage, `(B, 1, numbers)` each.
        decoder: "default" and "none" say nothing; with "none" the latents needn't be there. "zero" says the identity
            pose, whatever the latents ("ZeroPredictionScaleShiftInvariant" of the original takes a mean scale and the
            network's rotation instead). A convention reads the latents as that.
        scene: `scale` and `centre` of the scene, `(B, 3)` each; None for 1 and 0.

    Returns:
        `scale` `(B, 1, 3)`, `rotation` `(B, 1, 4)` and `translation` `(B, 1, 3)` into the scene, or nothing.

    Raises:
        SettingError: an unknown decoder.
    """
    check_choice("pose_decoder", decoder, POSE_DECODERS)
    if decoder in ("default", "none"):
        return {}
    usual = identity_pose(len(next(iter(latents.values()))))
    pose = usual if decoder == "zero" else _told(latents, decoder, usual)
    if scene is not None:
        pose = replace(pose, x_scene_scale=scene["scale"], x_scene_center=scene["centre"])
    whole = CONVENTIONS[pose.pose_target_convention][1](pose)
    turned = whole.x_instance_rotation.expand(*whole.x_instance_translation.shape[:-1], 4)
    return {"scale": whole.x_instance_scale, "rotation": turned, "translation": whole.x_instance_translation}


def pose_metrics(pose: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How far a pose is from the identity, which is the one that is learned: mean squared errors (`POSE_METRICS`).

    Args:
        pose: `scale` (3 numbers), `rotation` (4) and `translation` (3) of one object, as `decode_pose` has them.
    """
    wanted = decode_pose(pose_latents(identity_pose()), "zero")
    return {
        f"pose_{name}_mse": float((torch.as_tensor(pose[name]) - each.flatten()).square().mean())
        for name, each in wanted.items()
    }


def _told(latents: Latents, convention: str, usual: PoseTarget) -> PoseTarget:
    """The pose that latents say."""
    six = latents["6drotation_normalized"]
    mean, std = (six.new_tensor(each) for each in (ROTATION_MEAN, ROTATION_STD))
    first, second = (six * std + mean).chunk(2, dim=-1)
    first = F.normalize(first, dim=-1)
    second = F.normalize(second - (first * second).sum(dim=-1, keepdim=True) * first, dim=-1)
    matrix = torch.stack((first, second, torch.linalg.cross(first, second)), dim=-1)
    return replace(
        usual,
        x_instance_rotation=_quaternion(matrix),
        x_instance_translation=latents["translation"],
        x_instance_scale=latents["scale"].exp(),
        x_translation_scale=latents["translation_scale"].exp(),
        pose_target_convention=convention,
    )


def _matrix(quaternion: Tensor) -> Tensor:
    """Rotations, `(..., 4) -> (..., 3, 3)`."""
    w, x, y, z = F.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _quaternion(matrix: Tensor) -> Tensor:
    """The inverse of `_matrix`, with a real part of 0 or more (Shepperd 1978: by the largest of the four)."""
    a, b, c = (matrix[..., place, place] for place in range(3))
    squares = torch.stack((1 + a + b + c, 1 + a - b - c, 1 - a + b - c, 1 - a - b + c), dim=-1)
    (zy, xz, yx), (yz, zx, xy) = (
        (matrix[..., 2, 1], matrix[..., 0, 2], matrix[..., 1, 0]),
        (matrix[..., 1, 2], matrix[..., 2, 0], matrix[..., 0, 1]),
    )
    w, x, y, z = squares.unbind(-1)
    products = (
        (w, zy - yz, xz - zx, yx - xy),
        (zy - yz, x, yx + xy, xz + zx),
        (xz - zx, yx + xy, y, zy + yz),
        (yx - xy, xz + zx, zy + yz, z),
    )
    each = torch.stack([torch.stack(row, dim=-1) for row in products], dim=-2)
    largest = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    found = F.normalize(each.gather(-2, largest)[..., 0, :], dim=-1)
    return torch.where(found[..., :1] < 0, -found, found)

"""The torso of a phantom: which solids it is made of, how large they are and where.

Places and sizes are given in half extents of the grid, in the order superior, anterior, right, and vary from
case to case. At rank 2 the anterior axis is left out: what remains is a coronal plane through everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from voxelry.phantoms.shapes import Ovoid, Tube, rotation_to

__all__ = ["BODY_AXES", "LABEL_NAMES", "LANDMARK_NAMES", "Organ", "draw_nodules", "draw_organs"]

LABEL_NAMES = (
    "background",
    "body",
    "spine",
    "right_lung",
    "left_lung",
    "airway",
    "liver",
    "spleen",
    "heart",
    "right_kidney",
    "left_kidney",
    "bladder",
    "nodule",
)
LANDMARK_NAMES = (
    "right_lung_apex",
    "left_lung_apex",
    "carina",
    "heart_apex",
    "liver_tip",
    "right_kidney",
    "left_kidney",
    "bladder",
)

# Axes of the body frame by rank: (which of superior, anterior, right; world axis; its sign). An image of
# rank 2 has its rows along world y, and superior is up in it.
BODY_AXES = {3: ((0, 2, 1), (1, 1, 1), (2, 0, 1)), 2: ((0, 1, -1), (2, 0, 1))}


@dataclass
class Organ:
    """A solid, what it is called, how bright and how textured it is, and its landmarks in mm of the body frame."""

    name: str
    solid: Ovoid | Tube
    brightness: float
    texture: float
    landmarks: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def draw_organs(ndim: int, half: NDArray[np.float64], generator: np.random.Generator) -> list[Organ]:
    """The organs in the order they are drawn, later ones over earlier; places in half extents of the grid."""
    keep = [axis for axis, *_ in BODY_AXES[ndim]]
    scale = half * generator.uniform(0.86, 0.94)
    smallest = float(scale.min())

    def place(superior: float, anterior: float, right: float, jitter: float = 0.035) -> NDArray[np.float64]:
        moved = np.array([superior, anterior, right]) + generator.uniform(-jitter, jitter, 3)
        return moved[keep] * scale

    def ovoid(
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        towards: tuple[float, float, float] = (1, 0, 0),
        exponent: float = 2.0,
        taper: float = 0.0,
    ) -> Ovoid:
        # radii are in the order of the frame; the one that `towards` is nearest to is the length
        direction = (np.array(towards) + generator.uniform(-0.1, 0.1, 3))[keep]
        own = (np.array(radii) * np.exp(generator.uniform(-0.1, 0.1, 3)))[keep]
        axes, order = rotation_to(direction)
        return Ovoid(place(*centre), own[order] * (np.abs(axes).T @ scale), axes, exponent, taper)

    spine = Tube(np.array([[place(-1.05, -0.6, 0, 0.01), place(1.05, -0.62, 0, 0.01)]]), 0.11 * smallest)
    right_lung = ovoid((0.36, 0.02, 0.47), (0.47, 0.5, 0.31), exponent=2.3, taper=0.35)
    left_lung = ovoid((0.38, 0.02, -0.49), (0.43, 0.48, 0.28), exponent=2.3, taper=0.35)
    carina = place(0.52, -0.08, 0.0)
    ends = (place(1.05, 0.0, 0.0), place(0.28, -0.12, 0.34), place(0.3, -0.12, -0.36))
    airway = Tube(np.array([[end, carina] for end in ends]), 0.055 * smallest)
    liver = ovoid((-0.28, 0.1, 0.34), (0.27, 0.5, 0.52), towards=(0.12, 0.1, -1), exponent=2.0, taper=0.55)
    spleen = ovoid((-0.3, -0.15, -0.62), (0.22, 0.24, 0.14), towards=(1, 0, -0.2))
    heart = ovoid((0.2, 0.18, -0.08), (0.24, 0.22, 0.33), towards=(-0.55, 0.3, -0.7), taper=0.4)
    right_kidney = ovoid((-0.62, -0.3, 0.4), (0.2, 0.15, 0.13), towards=(1, 0, -0.25))
    left_kidney = ovoid((-0.57, -0.3, -0.42), (0.2, 0.15, 0.13), towards=(1, 0, 0.25))
    bladder = ovoid((-0.82, 0.15, 0.0), (0.12, 0.2, 0.19))
    return [
        Organ("spine", spine, 0.85, 0.05),
        Organ("right_lung", right_lung, 0.16, 0.09, {"right_lung_apex": right_lung.tip()}),
        Organ("left_lung", left_lung, 0.16, 0.09, {"left_lung_apex": left_lung.tip()}),
        Organ("liver", liver, 0.62, 0.05, {"liver_tip": liver.tip()}),
        Organ("spleen", spleen, 0.55, 0.04),
        Organ("heart", heart, 0.74, 0.04, {"heart_apex": heart.tip()}),
        Organ("airway", airway, 0.03, 0.0, {"carina": carina}),
        Organ("right_kidney", right_kidney, 0.8, 0.04, {"right_kidney": right_kidney.centre}),
        Organ("left_kidney", left_kidney, 0.8, 0.04, {"left_kidney": left_kidney.centre}),
        Organ("bladder", bladder, 0.3, 0.01, {"bladder": bladder.centre}),
    ]


def draw_nodules(
    torso: list[Organ],
    ndim: int,
    half: NDArray[np.float64],
    spacing: NDArray[np.float64],
    generator: np.random.Generator,
) -> list[Ovoid]:
    """Small balls in the lungs and the liver; some touch the one before."""
    hosts = [organ.solid for organ in torso if organ.name in ("right_lung", "left_lung", "liver")]
    balls: list[Ovoid] = []
    for _ in range(int(generator.integers(4, 8)) if hosts else 0):
        radius = max(generator.uniform(0.045, 0.085) * float(half.min()), 1.2 * float(spacing.max()))
        direction = generator.normal(size=ndim)
        direction /= np.linalg.norm(direction)
        host = hosts[int(generator.integers(len(hosts)))]
        depth = generator.uniform(0, 0.6)
        touches = generator.random() < 0.3
        assert isinstance(host, Ovoid)
        if touches and balls:
            centre = balls[-1].centre + direction * (balls[-1].radii[0] + radius)
        else:
            centre = host.centre + host.axes @ (host.radii * direction) * depth
        balls.append(Ovoid(centre, np.full(ndim, radius), np.eye(ndim)))
    return balls

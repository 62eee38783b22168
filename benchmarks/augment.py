"""Time of one augmentation of a 64 x 64 x 64 sample with ten points on one core, ours and the peers'.

Ours draws and applies everything: rotation, scale, shear, shift, mirror, elastic, and each intensity change.
MONAI's Rand3DElastic draws rotation, scale, shear, shift and elastic for the image only; TorchIO's RandomAffine
and RandomElasticDeformation the same in two resamplings. Neither moves the points. All get the same noise and
gamma from their own transforms.

    python benchmarks/augment.py [--repeats 60]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.sample import Sample

LIMIT_MS = 25.0


def make_sample() -> Sample:
    generator = np.random.default_rng(0)
    space = Space.from_spacing((64, 64, 64), (2.0, 1.0, 1.0))
    image = torch.from_numpy(generator.random((1, 64, 64, 64), dtype=np.float32))
    landmarks = torch.from_numpy(generator.uniform(8, 56, (10, 3)).astype(np.float32))
    names = tuple(f"{side}_{number}" for number in range(5) for side in ("left", "right"))
    return Sample(image, space, "case", landmarks=landmarks, landmark_names=names)


def ours(sample: Sample) -> Callable[[], object]:
    augment = Augment(rotation=15, scale=0.1, shear=5, shift=3, mirror=0.5, elastic=4, intensity_probability=1)
    generator = np.random.default_rng(1)
    return lambda: augment(sample, generator)


def monai(sample: Sample) -> Callable[[], object]:
    from monai.transforms import Compose, Rand3DElastic, RandAdjustContrast, RandFlip, RandGaussianNoise

    radians = [float(np.deg2rad(15))] * 3
    moves = Rand3DElastic(
        sigma_range=(5, 8),
        magnitude_range=(20, 60),
        prob=1,
        rotate_range=radians,
        shear_range=[0.09] * 6,
        translate_range=[3] * 3,
        scale_range=[0.1] * 3,
        padding_mode="zeros",
    )
    steps = Compose(
        [moves, RandFlip(0.5, spatial_axis=2), RandAdjustContrast(1, (0.74, 1.35)), RandGaussianNoise(1, std=0.05)]
    )
    steps.set_random_state(1)
    return lambda: steps(sample.image)


def torchio(sample: Sample) -> Callable[[], object]:
    import torchio as tio

    steps = tio.Compose(
        [
            tio.RandomAffine(scales=0.1, degrees=15, translation=3),
            tio.RandomElasticDeformation(num_control_points=5, max_displacement=4),
            tio.RandomFlip(axes=2),
            tio.RandomGamma(0.3),
            tio.RandomNoise(std=(0, 0.05)),
        ]
    )
    return lambda: steps(sample.image)


def median_ms(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall-clock and processor time; the second isn't disturbed by others on the machine."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    wall, processor = np.median(times, axis=0) * 1e3
    return float(wall), float(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers' own
    sample = make_sample()
    wall, own = median_ms(ours(sample), repeats)
    verdict = "kept" if own < LIMIT_MS else "MISSED"
    print(f"voxelry {wall:7.1f} ms, {own:7.1f} ms on the core; limit {LIMIT_MS:g}: {verdict}")
    for name, peer in (("MONAI", monai), ("TorchIO", torchio)):
        try:
            work = peer(sample)
        except ImportError:
            print(f"{name:7} not installed")
            continue
        wall, other = median_ms(work, max(5, repeats // 5))
        print(f"{name:7} {wall:7.1f} ms, {other:7.1f} ms on the core, of which voxelry takes {own / other:.3f}")


if __name__ == "__main__":
    main()

"""One volume in several orientations: do predictions land on the same anatomy?

    python benchmarks/orientations.py --model runs/landmarks_3d VOLUME.nii.gz

Copies of the volume are written, predicted from their files, written as `.mrk.json` and read back. Stored
otherwise (LAS, PSR, a turned patient: same voxels, another affine) the points must agree to 0.01 mm;
with the voxels resampled onto a turned grid or another spacing, to 0.5 mm.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

import voxelry
from voxelry.core.space import Space
from voxelry.data.io import Image
from voxelry.ops.resample import resample
from voxelry.tasks.landmarks import to_landmark_set


def turned(space: Space, degrees: tuple[float, float, float]) -> tuple[Space, np.ndarray]:
    """The same voxels in a patient turned about the volume's centre, and the turn as a 4 x 4 world matrix."""
    centre = space.to_world((np.asarray(space.shape) - 1) / 2)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return Space(space.shape, turn @ space.affine), turn


def reordered(image: Image, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> tuple[np.ndarray, Space]:
    """The same voxels stored in another order."""
    array = image.array.transpose(0, *[axis + 1 for axis in axes])
    array = np.flip(array, [axis + 1 for axis, flip in enumerate(flips) if flip])
    return np.ascontiguousarray(array), image.space.reorder(axes, flips)


def onto(image: Image, space: Space) -> np.ndarray:
    """The volume resampled onto another grid of the same world."""
    step = np.linalg.inv(image.space.affine) @ space.affine
    pixels = torch.as_tensor(image.array.astype(np.float32))
    return resample(pixels, step[:3, :3], step[:3, 3], space.shape, fill=float(pixels.min())).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("volume", type=Path)
    arguments = parser.parse_args()
    path = arguments.model / "bundle" if (arguments.model / "bundle").is_dir() else arguments.model
    model = voxelry.load(path, "cpu")
    image = voxelry.read_image(arguments.volume)
    still = np.eye(4)
    oblique, turn = turned(image.space, (15.0, -10.0, 20.0))
    scan, _ = turned(image.space, (6.0, -5.0, 8.0))
    fine = image.space.respace((0.8, 0.9, 0.7))
    copies = {
        "as it is": (image.array, image.space, still, 0.01),
        "LAS": (*reordered(image, (0, 1, 2), (False, False, True)), still, 0.01),
        "PSR": (*reordered(image, (2, 0, 1), (False, False, True)), still, 0.01),
        "oblique patient": (image.array, oblique, turn, 0.01),
        "resampled, 0.7 to 0.9 mm": (onto(image, fine), fine, still, 0.5),
        "resampled, turned grid": (onto(image, scan), scan, still, 0.5),
    }
    reference: np.ndarray | None = None
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (array, space, moved, limit) in copies.items():
            file = voxelry.write_image(Path(folder) / f"{name.replace(' ', '_')}.nii.gz", array, space)
            marks = Path(folder) / f"{file.name}.mrk.json"
            voxelry.write_landmarks(marks, to_landmark_set(model.predict(file)), space=space)
            world = voxelry.read_landmarks(marks).world
            home = (np.linalg.inv(moved) @ np.column_stack([world, np.ones(len(world))]).T).T[:, :3]
            reference = home if reference is None else reference
            apart = float(np.linalg.norm(home - reference, axis=1).max())
            print(f"{name:28s} {voxelry.open_image(file).space.orientation}  {apart:.4f} mm (limit {limit})")
            if apart > limit:
                failed.append(name)
    print("all within their limits" if not failed else f"beyond its limit: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""One volume in several orientations: do predictions land on the same anatomy?

    python benchmarks/orientations.py --model runs/landmarks_3d VOLUME.nii.gz
    python benchmarks/orientations.py --model runs/reconstruct_3d VOLUME.nii.gz --click 12,-40,8

Copies of the volume are written and predicted from their files. Landmarks are written as `.mrk.json` and read back:
stored otherwise (LAS, PSR, a turned patient: same voxels, another affine) the points must agree to 0.01 mm; with the
voxels resampled onto a turned grid or another spacing, to 0.5 mm. Of shapes the mean distance between the surfaces
must be within 0.5 mm in all cases; the slice is the patient's axial plane through the click in all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

import voxelry
from voxelry.bundle.model import Model
from voxelry.core.space import Space
from voxelry.io import Image
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


def points(model: Model, file: Path, click: np.ndarray | None, moved: np.ndarray) -> np.ndarray:
    """What is predicted for a file, in its world, `(N, 3)` mm: landmarks, or the vertices of the clicked organ.

    Args:
        click: on the original.
        moved: `(4, 4)`, what the world of the original became.
    """
    if click is not None:
        normal = moved[:3, :3] @ (0.0, 0.0, 1.0)
        shape = model.reconstruct(file, click=moved[:3, :3] @ click + moved[:3, 3], plane=normal)
        return np.asarray(shape.mesh.vertices)
    marks = file.with_suffix(".mrk.json")
    voxelry.write_landmarks(marks, to_landmark_set(model.predict(file)), space=voxelry.open_image(file).space)
    return voxelry.read_landmarks(marks).world


def distance(found: np.ndarray, reference: np.ndarray, *, surfaces: bool) -> float:
    """Of landmarks the largest distance, of surfaces the mean one, both ways; mm."""
    if not surfaces:
        return float(np.linalg.norm(found - reference, axis=1).max())
    ways = (cKDTree(a).query(b)[0].mean() for a, b in ((found, reference), (reference, found)))
    return float(np.mean(list(ways)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("volume", type=Path)
    parser.add_argument("--click", help="x,y,z in RAS mm inside of the organ, for a model of reconstruct")
    arguments = parser.parse_args()
    path = arguments.model / "bundle" if (arguments.model / "bundle").is_dir() else arguments.model
    model = voxelry.load(path, "cpu")
    image = voxelry.read_image(arguments.volume)
    still = np.eye(4)
    oblique, turn = turned(image.space, (15.0, -10.0, 20.0))
    scan, _ = turned(image.space, (6.0, -5.0, 8.0))
    fine = image.space.respace((0.8, 0.9, 0.7))
    click = None if arguments.click is None else np.array([float(part) for part in arguments.click.split(",")])
    exact = 0.01 if click is None else 0.5
    copies = {
        "as it is": (image.array, image.space, still, exact),
        "LAS": (*reordered(image, (0, 1, 2), (False, False, True)), still, exact),
        "PSR": (*reordered(image, (2, 0, 1), (False, False, True)), still, exact),
        "oblique patient": (image.array, oblique, turn, exact),
        "resampled, 0.7 to 0.9 mm": (onto(image, fine), fine, still, 0.5),
        "resampled, turned grid": (onto(image, scan), scan, still, 0.5),
    }
    reference: np.ndarray | None = None
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (array, space, moved, limit) in copies.items():
            file = voxelry.write_image(Path(folder) / f"{name.replace(' ', '_')}.nii.gz", array, space)
            found = points(model, file, click, moved)
            home = (found - moved[:3, 3]) @ np.linalg.inv(moved[:3, :3]).T
            reference = home if reference is None else reference
            apart = distance(home, reference, surfaces=click is not None)
            print(f"{name:28s} {voxelry.open_image(file).space.orientation}  {apart:.4f} mm (limit {limit})")
            if apart > limit:
                failed.append(name)
    print("all within their limits" if not failed else f"beyond its limit: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Draws the README's picture: a model's points on the first case of a folder of phantoms.

python docs/make_images.py BUNDLE PHANTOMS PICTURE
"""

from __future__ import annotations

import sys
from pathlib import Path

import voxelry
from voxelry.data.layouts.find import find_cases, read_case_landmarks
from voxelry.viz import figures


def main(bundle: Path, phantoms: Path, picture: Path) -> None:
    """Predict the first phantom and draw true and predicted points."""
    model = voxelry.load(bundle)
    case = find_cases(phantoms, need_landmarks=True)[0]
    scan = voxelry.read_image(case.image)
    truth, _ = read_case_landmarks(case, scan.space)
    found = model.predict(case.image)
    names = [name.replace("_", " ") for name in found.names]
    predicted = scan.space.to_index(found.world)
    fig = figures.orthogonal(scan.array, figures.PointPairs(scan.space, truth=truth, predicted=predicted, names=names))
    picture.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))

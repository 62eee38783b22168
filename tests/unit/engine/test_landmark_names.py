"""Points of a folder are those of a model by their names, in whatever order its files list them."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch.testing import assert_close

from voxelry.bundle.registry import recipe_named
from voxelry.core.errors import DataError
from voxelry.core.space import Space
from voxelry.data.preprocess import Preprocess
from voxelry.io import LandmarkSet, write_image, write_landmarks

TIP, BASE = [3.0, 2.0, 1.0], [6.0, 4.0, 2.0]


@pytest.fixture
def measured(tmp_path):
    """The cases of a folder of one image and its points, for a model that knows `tip` and `base`."""

    def cases(names: tuple[str, ...], points: list[list[float]]):
        write_image(
            tmp_path / "volumes" / "a.nii.gz", np.ones((1, 4, 6, 8), np.float32), Space.from_spacing((4, 6, 8), 1.0)
        )
        write_landmarks(tmp_path / "landmarks" / "a.mrk.json", LandmarkSet(names, np.array(points)))
        model = SimpleNamespace(
            task=SimpleNamespace(names=("tip", "base")),
            bundle=SimpleNamespace(preprocess=Preprocess()),
            check_image=lambda source, ndim, channels: None,
        )
        return recipe_named("landmarks").cases(model, tmp_path, "auto", None)

    return cases


def test_another_order_is_the_same_points(measured):
    sample = measured(("base", "tip"), [BASE, TIP])[0]
    assert sample.landmark_names == ("tip", "base")
    assert_close(sample.space.to_world(sample.landmarks.numpy()), np.array([TIP, BASE]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [("Tip", "base"), ("tip", "foot"), ("point_1", "point_2")])
def test_other_names_are_refused_with_both_lists(measured, names):
    with pytest.raises(DataError, match=rf"a\.mrk\.json: landmarks {', '.join(names)}; expected tip, base$"):
        measured(names, [TIP, BASE])

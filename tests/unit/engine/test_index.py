from __future__ import annotations

import numpy as np
import pytest

from voxelry.core.space import Space
from voxelry.engine.index import Anchors, build_index, propose_anchors
from voxelry.io import write_image


def test_anchors_of_equal_boxes_are_those_boxes():
    anchors = propose_anchors(np.tile([6.0, 12.0, 12.0], (50, 1)), levels=3)
    assert anchors is not None
    assert (anchors.sizes, anchors.ratios, anchors.z_ratios, anchors.coverage) == ((12.0,), (1.0,), (0.5,), 1.0)


@pytest.mark.parametrize(
    ("sizes", "levels", "text"),
    [
        ((8.0, 12.0, 20.0, 30.0), 2, "[[8.0,12.0],[20.0,30.0]]"),
        ((8.0, 12.0, 20.0), 2, "[[8.0,12.0],[12.0,20.0]]"),
        ((8.0, 12.0), 3, "[[8.0],[8.0],[12.0]]"),
        ((8.0, 12.0, 20.0, 30.0), 4, "[[8.0],[12.0],[20.0],[30.0]]"),
    ],
)
def test_anchors_are_overrides_with_as_many_sizes_on_every_level(sizes, levels, text):
    from omegaconf import OmegaConf

    overrides = Anchors(sizes, (1.0,), (), 1.0).overrides(levels)
    assert overrides == [f"model.anchors.sizes={text}", "model.anchors.ratios=[1.0]"]
    assert len({len(level) for level in OmegaConf.from_dotlist(overrides).model.anchors.sizes}) == 1


def test_anchors_follow_sizes_and_ratios(rng):
    side = rng.uniform(8, 64, 2000)
    ratio = rng.choice([0.5, 1.0, 2.0], 2000)
    extents = np.stack([side * 0.5, side * np.sqrt(ratio), side / np.sqrt(ratio)], axis=1)
    anchors = propose_anchors(extents)
    assert anchors is not None
    assert anchors.sizes == pytest.approx((15, 29, 43, 57), abs=1.5)
    assert (anchors.ratios, anchors.z_ratios) == ((0.5, 1.0, 2.0), (0.5,))
    assert 0.8 < anchors.coverage < 1


def test_images_of_rank_two_have_no_depth_ratio():
    anchors = propose_anchors(np.tile([1.0, 20.0, 10.0], (9, 1)))
    assert anchors is not None
    assert anchors.z_ratios == ()
    assert anchors.ratios == (2.0,)
    assert anchors.coverage == 1.0
    assert not any("z_ratios" in override for override in anchors.overrides())


def test_nothing_is_proposed_of_nothing():
    assert propose_anchors(np.zeros((0, 3))) is None


def test_the_summary_says_what_is_in_the_index(tmp_path, rng):
    space = Space.from_spacing((12, 20, 20))
    ids = np.zeros((1, 12, 20, 20), np.uint8)
    ids[0, 2:6, 3:11, 4:12] = 1
    for name, labels in (("full", ids), ("bare", np.zeros_like(ids))):
        image = rng.integers(0, 99, (1, 12, 20, 20)).astype(np.uint8)
        write_image(tmp_path / "d" / "volumes" / f"{name}.nii.gz", image, space)
        write_image(tmp_path / "d" / "instances" / f"{name}.nii.gz", labels, space)
    calls = []
    summary = build_index(
        tmp_path / "d",
        tmp_path / "i.sqlite",
        crop_size=(6, 10, 10),
        progress=lambda done, total, name: calls.append((done, total, name)),
    )
    assert calls == [(0, 2, "bare"), (1, 2, "full"), (2, 2, "")]
    assert (summary.images, summary.crops, summary.objects, summary.empty) == (2, 4, 1, ("bare",))
    text = summary.render()
    assert "4 crops of 6 x 10 x 10 voxels from 2 images" in text
    assert "objects  1, 1.0 in a crop; box volume 256 voxels" in text
    assert "no crop  bare" in text
    assert "anchors  model.anchors.sizes=[[8.0],[8.0]] model.anchors.ratios=[1.0] model.anchors.z_ratios=[0.5]" in text
    assert "with 100% of the objects" in text
    again = build_index(tmp_path / "d", tmp_path / "i.sqlite", crop_size=(6, 10, 10))
    assert "0 indexed, 2 already there, 0 removed" in again.render()

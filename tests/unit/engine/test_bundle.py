import errno
import inspect
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from voxelry.bundle import bundle as bundles
from voxelry.bundle.bundle import read_bundle, write_bundle
from voxelry.bundle.registry import TASKS, recipe_named
from voxelry.bundle.settings import digest
from voxelry.core.errors import CheckpointError, ConfigError, FileError, SettingError
from voxelry.core.settings import settings_parts
from voxelry.data.preprocess import Preprocess
from voxelry.models.mask_rcnn import MaskRCNN
from voxelry.models.unet import UNet
from voxelry.tasks.landmarks import LandmarkTask
from voxelry.tasks.segment import SegmentTask

RECORD = {"data": {"root": "somewhere"}, "metrics": {"mre_mm": 1.0}}


def task(width: int = 8) -> LandmarkTask:
    network = UNet(ndim=3, out_channels=2, width=width, multipliers=(1, 2), groups=4, heads=2, head_dim=8)
    return LandmarkTask(network, landmark_names=["left eye", "right eye"], sigma=2.5)


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_bundle(tmp_path / "bundle", task(), Preprocess(image_size=16), record=RECORD, card="# card\n")


def rewrite(bundle: Path, change) -> None:
    """Change the settings and sign them, as somebody who means it would."""
    config = yaml.safe_load((bundle / "config.yaml").read_text())
    change(config)
    text = yaml.safe_dump(config, sort_keys=False)
    (bundle / "config.yaml").write_text(text)
    state = load_file(bundle / "weights.safetensors")
    save_file(state, bundle / "weights.safetensors", metadata={"config_sha256": digest(text.encode())})


def test_what_is_read_is_what_was_written(tmp_path):
    original = task()
    original.eval()
    folder = write_bundle(tmp_path / "bundle", original, Preprocess(spacing=(2, 1, 1)), record=RECORD, card="x")
    loaded = read_bundle(folder)
    assert loaded.task.names == ("left eye", "right eye")
    assert loaded.task.settings() == original.settings()
    assert loaded.preprocess.settings() == Preprocess(spacing=(2, 1, 1)).settings()
    assert loaded.config["data"] == RECORD["data"]
    image = torch.rand(1, 1, 8, 12, 16)
    assert torch.equal(loaded.task.network(image), original.network(image))


def test_a_bundle_may_be_read_by_whom_new_files_may(bundle, tmp_path):
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in bundle.iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_changed_settings_are_refused(bundle):
    path = bundle / "config.yaml"
    path.write_text(path.read_text().replace("image_size: 16", "image_size: 32"))
    with pytest.raises(CheckpointError, match=r"config\.yaml: changed since the bundle was written"):
        read_bundle(bundle)


SETTINGS_OF_USE = {"task.tile_size": [8, 12, 16], "task.decoder": "argmax"}


def test_settings_of_use_are_changed_for_this_reading_only(bundle):
    changed = read_bundle(bundle, SETTINGS_OF_USE).task
    assert changed.tile_size == (8, 12, 16)
    assert changed.decoder == "argmax"
    assert read_bundle(bundle).task.settings() == task().settings()


@pytest.mark.parametrize("name", ["task.sigma", "network.width", "task.tile_sise", "tile_size", "task.name"])
def test_what_the_model_was_trained_with_is_not_changed(bundle, name):
    with pytest.raises(SettingError, match=rf"{name}: not a setting of .*config.yaml that can be changed; .*tile_size"):
        read_bundle(bundle, {name: 3})


def test_a_setting_of_use_that_can_not_be_is_refused(bundle):
    with pytest.raises(ConfigError, match="tile_size: expected"):
        read_bundle(bundle, {"task.tile_size": [8, 8]})


@pytest.mark.parametrize("kind", [recipe_named(name) for name in TASKS], ids=TASKS)
def test_settings_of_use_are_keywords_of_the_task_or_the_detector(kind):
    for setting in kind.adjustable:
        part, *inner, name = setting.split(".")
        known = {"task": kind.task, "network": MaskRCNN}[part]
        for step in inner:
            known = settings_parts(known.Settings)[step]
        assert name in inspect.signature(known).parameters


def detector() -> SegmentTask:
    body = {"name": "resnet", "ndim": 2, "width": 4, "layers": [1], "levels": ["p2"], "norm": "group"}
    parts = {"anchors": {"sizes": [[8]]}, "box": {"channels": 8}, "mask": {"convs": [4]}}
    return SegmentTask(MaskRCNN(body, **parts))


def flat_names(config) -> None:
    """The detector's settings as version 0.1 wrote them."""
    network = config["network"]
    masks = network.pop("mask")
    flat = {f"rpn_{name}": value for name, value in network.pop("rpn").items()}
    box = network.pop("box")
    flat |= {
        "bbox_reg_weights": box.pop("reg_weights"),
        "box_low": network.pop("low"),
        "mask_branch": masks is not None,
    }
    flat |= {f"box_{name}": value for name, value in box.items()}
    flat |= {f"mask_{name}": value for name, value in (masks or {}).items()}
    anchors, regions = network.pop("anchors"), network.pop("regions")
    flat |= {"round_anchors": anchors.pop("rounded"), "roi_levels": regions.pop("levels")}
    flat |= {f"anchor_{name}": value for name, value in anchors.items()}
    network |= flat | regions | network.pop("transform")


def test_a_detector_of_version_0_1_is_read(tmp_path):
    original = detector()
    folder = write_bundle(tmp_path / "bundle", original, Preprocess(), record=RECORD, card="x")
    rewrite(folder, flat_names)
    assert "rpn_nms_thresh" in yaml.safe_load((folder / "config.yaml").read_text())["network"]
    loaded = read_bundle(folder, {"network.box.score_thresh": 0.3, "network.rpn.nms_thresh": 0.4})
    found, expected = loaded.task.network.settings(), original.network.settings()
    assert (found["box"].pop("score_thresh"), found["rpn"].pop("nms_thresh")) == (0.3, 0.4)
    del expected["box"]["score_thresh"], expected["rpn"]["nms_thresh"]
    assert found == expected
    with pytest.raises(SettingError, match=r"network\.box\.channels: not a setting .*network\.box\.score_thresh"):
        read_bundle(folder, {"network.box.channels": 3})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda config: config["task"].update(name="os.system"), "task.name: expected one of landmarks, pretrain"),
        (lambda config: config["network"].update(command="rm"), "network: .*command"),
        (lambda config: config["network"].update(width=-1), "network: "),
        (lambda config: config["preprocess"].update(shell="rm"), "preprocess: "),
        (lambda config: config.update(format=99), "format: expected 1"),
    ],
)
def test_settings_that_name_something_else_are_refused(bundle, change, fault):
    rewrite(bundle, change)
    with pytest.raises(ConfigError, match=fault):
        read_bundle(bundle)


def test_tags_in_the_settings_are_not_executed(bundle, tmp_path):
    text = f"!!python/object/apply:os.mkdir ['{tmp_path / 'pwned'}']\n"
    (bundle / "config.yaml").write_text(text)
    state = load_file(bundle / "weights.safetensors")
    save_file(state, bundle / "weights.safetensors", metadata={"config_sha256": digest(text.encode())})
    with pytest.raises(CheckpointError, match="not plain YAML"):
        read_bundle(bundle)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "config.yaml"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(CheckpointError, match=f"not a bundle, {name} is missing"):
        read_bundle(bundle)


def test_a_file_of_a_bundle_is_not_the_bundle(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"a file; expected the bundle, a folder with weights\.safetensors and"):
        read_bundle(tmp_path / "weights.safetensors")


def test_weights_of_another_architecture_are_refused(bundle):
    rewrite(bundle, lambda config: config["network"].update(width=16))
    with pytest.raises(CheckpointError, match=r"has shape .* expected .* by the configured architecture"):
        read_bundle(bundle)


def test_broken_weights_are_refused(bundle):
    (bundle / "weights.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        read_bundle(bundle)


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundle, monkeypatch):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundles, "save_file", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_bundle(bundle, task(), Preprocess(), record=RECORD, card="y")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_with_something_else_in_it_is_not_replaced(bundle):
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"notes\.txt, which is no part of a bundle"):
        write_bundle(bundle, task(), Preprocess(), record=RECORD, card="y")
    assert (bundle / "notes.txt").read_text() == "mine"

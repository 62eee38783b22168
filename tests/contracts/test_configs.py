"""Every entry of every configuration group names something that exists and takes the keys it is given."""

import inspect
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

import voxelry.configs
from voxelry.backbones.build import build_backbone
from voxelry.bundle.backbone import resolved
from voxelry.core.space import Space
from voxelry.data.augment import Augment
from voxelry.data.crops.dataset import CropDataset
from voxelry.data.degrade import Degrade
from voxelry.data.layouts.find import find_pairs
from voxelry.data.preprocess import Preprocess
from voxelry.data.slices.augment import SliceAugment
from voxelry.data.slices.dataset import SliceDataset
from voxelry.metrics.choice import MetricChoice
from voxelry.models.mask_rcnn import MaskRCNN

FOLDER = Path(voxelry.configs.__file__).parent
GROUPS = (
    "task",
    "model",
    "backbone",
    "data",
    "augment",
    "optimizer",
    "learning_rate",
    "trainer",
    "metrics",
    "launcher",
)
EXPERIMENTS = sorted(path.stem for path in (FOLDER / "experiment").glob("*.yaml"))
FILES = {group: sorted(path.stem for path in (FOLDER / group).glob("*.yaml")) for group in GROUPS}
ENTRIES = [(group, entry) for group, entries in FILES.items() for entry in entries]


@cache
def composed(*overrides: str):
    """A configuration, which is not to be changed."""
    with initialize_config_module("voxelry.configs", version_base="1.3"):
        return compose("train", overrides=["data.root=nowhere", *overrides])


def choosing(group, entry):
    """Overrides that choose an entry and one of each other group, so that few configurations are put together."""
    if (group, entry) == ("data", "reconstruct"):  # its data are shown as its networks want them
        return "data=reconstruct", "model=shape_tiny"
    number = FILES[group].index(entry)
    return tuple(f"{one}={entries[number]}" for one, entries in FILES.items() if number < len(entries))


def target(node):
    name = node["_target_"]
    try:
        return get_class(name)
    except ValueError:
        return get_method(name)


@pytest.mark.parametrize(("group", "entry"), ENTRIES, ids=lambda value: value)
def test_an_entry_fits_what_it_configures(group, entry):
    node = OmegaConf.to_container(composed(*choosing(group, entry))[group], resolve=True)
    if group == "augment":
        Augment(**node)
        return
    if group == "metrics":
        MetricChoice(**node)
        return
    if group == "backbone":
        with torch.device("meta"):
            assert build_backbone(resolved(node, Space.from_spacing((32, 32, 32)), 1)).ndim == 3
        return
    if entry == "crops":
        parameters = inspect.signature(CropDataset).parameters
        assert {"normalise", "margin", "boxes", "on_error", "where"} <= set(node) & set(parameters)
        return
    if (group, entry) == ("data", "reconstruct"):
        slices = node.pop("slices")
        SliceAugment(**slices.pop("augment"))
        assert set(slices.pop("evaluation")) == {"slices", "clicks", "seed"}
        assert set(slices) <= set(inspect.signature(SliceDataset).parameters)
    if (group, entry) == ("data", "degraded"):
        Degrade(**node.pop("degrade"))
    if (group, entry) == ("data", "pairs"):
        pairs = node.pop("pairs")
        assert set(node.pop("roots")) == {"validation", "test"}
        assert set(pairs) - {"resample"} <= set(inspect.signature(find_pairs).parameters)
    if group in ("data", "trainer"):
        reference = OmegaConf.to_container(composed()[group], resolve=True)
        assert set(node) == set(reference), "an entry may change values, not keys"
        if group == "data":
            Preprocess(**node["preprocess"])
        return
    callee = target(node)
    if group == "model" and callee is MaskRCNN:
        for name in ("unit", "per_level", "sizes"):  # for the task, which makes sizes of them
            del node["anchors"][name]
    elif group == "model":
        if "backbone" in node:
            described = OmegaConf.to_container(composed("backbone=resnet_fpn_small").backbone)
            node["backbone"] = resolved(described, Space.from_spacing((32, 32, 32)), 1)
        with torch.device("meta"):
            callee(ndim=3, **{key: value for key, value in node.items() if not key.startswith("_")})
        return
    owners = (
        inspect.getmro(callee)[:-1] if inspect.isclass(callee) else (callee,)
    )  # a class may hand keywords on to its base
    parameters = {name for owner in owners for name in inspect.signature(owner).parameters}
    unknown = [key for key in node if not key.startswith("_") and key not in parameters]
    assert not unknown, f"{callee.__name__} does not take {unknown}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_and_resolves(experiment):
    config = composed(f"experiment={experiment}").copy()
    OmegaConf.resolve(config)
    assert config.ndim == int(experiment[-2])
    assert config.name == experiment


def test_there_is_something_to_check():
    both = ("landmarks", "pretrain", "segment", "translate")
    assert {f"{task}_{rank}" for task in both for rank in ("2d", "3d")} <= set(EXPERIMENTS)
    assert len(ENTRIES) >= 15

"""Settings that survive JSON and YAML."""

import json
from collections import OrderedDict

import torch
import yaml

from voxelry.core.settings import plain


def test_sequences_and_mappings_become_lists_and_dicts_at_any_depth():
    given = OrderedDict(sizes=((1, 2), [3, (4,)]), level={2: "p2"}, shape=torch.Size([8, 9]), steps=range(2))
    found = plain(given)
    assert found == {"sizes": [[1, 2], [3, [4]]], "level": {"2": "p2"}, "shape": [8, 9], "steps": [0, 1]}
    assert type(found) is dict
    assert type(found["sizes"][1][1]) is list
    assert type(found["shape"]) is list


def test_text_numbers_and_nothing_stay():
    values = {"name": "linear", "rate": 0.5, "count": 3, "on": True, "norm": None}
    assert plain(values) == values


def test_what_it_gives_is_the_same_after_json_and_yaml():
    found = plain({"strides": ((1, 2, 2), (2, 2, 2)), "backbone": {"name": "fpn", "levels": ("p2", "p3")}})
    assert json.loads(json.dumps(found)) == found
    assert yaml.safe_load(yaml.safe_dump(found)) == found

"""Settings as dataclasses, and in plain values that survive JSON and YAML."""

import inspect
import json
from collections import OrderedDict
from dataclasses import dataclass, field

import pytest
import torch
import yaml

from voxelry.core.errors import SettingError
from voxelry.core.settings import Configured, plain, settle


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


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    power: int = 60
    gears: tuple[float, ...] = (3.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class CarSettings:
    doors: int
    engine: EngineSettings = field(default_factory=EngineSettings)
    trailer: EngineSettings | None = None


class Car(Configured):
    Settings = CarSettings

    def __init__(self, colour, **settings):
        self.colour = colour
        self._settings = settle(CarSettings, settings)


def test_a_part_is_a_mapping_or_its_own_dataclass():
    given = Car("red", doors=3, engine={"power": 80})
    assert given._settings == CarSettings(doors=3, engine=EngineSettings(power=80))
    assert Car("red", doors=3, engine=EngineSettings(power=80)).settings() == given.settings()
    assert given.settings() == {"doors": 3, "engine": {"power": 80, "gears": [3.0, 1.0]}, "trailer": None}
    assert Car("red", **given.settings()).settings() == given.settings()
    assert Car("red", doors=3, trailer={}).settings()["trailer"] == {"power": 60, "gears": [3.0, 1.0]}


def test_unknown_settings_are_named_where_they_stand():
    with pytest.raises(SettingError, match=r"^engine\.pover: no such setting; expected one of power, gears"):
        Car("red", doors=3, engine={"pover": 80})
    with pytest.raises(SettingError, match=r"^colour_2: no such setting; expected one of doors, engine, trailer"):
        Car("red", doors=3, colour_2="blue")
    with pytest.raises(TypeError, match="doors"):
        Car("red")


def test_a_signature_shows_the_settings_of_the_class_itself():
    class Van(Car):
        def __init__(self, colour, load):
            super().__init__(colour, doors=2)

    shown = inspect.signature(Car).parameters
    assert list(shown) == ["colour", "doors", "engine", "trailer"]
    assert shown["engine"].annotation is EngineSettings
    assert list(inspect.signature(Van).parameters) == ["colour", "load"]

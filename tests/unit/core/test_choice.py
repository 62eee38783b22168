"""The one message about words that there aren't."""

import pytest

from voxelry.core.choice import check_choice, unknown_choice
from voxelry.core.errors import ConfigError, SettingError


def test_what_is_there_passes():
    check_choice("mode", "flow", {"flow": 1, "bridge": 2})
    check_choice("level", None, ("keep", None))


@pytest.mark.parametrize(
    ("value", "end"), [("flwo", "got 'flwo'; did you mean 'flow'?"), ("x", "got 'x'"), (3, "got 3"), ([1], "got [1]")]
)
def test_all_choices_and_the_nearest_are_named(value, end):
    with pytest.raises(SettingError) as caught:
        check_choice("mode", value, ("flow", "bridge"))
    assert str(caught.value) == f"mode: expected one of flow, bridge, {end}"


def test_the_error_may_be_another():
    assert isinstance(unknown_choice("a.yaml: mode", "x", ["y"], ConfigError), ConfigError)
    assert str(unknown_choice("adapter", None, [])) == "adapter: expected one of none, got None"

"""YAML of plain values: nothing in it is run, and whatever is wrong with it is one kind of error."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["parse_yaml"]


def parse_yaml(text: str | bytes) -> Any:
    """The plain values of a YAML text.

    Raises:
        yaml.YAMLError: another tag than those of plain values, no YAML, nested too deeply, or numbers and dates that
            can't be.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError, AttributeError, TypeError) as error:
        raise yaml.YAMLError(str(error)) from error

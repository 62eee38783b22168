"""A text as Hydra's overrides take it."""

import re

__all__ = ["quoted"]


def quoted(text: str) -> str:
    """A text in quotes; Hydra takes a backslash for itself, but before a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"

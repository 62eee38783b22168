"""Whole studies, briefly."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _undrawn(undrawn: object) -> None:
    """Reports without figures, where `drawn` isn't asked for."""

"""What the tests of compression share."""

from __future__ import annotations

from functools import partial

import pytest

from tests.compression.tuning.tuned import Start, set_clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Called with times, has paths take these."""
    return partial(set_clock, monkeypatch)

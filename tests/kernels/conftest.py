"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.float32 import as_it_is


@pytest.fixture
def ieee_float32() -> Iterator[None]:
    """tf32 off."""
    with as_it_is():
        yield

"""What the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.float32 import float32_in


@pytest.fixture(params=[False, True], ids=["ieee", "tf32"])
def tf32(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether it is on: the kernels follow torch's switch."""
    with float32_in("tf32" if request.param else "ieee"):
        yield request.param

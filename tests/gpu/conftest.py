"""A part of the tests for each of several processes: most of a test's time goes into compiling."""

from __future__ import annotations

import os
from zlib import crc32

import pytest

VARIABLE = "TENSORLRF_SHARD"  # "3/12" is the fourth of twelve parts


def belongs(name: str, shard: str) -> bool:
    """Whether the test of that name is in the part; each is in one of them."""
    part, _, parts = shard.partition("/")
    return crc32(name.encode()) % int(parts) == int(part)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shard = os.environ.get(VARIABLE)
    if shard is None:
        return
    others = [item for item in items if not belongs(item.nodeid, shard)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if belongs(item.nodeid, shard)]

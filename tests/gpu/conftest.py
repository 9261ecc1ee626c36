"""What the GPU tests share: that every launch succeeds, and a part of the tests for each of several
processes, since most of a test's time goes into compiling."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from zlib import crc32

import pytest

from tensorlrf_kernels import launches

VARIABLE = "TENSORLRF_SHARD"  # "3/12" is the fourth of twelve parts


@pytest.fixture
def launches_succeed() -> Iterator[None]:
    """Nothing is remembered of launches that failed."""
    yield
    assert not launches._failed, f"kernels that did not compile: {launches._failed}"
    assert not launches._apart, f"cooperative launches that were refused: {launches._apart}"


class Every(set[launches.Launched]):
    """As if each cooperative launch had been refused."""

    def __contains__(self, launched: object) -> bool:
        return True


@pytest.fixture
def refuse_cooperation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called, has every op make its launches apart until the test ends."""
    with monkeypatch.context() as until:
        yield lambda: until.setattr(launches, "_apart", Every())


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

"""Skips what needs a GPU where there is none, and starts every test from one seed, whichever tests
were run before; the same code runs elsewhere on the CPU."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import torch

from tests.float32 import float32_in

# Triton reads it once, when it is imported, and compiles nothing in a process that has it set.
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
NEEDS = {"interpreter": True, "aot": False, "gpu": False}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, interprets in NEEDS.items():
        if item.get_closest_marker(marker) is not None and interprets != INTERPRETS:
            pytest.fail(
                f"tests marked {marker!r} run {'with' if interprets else 'without'} "
                "TRITON_INTERPRET=1 in the environment; `make test` runs each kind in its process",
                pytrace=False,
            )
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def what_is_old_is_left_alone() -> None:
    """By collections of garbage: modules and earlier files leave millions of objects, and what goes
    from block to block has them gone through at every block."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or what extensions look for at their end is still there


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell has what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ieee_float32() -> Iterator[None]:
    """tf32 off: the bounds are those of IEEE float32."""
    with float32_in("ieee"):
        yield

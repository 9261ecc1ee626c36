from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.cli.calls import Program


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    """Call it with the arguments of a command line."""
    return Program(capsys)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and lose much where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""Counts how often the weight of a layer is made."""

from __future__ import annotations

import pytest

from tensorlrf.factors import LowRank


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one whenever a low-rank weight is made."""
    made: list[object] = []
    rebuild = LowRank.to_dense
    monkeypatch.setattr(LowRank, "to_dense", lambda self: (made.append(1), rebuild(self))[1])
    return made

"""The table of heads as tensors: forms within one budget, errors of outputs on unseen inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.draws import seeded

EXAMPLES = str(Path(__file__).parents[2] / "examples")
if EXAMPLES not in sys.path:
    sys.path.insert(0, EXAMPLES)

# The benchmarks import the examples by their file names, so the path comes first.
from bench import head_tensors as bench  # noqa: E402

E, D = 4, 24


def moments(seed: int) -> Tensor:
    x = seeded(96, D, seed=seed) * 0.9 ** torch.arange(D, dtype=torch.float64, device="cpu")
    return x.T @ x / len(x)


def stack(*, onto: bool, layers: int = 2) -> bench.Stack:
    grams = [(moments(k), moments(10 + k)) for k in range(layers)]
    weights = [seeded(D, D, seed=20 + k) for k in range(layers)]
    parts = [
        bench.Projection.of(w, *gram, onto=onto) for w, gram in zip(weights, grams, strict=True)
    ]
    return bench.Stack(parts, E, layers)


@pytest.mark.parametrize("onto", [False, True])
@pytest.mark.parametrize("form", list(bench.FORMS))
def test_forms_keep_to_the_budget_and_lose_less_with_more(form: str, onto: bool) -> None:
    own, lost = stack(onto=onto), []
    for share in (0.25, 0.6):
        budget = int(share * own.rows * own.d)
        found = bench.FORMS[form](own, budget)
        assert found.params <= budget
        pairs = zip(own.projections, found.heads, strict=True)
        lost.append(sum(p.lost(heads) for p, heads in pairs))
    assert lost[1] < lost[0]


def test_what_is_lost_is_of_the_outputs() -> None:
    for onto in (False, True):
        one = stack(onto=onto, layers=1).projections[0]
        assert bench.energy(one.weight, one.gram) == pytest.approx(1.0)
        assert one.lost(one.heads) == 0.0
        assert one.lost(torch.zeros_like(one.heads)) == pytest.approx(1.0)


def test_moments_are_those_of_rows_that_a_mask_leaves() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, device="cpu", dtype=torch.float64)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.layer(input_ids)
            return out

    x = seeded(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], device="cpu")
    model = Reads()
    (found,) = bench.moments(model, [model.layer], [{"input_ids": x, "attention_mask": mask}])
    rows, centre = x[mask != 0], seeded(3, seed=1)
    wanted = (rows - centre).T @ (rows - centre) / len(rows)
    torch.testing.assert_close(found.about(centre), wanted)

"""The harness of rules for ranks: rows by name, peers within the budget, pairs."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression.plan.sensitivity import LayerSensitivity

EXAMPLES = str(Path(__file__).parents[2] / "examples")
if EXAMPLES not in sys.path:
    sys.path.insert(0, EXAMPLES)

# The benchmarks import the examples by their file names, so the path comes first.
from bench import allocation, allocation_peers, judged, plan_order  # noqa: E402


def model(widths: tuple[int, ...] = (64, 64, 64, 64)) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


def layers(heights: dict[str, float]) -> list[LayerSensitivity]:
    """64 x 64, of losses that fall along a line."""
    ranks = tuple(range(0, 65, 8))
    return [
        LayerSensitivity(n, "Linear", (64, 64), 1, ranks, tuple(h * (1 - r / 64) for r in ranks))
        for n, h in heights.items()
    ]


def test_a_row_is_model_rule_and_share() -> None:
    for name in allocation.SHARES:
        for spec in allocation.specs_of(name):
            assert allocation.Spec.of(str(spec)) == spec
    for wrong in ("minilm", "minilm:fisher", "minilm:fisher:0", "minilm:fisher:.5:1",
                  "minilm:fisher:.5:original:l2", "minilm:fisher:.5:original:loss:1"):  # fmt: skip
        with pytest.raises(ValueError, match="MODEL:RULE:SHARE"):
            allocation.Spec.of(wrong)
    for wrong, told in (("bert:fisher:.5", "minilm.*'bert'"), ("minilm:fischer:.5", "'fischer'")):
        with pytest.raises(ValueError, match=told):
            allocation.Spec.of(wrong)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_peers_keep_to_the_budget(keep: float) -> None:
    small = model()
    plan = tensorlrf.plan(small, keep_params=keep, skip=[])
    rows = layers({"0": 1.0, "1": 3.0, "2": 0.1})
    energy = {"0": 1e6, "1": 1e4, "2": 1e5}
    for kept in (
        allocation_peers.asvd(rows, keep),
        allocation_peers.svd_llm_v2(rows, energy, keep),
    ):
        made = allocation_peers.planned(plan, kept, rows)
        after = [row.params if row.method is None else row.params_after or 0 for row in made.layers]
        assert sum(after) <= keep * sum(row.params for row in made.layers)


def test_peers_give_equal_layers_equal_shares_and_the_more_the_more_they_lose() -> None:
    equal, unequal = layers({"0.q": 1.0, "1.q": 1.0}), layers({"0.q": 1.0, "1.q": 4.0})
    assert len(set(allocation_peers.asvd(equal, 0.5).values())) == 1
    assert len(set(allocation_peers.svd_llm_v2(equal, dict.fromkeys(("0.q", "1.q"), 1e4), 0.5)
                   .values())) == 1  # fmt: skip
    kept = allocation_peers.asvd(unequal, 0.4)
    assert kept["1.q"] > kept["0.q"]
    kept = allocation_peers.svd_llm_v2(equal, {"0.q": 1e4, "1.q": 1e6}, 0.5)
    assert kept["1.q"] > kept["0.q"]


def test_what_is_taken_goes_with_one_over_the_logarithm_of_the_loss() -> None:
    rows = layers({"0.q": 1.0, "1.q": 1.0, "0.k": 1.0})
    energy = {"0.q": 2 * 1e4, "1.q": 2 * 1e8, "0.k": 2e5}
    kept = allocation_peers.svd_llm_v2(rows, energy, 0.5)
    logs = [math.log(math.sqrt(energy[n] * row.loss_at(0.5 * row.params)))
            for n, row in zip(energy, rows, strict=True)]  # fmt: skip
    parts = [1 / logs[0], 1 / logs[1]]
    scale = kept["0.k"] / 0.5  # alone among its kind; one multiplier meets the budget
    wanted = [scale * (1 - 0.5 * part / (sum(parts) / 2)) for part in parts]
    assert [kept["0.q"], kept["1.q"]] == pytest.approx(wanted, rel=1e-6)


def test_two_models_are_compared_on_the_same_examples() -> None:
    figure = judged.Figure("right", lambda scores: float(scores.mean()))
    scores = np.random.default_rng(0).random((40, 1))
    higher, (low, high) = figure.beside(scores + 0.1, scores)
    assert (higher, low, high) == pytest.approx((0.1, 0.1, 0.1))
    value, (low, high) = figure.told(scores)
    assert low < value < high


def test_what_is_kept_of_scores_tells_the_figure() -> None:
    scores = np.random.default_rng(0).random((6, 4))
    scores[:, 1] = [0, 0, 1, 1, 2, 2]
    for name, figure in judged.FIGURES.items():
        whole = scores[:, :3] if name == "detector" else scores
        assert figure.of(whole[:, : figure.columns]) == figure.of(whole)


def test_predicted_and_true_losses_are_put_in_order() -> None:
    small = model()
    x = [torch.randn(64, 64, generator=torch.Generator().manual_seed(0))]
    found = tensorlrf.sensitivity(small, x, rule="energy", skip=[], progress=False)

    class Loss:
        def loss_at(self, ranks: dict[str, int]) -> float:
            known = {row.name: row for row in found.layers}
            return sum(known[n].loss_at(r * known[n].params_a_rank) for n, r in ranks.items())

    told = plan_order.rank_correlation(small, found, Loss(), 0.5, [], 6)
    assert told["rank_correlation"] == pytest.approx(1)
    assert told["plans"] == 6


def test_the_energy_of_outputs_leaves_the_bias_out() -> None:
    for layer, x in (
        (nn.Conv2d(3, 4, 1), torch.rand(2, 3, 5, 5)),
        (nn.Linear(3, 4), torch.rand(2, 7, 3)),
    ):
        with torch.no_grad():
            wanted = float((layer(x) - layer(torch.zeros_like(x))).square().sum())
        found = plan_order.output_energies(nn.Sequential(layer), ["0"], [x])
        assert found["0"] == pytest.approx(wanted, rel=1e-5)


def test_the_table_pairs_rows_with_uniform_ranks(tmp_path: Path) -> None:
    def row(rule: str, score: float, **more: Any) -> dict[str, Any]:
        scores = [[score], [score + 0.1]]
        return {
            "model": "minilm", "rule": rule, "keep": 0.6, "kept": 0.59, "left dense": 3,
            "ranks_s": 1.0, "fit_s": 2.0, "peak_mb": None, "batches": 4, "figure": score,
            "interval": [score, score], "scores": scores, **more,
        }  # fmt: skip

    store = allocation.Store(tmp_path, fresh=True)
    store.add("minilm:fisher:0.6", row("fisher", 0.9))
    store.add("minilm:uniform:0.6", row("uniform", 0.8))
    order = {
        "rank_correlation": 1.0, "plans": 3, "least": 0.1, "most": 0.2,
        "predicted": [1.0, 2.0, 3.0], "true": [0.1, 0.15, 0.2],
    }  # fmt: skip
    store.add("minilm:order-fisher:0.6", row("order-fisher", 0.0) | order)
    assert list(store.rows) == [f"minilm:{r}:0.6" for r in ("uniform", "fisher", "order-fisher")]
    text = (tmp_path / "allocation.md").read_text()
    assert "+0.1 [+0.1, +0.1]" in text
    assert "1.00 [1.00, 1.00] over 3 plans" in text
    assert list(allocation.Store(tmp_path, fresh=False).rows) == list(store.rows)

"""Ranks chosen by the input beside a prefix of the ranks at the same average, on MiniLM.

    python bench/rank_gate.py --results bench/results/cpu

MiniLM at .6 of its encoder's parameters by low rank, calibrated on the background documents, its
terms in the order of what they add to the outputs. Gates are fitted to background documents, one
at a time, and judged on others, one at a time; "prefix" is `rank_scale` at the share of ranks that
the gates took on average over layers (weighted by parameters), so that both do the same work but
for the gates' own. "error" is that of the embeddings of tokens against all ranks, relative;
"cosine" of the documents' mean embeddings against the dense model; "FLOPs" of the gated layers, as
a share of those on all ranks; times are of one document.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import minilm  # noqa: E402
import texts  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf.nn import RankGate  # noqa: E402

KEEP = 0.6
ERRORS = (0.1, 0.2, 0.3)
DOCUMENTS = 48
"""To fit to; as many again at most judge."""


def embeddings(model: nn.Module, batches: list) -> tuple[list[Tensor], float]:
    """Of the tokens of each document, and seconds a document."""
    begun = time.perf_counter()
    with torch.no_grad():
        found = [model(**batch).last_hidden_state[0] for batch in batches]
    return found, (time.perf_counter() - begun) / len(batches)


def error(got: list[Tensor], wanted: list[Tensor]) -> float:
    a, b = torch.cat(got), torch.cat(wanted)
    return float(torch.dist(a, b) / b.norm())


def cosine(got: list[Tensor], wanted: list[Tensor]) -> float:
    pairs = zip(got, wanted, strict=True)
    each = [nn.functional.cosine_similarity(a.mean(0), b.mean(0), 0) for a, b in pairs]
    return float(torch.stack(each).mean())


def work(gated: nn.Module) -> float:
    """The share of the gated layers' FLOPs on all ranks that the ranks which were taken have."""
    gates = [m for m in gated.modules() if isinstance(m, RankGate)]
    sizes = [m.layer.in_features + m.layer.out_features for m in gates]
    taken = sum(s * g.mean_rank for s, g in zip(sizes, gates, strict=True))
    return taken / sum(s * g.layer.factors.rank for s, g in zip(sizes, gates, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, dense = minilm.load_tokenizer(), minilm.load_minilm()
    calibration = minilm.calibration_batches(tokenizer)
    small, _ = tensorlrf.compress(
        dense, keep_params=KEEP, method="svd", calibration=calibration, skip=minilm.SKIP,
        allocation="uniform", metric="outputs", progress=False,
    )  # fmt: skip
    tensorlrf.order_by_energy(small, calibration[::2])
    fit = minilm.batches(tokenizer, texts.background()[:DOCUMENTS], 1, 96)
    unseen = minilm.batches(tokenizer, texts.documents()[:DOCUMENTS], 1, 96)
    true, _ = embeddings(dense, unseen)
    whole, seconds = embeddings(small, unseen)
    rows = [
        Row(
            "all ranks",
            "ours",
            seconds,
            seconds,
            1,
            {"FLOPs": 1.0, "cosine": round(cosine(whole, true), 4)},
        )
    ]

    def judged(
        case: str, variant: str, run: Callable[[], tuple[list[Tensor], float]], share: float
    ) -> None:
        got, took = run()
        info = {
            "FLOPs": round(share, 3),
            "error": round(error(got, whole), 4),
            "cosine": round(cosine(got, true), 4),
        }
        print(case, variant, info, flush=True)
        rows.append(Row(case, variant, took, took, 1, info))

    for bound in ERRORS:
        gated = tensorlrf.gate_ranks(small, fit, error=bound, scales=(0.25, 0.4, 0.55, 0.7, 0.85))
        embeddings(gated, unseen)
        share = work(gated)
        judged(f"error {bound:g}", "gate", lambda g=gated: embeddings(g, unseen), share)
        with tensorlrf.rank_scale(small, share):
            judged(f"error {bound:g}", "prefix", lambda: embeddings(small, unseen), share)
        if given.results is not None:
            note = "See bench/rank_gate.py for the model, the rows and the columns."
            write_results(given.results, "rank_gate", rows, machine("cpu"), note)


if __name__ == "__main__":
    main()

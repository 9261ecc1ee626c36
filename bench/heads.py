"""SVD-softmax on the head of SmolLM2: how many of the best words it finds, and how long it takes.

    python bench/heads.py                    sizes chosen on some texts, judged on others
    python bench/heads.py --states 1024      with fewer hidden states of each
    python bench/heads.py --results DIR      elsewhere

States are the inputs of the head on windows of 512 tokens: those that the preview is fitted to and
sizes are chosen by are of the background documents and of docstrings, those that are judged of
lee.cor and of topics of Python's manual. Times are of one row, in turn with the linear layer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench.allocation_ranks import replace_text  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf.nn import HeadReport, SVDSoftmaxHead  # noqa: E402
from tensorlrf.ops import time_calls  # noqa: E402

RECALLS = ((0.999, 0.99), (0.9999, 0.999))
"""Asked for on the states that sizes are chosen by."""

HEAD = (
    "SVD-softmax on the head of SmolLM2 (49,152 words, width 576), whose weight stays the "
    "embedding's. Recall: share of the 1 and of the 10 best words by exact logits among as many "
    "by the head, on texts that sizes were not chosen by. Read: of the weight, for one row. Times: "
    "one row, in turn with the linear layer, medians, one thread. Inputs first: over the linear "
    "layer with its weight stored (d, V) in memory, which is another way to be faster, without an "
    "error."
)


BESIDE = ("asked", "text", "inputs_first")
"""Of a row, beside what the report has."""


@torch.no_grad()
def states_of(model: nn.Module, windows: Iterable[Tensor], n: int) -> Tensor:
    """(n, d): inputs of the head, evenly spaced over those of all windows."""
    every = torch.cat([model.model(input_ids=w[None]).last_hidden_state[0] for w in windows])
    return every[:: max(1, len(every) // n)][:n].clone()


@torch.no_grad()
def beside_inputs_first(head: SVDSoftmaxHead, linear: nn.Linear, one: Tensor) -> float:
    """Time of one row by the linear layer with its weight stored (d, V), over that by the head."""
    turned = linear.weight.T.contiguous()
    times = time_calls({"dense": lambda: one @ turned, "head": lambda: head(one)}, seconds=4.0)
    return times.median("dense") / times.median("head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--states", type=int, default=4096)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "cpu")
    given = parser.parse_args()
    import smollm2

    torch.set_num_threads(1)
    model, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    n, windows = given.states, -(-given.states // smollm2.WINDOW)
    seen = [batch["input_ids"][0] for batch in smollm2.mixed_batches(tokenizer, windows)]
    chosen = states_of(model, seen, n)
    others = {
        "news": states_of(model, smollm2.unseen_windows(tokenizer), n // 4),
        "the manual": states_of(model, smollm2.topics_windows(tokenizer, 4), n // 4),
    }
    rows: list[dict[str, Any]] = []
    for recall in RECALLS:
        head = SVDSoftmaxHead.calibrated(model.lm_head, chosen, recall=recall)
        for text, states in others.items():
            found = head.measure(states, seconds=4.0)
            inputs_first = beside_inputs_first(head, model.lm_head, states[:1])
            print(text, found, f"inputs first {inputs_first:.2f}x", flush=True)
            rows.append(
                {"asked": recall, "text": text, "inputs_first": inputs_first, **asdict(found)}
            )
    about = {**machine("cpu"), "chosen on": len(chosen)}
    given.results.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "rows": rows}
    replace_text(given.results / "heads.json", json.dumps(content, indent=1) + "\n")
    replace_text(given.results / "heads.md", told(rows, about))


def told(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table."""
    names = ("asked for", "text", "window", "exact", "top-1", "top-10", "read", "ms", "dense", "x")
    names += ("inputs first",)
    lines = ["# heads", "", HEAD, "", ", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    lines += [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for row in rows:
        found = HeadReport(**{k: v for k, v in row.items() if k not in BESIDE})
        cells = [
            " / ".join(f"{share:g}" for share in row["asked"]), row["text"], str(found.window),
            f"{found.top:,}", *(f"{share:.4f}" for share in found.recall),
            f"{found.read / found.dense:.1%}", f"{found.seconds * 1e3:.2f}",
            f"{found.dense_seconds * 1e3:.2f}", f"{found.dense_seconds / found.seconds:.2f}",
            f"{row['inputs_first']:.2f}x",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Rank by word frequency: the table of SmolLM2, tied to its head, at shares of its parameters.

    python bench/rare_words.py                      on test texts, with the bands of the library
    python bench/rare_words.py --on validation      on texts by which choices were made
    python bench/rare_words.py --shares .5 --ways own nested
    python bench/rare_words.py --results DIR        elsewhere

Every way is a fit of the table alone, by singular values: all else in the model stays. Tokens are
counted on windows of news and docstrings, on the first of which the states that the head is given
are looked at too; p are their shares, drawn towards an even one as `compress` does it, and errors
count in the metric of both the table and its head. Rows are written as they are measured, beside
those that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import numpy as np  # noqa: E402
import smollm2  # noqa: E402
import torch  # noqa: E402
from common import interval  # noqa: E402
from texts import background, docstrings  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.allocation_ranks import replace_text  # noqa: E402
from bench.report import machine  # noqa: E402
from tensorlrf import GroupReduce  # noqa: E402
from tensorlrf.compression.calibration._statistics import Inputs  # noqa: E402
from tensorlrf.compression.calibration.moments._moments import CountMoments  # noqa: E402
from tensorlrf.decomposition._quadratic import Product  # noqa: E402
from tensorlrf.decomposition.linalg.compact import LowRankPlusDiagonal  # noqa: E402
from tensorlrf.decomposition.shrinkage import shrunk  # noqa: E402

SHARES = (0.25, 0.5)
STATES = 8
"""Windows on which the head is looked at."""
BANDS, RATIO = 4, 4

HEAD = (
    "SmolLM2-135M with its table of 49,152 words, width 576, at a share of its parameters, tied to "
    "the head; all else as it is. Plain: singular values of the table. Weighted: of the table by "
    "token shares, in the metric of the head too, as `compress` fits it. Own: bands of words by "
    "frequency, each with factors of its own or dense (`GroupReduce`). Nested: the same bands on "
    "prefixes of one right factor. Error: of table and head on tokens of these texts, relative. "
    "Higher: by how much the perplexity is above that of the weighted low rank, over blocks of "
    "tokens drawn for both alike."
)


@dataclass
class Words:
    """What is known of the words.

    table   (V, d) float64
    counts  (V,) in the texts of calibration
    metric  (d, d), of what is looked up and of the head's inputs
    """

    table: Tensor
    counts: Tensor
    metric: Tensor

    @cached_property
    def shares(self) -> Tensor:
        """Of tokens, (V,), as `compress` knows them."""
        moments = CountMoments(len(self.counts), torch.device("cpu"))
        moments.add(torch.repeat_interleave(self.counts.long()))
        inputs = Inputs.of(moments)
        return shrunk(inputs.gram, inputs.warranted).diagonal()

    @cached_property
    def root(self) -> Tensor:
        return torch.linalg.cholesky(self.metric)

    @cached_property
    def turned(self) -> Tensor:
        """In which the metric is the plain norm."""
        return self.table @ self.root

    @cached_property
    def order(self) -> Tensor:
        return self.counts.argsort(descending=True, stable=True)

    def projected(self, rows: Tensor, turn: Tensor) -> Tensor:
        """Some rows within the span of directions (d, r), in the metric."""
        inside = (self.turned[rows] @ turn) @ turn.T
        return torch.linalg.solve_triangular(self.root, inside, upper=False, left=False)

    def error(self, table: Tensor, shares: Tensor) -> float:
        """Of both, relative, for tokens of these shares."""
        lost = ((self.table - table) @ self.root).square().sum(1) @ shares
        return math.sqrt(float(lost / (self.turned.square().sum(1) @ shares)))


def bands_of(order: Tensor, bands: int = BANDS, ratio: int = RATIO) -> list[Tensor]:
    count = len(order)
    inner = sorted({round(count / ratio**k) for k in range(1, bands)} - {0, count})
    return [order[a:b] for a, b in itertools.pairwise((0, *inner, count))]


def descending(gram: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def plain(words: Words, params: int) -> Tensor:
    count, d = words.table.shape
    turn = descending(words.table.T @ words.table)[1][:, : params // (count + d)]
    return words.table @ turn @ turn.T


def weighted(words: Words, params: int) -> Tensor:
    count, d = words.table.shape
    every = torch.arange(count, dtype=torch.int64)
    turn = descending(_gram(words, every, words.shares))[1]
    return words.projected(every, turn[:, : params // (count + d)])


def _gram(words: Words, rows: Tensor, shares: Tensor) -> Tensor:
    own = words.turned[rows]
    return own.T @ (own * shares[rows, None])


def own(words: Words, params: int) -> Tensor:
    """By the library, as `compress` calls it."""
    form = Product(
        words.metric, LowRankPlusDiagonal(words.table.new_zeros(0, len(words.table)), words.shares)
    )
    method = GroupReduce(rank=params / words.table.numel())
    factors = method.decompose(words.table.float().T, form, None)
    print(factors, flush=True)
    return factors.to_dense().T.double()


def nested(words: Words, params: int) -> Tensor:
    """Band b on the first r_b of common directions: ranks for these, and these for the ranks, in
    turn."""
    count, shares = len(words.table), words.shares
    parts = bands_of(words.order)
    grams = torch.stack([_gram(words, rows, shares) for rows in parts])  # (B, d, d)
    turn = descending(grams.sum(0))[1]
    best: tuple[float, Any, Any] = (math.inf, None, None)
    for _ in range(12):
        energies = torch.einsum("dj,bde,ej->bj", turn, grams, turn)  # (B, d)
        ranks = _prefixes(energies, [len(p) for p in parts], params - count)
        left = sum(float(e[r:].sum()) for e, r in zip(energies, ranks, strict=True))
        if left < best[0]:
            best = left, turn, ranks
        turn = _turned(turn, grams, ranks)
    _, turn, ranks = best
    table = torch.empty_like(words.table)
    for rows, rank in zip(parts, ranks, strict=True):
        table[rows] = words.projected(rows, turn[:, :rank])
    return table


def _prefixes(energies: Tensor, sizes: list[int], params: int) -> list[int]:
    """For every band how many of the first directions it takes: least energy left plus price times
    parameters, at the least price that keeps within them."""
    d = energies.shape[1]
    tails = torch.cat([energies.flip(1).cumsum(1).flip(1), energies.new_zeros(len(sizes), 1)], 1)
    steps = torch.arange(d + 1, dtype=torch.float64)

    def at(price: float) -> list[int]:
        return [int((t + price * n * steps).argmin()) for t, n in zip(tails, sizes, strict=True)]

    def cost(ranks: list[int]) -> int:
        return sum(r * n for r, n in zip(ranks, sizes, strict=True)) + d * max(ranks)

    low, high = 0.0, float(energies.max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) > params else (low, middle)
    ranks = at(high)
    while True:  # what is left goes to whoever gains most by it
        room = params - cost(ranks)
        gains = [
            (float(energies[b, ranks[b]]) / n, b)
            for b, n in enumerate(sizes)
            if ranks[b] < d and n + d * (ranks[b] == max(ranks)) <= room
        ]
        if not gains:
            return ranks
        ranks[max(gains)[1]] += 1


def _turned(turn: Tensor, grams: Tensor, ranks: list[int]) -> Tensor:
    """Directions by which nested spans of these sizes hold more, two neighbouring parts at a time:
    the inner one is to hold what serves those alone who have no more."""
    ends = sorted({0, *ranks, turn.shape[1]})
    for first, middle, last in zip(ends, ends[1:], ends[2:], strict=False):
        only = [b for b, r in enumerate(ranks) if first < r <= middle]
        if only:
            span = turn[:, first:last]
            inside = descending(span.T @ grams[only].sum(0) @ span)[1]
            turn = torch.cat([turn[:, :first], span @ inside, turn[:, last:]], 1)
    return turn


WAYS: dict[str, Callable[..., Tensor]] = {
    "weighted": weighted,
    "own": own,
    "nested": nested,
    "plain": plain,
}


@torch.no_grad()
def look(model: Any, windows: Iterable[Tensor], states: int) -> Words:
    """At the tokens of all windows, and at the head's inputs on the first of them."""
    table = model.model.embed_tokens.weight.detach().double()
    windows = list(windows)
    counts = torch.bincount(torch.cat(windows), minlength=len(table)).double()
    gram, seen = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64), 0
    for window in windows[:: max(1, len(windows) // states)][:states]:
        h = model.model(input_ids=window[None]).last_hidden_state[0].double()
        gram, seen = gram + h.T @ h, seen + len(h)
    gram /= seen
    whole = table.square().sum(), ((table @ gram) * table).sum()
    metric = torch.eye(len(gram), dtype=torch.float64) / whole[0] + gram / whole[1]
    return Words(table, counts, metric / metric.diagonal().mean())


def validation(tokenizer: Any, n: int) -> Tensor:
    """(n, 512): of the last background documents, and of docstrings between those that calibration
    has."""
    news = smollm2.windows(tokenizer, background(), None)
    docs = smollm2.windows(tokenizer, docstrings(), None)
    half = n // 2
    at = [(2 * k + 1) * len(docs) // (2 * half) for k in range(half)]
    return torch.cat([news[-(n - half) :], docs[at]])


@torch.no_grad()
def losses(model: Any, table: Tensor, windows: Tensor) -> np.ndarray:
    """(blocks,) mean nats, with this table in the place of its own."""
    weight = model.model.embed_tokens.weight
    kept = weight.detach().clone()
    weight.copy_(table)
    try:
        nats = smollm2.losses(model, windows)
    finally:
        weight.copy_(kept)
    blocks: np.ndarray = nats.reshape(-1, smollm2.BLOCK).mean(1).numpy()
    return blocks


def perplexity(blocks: np.ndarray) -> str:
    value = math.exp(blocks.mean())
    low, high = interval(lambda k: math.exp(blocks[k].mean()), len(blocks))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def beside(blocks: np.ndarray, other: np.ndarray) -> str:
    def higher(k: Any) -> float:
        return math.exp(blocks[k].mean()) - math.exp(other[k].mean())

    low, high = interval(higher, len(blocks))
    return f"{higher(slice(None)):+.2f} [{low:+.2f}, {high:+.2f}]"


def told(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table."""
    texts = list(rows[0]["blocks"]) if rows else []
    names = ["share", "way", "error"]
    names += [f"{text}{more}" for text in texts for more in ("", ", higher")]
    lines = ["# rare_words", "", HEAD, "", ", ".join(f"{k}: {v}" for k, v in about.items()), ""]
    lines += [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    usual = {row["share"]: row for row in rows if row["way"] == "weighted"}
    for row in rows:
        cells = [f"{row['share']:g}", row["way"], f"{row['error']:.4f}"]
        for text in texts:
            blocks = np.asarray(row["blocks"][text])
            other = usual.get(row["share"])
            cells.append(perplexity(blocks))
            cells.append(
                "-" if other is None or other is row
                else beside(blocks, np.asarray(other["blocks"][text]))
            )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--on", choices=("test", "validation"), default="test")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--windows", type=int, default=8, help="of each text, at the most")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = smollm2.load_smollm2(), smollm2.load_tokenizer()
    windows = [batch["input_ids"][0] for batch in smollm2.mixed_batches(tokenizer)]
    words = look(model, windows, STATES)
    if given.on == "test":
        texts = {
            "news": smollm2.unseen_windows(tokenizer, None)[: given.windows],
            "manual": smollm2.topics_windows(tokenizer, given.windows),
        }
    else:
        texts = {"validation": validation(tokenizer, given.windows)}
    tokens = torch.cat([t.flatten() for t in texts.values()])
    seen = torch.bincount(tokens, minlength=len(words.table)).double()
    stem = "rare_words" if given.on == "test" else "rare_words_validation"
    path, about = given.results / f"{stem}.json", machine("cpu")
    given.results.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    todo = [(1.0, "dense"), *itertools.product(given.shares, given.ways)]
    for share, way in todo:
        begun = time.process_time()
        params = int(share * words.table.numel())
        table = words.table if way == "dense" else WAYS[way](words, params)
        seconds = time.process_time() - begun
        row = {
            "share": share,
            "way": way,
            "seconds": seconds,
            "error": words.error(table, seen / seen.sum()),
            "blocks": {k: losses(model, table, t).round(6).tolist() for k, t in texts.items()},
        }
        rows = [one for one in rows if (one["share"], one["way"]) != (share, way)] + [row]
        replace_text(path, json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
        replace_text(path.with_suffix(".md"), told(rows, about))
        print(told(rows, about).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()

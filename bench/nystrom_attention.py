"""Attention by landmarks beside the softmax over all keys: time, error, and MiniLM with it.

    python bench/nystrom_attention.py                 all of it
    python bench/nystrom_attention.py --only errors   or times, or minilm; other parts stay

Times: one sequence, 12 heads of 32, float32, one thread, in turn with torch's function; medians.
Errors: relative, on queries, keys and values of MiniLM's layers on documents of 512 tokens, beside
Nystromformer's formula (as many landmarks of queries as of keys, six steps of its iteration for the
pseudo-inverse; Xiong et al. 2021, eq. 13 and 14) on the same segments. MiniLM: documents put
together to 512 tokens, all layers by landmarks, no training; cosine of mean-pooled embeddings to
those of softmax attention, and whether each document's nearest other one stays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from bench.allocation_ranks import replace_text  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.turns import Turns  # noqa: E402
from tensorlrf.nn import nystrom_attention, use_nystrom_attention  # noqa: E402
from tensorlrf.nn.attention._nystrom import segment_means  # noqa: E402

LENGTHS = (512, 1024, 2048, 4096, 8192)
LANDMARKS = (32, 64, 128)
FOR_MINILM = (16, 32, 64, 128, 256)
HEADS, SIZE = 12, 32
TOKENS = 512
DOCUMENTS = 48
Rows = list[dict[str, Any]]


def nystromformer(q: Tensor, k: Tensor, v: Tensor, m: int, steps: int = 6) -> Tensor:
    """Xiong et al. 2021, without the convolution beside it, which is trained."""
    asked, few = (segment_means(t, m, None)[0] for t in (q, k))
    inner = (asked @ few.mT / q.shape[-1] ** 0.5).softmax(-1)
    eye = torch.eye(m)
    inverse = inner.mT / (inner.sum(-2).amax() * inner.sum(-1).amax())
    for _ in range(steps):
        near = inner @ inverse
        inverse = inverse @ (13 * eye - near @ (15 * eye - near @ (7 * eye - near))) / 4
    outputs = F.scaled_dot_product_attention(asked, k, v)
    return F.scaled_dot_product_attention(q, few, inverse @ outputs)


def times() -> Iterator[dict[str, Any]]:
    draws = torch.Generator().manual_seed(0)
    for length in LENGTHS:
        q, k, v = torch.randn(3, 1, HEADS, length, SIZE, generator=draws)
        calls: dict[str, Callable[[], Tensor]] = {
            "softmax": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)
        }
        for m in LANDMARKS:
            calls[str(m)] = lambda q=q, k=k, v=v, m=m: nystrom_attention(q, k, v, m)
        taken = Turns.take(calls, rounds=max(3, min(21, 40960 // length)))
        for m in LANDMARKS:
            ratios = taken.ratios(str(m), "softmax")
            yield {
                "length": length,
                "landmarks": m,
                "softmax_s": statistics.median(taken.samples["softmax"]),
                "seconds": statistics.median(taken.samples[str(m)]),
                "ratio": statistics.median(ratios),
                "span": [min(ratios), max(ratios)],
            }


def documents(tokenizer: Any) -> list[dict[str, Tensor]]:
    """Texts of the first documents put together until each has 512 tokens, one after the other."""
    import texts

    together = " ".join(texts.background())
    ids = tokenizer(together, add_special_tokens=False)["input_ids"]
    inner = TOKENS - 2
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    cut = [ids[at : at + inner] for at in range(0, inner * DOCUMENTS, inner)]
    return [
        {"input_ids": torch.tensor([[first, *part, last]])} for part in cut if len(part) == inner
    ]


def errors(model: nn.Module, given: list[dict[str, Tensor]]) -> Iterator[dict[str, Any]]:
    """Of every layer and head together, on a few documents."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> Any:
        seen.append((q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous(), None

    from transformers import AttentionInterface

    AttentionInterface.register("taken", take)
    model.set_attn_implementation("taken")
    for document in given[:4]:
        model(**document)
    for m in FOR_MINILM:
        lost: dict[str, list[float]] = {"ours": [], "nystromformer": []}
        for q, k, v in seen:
            exact = F.scaled_dot_product_attention(q, k, v)
            for name, way in (("ours", nystrom_attention), ("nystromformer", nystromformer)):
                lost[name].append(float((way(q, k, v, m) - exact).norm() / exact.norm()))
        yield {"landmarks": m, **{name: statistics.mean(each) for name, each in lost.items()}}


def minilm(model: nn.Module, given: list[dict[str, Tensor]]) -> Iterator[dict[str, Any]]:
    def embedded() -> Tensor:
        rows = [model(**document).last_hidden_state.mean(1) for document in given]
        return F.normalize(torch.cat(rows), dim=1)

    def nearest(rows: Tensor) -> Tensor:
        return (rows @ rows.T).fill_diagonal_(-1).argmax(1)

    use_nystrom_attention(model, None)
    exact = embedded()
    for m in FOR_MINILM:
        use_nystrom_attention(model, m)
        rows = embedded()
        cosines = (rows * exact).sum(1)
        yield {
            "landmarks": m,
            "documents": len(given),
            "cosine": float(cosines.mean()),
            "least": float(cosines.min()),
            "nearest": float((nearest(rows) == nearest(exact)).double().mean()),
        }
    use_nystrom_attention(model, None)


def markdown(content: dict[str, Any]) -> str:
    about = ", ".join(f"{key}: {value}" for key, value in content["machine"].items())
    lines = [
        "# nystrom_attention",
        "",
        f"{about}. See bench/nystrom_attention.py for what is what.",
    ]
    for part, rows in content["parts"].items():
        names = list(rows[0])
        lines += ["", f"## {part}", "", _line(names), _line(["---"] * len(names))]
        lines += [_line([_told(row[name]) for name in names]) for row in rows]
    return "\n".join(lines) + "\n"


def _told(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{v:.3g}" for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("times", "errors", "minilm"))
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    import minilm as example

    path = given.results / "nystrom_attention.json"
    content: dict[str, Any] = {"machine": machine("cpu"), "parts": {}}
    if given.only and path.exists():
        content["parts"] = json.loads(path.read_text())["parts"]
    model, texts = example.load_minilm(), documents(example.load_tokenizer())
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "times": times,
        "errors": lambda: errors(model, texts),
        "minilm": lambda: minilm(model, texts),
    }
    for part, measured in parts.items():
        if given.only in (None, part):
            content["parts"][part] = []
            for row in measured():
                print(part, row, flush=True)
                content["parts"][part].append(row)
    given.results.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(content, indent=1) + "\n")
    replace_text(path.with_suffix(".md"), markdown(content))


if __name__ == "__main__":
    main()

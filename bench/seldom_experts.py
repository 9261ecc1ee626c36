"""Experts that few rows reach, with their moments drawn towards those of all experts or not.

    python bench/seldom_experts.py --results bench/results/cpu

"mixture" compresses a small random Mixtral, whose tokens have a falling spectrum and whose router
prefers some experts, and asks on unseen tokens for the relative error of what each expert puts out:
with moments drawn as `compress` does it, and as they are.

"minilm" is of real activations: the inputs of two feed-forward layers of MiniLM, of which eight
clusters stand for what eight experts get, each with the weight of the layer at .4 of its
parameters. One expert has few rows, the others all of theirs. "own" are its moments as they are,
"n/4" to "4n" count the pooled ones for so many rows by the n columns, "estimated" for as many as
the experts' differences say, "all" takes the pooled ones alone; "apart" has the hidden units of
every expert in an order of its own, as those of experts that were never one network. Errors are of
outputs on rows of documents that no fit has seen, in the mean over experts.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import tensorlrf  # noqa: E402
from tensorlrf import svd  # noqa: E402
from tensorlrf.compression.calibration._dense_layer import DenseLayer  # noqa: E402
from tensorlrf.compression.calibration._statistics import Statistics, Stream  # noqa: E402
from tensorlrf.compression.calibration.moments._inputs import Inputs, Pool  # noqa: E402
from tensorlrf.compression.calibration.stacks._pools import Pools  # noqa: E402
from tensorlrf.compression.calibration.stacks._spread import Spread  # noqa: E402

EXPERTS, WIDTH, HIDDEN, VOCABULARY = 8, 64, 96, 512
SEEDS, KEEP = range(5), 0.5
FEW = (0, 8, 32, 128, 512)
SHARE = 0.4
WAYS = ("own", "n/4", "n", "4n", "estimated", "all")


def mixtral(seed: int) -> Any:
    """One layer of eight experts, two for each token, some of which are seldom chosen."""
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=EXPERTS,
        num_experts_per_tok=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.MixtralForCausalLM(config).eval()
    draws = torch.Generator().manual_seed(seed)
    fall = torch.arange(1, WIDTH + 1).float() ** -0.7
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draws))[0]
    with torch.no_grad():
        rows = torch.randn(VOCABULARY, WIDTH, generator=draws) * fall @ turn
        common = 0.5 * rows.norm(dim=1).mean() * turn[0]
        model.model.embed_tokens.weight.copy_(rows + common)
        block = model.model.layers[0].mlp
        block.gate.weight.normal_(0, 0.4, generator=draws)
        # What tokens have in common speaks for the first experts and against the last.
        block.gate.weight += torch.linspace(2.5, -2.5, EXPERTS)[:, None] * turn[0]
        for p in (block.experts.gate_up_proj, block.experts.down_proj):
            p.normal_(0, p.shape[-1] ** -0.5, generator=draws)
    return model


def routed(model: nn.Module, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the experts of the layer are given: rows (N, width), and who is chosen (N, 2)."""
    seen: list[tuple[Tensor, Tensor]] = []
    experts = model.get_submodule("model.layers.0.mlp.experts")
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[1])))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch)
    handle.remove()
    rows, chosen = zip(*seen, strict=True)
    return torch.cat(rows), torch.cat(chosen)


def by_expert(model: nn.Module, x: Tensor, k: int) -> Tensor:
    """Of rows, what one expert puts out."""
    experts = model.get_submodule("model.layers.0.mlp.experts")
    index = torch.full((len(x), 1), k)
    with torch.no_grad():
        y: Tensor = experts(x, index, torch.ones(len(x), 1))
    return y


def mixture(seed: int, target: str) -> Iterator[tuple[int, float, float]]:
    """Of every expert: rows that it was fitted to, its error with drawn moments, and without."""
    model, draws = mixtral(seed), torch.Generator().manual_seed(100 + seed)
    batches = [torch.randint(0, VOCABULARY, (2, 24), generator=draws) for _ in range(8)]
    unseen = [torch.randint(0, VOCABULARY, (16, 24), generator=draws) for _ in range(12)]
    smaller = []
    for drawn in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tensorlrf.errors.CalibrationWarning)
            as_they_are = mock.patch.object(Pools, "of", return_value=None)
            with contextlib.nullcontext() if drawn else as_they_are:
                small, report = tensorlrf.compress(
                    model, keep_params=KEEP, calibration=[{"input_ids": b} for b in batches],
                    allocation="uniform", metric="outputs", target=target, progress=False,
                )  # fmt: skip
        smaller.append(small)
    rows, chosen = routed(model, unseen)
    counts = [0] * EXPERTS
    for k in range(EXPERTS):
        row = report.layer(f"model.layers.0.mlp.experts.gate_up_proj.{k}")
        counts[k] = row.samples or 0
        own = rows[(chosen == k).any(1)]
        if len(own) > 1:
            wanted = by_expert(model, own, k)
            found = [by_expert(small, own, k) for small in smaller]
            errors = [float((y - wanted).norm() / wanted.norm()) for y in found]
            yield counts[k], errors[0], errors[1]


def mixtures() -> Iterator[str]:
    """Rows of the table: experts by how many rows they were fitted to."""
    yield "| target | rows of an expert | experts | error | as they are | better |"
    yield "| --- | --- | --- | --- | --- | --- |"
    bounds = (0, 1, 16, 64, 256, 1 << 30)
    for target in ("original", "prefix"):
        found = [one for seed in SEEDS for one in mixture(seed, target)]
        for low, high in itertools.pairwise(bounds):
            own = [one for one in found if low <= one[0] < high]
            if own:
                with_, without = (statistics.fmean(one[k] for one in own) for k in (1, 2))
                better = sum(one[1] < one[2] for one in own)
                span = f"{low} to {high - 1}" if high < 1 << 30 else f"{low} and more"
                span = "none" if high == 1 else span
                yield (
                    f"| {target} | {span} | {len(own)} | {with_:.4f} | {without:.4f} "
                    f"| {better} of {len(own)} |"
                )


def activations() -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(place, weight, inputs to fit to, inputs of other documents) of feed-forward layers."""
    import minilm

    tokenizer, model = minilm.load_tokenizer(), minilm.load_minilm()
    batches = minilm.calibration_batches(tokenizer)
    parts = [batches[: 3 * len(batches) // 4], batches[3 * len(batches) // 4 :]]
    for place in ("intermediate.dense", "output.dense"):
        layer = model.get_submodule(f"encoder.layer.2.{place}")
        found = []
        for part in parts:
            seen: list[Tensor] = []
            handle = layer.register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0]))
            with torch.no_grad():
                for batch in part:
                    model(**batch)
            handle.remove()
            masks = [batch["attention_mask"].bool() for batch in part]
            found.append(torch.cat([x[m] for x, m in zip(seen, masks, strict=True)]))
        yield place, layer.weight.detach(), *found


def clusters(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """By k-means of directions: the number of the cluster of each row, of both."""
    draws = torch.Generator().manual_seed(0)
    unit = nn.functional.normalize(x - x.mean(0))
    centres = unit[torch.randperm(len(x), generator=draws)[:EXPERTS]]
    for _ in range(8):
        at = (unit @ centres.T).argmax(1)
        centres = nn.functional.normalize(
            torch.stack([unit[at == k].mean(0) for k in range(EXPERTS)])
        )
    unseen = nn.functional.normalize(others - x.mean(0))
    return (unit @ centres.T).argmax(1), (unseen @ centres.T).argmax(1)


def inputs_of(x: Tensor) -> Inputs:
    stream = Stream(DenseLayer.of(nn.Linear(x.shape[1], 1)), lags=False)
    stream.add(x)
    return stream.statistics()[0].inputs


def credits_(way: str, n: int, rows: Sequence[Tensor]) -> float:
    """k, by a way, with the rows of each expert."""
    if way == "estimated":
        squares = torch.cat(list(rows)).square().mean(0)
        spread = Spread(squares.clamp(min=squares.mean() / 100).rsqrt())
        for k, own in enumerate(rows):
            spread.add(str(k), own)
        return spread.credit()
    return {"own": 0.0, "n/4": n / 4, "n": n, "4n": 4.0 * n, "all": 1e12}[way]


def real(place: str, weight: Tensor, x: Tensor, others: Tensor, apart: bool) -> Iterator[str]:
    """Rows of the table: one for each number of rows."""
    at, at_others = clusters(x, others)
    m, n = weight.shape
    rank = int(SHARE * m * n / (m + n))
    draws = torch.Generator().manual_seed(1)
    turns = [torch.randperm(n, generator=draws) for _ in range(EXPERTS)]
    turns = turns if apart else [torch.arange(n)] * EXPERTS
    rows = [x[at == k][:, turns[k]] for k in range(EXPERTS)]
    rows = [own[torch.randperm(len(own), generator=draws)] for own in rows]
    fresh = [others[at_others == k][:, turns[k]] for k in range(EXPERTS)]
    errors: dict[tuple[int, str], list[float]] = {}
    ks: dict[int, list[float]] = {}
    for k in range(0, EXPERTS, 2):
        turned = weight[:, turns[k]]
        wanted = fresh[k] @ turned.T
        for few in FEW:
            own = [*rows[:k], rows[k][:few], *rows[k + 1 :]]
            mine, all_ = inputs_of(own[k]), inputs_of(torch.cat(own))
            for way in WAYS:
                credit = credits_(way, n, own)
                if way == "estimated":
                    ks.setdefault(few, []).append(credit)
                seen = Statistics(Pool(all_, credit).drawn(mine), None)
                gram = seen.shrunk(seen.warranted).gram if seen.known else None
                small = svd(turned, rank, gram=gram)
                lost = float((fresh[k] @ small.to_dense().T - wanted).norm() / wanted.norm())
                errors.setdefault((few, way), []).append(lost)
    name = f"{place} ({m} x {n}){', apart' if apart else ''}"
    for few in FEW:
        means = " | ".join(f"{statistics.fmean(errors[few, way]):.4f}" for way in WAYS)
        yield f"| {name} | {few} | {means} | {statistics.median(ks[few]):.0f} |"


def reals() -> Iterator[str]:
    yield f"| layer | rows | {' | '.join(WAYS)} | k estimated |"
    yield "| --- | --- | " + "--- | " * (len(WAYS) + 1)
    for place, weight, x, others in activations():
        for apart in (False, True) if place == "output.dense" else (False,):
            yield from real(place, weight, x, others, apart)


PARTS: dict[str, Callable[[], Iterator[str]]] = {"mixture": mixtures, "minilm": reals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    for part, rows in PARTS.items():
        if given.only not in (None, part):
            continue
        lines = [
            f"# Experts that few rows reach: {part}",
            "",
            *(__doc__ or "").splitlines()[4:],
            "",
        ]
        for row in rows():
            print(row, flush=True)
            lines.append(row)
        if given.results is not None:
            given.results.mkdir(parents=True, exist_ok=True)
            (given.results / f"seldom_experts_{part}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

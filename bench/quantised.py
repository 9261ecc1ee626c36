"""Low rank in eight bits beside eight and four bits alone, on two models: bytes, quality, time.

    make .venv/quant
    PYTHONPATH=.venv/quant python bench/quantised.py --results bench/results/cpu
    PYTHONPATH=.venv/quant python bench/quantised.py --models minilm --shares .6     a part

On SmolLM2-135M-Instruct and all-MiniLM-L6-v2, the linears of their blocks (head and embeddings stay
in float32, in no column); "MB" are those of what is stored of these linears, scales among it. Low
rank: ranks by Fisher information, each layer fitted to the inputs that it has in the given model,
all shares from one pass over these; `compress` with its defaults takes longer and loses less, see
allocation. "int8 weights" is torchao's Int8WeightOnlyConfig, which on a CPU makes floats of the
codes in every call; "int8 by token" its form with inputs in eight bits, a scale for each token;
"int8 dynamic" that of torch.ao.quantization, one scale for all inputs, one for a row of weights;
"int4" is simulated: rounding to the nearest, a scale in bfloat16 for 64 columns, and not timed, for
torchao's packed int4 needs another package, and torch's own kernel in float32 on a CPU is a plain
loop. The weights of SmolLM2 come from 4-bit codes in groups of 32. Quality: perplexity on the first
four windows of 512 tokens of lee.cor, or cosine to the embeddings of the given model of its 50
documents, with intervals of 95%. Time: batch 1, one token behind 128 in the cache, or of MiniLM a
text of 16 tokens, in pairs with the given model, whose row stands before; "over dense" is the
median, least and largest of the ratios pair by pair, dense over this one, and "128 tokens" that of
a text of so many. The machine had other work meanwhile: times are good for the ratios of pairs.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import minilm  # noqa: E402
import smollm2  # noqa: E402
import texts  # noqa: E402
from torchao.quantization import (  # noqa: E402
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

import tensorlrf  # noqa: E402
import tensorlrf.torchao  # noqa: E402
from bench.report import Row, machine, write_results  # noqa: E402
from bench.turns import Turns  # noqa: E402
from tensorlrf.compression.frontier._quantised import Quantiser  # noqa: E402
from tensorlrf.nn import FactoredLinear  # noqa: E402

SHARES = (0.8, 0.6, 0.5)
FISHER_BATCHES = 6
INT4 = Quantiser("int4", 4, 64)
CACHED, SHORT, LONG = 128, 16, 128
ROUNDS, LONG_ROUNDS = 9, 3

Call = Callable[[], Any]


@dataclass(frozen=True)
class Subject:
    """A model, what it is fitted to, and what tells how good it is and how fast."""

    dense: nn.Module
    batches: list[Any]
    skip: list[str]
    fit: dict[str, Any]
    quality: Callable[[nn.Module], tuple[str, str]]
    calls: Callable[[nn.Module], tuple[Call, Call]]  # a short one and a long one


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, help="where the files are written")
    parser.add_argument("--models", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--batches", type=int, default=24, help="to fit to, at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # As docs/quantised.md says of this module of torch.
    warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
    warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)
    note = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].replace("\n", " ").strip()
    rows: list[Row] = []
    for name in given.models:
        subject = SUBJECTS[name](given.batches)
        for variant, model, stored in variants(subject, given.shares):
            rows += measured(name, variant, model, stored, subject)
            if given.results is not None:
                write_results(given.results, "quantised", rows, machine("cpu"), note)


# ---- the variants --------------------------------------------------------------------------------


def variants(subject: Subject, shares: list[float]) -> Iterator[tuple[str, nn.Module, int]]:
    """(name, model, bytes of its linears), of which each is gone before the next is made."""
    dense = subject.dense
    held = 4 * sum(m.weight.numel() for m in linears(dense, subject.skip))
    yield "float32", dense, held
    yield from in_few_bits("", dense, subject.skip)
    both = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    yield "int8 by token", *by_torchao(dense, subject.skip, both)
    yield "int4", *in_int4(dense, subject.skip)
    told: dict[str, Any] = {"skip": subject.skip, "progress": False}
    few = subject.batches[:FISHER_BATCHES]
    found = tensorlrf.sensitivity(dense, few, rule="fisher", **told, **subject.fit)
    moments = tensorlrf.calibrate(dense, subject.batches, **told)
    for share in shares:
        begun = time.process_time()
        plan = tensorlrf.plan(dense, keep_params=share, sensitivity=found, **told)
        small, _ = tensorlrf.apply(
            dense, plan, moments=moments, target="independent", metric="outputs", progress=False
        )
        print(f"{share:g}: fitted in {time.process_time() - begun:.0f} s", flush=True)
        exported = tensorlrf.export(small)
        factored = [m for m in small.modules() if isinstance(m, FactoredLinear)]
        rest = held // 4 - sum(m.in_features * m.out_features for m in factored)
        yield f"low rank {share:g}", small, 4 * (rest + sum(m.factors.n_params for m in factored))
        yield from in_few_bits(f"low rank {share:g}, ", exported, subject.skip)


def in_few_bits(
    name: str, model: nn.Module, skip: list[str]
) -> Iterator[tuple[str, nn.Module, int]]:
    """By torchao and by torch, all Linear layers but those to be skipped."""
    weights = Int8WeightOnlyConfig(set_inductor_config=False)
    yield f"{name}int8 weights", *by_torchao(model, skip, weights)
    names = [n for n, _ in named_linears(model, skip)]
    how = torch.ao.quantization.per_channel_dynamic_qconfig
    dynamic = torch.ao.quantization.quantize_dynamic(model, dict.fromkeys(names, how))
    # The codes, and of each row a scale and a zero in float64 and int64, as torch keeps them.
    held = sum(m.weight.numel() + 16 * len(m.weight) for m in linears(model, skip))
    yield f"{name}int8 dynamic", dynamic, held


def by_torchao(model: nn.Module, skip: list[str], config: Any) -> tuple[nn.Module, int]:
    names = {n for n, _ in named_linears(model, skip)}
    eight = copy.deepcopy(model)
    quantize_(eight, config, filter_fn=lambda _, n: n in names)
    weights: list[Any] = [eight.get_submodule(n).weight for n in sorted(names)]
    return eight, sum(w.qdata.nbytes + w.scale.nbytes for w in weights)


def named_linears(model: nn.Module, skip: list[str]) -> Iterator[tuple[str, nn.Linear]]:
    """Those of the blocks."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear and not any(name.startswith(s.rstrip("*")) for s in skip):
            yield name, module


def linears(model: nn.Module, skip: list[str]) -> list[nn.Linear]:
    return [module for _, module in named_linears(model, skip)]


def in_int4(dense: nn.Module, skip: list[str]) -> tuple[nn.Module, int]:
    """The values that the codes stand for."""
    model, held = copy.deepcopy(dense), 0
    for linear in linears(model, skip):
        held += INT4.n_bytes(linear.weight)
        linear.weight.data = INT4.rounded(linear.weight)
    return model, held


# ---- a row ---------------------------------------------------------------------------------------


def measured(name: str, variant: str, model: nn.Module, stored: int, subject: Subject) -> list[Row]:
    """The row of the dense model in turn with it, and its own."""
    kind, value = subject.quality(model)
    about: dict[str, Any] = {"MB": round(stored / 1e6, 1), kind: value}
    (short, long), (dense_short, dense_long) = subject.calls(model), subject.calls(subject.dense)
    case = f"{name}, {variant}"
    if model is subject.dense:
        times = Turns.take({"dense": dense_short}, ROUNDS).samples["dense"]
        rows = [Row(case, "dense", median(times), min(times), ROUNDS, about)]
    elif variant == INT4.word:
        rows = [Row(case, variant, 0.0, 0.0, 0, about)]
    else:
        one = Turns.take({"dense": dense_short, "this": short}, ROUNDS)
        other = Turns.take({"dense": dense_long, "this": long}, LONG_ROUNDS)
        about["over dense"] = spread(one.ratios("this", "dense"))
        about["128 tokens"] = spread(other.ratios("this", "dense"))
        rows = [
            Row(case, said, median(one.samples[of]), min(one.samples[of]), ROUNDS, info)
            for said, of, info in (("dense", "dense", {}), (variant, "this", about))
        ]
    print(rows[-1], flush=True)
    return rows


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


# ---- the models ----------------------------------------------------------------------------------


def of_smollm2(n: int) -> Subject:
    from transformers import DynamicCache

    tokenizer = smollm2.load_tokenizer()
    windows = smollm2.unseen_windows(tokenizer)

    def quality(model: nn.Module) -> tuple[str, str]:
        value, (low, high) = smollm2.perplexity(smollm2.losses(model, windows))
        return "perplexity", f"{value:.2f} [{low:.2f}, {high:.2f}]"

    def calls(model: Any) -> tuple[Call, Call]:
        held = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(input_ids=windows[:1, :CACHED], past_key_values=held, use_cache=True)

        def token() -> None:
            with torch.inference_mode():
                model(input_ids=windows[:1, :1], past_key_values=held, use_cache=True)
            held.crop(-1)

        return token, lambda: smollm2.call(model, {"input_ids": windows[:1, :LONG]})

    batches = smollm2.mixed_batches(tokenizer, n)
    return Subject(smollm2.load_smollm2(), batches, smollm2.SKIP, {}, quality, calls)


def of_minilm(n: int) -> Subject:
    dense, tokenizer = minilm.load_minilm(), minilm.load_tokenizer()
    wanted = minilm.embed(dense, tokenizer, texts.documents())

    def quality(model: nn.Module) -> tuple[str, str]:
        got = minilm.embed(model, tokenizer, texts.documents())
        value, (low, high) = minilm.mean_cosine(wanted, got)
        return "cosine", f"{value:.4f} [{low:.4f}, {high:.4f}]"

    def calls(model: nn.Module) -> tuple[Call, Call]:
        short, long = (minilm.example(tokenizer, 1, t) for t in (SHORT, LONG))
        return lambda: minilm.call(model, short), lambda: minilm.call(model, long)

    batches = minilm.calibration_batches(tokenizer)[:n]
    fit = {"loss": "cosine", "readout": minilm.readout}
    return Subject(dense, batches, minilm.SKIP, fit, quality, calls)


SUBJECTS: dict[str, Callable[[int], Subject]] = {"smollm2": of_smollm2, "minilm": of_minilm}


if __name__ == "__main__":
    main()

"""Attention heads as a tensor, in Tucker and CP form, beside low ranks of matrices, at equal
parameters.

    python bench/head_tensors.py                     both models
    python bench/head_tensors.py --models minilm     one, measured anew

The projections of an attention are heads above each other, (heads, e, d): queries, keys and values
as they are, the output projection transposed. Of one layer or of several they are a tensor, which
`tucker_of_heads` and `cp_of_heads` decompose. Beside these: each matrix by itself, its rank by what
singular values leave, and one right factor for all (`shared_svd`). Every projection is scaled so
that its outputs have one norm, about the mean that a bias makes good; forms make the squared errors
of these outputs least, on inputs that the given model delivers, and are judged on others. Heads of
an output projection lie on the side of its inputs, where no metric of the functions applies: its
tensors, and its basis in common, follow the plain norm.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

from bench.allocation_ranks import replace_text  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.row_by_row import RESULTS, line  # noqa: E402
from tensorlrf import svd  # noqa: E402
from tensorlrf.decomposition import cp_of_heads, shared_svd, tucker_of_heads  # noqa: E402

SHARES = (0.5, 0.25)
"""Of the parameters of the projections."""

SMALLER = (0.75, 0.5, 0.25)
"""Ranks of the rows of a head, over these."""

SWEEPS = 50
"""Of CP."""

HELD = 5
"""Every fifth batch of the calibration inputs judges."""

WINDOWS = 20
"""Of SmolLM2's calibration inputs, 512 tokens each."""

HEAD = (
    "Attention heads stacked as a tensor (heads, head_dim, d), of each layer or over all of them, "
    "beside low ranks of the matrices, at equal parameters. Numbers: error of the projections' "
    "outputs about their mean on inputs held out, relative, root mean square over projections; "
    "and multiply-adds over those of the dense projections. each: SVD of each matrix, ranks by "
    "what they leave, in the metric of the inputs, and in the plain norm; shared: one right factor "
    "for all of a stack (of one matrix it is the same as each). Tucker: one factor of the rows of "
    "heads, of rank s of head_dim, one of the inputs, a core for each head; CP: rank-one terms, "
    f"{SWEEPS} sweeps. Output projections are stacked transposed; shared, Tucker and CP then "
    "follow the plain norm."
)


@dataclass(frozen=True)
class Projection:
    """A weight (m, n) whose outputs have one norm.

    gram    second moments of its inputs (n, n) about their mean, to fit by
    unseen  and about the same mean of inputs that judge
    onto    whether heads are on the side of its inputs
    """

    weight: Tensor
    gram: Tensor
    unseen: Tensor
    onto: bool

    @classmethod
    def of(cls, weight: Tensor, gram: Tensor, unseen: Tensor, *, onto: bool) -> Projection:
        w = weight.detach().double()
        return cls(w / math.sqrt(energy(w, gram)), gram, unseen, onto)

    @property
    def heads(self) -> Tensor:
        """(heads e, d)."""
        return self.weight.T if self.onto else self.weight

    def lost(self, heads: Tensor) -> float:
        """Squared relative error of the outputs, with these heads."""
        rest = self.weight - (heads.T if self.onto else heads)
        return energy(rest, self.unseen) / energy(self.weight, self.unseen)


def energy(weight: Tensor, gram: Tensor) -> float:
    return float(((weight @ gram) * weight).sum())


@dataclass(frozen=True)
class Stack:
    """Projections that are decomposed together.

    head_dim  e
    inputs    how many tensors they read, or write, in all
    """

    projections: Sequence[Projection]
    head_dim: int
    inputs: int

    @property
    def rows(self) -> int:
        return sum(len(p.heads) for p in self.projections)

    @property
    def d(self) -> int:
        return self.projections[0].heads.shape[1]

    @property
    def n_heads(self) -> int:
        return self.rows // self.head_dim

    @property
    def grams(self) -> list[Tensor] | None:
        """Of the side of d, where that is the inputs."""
        return None if self.projections[0].onto else [p.gram for p in self.projections]

    def cut(self, stacked: Tensor) -> list[Tensor]:
        """(heads e, d) of each projection."""
        rows = [len(p.heads) for p in self.projections]
        return list(stacked.reshape(self.rows, self.d).split(rows))


@dataclass(frozen=True)
class Found:
    """What a form makes of a stack: heads (heads e, d) of each projection, and what they take."""

    heads: Sequence[Tensor]
    params: int
    products: int


Form = Callable[[Stack, int], Found]
"""Of a stack, within so many parameters."""


def each(stack: Stack, budget: int, *, aware: bool = True) -> Found:
    """The SVD of each matrix by itself."""
    grams = [p.gram if aware else None for p in stack.projections]
    weights = [p.weight for p in stack.projections]
    ranks = allotted(weights, grams, budget)
    heads, params = [], 0
    for p, gram, rank in zip(stack.projections, grams, ranks, strict=True):
        dense = svd(p.weight, rank, gram=gram).to_dense()
        heads.append(dense.T if p.onto else dense)
        params += rank * sum(p.weight.shape)
    return Found(heads, params, params)


def allotted(weights: Sequence[Tensor], grams: Sequence[Tensor | None], budget: int) -> list[int]:
    """Ranks, one at the least: what a parameter gains is the same for all, more or less."""
    prices = [sum(w.shape) for w in weights]
    gains = []
    for k, (w, gram) in enumerate(zip(weights, grams, strict=True)):
        turned = w if gram is None else w @ root(gram)
        values = torch.linalg.svdvals(turned).square() / prices[k]
        gains += [(value, k) for value in values[1:].tolist()]
    ranks, left = [1] * len(weights), budget - sum(prices)
    for _, k in sorted(gains, reverse=True):
        if prices[k] <= left:
            ranks[k] += 1
            left -= prices[k]
    return ranks


def root(gram: Tensor) -> Tensor:
    """C with G = C C^T, but for a ridge at the rounding of float32."""
    ridge = 1e-7 * gram.diagonal().mean()
    return torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))


def shared(stack: Stack, budget: int) -> Found:
    """One right factor for all."""
    rows, d = stack.rows, stack.d
    rank = min(budget // (rows + d), d, rows)
    found = shared_svd([p.heads for p in stack.projections], rank, grams=stack.grams)
    products = rank * (rows + stack.inputs * d)
    return Found([f.to_dense() for f in found], rank * (rows + d), products)


def tucker(stack: Stack, budget: int, *, of: float) -> Found:
    """With a rank of the rows of a head that is so much of head_dim."""
    e, d, n = stack.head_dim, stack.d, stack.n_heads
    s = int(of * e)
    rank = min((budget - s * e) // (d + n * s), d, n * s)
    found = tucker_of_heads(
        [p.heads for p in stack.projections], (s, rank), head_dim=e, grams=stack.grams
    )
    products = rank * stack.inputs * d + n * s * (rank + e)
    return Found(stack.cut(found.to_dense()), found.n_params, products)


def cp(stack: Stack, budget: int) -> Found:
    e, d, n = stack.head_dim, stack.d, stack.n_heads
    rank = min(budget // (n + e + d + 1), n * e)
    found = cp_of_heads(
        [p.heads for p in stack.projections], rank, head_dim=e, grams=stack.grams,
        n_iter_max=SWEEPS, random_state=0,
    )  # fmt: skip
    products = rank * (stack.inputs * d + n * (1 + e))
    return Found(stack.cut(found.to_dense()), found.n_params, products)


def _tucker(of: float) -> Form:
    return lambda stack, budget: tucker(stack, budget, of=of)


FORMS: dict[str, Form] = {
    "each": each,
    "each, plain": lambda stack, budget: each(stack, budget, aware=False),
    "shared": shared,
    **{f"Tucker {of:g}": _tucker(of) for of in SMALLER},
    "CP": cp,
}
TENSORS = tuple(name for name in FORMS if name.startswith(("Tucker", "CP")))


def measured(stacks: Sequence[Stack], share: float) -> dict[str, dict[str, float]]:
    """Each form on all the stacks: error, parameters and products over dense, seconds."""
    told = {}
    dense = sum(p.weight.numel() for stack in stacks for p in stack.projections)
    for name, form in FORMS.items():
        begun = time.process_time()
        lost: list[float] = []
        params = products = 0
        for stack in stacks:
            found = form(stack, int(share * stack.rows * stack.d))
            pairs = zip(stack.projections, found.heads, strict=True)
            lost += [p.lost(heads) for p, heads in pairs]
            params, products = params + found.params, products + found.products
        told[name] = {
            "error": math.sqrt(sum(lost) / len(lost)),
            "params": params / dense,
            "products": products / dense,
            "cpu_s": time.process_time() - begun,
        }
    return told


# ---- models -----------------------------------------------------------------------------------

Layer = Mapping[str, Projection]
"""Of queries, keys, values and outputs."""

KINDS = (("queries",), ("keys",), ("values",), ("outputs",), ("queries", "keys", "values"))


class Moments:
    """Sums over the inputs of a layer; rows that a mask leaves out are left out."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        rows = x.double()
        self.count += len(rows)
        self.first = self.first + rows.sum(0)
        self.second = self.second + rows.T @ rows

    @property
    def mean(self) -> Tensor:
        return self.first / self.count

    def about(self, centre: Tensor) -> Tensor:
        """Second moments about it."""
        cross = torch.outer(self.mean, centre)
        return self.second / self.count - cross - cross.T + torch.outer(centre, centre)


def moments(
    model: nn.Module, sites: Sequence[nn.Module], batches: Sequence[Mapping[str, Tensor]]
) -> list[Moments]:
    """Of the inputs of these layers."""
    found, masks = [Moments() for _ in sites], [torch.ones(())]

    def taker(own: Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: own.add(args[0].flatten(0, -2)[masks[0]])

    handles = [
        site.register_forward_pre_hook(taker(own)) for site, own in zip(sites, found, strict=True)
    ]
    with torch.no_grad():
        for batch in batches:
            given = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            masks[0] = given.flatten() != 0
            model(**batch)
    for handle in handles:
        handle.remove()
    return found


def layers_of(
    model: nn.Module, attentions: Sequence[Sequence[nn.Module]], batches: list[Any]
) -> list[Layer]:
    """Of attentions as (queries, keys, values, outputs), the first three on the same inputs."""
    sites = [site for q, _, _, o in attentions for site in (q, o)]
    fitted = [batch for k, batch in enumerate(batches) if k % HELD != HELD - 1]
    seen, others = moments(model, sites, fitted), moments(model, sites, batches[HELD - 1 :: HELD])
    grams = [
        (own.about(own.mean), other.about(own.mean))
        for own, other in zip(seen, others, strict=True)
    ]
    found = []
    for (q, k, v, o), read, put_out in zip(attentions, grams[::2], grams[1::2], strict=True):
        own = {"queries": q, "keys": k, "values": v}
        layer = {name: Projection.of(w.weight, *read, onto=False) for name, w in own.items()}
        layer["outputs"] = Projection.of(o.weight, *put_out, onto=True)
        found.append(layer)
    return found


def minilm_layers() -> tuple[int, list[Layer]]:
    import minilm

    tokenizer, model = minilm.load_tokenizer(), minilm.load_minilm()
    attentions = [
        (own.self.query, own.self.key, own.self.value, own.output.dense)
        for own in (layer.attention for layer in model.encoder.layer)
    ]
    return 32, layers_of(model, attentions, minilm.calibration_batches(tokenizer))


def smollm2_layers() -> tuple[int, list[Layer]]:
    import smollm2

    tokenizer, model = smollm2.load_tokenizer(), smollm2.load_smollm2()
    attentions = [
        (own.q_proj, own.k_proj, own.v_proj, own.o_proj)
        for own in (layer.self_attn for layer in model.model.layers[12:16])
    ]
    batches = smollm2.calibration_batches(tokenizer, WINDOWS)
    return 64, layers_of(model.model, attentions, batches)


MODELS = {"minilm": minilm_layers, "smollm2": smollm2_layers}

ABOUT = {
    "minilm": "minilm: six layers, 12 heads of 32, d = 384.",
    "smollm2": "smollm2: layers 12 to 15 of 30, 9 heads of 64 for queries, 3 for keys and for "
    "values, d = 576.",
}


def cases(head_dim: int, layers: Sequence[Layer]) -> Iterator[tuple[str, str, list[Stack]]]:
    """(what, of what, stacks): within each layer, then over all of them."""
    for kinds in KINDS:
        stacks = [Stack([layer[kind] for kind in kinds], head_dim, 1) for layer in layers]
        yield ", ".join(kinds), "each layer", stacks
    for kinds in KINDS:
        projections = [layer[kind] for layer in layers for kind in kinds]
        stack = Stack(projections, head_dim, len(layers))
        yield ", ".join(kinds), f"{len(layers)} layers", [stack]


# ---- the files --------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any]) -> str:
    """A table of all rows, the least error of each bold."""
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    rows = content["rows"]
    models = [ABOUT[model] for model in dict.fromkeys(row["model"] for row in rows)]
    lines = ["# head_tensors", "", f"{about}.", "", " ".join([HEAD, *models]), ""]
    lines += [" ".join(wins(rows)), ""]
    names = ["model", "heads of", "stacked over", "kept", *FORMS]
    lines += [line(names), line(["---"] * len(names))]
    for row in rows:
        forms = row["forms"]
        least = min(one["error"] for one in forms.values())
        cells = [row["model"], row["what"], row["over"], f"{row['share']:g}"]
        for one in forms.values():
            mark = "**" if one["error"] == least else ""
            cells.append(f"{mark}{one['error']:.3f}{mark}, {one['products']:.2f}x")
        lines.append(line(cells))
    return "\n".join(lines) + "\n"


def wins(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """In how many rows a tensor is ahead of the matrices, where their outputs have a metric and
    where not, and by what factor."""
    told = []
    for onto, where in ((False, "Of queries, keys and values"), (True, "Of output projections")):
        own = [row["forms"] for row in rows if (row["what"] == "outputs") == onto]
        if own:
            over = [
                min(forms[n]["error"] for n in TENSORS)
                / min(one["error"] for n, one in forms.items() if n not in TENSORS)
                for forms in own
            ]
            told.append(
                f"{where} the best tensor is ahead of the best of the matrices in "
                f"{sum(ratio < 1 for ratio in over)} of {len(over)} rows; its error over theirs is "
                f"{min(over):.3f} to {max(over):.3f}."
            )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.results / "head_tensors.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in known if row["model"] not in given.models]
    for model in given.models:
        for what, over, stacks in cases(*MODELS[model]()):
            for share in SHARES:
                row = {"model": model, "what": what, "over": over, "share": share}
                rows.append({**row, "forms": measured(stacks, share)})
                print(rows[-1], flush=True)
                content = {"machine": machine("cpu"), "rows": rows}
                given.results.mkdir(parents=True, exist_ok=True)
                replace_text(path, json.dumps(content, indent=1) + "\n")
                replace_text(path.with_suffix(".md"), markdown(content))


if __name__ == "__main__":
    main()

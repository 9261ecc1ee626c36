"""A small network in the place of a matrix: two layers with a nonlinearity between them, beside
the low-rank form with as many parameters.

    python bench/small_networks.py --results bench/results/cpu

Each layer is taken by itself. Its inputs are those that the dense model delivers; forms are fitted
to its outputs on calibration inputs and judged on inputs of other documents or pictures. "low rank"
is the best in closed form: the truncated SVD in the centred second moments of the inputs, with the
bias that goes with it. "network" is y = A relu(B x + c) + d of as many parameters, c included,
trained by Adam on the squared error from two starts: the low-rank form itself, shifted by a
standard deviation of what arrives at the rectifier, which then lets most of it pass; and random
weights. After training A and d are solved for in closed form. "random features" leaves B and c as
drawn. Which start, and when to stop, is chosen on calibration inputs kept apart; the table's error
is on inputs that nothing was chosen by, relative to the outputs about their mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

from bench.report import Row, machine, write_results  # noqa: E402
from tensorlrf import svd  # noqa: E402

SHARES = (0.25, 0.5)
"""Of the parameters of the weight."""

ROWS = 6144
"""Calibration inputs, of which the last sixth chooses; as many again at most judge."""

STEPS, BATCH, LOOK, RATE = 250, 512, 50, 1e-2

SHIFT = 1.0
"""Standard deviations by which the first start is shifted."""

KINDS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention out",
    "intermediate.dense": "feed-forward 1",
    "output.dense": "feed-forward 2",
}
DEPTHS = (4,)
"""Of the six layers of MiniLM."""


@dataclass(frozen=True)
class Case:
    """A layer as a matrix with a bias, and its inputs (rows, n).

    fit     to fit to
    choose  to stop and choose by
    unseen  to judge by
    """

    name: str
    weight: Tensor
    bias: Tensor
    fit: Tensor
    choose: Tensor
    unseen: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Network(nn.Module):
    """y = A relu(B x + c) + d."""

    def __init__(self, b: Tensor, c: Tensor, a: Tensor, d: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(b), nn.Parameter(a)
        self.c, self.d = nn.Parameter(c), nn.Parameter(d)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(torch.addmm(self.c, x, self.first.T))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.d, self.hidden(x), self.second.T)

    @torch.no_grad()
    def solve(self, x: Tensor, y: Tensor) -> None:
        """A and d by least squares, with a ridge at the rounding of float32."""
        h, centre = self.hidden(x).double(), y.double().mean(0)
        mean = h.mean(0)
        h, out = h - mean, y.double() - centre
        gram = h.T @ h
        ridge = 1e-6 * gram.diagonal().mean() + 1e-12
        gram += ridge * torch.eye(len(gram), dtype=torch.float64)
        a = torch.linalg.solve(gram, h.T @ out).T
        self.second.copy_(a.float())
        self.d.copy_((centre - a @ mean).float())


def error(got: Tensor, wanted: Tensor) -> float:
    """Relative, about the mean of what is wanted."""
    spread = wanted - wanted.mean(0)
    return float((got - wanted).double().norm() / spread.double().norm())


def low_rank(case: Case, share: float) -> tuple[int, Network]:
    """The rank, and the form as a network in which the rectifier is all but idle."""
    m, n = case.weight.shape
    rank = int(share * m * n / (m + n))
    mean = case.fit.mean(0)
    centred = (case.fit - mean).double()
    f = svd(case.weight, rank, gram=centred.T @ centred / len(centred))
    offset = case.weight @ mean + case.bias - f.left @ (f.right @ mean)
    shift = SHIFT * (f.right @ (case.fit - mean).T).std(1) - f.right @ mean
    return rank, Network(f.right, shift, f.left, offset - f.left @ shift)


def linear(network: Network, x: Tensor) -> Tensor:
    """What it computes where the rectifier lets all pass."""
    return (x @ network.first.T + network.c) @ network.second.T + network.d


def narrowed(case: Case, network: Network, width: int) -> Network:
    """Of fewer hidden units, as c takes parameters too: without the last, which add least."""
    parts = (network.first[:width], network.c[:width], network.second[:, :width], network.d)
    narrow = Network(*(t.detach().clone() for t in parts))
    narrow.solve(case.fit, case.outputs(case.fit))
    return narrow


def drawn(case: Case, width: int, seed: int) -> Network:
    """He's weights on inputs of mean zero and their own spread."""
    draws = torch.Generator().manual_seed(seed)
    m, n = case.weight.shape
    mean, spread = case.fit.mean(0), case.fit.std(0)
    spread = spread.clamp(min=float(spread.mean()) / 100)  # of channels that hardly ever change
    b = torch.randn(width, n, generator=draws) * (2 / n) ** 0.5 / spread
    network = Network(b, -b @ mean, torch.zeros(m, width), torch.zeros(m))
    network.solve(case.fit, case.outputs(case.fit))
    return network


def trained(case: Case, network: Network, seed: int) -> Network:
    """By Adam in steps of each tensor's own size; the best of what was looked at."""
    x, y = case.fit, case.outputs(case.fit)
    wanted = case.outputs(case.choose)
    sizes = [float(p.detach().square().mean().sqrt().clamp(min=1e-3)) for p in network.parameters()]
    groups = [
        {"params": [p], "lr": RATE * size}
        for p, size in zip(network.parameters(), sizes, strict=True)
    ]
    optimizer = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    draws = torch.Generator().manual_seed(seed)
    best, least = {k: t.clone() for k, t in network.state_dict().items()}, float("inf")
    with torch.no_grad():
        least = error(network(case.choose), wanted)
    for step in range(1, STEPS + 1):
        at = torch.randint(len(x), (BATCH,), generator=draws)
        optimizer.zero_grad()
        (network(x[at]) - y[at]).square().mean().backward()
        optimizer.step()
        falling.step()
        if step % LOOK == 0:
            if step == STEPS:
                network.solve(x, y)
            with torch.no_grad():
                now = error(network(case.choose), wanted)
            if now < least:
                best, least = {k: t.clone() for k, t in network.state_dict().items()}, now
    network.load_state_dict(best)
    return network


def measured(case: Case) -> Iterator[Row]:
    m, n = case.weight.shape
    wanted, chosen = case.outputs(case.unseen), case.outputs(case.choose)
    for share in SHARES:
        begun = time.perf_counter()
        rank, form = low_rank(case, share)
        seconds = time.perf_counter() - begun
        with torch.no_grad():
            lost = error(linear(form, case.unseen), wanted)
        yield row(case, share, "low rank", seconds, lost, rank * (m + n))
        width = rank * (m + n) // (m + n + 1)
        params = width * (m + n + 1)
        begun = time.perf_counter()
        random = drawn(case, width, 0)
        seconds = time.perf_counter() - begun
        with torch.no_grad():
            lost = error(random(case.unseen), wanted)
        yield row(case, share, "random features", seconds, lost, params)
        begun = time.perf_counter()
        found = {
            "low rank": trained(case, narrowed(case, form, width), 1),
            "random": trained(case, random, 2),
        }
        seconds = time.perf_counter() - begun
        with torch.no_grad():
            start = min(found, key=lambda name: error(found[name](case.choose), chosen))
            lost = error(found[start](case.unseen), wanted)
            idle = float((found[start].hidden(case.unseen) > 0).float().mean())
        info = {"start": start, "active": round(idle, 3)}
        yield row(case, share, "network", seconds, lost, params, **info)


def row(
    case: Case, share: float, form: str, seconds: float, lost: float, params: int, **info: object
) -> Row:
    print(f"{case.name}, {share:g}: {form} {lost:.4f} {info}", flush=True)
    found = {"error": round(lost, 4), "parameters": params, **info}
    return Row(f"{case.name}, {share:g}", form, seconds, seconds, 1, found)


# ---- layers and their inputs --------------------------------------------------------------------


class Seen:
    """Rows of the inputs of some layers, up to a number of them, drawn evenly over the batches."""

    def __init__(self, layers: dict[str, nn.Module], rows: int, batches: int) -> None:
        self.each = -(-rows // batches)
        self.rows = rows
        self.found: dict[str, list[Tensor]] = {name: [] for name in layers}
        self.draws = torch.Generator().manual_seed(3)
        self.handles = [
            layer.register_forward_pre_hook(lambda _, args, name=name: self.take(name, args[0]))
            for name, layer in layers.items()
        ]
        self.mask: Tensor | None = None

    def take(self, name: str, x: Tensor) -> None:
        flat = x.movedim(1, -1).reshape(-1, x.shape[1]) if x.ndim == 4 else x.flatten(0, -2)
        if self.mask is not None and x.ndim == 3:
            flat = flat[self.mask.flatten() != 0]
        at = torch.randperm(len(flat), generator=self.draws)[: self.each]
        self.found[name].append(flat[at].float())

    def all(self) -> dict[str, Tensor]:
        for handle in self.handles:
            handle.remove()
        return {name: torch.cat(parts)[: self.rows] for name, parts in self.found.items()}


def seen(model: nn.Module, layers: dict[str, nn.Module], batches: list) -> dict[str, Tensor]:
    taken = Seen(layers, ROWS, len(batches))
    with torch.no_grad():
        for batch in batches:
            if isinstance(batch, dict):
                taken.mask = batch["attention_mask"]
                model(**batch)
            else:
                model(batch)
    return taken.all()


def cases(
    model: nn.Module, layers: dict[str, nn.Module], fit: list, unseen: list
) -> Iterator[Case]:
    inputs, others = seen(model, layers, fit), seen(model, layers, unseen)
    for name, layer in layers.items():
        weight = layer.weight.detach().flatten(1).float()
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        x = inputs[name][
            torch.randperm(len(inputs[name]), generator=torch.Generator().manual_seed(4))
        ]
        cut = len(x) * 5 // 6
        told = f"{name} ({weight.shape[1]} to {weight.shape[0]})"
        yield Case(told, weight, bias, x[:cut], x[cut:], others[name])


def minilm_cases() -> Iterator[Case]:
    import minilm
    import texts

    tokenizer, model = minilm.load_tokenizer(), minilm.load_minilm()
    layers = {
        f"MiniLM {depth} {told}": model.get_submodule(f"encoder.layer.{depth}.{name}")
        for depth in DEPTHS
        for name, told in KINDS.items()
    }
    unseen = list(minilm.batches(tokenizer, texts.documents()))
    yield from cases(model, layers, minilm.calibration_batches(tokenizer), unseen)


def efficientnet_cases() -> Iterator[Case]:
    import efficientnet

    model = efficientnet.load_efficientnet()
    pointwise = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.in_channels > 64
    }
    chosen = list(pointwise.items())[:: max(1, len(pointwise) // 6)][:6]
    layers = {f"EfficientNet {name}": layer for name, layer in chosen}
    fit, unseen = efficientnet.calibration_batches(), efficientnet.unseen_crops()
    yield from cases(model, layers, fit, unseen)


def note(rows: list[Row]) -> str:
    errors = {(one.case, one.variant): one.info["error"] for one in rows}
    ratios = [errors[case, "network"] / lost for (case, form), lost in errors.items()
              if form == "low rank" and (case, "network") in errors]  # fmt: skip
    better = sum(ratio < 1 for ratio in ratios)
    return (
        "See bench/small_networks.py for the forms and how they are fitted; times are those of the "
        f"fit. In {better} of {len(ratios)} cases the network has the smaller error; its error "
        f"over that of low rank is {min(ratios):.3f} to {max(ratios):.3f}, geometric mean "
        f"{torch.tensor(ratios).log().mean().exp():.3f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    known = None if given.results is None else given.results / "small_networks.json"
    if known is not None and known.exists():  # it goes on where it was stopped
        rows = [Row(**one) for one in json.loads(known.read_text())["rows"]]
    for subject in (minilm_cases, efficientnet_cases):
        for case in subject():
            if any(one.case.startswith(f"{case.name}, ") for one in rows):
                continue
            rows += measured(case)
            if given.results is not None:
                write_results(given.results, "small_networks", rows, machine("cpu"), note(rows))


if __name__ == "__main__":
    main()

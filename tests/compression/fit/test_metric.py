"""`metric=`: outputs of layers near in what an error of them costs the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import CP, SVD, TT, Kron, Report, Tucker, apply, compress, plan, sensitivity
from tensorlrf.compression import Method
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._layer_moments import LayerMoments
from tensorlrf.compression.calibration._statistics import OutputError, Stream
from tensorlrf.compression.fit._factor import INPUT_SHRINKAGE, _Part, factor
from tensorlrf.compression.fit._factored import Options
from tensorlrf.decomposition.second_moments import OutputMetric
from tensorlrf.decomposition.shrinkage import shrunk
from tensorlrf.errors import ArgumentError, CalibrationWarning
from tests.compression.networks import relative, set_weights
from tests.draws import seeded, seeded32

pytestmark = pytest.mark.filterwarnings("ignore:calibration is thin")


def metric(m: int, seed: int = 5) -> OutputMetric:
    """Of eigenvalues far apart."""
    q, _ = torch.linalg.qr(seeded(m, m, seed=seed))
    return OutputMetric((q * torch.logspace(0, -2, m, dtype=torch.float64)) @ q.T)


def layer(module: nn.Module, seed: int = 0) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(seeded32(*parameter.shape, seed=seed))
    return module


def mlp(width: int = 24, out: int = 12) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, out),
    )
    return set_weights(model)  # type: ignore[return-value]


def rows(n: int = 4, width: int = 24) -> list[Tensor]:
    return [seeded32(96, width, seed=k) + 0.3 for k in range(n)]


@settings(derandomize=True, deadline=None, max_examples=25)
@given(m=st.integers(2, 9), n=st.integers(2, 9), r=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_closed_form_is_the_least_of_all(m: int, n: int, r: int, seed: int) -> None:
    """By the singular values of L^T W S, R = L L^T and G = S S^T; and gradients of tr(R D G D^T) in
    both sides vanish there."""
    r = min(r, m, n)
    linear, x = layer(nn.Linear(n, m), seed), seeded32(400, n, seed=seed + 1)
    outputs = metric(m, seed + 2)
    seen = LayerMoments(DenseLayer.of(linear), lags=False, holds_out=False, metrics=(outputs,))
    seen.add(x, None, held=False)
    done = factor("layer", DenseLayer.of(linear), SVD(rank=r), seen, Options())
    assert done.weighted
    assert done.shrinkage is not None
    gram = shrunk((x.T.double() @ x.double()) / len(x), done.shrinkage)
    assert done.shrinkage >= INPUT_SHRINKAGE
    root = torch.linalg.cholesky(gram)
    weight = linear.weight.detach().double()
    values = torch.linalg.svdvals(outputs.root.T @ weight @ root).square()
    off = weight - done.factors.to(torch.float64).to_dense()
    lost = float((outputs.root.T @ off @ root).square().sum())
    # Factors are float32, some eps of which a tail of small values is made of.
    assert lost == pytest.approx(float(values[r:].sum()), rel=1e-4, abs=1e-9 * float(values.sum()))


# Factors are float32. TT's sweeps take another way in a metric, and end where they win little.
@pytest.mark.parametrize(
    ("method", "apart"),
    [(SVD(rank=3), 1e-5), (Kron(rank=0.5), 1e-5), (TT(rank=0.5), 0.02)],
    ids=str,
)
@pytest.mark.parametrize("lags", [False, True])
def test_outputs_that_all_count_alike_are_fitted_as_without_a_metric(
    method: Method, apart: float, lags: bool
) -> None:
    """R = c I, to which every R is drawn by a shrinkage of one."""
    site = DenseLayer.of(layer(nn.Linear(8, 12)))
    stream = Stream(site, lags=lags)
    x = seeded32(60, 8) + 1
    stream.add(x, x + 0.1 * seeded32(60, 8, seed=1))
    (known,) = stream.statistics()
    one, other = (
        _Part(site.weight, known.shrunk(INPUT_SHRINKAGE), outputs).decompose(method, 0).to_dense()
        for outputs in (None, OutputMetric(3 * torch.eye(12)))
    )
    assert float((one - other).norm()) <= apart * float(one.norm())


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    kind=st.sampled_from(["tall", "wide", "conv", "groups"]),
    centred=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_errors_in_a_metric_are_those_of_the_outputs(kind: str, centred: bool, seed: int) -> None:
    """E<d, R d> for d = W x0 - A x - b, over the very inputs."""
    modules = {
        "tall": lambda: nn.Linear(4, 7),
        "wide": lambda: nn.Linear(7, 4),
        "conv": lambda: nn.Conv2d(3, 5, 2, padding=1, stride=2),
        "groups": lambda: nn.Conv1d(4, 6, 3, groups=2),
    }
    shapes = {"tall": (30, 4), "wide": (30, 7), "conv": (3, 3, 6, 5), "groups": (3, 4, 9)}
    site = DenseLayer.of(layer(modules[kind](), seed))
    x0, other = seeded32(*shapes[kind], seed=seed), seeded32(*site.weight.shape, seed=seed + 2)
    x = x0 + 0.3 * seeded32(*shapes[kind], seed=seed + 3)
    m = site.shape[0] // site.groups
    metrics = [metric(m, seed + k) for k in range(site.groups)]
    streams = [Stream(site, lags=True, metrics=metrics) for _ in range(3)]
    half = len(x) // 2
    for stream, part in zip(streams, (slice(None), slice(half), slice(half, None)), strict=True):
        stream.add(x[part], x0[part])
    whole, first, second = streams
    first.merge(second)
    shifts: list[Tensor | None] = [seeded(m, seed=seed + k + 9) for k in range(site.groups)]
    for stream in (whole, first):
        error = OutputError(site.group_weights(), stream.statistics(), weighted=True)
        told = error.of(other.chunk(site.groups), shifts)
        y0, y = _outputs(site, site.weight, x0), _outputs(site, other, x)
        lost = sum(
            metrics[k].energy((y0[k] - y[k]) - shifts[k][:, None])  # type: ignore[index]
            for k in range(site.groups)
        )
        energy = sum(metrics[k].energy(y0[k]) for k in range(site.groups))
        # Moments are products in float32, of which differences remain.
        assert told == pytest.approx(math.sqrt(lost / energy), rel=1e-4)


def _outputs(site: DenseLayer, weight: Tensor, x: Tensor) -> list[Tensor]:
    """(m, N) of each group, without bias, in float64."""
    weight, x = weight.double(), x.double()
    if site.taps is None:
        return [(x @ weight.T).T]
    y = site.taps.outputs(x, weight)
    return [part.movedim(1, 0).flatten(1) for part in y.chunk(site.groups, dim=1)]


@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
@pytest.mark.parametrize("affine", [False, True])
def test_what_the_readout_does_not_hear_is_given_up_first(target: str, affine: bool) -> None:
    """Two outputs of twelve count: their error falls."""
    model, data = mlp(), rows()
    heard = lambda y: y[..., :2]  # noqa: E731
    options: dict[str, Any] = {
        "keep_params": 0.4, "calibration": data, "skip": [], "target": target, "affine": affine,
        "readout": heard, "progress": False,
    }  # fmt: skip
    told = {}
    for word in ("outputs", "loss"):
        small, report = compress(model, metric=word, **options)
        assert report.metric == word
        # A layer may do better without it on inputs held out.
        assert word in {row.metric for row in report.layers if row.factored}
        assert Report.from_json(report.to_json()) == report
        assert ("loss-aware" in str(report)) == (word == "loss")
        y0, y = model(torch.cat(data)), small(torch.cat(data))
        told[word] = relative(heard(y), heard(y0))
    assert told["loss"] < 0.8 * told["outputs"]


@settings(derandomize=True, deadline=None, max_examples=6)
@given(seed=st.integers(0, 99), keep=st.sampled_from([0.2, 0.4, 0.6]), heard=st.integers(1, 12))
def test_auto_is_never_worse_than_outputs_on_inputs_held_out(
    seed: int, keep: float, heard: int
) -> None:
    model = mlp()
    set_weights(model, seed)
    data = [x + 0.1 * seed for x in rows(3)]
    lost = {}
    for word in ("outputs", "loss", "auto"):
        small, _ = compress(
            model, keep_params=keep, calibration=data, skip=[], target="independent",
            metric=word, readout=lambda y: y[..., :heard], progress=False,
        )  # fmt: skip
        lost[word] = relative(small(data[-1])[:, :heard], model(data[-1])[:, :heard])
    assert lost["auto"] in (lost["outputs"], lost["loss"])
    assert lost["auto"] <= lost["outputs"]


def test_the_report_names_the_layers_whose_format_knows_inputs_alone() -> None:
    methods = {"0": Kron(), "2": TT(), "4": SVD(metric="diagonal")}
    _, report = compress(
        mlp(), keep_params=0.5, method=methods, calibration=rows(), skip=[], metric="loss",
        progress=False,
    )  # fmt: skip
    assert [row.metric for row in report.layers if row.factored] == ["loss", "loss", "outputs"]


def test_convolutions_in_every_format_run_in_the_metric() -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=2))
    set_weights(model)
    data = [seeded32(6, 8, 9, 9, seed=k) for k in range(3)]
    wanted: list[tuple[Method, Method | None, str]] = [
        (SVD(), SVD(), "loss"),
        (Tucker(), None, "outputs"),
        (CP(n_iter_max=3), None, "outputs"),
        (TT(), None, "loss"),
        (Kron(), None, "loss"),
    ]
    for first, second, word in wanted:
        small, report = compress(
            model, keep_params=0.5, method={"0": first, "2": second}, calibration=data, skip=[],
            metric="loss", progress=False,
        )  # fmt: skip
        assert {str(row.metric) for row in report.layers if row.factored} == {word}
        assert relative(small(data[0]), model(data[0])) < 1


def test_a_budget_of_error_is_counted_in_the_metric() -> None:
    model, data = mlp(), rows()
    ranks = {}
    for word in ("outputs", "loss"):
        made = plan(model, error=0.2, skip=[])
        _, report = apply(
            model, made, calibration=data, metric=word, readout=lambda y: y[..., :1],
            progress=False,
        )  # fmt: skip
        ranks[word] = report.layer("4").rank
    assert ranks["loss"] != ranks["outputs"]


class Blocked(torch.autograd.Function):
    """Without a way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


class Closed(nn.Module):
    """A model that cannot be differentiated, in one of three ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = mlp(), how
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no grad":
            with torch.no_grad():
                out: Tensor = self.inner(x)
            return out
        if self.how == "a gradient of its own":
            with torch.enable_grad():
                (self.scale * x.detach()).sum().backward()
            again: Tensor = self.inner(x)
            return again
        blocked: Tensor = Blocked.apply(self.inner(x))
        return blocked


WAYS = ("no grad", "no backward", "a gradient of its own")


@pytest.mark.parametrize("how", WAYS)
def test_what_a_model_without_gradients_loses_is_measured(how: str) -> None:
    model, data = Closed(how).eval(), rows()
    with pytest.warns(CalibrationWarning, match="losses are measured instead"):
        found = sensitivity(model, data, rule="fisher", skip=[], progress=False)
    assert found == sensitivity(model, data, rule="measured", skip=[], progress=False)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("word", ["loss", "auto"])
def test_a_model_without_gradients_is_fitted_to_outputs_and_says_so(how: str, word: str) -> None:
    model, data = Closed(how).eval(), rows()
    options: dict[str, Any] = {"keep_params": 0.5, "calibration": data, "skip": []}
    options |= {"allocation": "uniform", "progress": False}
    if word == "loss":
        with pytest.warns(CalibrationWarning, match="cannot be differentiated"):
            small, report = compress(model, metric=word, **options)
    else:  # it was to choose
        small, report = compress(model, metric=word, **options)
    assert report.metric == "outputs"
    usual, _ = compress(model, metric="outputs", **options)
    assert torch.equal(small(data[0]), usual(data[0]))


def test_bad_words_are_named() -> None:
    model = mlp()
    with pytest.raises(ArgumentError, match="metric"):
        compress(model, keep_params=0.5, calibration=rows(), skip=[], metric="kl")
    with pytest.raises(ArgumentError, match=r"metric='loss' is of a fit to inputs; give calibr"):
        compress(model, keep_params=0.5, skip=[], metric="loss")
    with pytest.raises(ArgumentError, match="loss"):
        compress(model, keep_params=0.5, calibration=rows(), skip=[], metric="loss", loss="mse")


def test_a_single_output_and_a_single_batch_do() -> None:
    """R is of rank one before it is shrunk, and nothing is held out."""
    model = mlp(out=1)
    small, report = compress(
        model, keep_params=0.5, calibration=rows(1), skip=["4"], metric="auto", progress=False
    )
    assert report.metric in ("outputs", "loss")
    assert torch.isfinite(small(rows(1)[0])).all()


def test_plain_reports_have_no_metric() -> None:
    _, report = compress(mlp(), keep_params=0.5, skip=[], progress=False)
    assert report.metric is None
    assert all(row.metric is None for row in report.layers)

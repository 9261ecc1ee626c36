"""Under autocast, which is for layers that run, a decomposition is what it is without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf import compress
from tensorlrf import decomposition as d
from tensorlrf.decomposition.methods import names
from tensorlrf.factors import Factors
from tensorlrf.nn import factorize
from tests.draws import seeded32

W, T = seeded32(24, 24), seeded32(12, 10, 8)
X = seeded32(500, 24, seed=1) * torch.linspace(0.1, 2, 24)
MEAN = X.mean(0)
MOMENTS = [X.T @ X, W.T @ W]
TRAIN, KRUSKAL = d.tt(T, 4), d.cp(T, 3, n_iter_max=3, random_state=0)

CALLS: dict[str, Callable[[], Any]] = {
    "svd batch": lambda: d.fit_svd(seeded32(3, 24, 24), 6, batch_dims=1),
    "tt_cross": lambda: d.fit_tt_cross(
        lambda i: 1.0 / (1 + i.sum(1)), (6, 6, 6), 3, random_state=0
    ),
    "tt_round": lambda: d.fit_tt_round(TRAIN, 2),
    "tt_add": lambda: d.tt_add(TRAIN, TRAIN),
    "tt_inner": lambda: d.tt_inner(TRAIN, TRAIN),
    "bias_correction": lambda: d.bias_correction(W, d.svd(W, 6), MEAN),
    "shared_svd": lambda: d.shared_svd([W, W.T], 6, grams=MOMENTS),
    "tucker_of_heads": lambda: d.tucker_of_heads([W, W.T], (3, 6), head_dim=4, grams=MOMENTS),
    "cp_of_heads": lambda: d.cp_of_heads([W, W.T], 5, head_dim=4, n_iter_max=3, random_state=0),
    "sampled_fit": lambda: d.sampled_fit(T, KRUSKAL, random_state=0),
    "robust_pca": lambda: d.fit_robust_pca(W),
    "parafac2": lambda: d.fit_parafac2([W[:10], W[10:]], 2, n_iter_max=3, random_state=0),
    "coupled_factorization": lambda: d.coupled_factorization(
        [T, T[:, :, 0]], 2, n_iter_max=3, random_state=0
    ),
    "stabilize_cp": lambda: d.fit_stabilize_cp(KRUSKAL, T, n_iter_max=3),
    "corcondia": lambda: d.corcondia(T, KRUSKAL),
    "factor_match_score": lambda: d.factor_match_score(KRUSKAL, KRUSKAL),
    "restart_congruence": lambda: d.restart_congruence([KRUSKAL, KRUSKAL], [0.1, 0.1]),
    "split_half": lambda: d.split_half(T, 2, random_state=0),
    "spectral_measures": lambda: d.spectral_measures(W),
    "tt_norm": lambda: d.tt_norm(TRAIN),
    "tt_distance": lambda: d.tt_distance(TRAIN, TRAIN),
    "tt_orthogonalize": lambda: d.tt_orthogonalize(TRAIN),
    "tt_elementwise": lambda: d.fit_tt_elementwise(torch.exp, [TRAIN], rank=3, random_state=0),
    "robust_completion": lambda: d.fit_robust_completion(
        W, "svd", 2, n_iter_max=3, random_state=0
    ),
    "cross_validate": lambda: d.cross_validate(T, "cp", [1, 2], random_state=0),
    "aca": lambda: d.fit_aca(lambda i: 1.0 / (1 + i.sum(1)), (20, 20), 3, random_state=0),
    "bayesian_cp": lambda: d.bayesian_cp(T, 3, n_iter_max=5, random_state=0),
    "bayesian_tucker": lambda: d.bayesian_tucker(T, 3, n_iter_max=5),
    "evbmf": lambda: d.evbmf(W),
    "scree": lambda: d.scree(W, "svd"),
}  # fmt: skip
"""What is no method, which the laws of methods hold to the same."""


def values(result: Any) -> Any:
    """Tensors and numbers of a result, to be compared bit for bit."""
    if isinstance(result, d.Fit):
        return values(result.factors), result.errors
    if isinstance(result, list):
        return [values(one) for one in result]
    if isinstance(result, Factors):
        return {name: t.tolist() for name, t in result.tensors().items()}, str(result.dtype)
    return result.tolist() if isinstance(result, Tensor) else repr(result)


def test_every_public_decomposition_is_here() -> None:
    covered = {name.split()[0] for name in CALLS} | set(names())
    public = {n.removeprefix("fit_") for n in d.__all__ if n.islower() or n.startswith("fit_")}
    # The one is by evbmf, and there are no floats in the others.
    others = {"evbmf_rank", "mode_sizes", "huber_loss", "negative_binomial_loss"}
    assert public - covered == others


@pytest.mark.parametrize("name", CALLS)
def test_autocast_has_no_say(name: str) -> None:
    plain = CALLS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        under = CALLS[name]()
        assert torch.is_autocast_enabled("cpu")
        assert (seeded32(4, 4) @ seeded32(4, 4)).dtype == torch.bfloat16
    assert values(under) == values(plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nor_where_a_graph_is_kept(dtype: torch.dtype) -> None:
    """Nor in the forward of a layer of one's own, with an autocast of its own."""

    class Loss(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype):
                factors = d.cp(weight, 2, differentiable=True, random_state=0)
            return factors.factors[0].square().sum() + factors.weights.sum()

    weight = seeded32(6, 5, 4).requires_grad_()
    factors = d.cp(weight, 2, differentiable=True, random_state=0)
    loss = factors.factors[0].square().sum() + factors.weights.sum()
    (wanted,) = torch.autograd.grad(loss, weight)
    (got,) = torch.autograd.grad(Loss()(weight), weight)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("method", ["svd", "cp", "tucker", "auto", "kron", "tt", "monarch"])
def test_compress_has_none(method: str) -> None:
    """Neither in calibration and held-out errors nor in the factors; what is exported is exact."""
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    with torch.no_grad():
        model[0].weight.copy_(W / 5)
        model[2].weight.copy_(W.T / 5)
    batches = [seeded32(100, 24, seed=k) for k in range(3)]
    options: dict[str, Any] = {"keep_params": 0.6, "calibration": batches, "affine": True}
    plain, report = compress(model, method=method, **options)
    stock = tensorlrf.export(plain).state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        small, told = compress(model, method=method, **options)
        exported = tensorlrf.export(small).state_dict()
        dense = tensorlrf.densify(small).state_dict()
        assert torch.equal(small[0].factors.to_dense(), dense["0.weight"])
    assert told == report
    for a, b in zip(small.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(exported[name], stock[name]) for name in stock)


@pytest.mark.parametrize("path", ["dense", "chain"])
def test_a_layer_runs_under_autocast_as_torchs_do(path: str) -> None:
    layer = factorize(nn.Linear(24, 24), "svd", 6)
    layer.path_table = tensorlrf.ops.PathTable.single(path)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(X).dtype == torch.bfloat16
        assert layer.weight.dtype == torch.float32

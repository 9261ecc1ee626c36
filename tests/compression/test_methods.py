"""Method configs: every option of the decomposition and no other, both ways through JSON."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlrf import CP, SVD, Auto, Tucker, cp, svd, tucker
from tensorlrf.compression import BLR, TR, TT, Blast, Hierarchical, Kron, Method, Monarch
from tensorlrf.compression.methods import config_of, method_from_dict, words
from tensorlrf.decomposition.methods import names, registered
from tensorlrf.decomposition.signatures import parameters, with_parameters
from tensorlrf.decomposition.svd._svd import METRICS
from tensorlrf.errors import ArgumentError, RankError, TensorlrfError

# What apply brings itself, what makes no sense for many layers at once, and what Tucker-2 fixes.
OURS = {
    *("tensor", "gram", "mean", "counts", "callback", "random_state", "differentiable"),
    *("modes", "fixed_modes", "batch_dims", "mask", "weights"),
}
OF_MASKS = {"svd": {"n_iter_max", "tol"}}
"""Of sweeps that are made with mask= or weights= alone."""


@pytest.mark.parametrize(
    ("config", "function", "extras"),
    [
        (SVD, svd, {"metric", "gates"}),
        (Tucker, tucker, {"rank_shares"}),
        (CP, cp, set()),
        *(
            (registered(word).config, registered(word).for_layers, set())
            for word in names("compress")
            if registered(word).config.by_share
        ),
    ],
)
def test_options_are_those_of_the_decomposition(
    config: type[Method], function: Callable[..., Any], extras: set[str]
) -> None:
    parameters = inspect.signature(function).parameters
    wanted = {name: p.default for name, p in parameters.items() if name not in OURS}
    for name in OF_MASKS.get(config().word, ()):
        del wanted[name]
    have = {f.name: f.default for f in fields(config) if f.name not in extras}
    assert have == wanted
    assert set(config().options()) == set(wanted) - {"rank", "error"}


@pytest.mark.parametrize("config", [config_of(word) for word in words()])
def test_an_unknown_option_is_named(config: type[Method]) -> None:
    with pytest.raises(TypeError, match="n_iters"):
        config(n_iters=3)  # type: ignore[call-arg]
    with pytest.raises(
        ArgumentError, match=r"n_iters= is no option of method.*its options are.*ra"
    ):
        method_from_dict({"name": config.word, "n_iters": 3})


@pytest.mark.parametrize("word", words())
def test_a_config_is_documented_and_travels(word: str) -> None:
    config = config_of(word)
    told = [name for names, _, _ in parameters(inspect.getdoc(config) or "") for name in names]
    assert told == [f.name for f in fields(config)], "each option once, in the order of the fields"
    made = config(error=0.25)
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert (again, repr(again), hash(again)) == (made, repr(made), hash(made))
    assert pickle.loads(pickle.dumps(config)) is config


def test_a_docstring_takes_over_what_it_does_not_tell() -> None:
    own = "Parameters\n    ----------\n    b : int\n        Own."
    doc = f"About.\n\n    {own}\n\n    Notes\n    -----\n    n"
    there = "Parameters\n----------\na, x : str\n    More.\n    Lines.\nb : no"
    other = f"O.\n\n{there}\n\nReturns\n-------\nint"
    entries = "a : str\n    More.\n    Lines.\nb : int\n    Own."
    section = f"Parameters\n----------\n{entries}"
    assert with_parameters(doc, ["a", "b"], [other]) == f"About.\n\n{section}\n\nNotes\n-----\nn"
    bare = "About.\n\nNotes\n-----\nn"
    assert with_parameters(bare, ["x"], [None, other]) == (
        "About.\n\nParameters\n----------\nx : str\n    More.\n    Lines.\n\nNotes\n-----\nn"
    )
    assert with_parameters("About.", ["b"], [other]).endswith("----------\nb : no\n")


shares = st.floats(0.01, 1.0)
counts = st.integers(1, 40)
budgets = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"rank": st.one_of(counts, shares)}),
    st.fixed_dictionaries({"error": st.floats(0.01, 0.99)}),
)
svds = st.builds(
    lambda budget, options: SVD(**budget, **options),
    budgets,
    st.fixed_dictionaries(
        {},
        optional={
            "solver": st.sampled_from(["auto", "exact", "eigh", "randomized"]),
            "metric": st.sampled_from(METRICS),
            "n_power_iter": st.integers(0, 9),
        },
    ),
)
tuckers = st.builds(
    lambda budget, options: Tucker(**budget, **options),
    st.one_of(budgets, st.fixed_dictionaries({"rank": st.tuples(counts, counts)})),
    st.fixed_dictionaries(
        {},
        optional={
            "solver": st.sampled_from(["hooi", "hosvd", "st_hosvd", "randomized"]),
            "n_iter_max": st.none() | st.integers(1, 9),
            "tol": st.none() | st.floats(0, 1, exclude_max=True),
            "rank_shares": st.tuples(shares, shares),
        },
    ),
)
cps = st.builds(
    lambda budget, options: CP(**budget, **options),
    budgets,
    st.fixed_dictionaries(
        {},
        optional={
            "init": st.sampled_from(["random", "svd"]),
            "tol": st.floats(0, 0.5),
            "n_restarts": st.integers(1, 4),
        },
    ),
)
autos = st.one_of(
    st.builds(lambda share: Auto(rank=share), shares),
    st.builds(Auto, candidates=st.permutations([SVD(metric="diagonal"), Tucker(tol=0.1), CP()])),
)


@given(st.one_of(svds, tuckers, cps, autos))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_json_both_ways(method: Method) -> None:
    values = json.loads(json.dumps(method.to_dict()))
    again = method_from_dict(values)
    assert again == method
    assert type(again) is type(method)
    assert hash(again) == hash(method)
    assert values["name"] == method.word
    assert set(values) == {"name", *(f.name for f in fields(method))}
    text = str(method)
    assert text.startswith(method.word)
    assert "rank=" not in text.replace("rank_shares=", "")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
nonsense = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
OPTIONS = sorted({f.name for config in map(config_of, words()) for f in fields(config)})


@given(
    st.sampled_from([*words(), "odd"]),
    st.dictionaries(st.sampled_from(OPTIONS), nonsense, max_size=2),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_nonsense_is_refused_or_makes_sense(name: str, options: dict[str, Any]) -> None:
    try:
        method = method_from_dict({"name": name, **options})
    except TensorlrfError:
        return
    # Nothing got in that would fail later: it goes round once more, and can be compared.
    assert method_from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert {method}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SVD(rank=4, error=0.1), r"SVD\(rank=4, error=0.1\) has two budgets"),
        (lambda: SVD(rank=0), "rank=0 must be a positive int"),
        (lambda: SVD(rank=-3), "rank=-3"),
        (lambda: SVD(rank=True), "rank=True"),
        (lambda: SVD(rank=1.5), "rank=1.5 is a float, so a share"),
        (lambda: SVD(rank=float("nan")), "rank=nan"),
        (lambda: SVD(rank="same"), "rank='same'"),
        (lambda: Tucker(rank=(3, 0)), r"rank=\(3, 0\)"),
        (lambda: CP(error=1), r"error=1 must be a relative error in \(0, 1\)"),
        (lambda: CP(error=True), "error=True"),
        (lambda: SVD(solver="qr"), "solver='qr' is unknown; choose one of auto, exact"),
        (lambda: SVD(metric="half"), "metric='half' is unknown; choose one of full, diagonal"),
        (lambda: SVD(n_power_iter=-1), "n_power_iter=-1"),
        (lambda: Tucker(solver="als"), "solver='als' is unknown; choose one of hooi"),
        (lambda: Tucker(tol="small"), "tol='small'"),  # type: ignore[arg-type]
        (lambda: Tucker(rank_shares=(0.5, 0)), r"rank_shares=\(0.5, 0\) must be two numbers"),
        (lambda: Tucker(rank_shares=0.5), "rank_shares=0.5"),  # type: ignore[arg-type]
        (lambda: CP(solver="sgd"), "solver='sgd' is unknown; choose one of auto, als"),
        (lambda: CP(n_restarts=0), "n_restarts=0 must be an int"),
        (lambda: CP(n_samples=9), "n_samples=9 belongs to solver='cprand'"),
        (lambda: CP(init=None), "init is a NoneType; for many layers give a word"),  # type: ignore[arg-type]
        (lambda: Kron(shapes=((2, 3),)), r"shapes=\(\(2, 3\),\) must be"),
        (lambda: Kron(shapes=((2, 3), (0, 4))), "shapes="),
        (lambda: Kron(solver="qr"), "solver='qr' is unknown; choose one of auto"),
        (lambda: Kron(tol=2), r"tol=2 must lie in \[0, 1\)"),
        (lambda: Kron(n_iter_max=0), "n_iter_max=0 must be an int of at least 1"),
        (lambda: TT(order=1), "order=1 must be an int of at least 2"),
        (lambda: TT(row_sizes=(2, 0)), "row_sizes="),
        (lambda: TR(init="ones"), "init='ones' is unknown"),
        (lambda: TR(sizes=((2, 3), ())), "sizes="),
        (lambda: BLR(block=0), "block=0 must be a positive int"),
        (lambda: BLR(dense_blocks=1), "dense_blocks=1 must be True or False"),
        (lambda: Hierarchical(leaf=None), "leaf=None must be an int"),
        (lambda: Hierarchical(admissible="never"), "admissible='never' is unknown"),
        (lambda: Monarch(blocks=(2, 3, 4)), "blocks="),
        (lambda: Blast(blocks=-1), "blocks=-1"),
        (lambda: Auto(rank=8), "rank=8: formats are compared at one share"),
        (lambda: Auto(candidates=()), r"candidates=\(\) must be methods"),
        (lambda: Auto(candidates=(Auto(),)), "must be methods such as"),
        (lambda: Auto(candidates=(SVD(rank=3),)), "candidates have no budget of their own"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


@given(
    st.sampled_from([SVD, Tucker, CP]),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 3),
    st.integers(1, 40),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_parameters_at_a_rank_are_those_of_the_factors(
    config: type[Method], shape: tuple[int, ...], groups: int, rank: int
) -> None:
    """And the ranks that are refused are those that the decomposition has no use for."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = config(rank=rank)
    try:
        counted = method.planned_params(rank, (shape[0] * groups, *shape[1:]), groups)
    except RankError:
        if config is CP:
            assert rank > weight.numel() // max(shape)
        else:
            function, options = (svd, {}) if config is SVD else (tucker, {"modes": (0, 1)})
            with pytest.raises(RankError):
                function(weight, rank, **options)
        return
    if config is CP:
        assert counted == groups * rank * (sum(shape) + 1)
        return
    factors = svd(weight, rank) if config is SVD else tucker(weight, rank, modes=(0, 1))
    assert counted == groups * factors.n_params

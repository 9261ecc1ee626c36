"""Decompositions are declared once, and found by name."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tensorlrf import decomposition
from tensorlrf.decomposition import fit_svd, methods, scree
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.config import Method, config
from tensorlrf.decomposition.methods import (
    LAYERS,
    Kind,
    Unfolded,
    factors_of,
    find,
    for_layers,
    method,
    names,
    registered,
    truncates,
)
from tensorlrf.errors import ArgumentError, TensorlrfError
from tensorlrf.factors import LowRank, TTMatrix
from tensorlrf.nn import factorize
from tests.decomposition.every import PLAIN, decomposed, matrix, rank_of

OTHERS = {
    *("aca", "robust_completion", "tt_cross", "tt_elementwise", "tt_round"),
    *("coupled_factorization", "parafac2", "robust_pca", "stabilize_cp"),
}
"""What decomposes a function, a train or several tensors, or what another method is posed to."""
WEIGHTS: dict[Kind, nn.Module] = {
    "linear": nn.Linear(12, 16),
    "conv": nn.Conv2d(8, 8, 3),
    "embedding": nn.Embedding(16, 12),
}

ROOT = Path(__file__).resolve().parents[2]


def fit_mine(
    tensor: Any, rank: int, *, error: float | None = None, modes: tuple[int, ...] = ()
) -> Fit[LowRank]:
    """Of these tests."""
    return fit_svd(tensor, rank, error=error)


mine = factors_of(fit_mine)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is gone after it."""
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))


def test_every_decomposition_is_declared_and_no_other() -> None:
    public = {
        name.removeprefix("fit_") for name in decomposition.__all__ if name.startswith("fit_")
    }
    assert public == {*names(), *OTHERS}
    assert set(names()) == set(names("tensor"))


@pytest.mark.parametrize("name", names())
def test_a_declaration_is_true(name: str) -> None:
    found = registered(name)
    assert found.fit is getattr(decomposition, f"fit_{name}")
    assert found.function is getattr(decomposition, name)
    assert name in PLAIN, "a sample, on which all laws of decompositions are tried"
    assert isinstance(decomposed(name, matrix()), found.gives)
    options = inspect.signature(found.fit).parameters
    assert found.draws == ("random_state" in options)
    assert found.with_modes == ("modes" in options)
    short = found.function
    assert [(p.name, p.default, p.kind) for p in options.values()] == [
        (p.name, p.default, p.kind) for p in inspect.signature(short).parameters.values()
    ]
    assert pickle.loads(pickle.dumps(short)) is short
    assert (short.__name__, short.__module__) == (name, found.fit.__module__)
    assert len(inspect.getdoc(short) or "") > 60
    for extra in found.on.values():
        assert set(extra) <= set(inspect.signature(found.for_layers).parameters)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", names(*LAYERS))
def test_a_method_serves_the_layers_that_it_declares(name: str, kind: Kind) -> None:
    sample = PLAIN[name]
    options = {k: v for k, v in getattr(sample, "keywords", {}).items() if k != "init"}
    layer = WEIGHTS[kind]
    if kind in registered(name).on:
        assert factorize(layer, name, rank_of(name), **options).factors.shape == layer.weight.shape
    else:
        with pytest.raises(TensorlrfError):
            factorize(layer, name, rank_of(name), **options)


def test_a_declared_method_is_found_with_what_it_serves() -> None:
    fit = method("mine", gives=LowRank, on={"conv": {"modes": (0,)}, "tensor": {}})(fit_mine)
    assert (fit.__name__, fit.__doc__) == ("fit_mine", fit_mine.__doc__)
    assert inspect.signature(fit) == inspect.signature(fit_mine)
    for found in (find("mine"), find("mine", "conv"), registered("mine")):
        assert found.fit is fit
        assert found.function is mine is found.for_layers
        assert found.gives == (LowRank,)
        assert list(found.on) == ["tensor", "conv"]
        assert found.on["conv"] == {"modes": (0,)}
        assert found.with_modes
        assert not found.draws
    assert names("conv")[-1] == names()[-1] == "mine"
    assert "mine" not in names("linear")
    with pytest.raises(ArgumentError, match="method='mine' is unknown"):
        find("mine", "linear", "embedding")


def fit_watched(tensor: Tensor, rank: int | None = None, *, error: float | None = None) -> Any:
    """What it sees of the state that it runs in."""
    seen = torch.is_autocast_enabled("cpu"), (tensor @ tensor.T).dtype, torch.get_num_threads()
    return Fit(LowRank(tensor, tensor.T), (0.0,), True, repr(seen))


def test_a_declared_method_runs_out_of_autocast_on_the_threads_that_it_is_worth() -> None:
    """Whoever declares it need not think of either."""
    fit = method("watched", gives=LowRank, on={"tensor"})(fit_watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert fit(torch.ones(4, 3), 1).reason == "(False, torch.float32, 1)"
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_layer_may_be_given_otherwise() -> None:
    method("mine", gives=LowRank, on={"linear"})(fit_mine)

    @for_layers("mine")
    def of_a_layer(tensor: Any, rank: int, *, error: float | None = None) -> LowRank:
        return mine(tensor, rank, error=error)

    assert find("mine").for_layers is of_a_layer
    assert find("mine").function is mine


def test_order_is_declared_for_tensors_and_for_layers() -> None:
    for word, order in (("second", (-2, -1)), ("first", (-3, -2)), ("third", (-1, -3))):
        method(word, gives=LowRank, on={"tensor", "linear"}, order=order)(fit_mine)
    assert names("tensor")[:3] == names()[:3] == ("first", "second", "third")
    assert names("linear")[:3] == ("third", "first", "second")


def test_scree_shows_what_a_method_declares_that_it_truncates() -> None:
    method("mine", gives=LowRank, on={"tensor"})(fit_mine)
    with pytest.raises(ArgumentError, match="method='mine' is unknown; choose one of svd, tucker"):
        scree(matrix(), "mine")

    @truncates("mine")
    def columns_and_rows(
        tensor: Tensor, *, modes: tuple[int, ...] = (1, 0), word: str = "both"
    ) -> Unfolded:
        yield word, [(tensor, mode) for mode in modes]

    assert names("scree")[-1] == "mine"
    (seen,) = scree(matrix(), "mine").spectra
    (whole,) = scree(matrix(), "svd").spectra
    assert seen.values[::2] == pytest.approx(whole.values)
    assert seen.params[1::2] == tuple(2 * count for count in whole.params)
    with pytest.raises(ArgumentError, match="block=2 belongs to method='blr', not 'mine'"):
        scree(matrix(), "mine", block=2)


def test_refusals() -> None:
    method("mine", gives=LowRank, on={"tensor"})(fit_mine)
    with pytest.raises(ArgumentError, match="name='mine' is registered already, for fit_mine"):
        method("mine", gives=TTMatrix, on={"tensor"})(fit_mine)
    with pytest.raises(ArgumentError, match="on='matrix' is unknown; choose one of tensor, linear"):
        # What a type checker refuses is given on purpose, here and below.
        method("other", gives=LowRank, on={"matrix"})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"mine must be a function .* begins with fit_"):
        method("other", gives=LowRank, on={"tensor"})(mine)  # type: ignore[type-var]
    assert "other" not in names()
    for declare in (truncates, for_layers, lambda name: config(name)(Method)):
        with pytest.raises(ArgumentError, match="method='other' is unknown"):
            declare("other")(mine)  # type: ignore[operator]
    for no_word in (["svd"], 5, None):
        with pytest.raises(ArgumentError, match=r"method=.* is unknown; choose one of svd"):
            find(no_word)  # type: ignore[arg-type]
    for look_up in (find, registered):
        with pytest.raises(ArgumentError, match=r"method='mnie' is unknown; choose one of .*mine"):
            look_up("mnie")


def test_what_belongs_to_a_method_is_declared_once() -> None:
    """Nobody takes the place of what others have declared."""
    method("mine", gives=LowRank, on={"linear", "tensor"})(fit_mine)

    def declared(name: str) -> None:
        @config(name)
        class Mine(Method):
            """Of these tests."""

    again: list[Callable[[str], object]] = [
        declared,
        lambda name: for_layers(name)(mine),
        lambda name: truncates(name)(lambda tensor: []),
    ]
    for declare in again:
        declare("mine")
        before = registered("mine")
        with pytest.raises(ArgumentError, match=r"name='mine' has its \w+ already.*; a method has"):
            declare("mine")
        assert registered("mine") is before
    with pytest.raises(ArgumentError, match="name='svd' has its config already, SVD"):
        declared("svd")


def fit_bare(tensor: Any, rank: int, *, error: float | None = None, power: int) -> Fit[LowRank]:
    """Of these tests."""
    return fit_svd(tensor, rank, error=error)


def test_a_config_is_a_method_whose_options_have_defaults() -> None:
    method("bare", gives=LowRank, on={"linear"})(fit_bare)
    with pytest.raises(ArgumentError, match="power= of 'bare' has no default"):
        config("bare")(type("Bare", (Method,), {}))
    with pytest.raises(ArgumentError, match="Bare must be a subclass of Method"):
        config("bare")(type("Bare", (), {}))
    assert "bare" not in names("compress")


def test_the_short_function_is_the_long_one_but_for_what_it_gives() -> None:
    tensor = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    factors, fit = mine(tensor, 2), fit_mine(tensor, 2)
    assert isinstance(factors, LowRank)
    assert torch.equal(factors.to_dense(), fit.factors.to_dense())
    assert (mine.__name__, mine.__qualname__, mine.__module__) == ("mine", "mine", __name__)
    assert mine.__doc__ == fit_mine.__doc__
    assert inspect.signature(mine).parameters == inspect.signature(fit_mine).parameters
    assert inspect.signature(mine).return_annotation == "LowRank"
    assert typing.get_type_hints(mine)["return"] is LowRank
    with pytest.raises(TypeError, match="modus"):
        mine(tensor, 2, modus=(0,))  # type: ignore[call-arg]


@pytest.mark.slow
def test_a_type_checker_sees_what_the_short_function_takes_and_gives(tmp_path: Path) -> None:
    source = tmp_path / "seen.py"
    source.write_text(
        "import torch\n"
        "import tensorlrf.decomposition as d\n"
        "import tensorlrf.decomposition.configs\n"
        "w = torch.ones(4, 4)\n"
        "reveal_type(d.blast(w, 2, blocks=2))\n"
        "reveal_type(d.cp(w, 2, init='svd'))\n"
        "reveal_type(d.tt_matrix(w, error=0.5, order=2))\n"
        "reveal_type(d.svd(w, 2))\n"
        "reveal_type(d.fit_tt(w, 2))\n"
        "reveal_type(d.tucker(w, 2, batch_dims=1))\n"
        "reveal_type(d.fit_blast(w, 2))\n"
        "reveal_type(d.configs.Kron(rank=2).shapes)\n"
        "d.blast(w, 2, block=2)\n"
        "d.blast(w, error='small')\n"
        "d.configs.SVD(n_iter_max=3)\n"
    )
    arguments = ("--strict", "--config-file", ROOT / "pyproject.toml", source)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    *told, _ = [line for line in run.stdout.splitlines() if " defined in " not in line]
    expected = (
        *(".BlastFactors", ".CPFactors", ".TTMatrix", ".LowRank", ".Fit[tensorlrf.factors._tt."),
        *("TuckerFactors | tensorlrf.factors._batch.Batch", ".Fit[tensorlrf.factors._blast"),
        "tuple[tuple[int, int], tuple[int, int]] | None",
        *('Unexpected keyword argument "block"', 'Argument "error" has incompatible type "str"'),
        'Unexpected keyword argument "n_iter_max" for "SVD"',
    )
    for line, words in zip(told, expected, strict=True):
        assert words in line


def test_the_short_function_is_pickled_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert pickle.loads(pickle.dumps(mine)) is mine

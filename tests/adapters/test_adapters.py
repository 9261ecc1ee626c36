"""Adapters as values: their sums, cuts, norms, files, and what they do to models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tensorlrf
from tensorlrf.adapters import Adapter, extract, row_norms
from tensorlrf.errors import (
    ArgumentError,
    FileError,
    FileFormatError,
    MissingFileError,
    ShapeError,
    TensorlrfWarning,
    UnsupportedError,
)
from tensorlrf.factors import LowRank


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=dtype, device="cpu")


def term(m: int, n: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> LowRank:
    return LowRank(drawn(seed, m, r, dtype=dtype), drawn(seed + 1, r, n, dtype=dtype))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8, device="cpu"), nn.LayerNorm(8),
        nn.Linear(8, 5),
    )  # fmt: skip


def changed(model: nn.Sequential) -> tuple[nn.Sequential, Adapter]:
    """The same with a change of low rank in three layers."""
    own = Adapter({
        "0": LowRank(drawn(3, 4, 2), drawn(4, 2, 27), (4, 3, 3, 3)),
        "2": term(8, 16, 3), "4": term(5, 8, 1, 7),
    })  # fmt: skip
    made = own.merged_into(model)
    assert isinstance(made, nn.Sequential)
    return made, own


# ---- taken out, put in ---------------------------------------------------------------------------


def test_what_was_put_in_is_taken_out() -> None:
    model = net()
    tuned, own = changed(model)
    found = extract(model, tuned, error=1e-5)
    assert found.ranks == own.ranks
    for name, one in found.terms.items():
        assert one.shape == own.terms[name].shape
        assert one.rel_error(own.terms[name].to_dense()) < 1e-5
        assert found.errors[name] <= 1e-5
    again = found.merged_into(model)
    x = drawn(9, 2, 3, 4, 4)
    # Outputs of tens, from changes that were cut at an error of 1e-5.
    assert torch.allclose(again(x), tuned(x), rtol=1e-4, atol=1e-4)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True)
    )


def test_a_cut_is_the_best_one() -> None:
    """Eckart & Young, for the change alone."""
    model = net()
    tuned, own = changed(model)
    found = extract(model, tuned, 1)
    for name, one in found.terms.items():
        dense = own.terms[name].to_dense().reshape(len(one.left), -1)
        tail = torch.linalg.svdvals(dense.double())[1:]
        off = (one.to_dense().reshape_as(dense) - dense).double().norm()
        assert float(off) == pytest.approx(float(tail.norm()), rel=1e-3, abs=1e-4)
        assert found.errors[name] == pytest.approx(float(off / dense.norm()), rel=1e-3, abs=1e-5)


def test_from_state_dicts_and_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = net()
    tuned, _ = changed(model)
    with torch.no_grad():
        tuned[3].weight.add_(0.5)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    save_file(tuned.state_dict(), tmp_path / "b.safetensors")
    with pytest.warns(
        TensorlrfWarning, match=r"1 tensor has changed .*: 3.weight by 0.5 of itself"
    ):
        found = extract(tmp_path / "a.safetensors", tmp_path / "b.safetensors", 2)
    with pytest.warns(TensorlrfWarning, match="3.weight"):
        other = extract(model.state_dict(), tuned, 2)
    assert found.ranks == other.ranks == {"0": 2, "2": 2, "4": 2}
    for name, one in found.terms.items():
        assert torch.equal(one.to_dense(), other.terms[name].to_dense())


def test_layers_on_factors_take_it_in() -> None:
    """Ranks add up; the sum is exact."""
    model = net()
    small, _ = tensorlrf.compress(model, keep_params=0.7, skip=["0"], progress=False)
    own = Adapter({"2": term(8, 16, 3), "4": term(5, 8, 1, 7)})
    merged = own.merged_into(small)
    for name, one in own.terms.items():
        expected = small.get_submodule(name).weight + one.to_dense()
        # float32, entries of up to ten: their rounding over sums of a dozen.
        assert torch.allclose(merged.get_submodule(name).weight + 0, expected, atol=1e-5)


# ---- sums and cuts -------------------------------------------------------------------------------


def test_sums_are_exact_and_cuts_the_best() -> None:
    one = Adapter({"a": term(6, 5, 2), "b": term(4, 4, 1)})
    other = Adapter({"a": term(6, 5, 1, 5)})
    both = one.plus(other.times(-0.5))
    assert both.ranks == {"a": 3, "b": 1}
    dense = one.terms["a"].to_dense() - 0.5 * other.terms["a"].to_dense()
    # The same in another order of sums, in float32.
    assert torch.allclose(both.terms["a"].to_dense(), dense, atol=1e-5)
    cut = both.reranked(2)
    tail = torch.linalg.svdvals(dense.double())[2]
    assert cut.ranks == {"a": 2, "b": 1}
    assert cut.errors["a"] == pytest.approx(float(tail / dense.norm()), rel=1e-4)
    assert cut.errors["b"] < 1e-6
    assert both.reranked(error=cut.errors["a"] * 1.001).ranks["a"] == 2


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 7), n=st.integers(1, 7), r=st.integers(1, 9), seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-8, 1.0, 1e6]), error=st.sampled_from([0.0, 0.1, 0.6]),
)  # fmt: skip
def test_an_error_is_kept(m: int, n: int, r: int, seed: int, scale: float, error: float) -> None:
    whole = term(m, n, r, seed, torch.float64)
    own = Adapter({"a": LowRank(scale * whole.left, whole.right)})
    cut = own.reranked(error=error)
    off = torch.linalg.vector_norm(cut.terms["a"].to_dense() - own.terms["a"].to_dense())
    size = torch.linalg.vector_norm(own.terms["a"].to_dense())
    assert float(off) <= (error + 1e-12) * float(size)
    assert cut.errors["a"] <= error


# ---- norms ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 7), n=st.integers(1, 7), r=st.integers(1, 5), seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e5]), factored=st.booleans(),
)  # fmt: skip
def test_norms_of_rows(m: int, n: int, r: int, seed: int, scale: float, factored: bool) -> None:
    base = term(m, n, 2, seed, torch.float64)
    change = term(m, n, r, seed + 2, torch.float64)
    change = LowRank(scale * change.left, change.right)
    expected = (base.to_dense() + change.to_dense()).norm(dim=1)
    found = row_norms(base if factored else base.to_dense(), change)
    # A row of n products of r: their rounding, times a few.
    size = base.to_dense().norm(dim=1) + change.to_dense().norm(dim=1)
    assert bool(((found - expected).abs() <= 1e-9 * size + 1e-300).all())


def test_rows_that_cancel() -> None:
    base = term(5, 6, 3, dtype=torch.float64)
    gone = LowRank(-base.left, base.right)
    assert float(row_norms(base.to_dense(), gone).max()) < 1e-13
    assert float(row_norms(base, gone).max()) < 1e-13


@pytest.mark.parametrize("factored", [False, True])
def test_magnitudes(factored: bool) -> None:
    """DoRA (Liu et al. 2024, equation 5): rows of the merged weight have these norms."""
    layer = nn.Linear(16, 8)
    model = nn.Sequential(layer)
    if factored:
        model = nn.Sequential(tensorlrf.nn.factorize(layer, "svd", rank=3))
    change, wanted = term(8, 16, 2), drawn(3, 8).abs() + 0.1
    merged = Adapter({"0": change}, {"0": wanted}).merged_into(model)
    weight = merged[0].weight + 0 if factored else merged[0].weight
    direction = model[0].weight + change.to_dense()
    expected = wanted[:, None] * direction / direction.norm(dim=1, keepdim=True)
    # Norms in float64, products in float32, entries about one.
    assert torch.allclose(weight, expected, atol=1e-5)


# ---- files ---------------------------------------------------------------------------------------


def test_files_round_trip(tmp_path: Path) -> None:
    own = Adapter(
        {"fc": term(6, 5, 2), "block.fc": term(6, 5, 1), "c": LowRank(
            drawn(1, 4, 2), drawn(2, 2, 27), (4, 3, 3, 3))},
        {"fc": drawn(5, 6).abs()}, base="model",
    )  # fmt: skip
    own.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert again.base == "model"
    assert again.ranks == own.ranks
    for name, one in own.terms.items():
        assert again.terms[name].shape == one.shape
        assert torch.equal(again.terms[name].left, one.left)
        assert torch.equal(again.terms[name].right, one.right)
    assert torch.equal(again.magnitudes["fc"], own.magnitudes["fc"])
    with pytest.raises(FileError, match="overwrite"):
        own.save(tmp_path / "a")
    own.save(tmp_path / "a", overwrite=True)


def test_scalings_as_peft_has_them(tmp_path: Path) -> None:
    own = Adapter({"x.fc": term(6, 5, 4), "x.up": term(6, 5, 2)})
    own.save(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {
        "r": 4, "lora_alpha": 8, "rank_pattern": {"up": 2}, "alpha_pattern": {"x.up": 6},
        "use_rslora": True,
    }))  # fmt: skip
    found = Adapter.load(tmp_path / "a")
    for name, scaling in (("x.fc", 8 / 2), ("x.up", 6 / 2**0.5)):
        expected = scaling * own.terms[name].to_dense()
        # The scaling is rounded into one side in float32.
        assert torch.allclose(found.terms[name].to_dense(), expected, rtol=1e-5, atol=1e-5)


# ---- bad input -----------------------------------------------------------------------------------


def test_bad_input(tmp_path: Path) -> None:
    model = net()
    tuned, own = changed(model)
    with pytest.raises(ArgumentError, match="give one of the two"):
        extract(model, tuned)
    with pytest.raises(ArgumentError, match="rank=0 must be an int of at least 1"):
        extract(model, tuned, 0)
    with pytest.raises(ArgumentError, match=r"error=1.5 must be a number in \[0, 1\)"):
        own.reranked(error=1.5)
    with pytest.raises(ArgumentError, match="nothing to extract"):
        extract(model, net(), 1)
    with pytest.raises(ShapeError, match=r"tuned has no '2\.weight', and 5 more"):
        extract(model, nn.Sequential(nn.Linear(2, 2)).state_dict(), 1)
    with pytest.raises(ArgumentError, match=r"skip: 'head\*' matches no layer"):
        extract(model, tuned, 1, skip="head*")
    with pytest.raises(ArgumentError, match="the model has no layer 'x'"):
        Adapter({"x": term(2, 2, 1)}).merged_into(model)
    with pytest.raises(ShapeError, match="it is for another model"):
        Adapter({"2": term(2, 2, 1)}).merged_into(model)
    with pytest.raises(UnsupportedError, match="'3' is a LayerNorm"):
        Adapter({"3": term(2, 2, 1)}).merged_into(model)
    with pytest.raises(ArgumentError, match="at least one"):
        Adapter({})
    with pytest.raises(ArgumentError, match="magnitudes: 'y' has no term"):
        Adapter({"x": term(2, 2, 1)}, {"y": torch.ones(2, device="cpu")})
    with pytest.raises(UnsupportedError, match="is no sum of changes"):
        Adapter({"x": term(2, 2, 1)}, {"x": torch.ones(2, device="cpu")}).times(2.0)
    with pytest.raises(MissingFileError, match=r"has no adapter_config.json"):
        Adapter.load(tmp_path)
    own.save(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    for change, error, said in (
        ({"peft_type": "IA3"}, UnsupportedError, "peft_type is 'IA3'"),
        ({"bias": "all"}, UnsupportedError, "bias is 'all'"),
        ({"r": "many"}, FileFormatError, "a number as 'r'"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(error, match=said):
            Adapter.load(tmp_path / "a")

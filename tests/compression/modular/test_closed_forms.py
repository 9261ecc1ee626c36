"""The closed forms of `method="modular"`: exact where they can be, the best where not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.modular import _moments
from tensorlrf.compression.modular._channels import kept
from tensorlrf.compression.modular._heads import closest, lost, narrow_heads
from tensorlrf.compression.modular._recognised import recognised
from tensorlrf.compression.modular._reduced import head_maps, reduce
from tensorlrf.compression.modular._shares import Sized, shares, sizes
from tensorlrf.compression.modular._structures import Channels, Heads
from tensorlrf.decomposition.linalg.columns import (
    columns_by_elimination,
    columns_by_leverage,
    interpolation,
    ridge_leverage,
)
from tensorlrf.errors import ArgumentError
from tensorlrf.nn.copies import copy_of
from tests.compression.modular.models import FAMILIES, batches, drawn
from tests.compression.modular.test_modular import outputs

SEEDS = st.integers(0, 2**16)


def drawn_gram(draws: torch.Generator, *shape: int) -> Tensor:
    rows = torch.randn(*shape[:-1], 2 * shape[-1], shape[-1], generator=draws, dtype=torch.float64)
    rows = rows * torch.logspace(0, -2, shape[-1], dtype=torch.float64)
    return rows.mT @ rows / rows.shape[-2]


# ---- columns ----------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 7), st.booleans())
@settings(max_examples=20, deadline=None)
def test_channels_of_rank_k_are_told_by_k_of_them(seed: int, k: int, biased: bool) -> None:
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(60, k, generator=draws, dtype=torch.float64)
    rows = rows @ torch.randn(k, 12, generator=draws, dtype=torch.float64) + (0.7 if biased else 0)
    weight = torch.randn(5, 12, generator=draws, dtype=torch.float64)
    gram, mean = rows.T @ rows / len(rows), rows.mean(0)
    found = kept(gram, mean, weight, k, biased=biased, amount=0.0)
    again = rows[:, found.columns] @ found.weight.T
    again = again + (found.shift if found.shift is not None else 0.0)
    wanted = rows @ weight.T
    assert len(found.columns) == k
    assert (again - wanted).norm() <= 1e-3 * wanted.norm()
    assert found.error <= 1e-3


@given(SEEDS, st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_the_output_layer_is_the_best_for_the_channels_that_stay(seed: int, k: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    gram = drawn_gram(draws, 10)
    weight = torch.randn(4, 10, generator=draws, dtype=torch.float64)
    found = kept(gram, torch.zeros(10, dtype=torch.float64), weight, k, biased=False, amount=0.0)

    def loss(new: Tensor) -> float:
        left = weight.clone()
        left[:, found.columns] -= new
        return float((left @ gram * left).sum())

    for scale in (1e-2, 1.0):
        other = scale * torch.randn(found.weight.shape, generator=draws, dtype=torch.float64)
        assert loss(found.weight) <= loss(found.weight + other) * (1 + 1e-6)
    assert found.error == pytest.approx(
        (loss(found.weight) / float((weight @ gram * weight).sum())) ** 0.5, rel=1e-4, abs=1e-7
    )


def test_columns_that_no_others_tell_stay() -> None:
    draws = torch.Generator().manual_seed(0)
    free = torch.randn(200, 4, generator=draws, dtype=torch.float64)
    rows = torch.cat([free, free @ torch.randn(4, 4, generator=draws, dtype=torch.float64)], 1)
    rows[:, 7] = torch.randn(200, generator=draws, dtype=torch.float64)
    gram = rows.T @ rows / 200
    scores = ridge_leverage(gram, 1e-6)
    assert scores.argmax() == 7
    assert float(scores.sum()) == pytest.approx(5, abs=1e-3)  # the rank
    eye = torch.eye(8, dtype=torch.float64)
    gram = gram + 1e-9 * eye
    for columns in (columns_by_leverage(gram, 5), columns_by_elimination(gram, 5, eye)):
        assert 7 in columns.tolist()
        assert columns.tolist() == sorted(columns.tolist())
    estimate = interpolation(gram, columns)
    assert (rows[:, columns] @ estimate.T - rows).norm() <= 1e-3 * rows.norm()


# ---- heads ------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_no_map_of_the_rank_loses_less(seed: int, r: int) -> None:
    """Neither a random one, nor the leading numbers, nor the leading directions of either side."""
    draws = torch.Generator().manual_seed(seed)
    outer, inner = drawn_gram(draws, 2, 6), drawn_gram(draws, 2, 6)
    up, down = closest(outer, inner, r)
    least = lost(outer, inner, up, down)
    eye = torch.eye(6, dtype=torch.float64).expand(2, -1, -1)
    others = [eye[..., :r], torch.linalg.qr(torch.randn(2, 6, r, generator=draws).double())[0]]
    others += [torch.linalg.eigh(side)[1][..., -r:] for side in (outer, inner)]
    for basis in others:
        assert least <= lost(outer, inner, basis, basis.mT) * (1 + 1e-6) + 1e-9
    nudge = 1e-3 * torch.randn(up.shape, generator=draws, dtype=torch.float64)
    assert least <= lost(outer, inner, up + nudge, down) + 1e-6
    if r == 6:
        assert torch.allclose(up @ down, eye, atol=1e-8)


def seen_of(name: str, model: nn.Module) -> list[tuple[Channels | Heads, _moments.Seen]]:
    data = [Batch.of(batch, k) for k, batch in enumerate(batches(name))]
    names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    names = [n for n in names if "head" not in n and n != "classifier"]
    structures, reasons = recognised(model, names, data[0])
    assert reasons == {}
    return list(
        zip(structures, _moments.gathered(model, structures, data, lambda _: None), strict=True)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_at_full_width_the_model_is_the_same(name: str) -> None:
    model = drawn(name).double()
    small = copy_of(model)
    for structure, seen in seen_of(name, model):
        reduce(model, small, structure, seen, structure.most(model))
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batches(name)[0].items()}
    for a, b in zip(outputs(small, batch), outputs(model, batch), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit", "t5"])
def test_heads_of_less_rank_are_made_smaller_without_loss(name: str) -> None:
    model = drawn(name).double()
    found = seen_of(name, model)
    heads = [one for one, _ in found if isinstance(one, Heads)]
    for one in heads:  # queries, keys and values of rank 4, with what they have as a constant
        draws = torch.Generator().manual_seed(1)
        basis = torch.linalg.qr(torch.randn(one.keys, one.width, 4, generator=draws).double())[0]
        flat = basis @ basis.mT
        from tensorlrf.compression.modular._heads import HeadMaps

        narrow_heads(model, one, HeadMaps(flat, flat, flat, flat))
    small = copy_of(model)
    for one, seen in seen_of(name, model):
        if isinstance(one, Heads):
            maps, scores, values = head_maps(model, one, seen, 4)
            assert scores <= 0.02
            assert values <= 0.02
            narrow_heads(small, one, maps)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batches(name)[0].items()}
    for a, b in zip(outputs(small, batch), outputs(model, batch), strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()


# ---- shares -----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 40), st.sampled_from([1, 2, 8])),
             min_size=1, max_size=8),
    st.floats(0.05, 1.0),
    st.none() | SEEDS,
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_budget_is_kept_and_used(
    rows: list[tuple[int, int, int]], keep: float, seed: int | None
) -> None:
    sized = [Sized(most, 1, step, most * each) for most, each, step in rows]
    influence = None
    if seed is not None:
        influence = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    whole = sum(one.params for one in sized)
    wanted = shares(keep, sized, influence)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in wanted)
    spent = sum(share * one.params for share, one in zip(wanted, sized, strict=True))
    assert spent == pytest.approx(keep * whole, rel=1e-6)
    least = sum(one.each for one in sized)
    if least > keep * whole * (1 + 1e-9):
        with pytest.raises(ArgumentError, match="is the least"):
            sizes(keep, sized, wanted)
        return
    found = sizes(keep, sized, wanted)
    assert all(1 <= n <= one.most for n, one in zip(found, sized, strict=True))
    left = keep * whole - sum(n * one.each for n, one in zip(found, sized, strict=True))
    assert left >= -1e-6 * whole
    assert all(
        n == one.most or left < one.each * one.step + 1e-6 * whole
        for n, one in zip(found, sized, strict=True)
    )

"""The closed forms of `method="modular"`: exact where they can be, the best where not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.modular import _moments
from tensorlrf.compression.modular._channels import definite, kept
from tensorlrf.compression.modular._heads import Closest, HeadMaps, lost, narrow_heads
from tensorlrf.compression.modular._outlook import HeadOutlook, outlook
from tensorlrf.compression.modular._recognised import recognised
from tensorlrf.compression.modular._shares import Sized, shares, sizes
from tensorlrf.compression.modular._structures import Channels, Heads
from tensorlrf.decomposition.linalg.selection.columns import elimination, interpolation
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
    plain, mean = rows.T @ rows / len(rows), rows.mean(0) if biased else None
    gram = plain if mean is None else plain - torch.outer(mean, mean)
    columns = elimination(definite(gram), weight).columns(k)
    found = kept(gram, mean, weight, columns, plain)
    again = rows[:, columns] @ found.weight.T
    again = again + (found.shift if found.shift is not None else 0.0)
    wanted = rows @ weight.T
    assert len(columns) == k
    assert (again - wanted).norm() <= 1e-3 * wanted.norm()
    assert found.error <= 1e-3


@given(SEEDS, st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_the_output_layer_is_the_best_for_the_channels_that_stay(seed: int, k: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    gram = drawn_gram(draws, 10)
    weight = torch.randn(4, 10, generator=draws, dtype=torch.float64)
    order = elimination(gram, weight)
    columns = order.columns(k)
    found = kept(gram, None, weight, columns, gram)

    def loss(new: Tensor) -> float:
        left = weight.clone()
        left[:, columns] -= new
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
    eye = torch.eye(8, dtype=torch.float64)
    gram = rows.T @ rows / 200 + 1e-9 * eye
    found = elimination(gram, eye)
    columns = found.columns(5)
    assert 7 in columns.tolist()
    assert columns.tolist() == sorted(columns.tolist())
    estimate = interpolation(gram, columns)
    assert (rows[:, columns] @ estimate.T - rows).norm() <= 1e-3 * rows.norm()
    assert found.loss(5) <= 1e-6
    assert found.loss(8) <= found.loss(4) <= found.loss(2) <= found.loss(0)


@given(SEEDS, st.integers(1, 31))
@settings(max_examples=20, deadline=None)
def test_the_loss_that_is_told_is_the_one_there_is(seed: int, k: int) -> None:
    """At the sizes that were asked for, and about it between them; a random choice loses more."""
    draws = torch.Generator().manual_seed(seed)
    gram = drawn_gram(draws, 32)
    weight = torch.randn(6, 32, generator=draws, dtype=torch.float64)
    found = elimination(gram, weight)
    assert sorted(found.order.tolist()) == list(range(32))

    def loss(columns: Tensor) -> float:
        left = weight.clone()
        left[:, columns] -= weight @ interpolation(gram, columns)
        return float((left @ gram * left).sum())

    for size, told in zip(found.sizes, found.losses, strict=True):
        if size:
            assert loss(found.columns(size)) == pytest.approx(told, rel=1e-6, abs=1e-6)
    others = [loss(torch.randperm(32, generator=draws)[:k]) for _ in range(5)]
    assert loss(found.columns(k)) <= sum(others) / 5 + 1e-9


# ---- heads ------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_no_map_of_the_rank_loses_less(seed: int, r: int) -> None:
    """Neither a random one, nor the leading numbers, nor the leading directions of either side."""
    draws = torch.Generator().manual_seed(seed)
    outer, inner = drawn_gram(draws, 2, 6), drawn_gram(draws, 2, 6)
    best = Closest.of(outer, inner)
    up, down = best.maps(r)
    least = lost(outer, inner, up, down)
    energy = float((outer * inner).sum())
    assert best.losses[r] == pytest.approx(least * energy, rel=0.05, abs=1e-2 * energy)
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
        outlook(model, structure, seen, {}).reduce(small, structure.most(model))
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
        narrow_heads(model, one, HeadMaps(flat, flat, flat, flat))
    small = copy_of(model)
    for one, seen in seen_of(name, model):
        if isinstance(one, Heads):
            own = HeadOutlook.of(model, one, seen, {})
            maps = own.maps(4)
            assert max(own.errors(maps)) <= 0.02
            narrow_heads(small, one, maps)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batches(name)[0].items()}
    for a, b in zip(outputs(small, batch), outputs(model, batch), strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()


@pytest.mark.parametrize("centred", [False, True])
def test_moments_are_those_of_tokens_and_of_their_sums_over_samples(centred: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 6, generator=draws, dtype=torch.float64) + 0.5
    mask = torch.ones(5, 7, dtype=torch.long)
    mask[1:, 5:] = 0
    batch = Batch((), {"input_ids": x, "attention_mask": mask}, 0)
    rows = x[mask.bool()]
    sums, lengths = _moments.by_sample(batch, x)
    assert sums is not None
    moments = _moments.of_rows(6, torch.device("cpu"))
    heads = _moments.of_heads(2, 3, torch.device("cpu"))
    passed = _moments.Passed(rows, sums, lengths)
    moments.take(passed)
    heads.take(passed.part(0, 6, 3))
    mean = rows.mean(0) if centred else torch.zeros(6, dtype=torch.float64)
    tokens = (rows - mean).T @ (rows - mean) / len(rows)
    pooled = sums - mask.sum(1)[:, None] * mean
    wanted = 0.3 * tokens + 0.7 * pooled.T @ pooled / len(rows)
    assert torch.allclose(moments.felt(0.7, centred=centred), wanted)
    assert torch.allclose(moments.second(centred=centred), tokens)
    for k in range(2):
        own = slice(3 * k, 3 * k + 3)
        assert torch.allclose(heads.felt(0.7, centred=centred)[k], wanted[own, own])


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

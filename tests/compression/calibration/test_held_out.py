"""Batches held out: they judge, and nothing is fitted to them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import compress
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import Batch
from tests.compression.networks import UNIFORM, relative, set_weights
from tests.draws import seeded32


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
    set_weights(model)
    return model


def data(n: int, seed: int = 0) -> list[Tensor]:
    mixing = seeded32(24, 24, seed=99) * torch.linspace(0.1, 1, 24)
    return [seeded32(60, 24, seed=seed + k) @ mixing for k in range(n)]


@given(st.integers(1, 40), st.floats(0, 0.99))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_share_is_rounded_down_to_one_at_least_and_spread(n: int, share: float) -> None:
    batches = [Batch.of(torch.zeros(1), k) for k in range(n)]
    calibration = Calibration.of(batches, share)
    held = sorted(calibration.held)
    least = 1 if share > 0 and n > 1 else 0
    assert len(held) == max(int(share * n + 1e-9), least)
    assert [b.index for b in calibration.held_out] == held
    assert sorted([b.index for b in calibration.fitted] + held) == list(range(n))
    assert calibration.fitted
    gaps = [b - a for a, b in itertools.pairwise(held)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("target", ["prefix", "original", "independent"])
@pytest.mark.parametrize("method", ["svd", "cp"])
def test_held_out_batches_do_not_influence_the_factors(target: str, method: str) -> None:
    """Nor does their place, as long as they cast no doubt on the fit: only the error that is told
    changes."""
    fitted, results = data(6), []
    for held in (data(2, seed=50), [3 * x for x in data(2, seed=60)]):
        # Of eight batches at a quarter, the fourth and the last are held out.
        batches = [*fitted[:3], held[0], *fitted[3:], held[1]]
        results.append(
            compress(
                net(), keep_params=0.5, method=method, calibration=batches, holdout=0.25,
                target=target, **UNIFORM,
            )
        )  # fmt: skip
    (first, told), (second, other) = results
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert told.layer("0").output_error != other.layer("0").output_error
    assert told.layer("0").samples == 360
    alone, _ = compress(
        net(),
        keep_params=0.5,
        method=method,
        calibration=fitted,
        holdout=0,
        target=target,
        **UNIFORM,
    )
    for a, b in zip(first.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("affine", [False, True])
def test_the_error_told_is_that_of_the_layer_on_what_reaches_it(affine: bool) -> None:
    """Recomputed on the held-out inputs, behind the compressed first layer, without the bias."""
    model, batches = net(), data(4)
    small, report = compress(
        model, keep_params=0.5, calibration=batches, target="prefix", holdout=0.25, affine=affine
    )
    held = batches[-1]
    with torch.no_grad():
        for name, dense, new in (("0", model[0], small[0]), ("2", model[2], small[2])):
            row = report.layer(name)
            assert row.held_out
            wanted, got = dense(held) - dense.bias, new(held) - dense.bias
            # Of moments in float32 products: their rounding is about 1e-6 of the energy.
            assert row.output_error == pytest.approx(relative(got, wanted), rel=1e-4)
            held = torch.relu(new(held))
        assert report.model_error == pytest.approx(
            relative(small(batches[-1]), model(batches[-1])), rel=1e-4
        )


def test_thin_calibration_keeps_the_plain_fit_where_that_is_better() -> None:
    """Eight samples in 24 dimensions, and held-out inputs that are nothing like them."""
    model = nn.Sequential(net()[0])
    thin = [
        seeded32(8, 24) @ torch.diag((torch.arange(24) < 4).float())
        + 0.01 * seeded32(8, 24, seed=1)
    ]
    fair = [seeded32(200, 24, seed=2)]
    with pytest.warns(UserWarning, match="calibration is thin"):
        small, report = compress(model, keep_params=0.5, calibration=thin + fair, holdout=0.5)
    plain, _ = compress(model, keep_params=0.5)
    row = report.layer("0")
    assert not row.data_aware
    assert row.samples == 8
    assert row.held_out
    assert torch.equal(small(fair[0]), plain(fair[0]))
    # Where the held-out inputs are like those fitted to, the fit to the data stays.
    alike = [thin[0], seeded32(50, 24, seed=5) @ torch.diag((torch.arange(24) < 4).float())]
    with pytest.warns(UserWarning, match="calibration is thin"):
        _, report = compress(model, keep_params=0.5, calibration=alike, holdout=0.5)
    assert report.layer("0").data_aware

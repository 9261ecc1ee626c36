"""Experts that few rows reach have moments near those of all experts of their stack."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorlrf import apply, compress, load, plan, save
from tensorlrf.compression import ExpertPool, Report
from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._rerun import in_order
from tensorlrf.compression.calibration._statistics import Stream
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.calibration.moments._form import FULL, Form
from tensorlrf.compression.calibration.moments._inputs import Inputs, Pool
from tensorlrf.compression.calibration.stacks._pools import Pools
from tensorlrf.compression.calibration.stacks._spread import DIRECTIONS, Spread
from tensorlrf.compression.calibration.stacks._stacks import expert_in, stacks, told
from tensorlrf.decomposition.linalg.compact import dense
from tests.compression.networks import UNIFORM, Snapshot, check_report, relative
from tests.draws import generator, seeded, seeded32

WIDTH, HIDDEN, EXPERTS = 32, 48, 6

pytestmark = pytest.mark.filterwarnings("ignore:calibration")


class Expert(nn.Module):
    """Two matrices with a gate between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, passed = self.up(x).chunk(2, dim=-1)
        y: Tensor = self.down(passed * nn.functional.silu(gate))
        return y


class Mixture(nn.Module):
    """Rows (n, 1 + width) go to the expert that their first column names."""

    def __init__(self, seed: int = 0, experts: int = EXPERTS) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({f"expert_{k}": Expert() for k in range(experts)})
        for k, p in enumerate(self.parameters()):
            p.data = seeded32(*p.shape, seed=100 * seed + k) / p.shape[1] ** 0.5

    def forward(self, rows: Tensor) -> Tensor:
        chosen, x = rows[:, 0].long(), rows[:, 1:]
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts.values()):
            own = torch.where(chosen == k)[0]
            if len(own):
                out = out.index_add(0, own, expert(x[own]))
        return out


def rows_for(counts: Sequence[int], seed: int) -> Tensor:
    """Rows of a falling spectrum that all experts have in common, so many for each."""
    draws = torch.Generator().manual_seed(seed)
    fall = torch.arange(1, WIDTH + 1, dtype=torch.float32) ** -0.7
    turn = torch.linalg.qr(seeded32(WIDTH, WIDTH, seed=5))[0]
    x = torch.randn(sum(counts), WIDTH, generator=draws) * fall @ turn
    chosen = torch.cat([torch.full((n, 1), float(k)) for k, n in enumerate(counts)])
    return torch.cat([chosen, x], dim=1)[torch.randperm(len(x), generator=draws)]


def errors(model: Mixture, small: nn.Module, experts: Sequence[int], seed: int) -> list[float]:
    """Of the outputs of experts on fresh rows."""
    found = []
    for k in experts:
        fresh = rows_for([400 * (j == k) for j in range(EXPERTS)], seed)
        with torch.no_grad():
            found.append(relative(small(fresh), model(fresh)))
    return found


def inputs_of(x: Tensor, form: Form = FULL) -> Inputs:
    stream = Stream(DenseLayer.of(nn.Linear(x.shape[1], 3)), lags=False, form=form)
    stream.add(x)
    return stream.statistics()[0].inputs


@settings(max_examples=20, deadline=None)
@given(
    own=st.integers(0, 60),
    credit=st.floats(0.5, 200),
    form=st.sampled_from([FULL, Form("sketch", 16)]),
    seed=st.integers(0, 99),
)
def test_drawn_moments_are_those_of_more_rows(
    own: int, credit: float, form: Form, seed: int
) -> None:
    rows = seeded(300, 20, seed=seed)
    mine, all_ = inputs_of(rows[:own], form), inputs_of(rows[100:], form)
    drawn = Pool(all_, credit).drawn(mine)
    credit = min(credit, 200.0 - own)
    assert drawn.credit == pytest.approx(credit)
    assert drawn.count == own
    for of in (lambda i: dense(i.gram), lambda i: i.mean, lambda i: i.cubes, lambda i: i.fourth):
        wanted = (own * of(mine) + credit * of(all_)) / (own + credit)
        got = torch.as_tensor(of(drawn))
        # Of rounding: what is mixed are sums of squares in float64.
        torch.testing.assert_close(got, torch.as_tensor(wanted), rtol=1e-9, atol=1e-9)


def test_ends() -> None:
    rows = seeded(5000, 20, seed=3)
    mine, all_ = inputs_of(rows[:3000]), inputs_of(rows)
    assert Pool(all_, 0.0).drawn(mine) is mine
    none = inputs_of(rows[:0])
    drawn = Pool(all_, 40.0).drawn(none)
    assert torch.equal(drawn.gram, all_.gram)
    assert torch.equal(drawn.mean, all_.mean)
    few = [float((Pool(all_, k).drawn(mine).gram - mine.gram).norm()) for k in (0.1, 10, 1000)]
    assert few == sorted(few)
    assert few[0] < 1e-4 * float(mine.gram.norm())  # .1 of 3,000 rows


@pytest.mark.parametrize("n", [8, DIRECTIONS, 40])
def test_credit_is_the_ratio_of_both_variances(n: int) -> None:
    """Experts with variances of their own: s^2 and a are known."""
    draws, experts = torch.Generator().manual_seed(2), 12
    common = 4 / torch.arange(1, n + 1, dtype=torch.float64)
    scales = common + 0.6 * torch.rand(experts, n, generator=draws, dtype=torch.float64)
    spread, within = Spread(torch.ones(n)), []
    for k, own in enumerate(scales):
        for _ in range(2):
            rows = own.sqrt() * torch.randn(300 + 20 * k, n, generator=draws, dtype=torch.float64)
            spread.add(str(k), rows)
        # E|x x^T - S|^2 of Gaussian x with variances S.
        within.append(float(own.sum()) ** 2 + float(own.square().sum()))
    between = float((scales - scales.mean(0)).square().sum()) / (experts - 1)
    known = statistics.fmean(within) / between
    # Of 12 experts, and of random directions where there are fewer than columns.
    assert spread.credit() == pytest.approx(known, rel=0.35)


@pytest.mark.parametrize("seed", range(3))
def test_experts_that_do_not_differ_count_for_each_other(seed: int) -> None:
    alike, apart = (Spread(torch.ones(24)) for _ in range(2))
    for k in range(6):
        rows = seeded(80, 24, seed=10 * seed + k) / torch.arange(1, 25) ** 0.5
        alike.add(str(k), rows)
        apart.add(str(k), rows * (1 + (torch.arange(24) % 6 == k) * 5.0))
    assert alike.credit() > 20 * apart.credit()


def test_moments_in_common_have_to_serve() -> None:
    """What experts have in common is told from columns in orders of their own, and from nothing."""
    common, orders, even = (Spread(torch.ones(40)) for _ in range(3))
    for k in range(6):
        rows = seeded(300, 40, seed=k) / torch.arange(1, 41)
        common.add(str(k), rows)
        orders.add(str(k), rows[:, torch.randperm(40, generator=generator(k))])
        even.add(str(k), seeded(300, 40, seed=k))
    assert common.credit() > 300
    assert orders.credit() == even.credit() == 0.0
    assert Spread(torch.ones(4)).credit() == 0.0
    alone = Spread(torch.ones(40))
    alone.add("0", seeded(300, 40))
    assert alone.credit() == 0.0


def test_stacks_are_told_by_structure() -> None:
    model = Mixture()
    layers = {n: dense_layer_at(model, n) for n, m in model.named_modules() if type(m) is nn.Linear}
    found = stacks(model, layers)
    assert [told(names) for names in found] == ["experts.*.up", "experts.*.down"]
    assert found[0] == [f"experts.expert_{k}.up" for k in range(EXPERTS)]
    place = expert_in(nn.Module())
    assert place(["layers", "3", "mlp", "experts", "11", "w1"]) == 4
    assert place(["layers", "3", "mlp", "expert2", "w1"]) == 3
    assert place(["layers", "3", "mlp", "shared_experts", "gate_proj"]) is None
    assert place(["layers", "3", "mlp", "up_proj"]) is None


COUNTS = (700, 500, 400, 12, 6, 0)


def fitted(model: nn.Module, batches: list[Tensor], **more: Any) -> tuple[nn.Module, Report]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compress(
            model, keep_params=0.5, calibration=batches, progress=False, **UNIFORM, **more
        )


@pytest.mark.parametrize(
    "target",
    ["original", *(pytest.param(k, marks=pytest.mark.slow) for k in ("prefix", "independent"))],
)
def test_few_rows_lose_less(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_, without = [], []
    for seed in range(4):
        model = Mixture(seed).eval()
        batches = [rows_for(COUNTS, 10 * seed + k) for k in range(1, 4)]
        small, report = fitted(model, batches, target=target)
        assert report.layer("experts.expert_5.up").data_aware
        assert report.layer("experts.expert_5.up").samples == 0
        assert not report.layer("experts.expert_5.down").data_aware
        with_.append(errors(model, small, (3, 4, 5), 99))
        often = errors(model, small, (0, 1), 99)
        with monkeypatch.context() as patched:
            patched.setattr(Pools, "of", lambda self, name: None)
            small, _ = fitted(model, batches, target=target)
        without.append(errors(model, small, (3, 4, 5), 99))
        # Experts with many rows lose no more than noise by it.
        assert statistics.fmean(often) < 1.02 * statistics.fmean(errors(model, small, (0, 1), 99))
    means = [
        [statistics.fmean(one) for one in zip(*side, strict=True)] for side in (with_, without)
    ]
    assert all(one < other for one, other in zip(*means, strict=True))
    assert sum(means[0]) < 0.95 * sum(means[1])


def test_the_report_tells_and_files_and_plans_agree(tmp_path: Path) -> None:
    model = Mixture().eval()
    batches = [rows_for(COUNTS, k) for k in range(1, 4)]
    before = Snapshot(model)
    with pytest.warns(match="other experts"):
        small, report = compress(
            model, keep_params=0.5, calibration=batches, progress=False, **UNIFORM
        )
    before.check()
    check_report(model, small, report)
    pools = {pool.layers: pool for pool in report.pools}
    assert set(pools) == {"experts.*.up"}  # hidden units have nothing in common
    assert pools["experts.*.up"].samples == tuple(2 * n for n in COUNTS)  # one of three held out
    assert pools["experts.*.up"].few >= 3
    line = f"inputs of experts.*.up: {pools['experts.*.up']}"
    assert line in str(report).replace("\n", " ")
    again = Report.from_json(report.to_json())
    assert again.pools == report.pools
    assert all(isinstance(pool, ExpertPool) for pool in again.pools)

    x = rows_for((20,) * EXPERTS, 7)
    with torch.no_grad():
        wanted = small(x)
        for other in (
            fitted(model, batches, rerun=True)[0],
            apply(
                model,
                plan(model, keep_params=0.5, calibration=batches, allocation="uniform"),
                calibration=batches, metric="outputs",
            )[0],
        ):  # fmt: skip
            # Rounding of float32 in moments that are added in another order.
            torch.testing.assert_close(other(x), wanted, rtol=1e-4, atol=1e-5)
        save(small, tmp_path / "small.safetensors")
        assert torch.equal(load(tmp_path / "small.safetensors", model)(x), wanted)


def test_lists_and_fused_experts_are_the_same() -> None:
    hf = pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = hf.MixtralConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=EXPERTS, hidden_act="silu"
    )
    config._experts_implementation = "eager"

    class Fused(nn.Module):
        def __init__(self, like: Mixture) -> None:
            super().__init__()
            self.experts = MixtralExperts(config)
            own = list(like.experts.values())
            self.experts.gate_up_proj.data = torch.stack([e.up.weight for e in own]).detach()
            self.experts.down_proj.data = torch.stack([e.down.weight for e in own]).detach()

        def forward(self, rows: Tensor) -> Tensor:
            chosen = rows[:, :1].long()
            y: Tensor = self.experts(rows[:, 1:], chosen, torch.ones_like(rows[:, :1]))
            return y

    model = Mixture().eval()
    fused = Fused(model).eval()
    batches = [rows_for(COUNTS, k) for k in range(1, 4)]
    x = rows_for((20,) * EXPERTS, 7)
    (one, told_of_one), (other, told_of_other) = fitted(model, batches), fitted(fused, batches)
    with torch.no_grad():
        # Rounding of float32: products of single experts, and of all in one tensor.
        torch.testing.assert_close(model(x), fused(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(told_of_one.pools, told_of_other.pools, strict=True):
        assert a.samples == b.samples
        assert a.credit == pytest.approx(b.credit, rel=1e-3)


def test_a_basis_in_common_knows_experts_without_rows() -> None:
    model = Mixture().eval()
    batches = [rows_for(COUNTS, k) for k in range(1, 4)]
    small, report = fitted(model, batches, shared="experts")
    assert report.bases
    assert report.layer("experts.expert_5.up").data_aware
    assert all(math.isfinite(e) for e in errors(model, small, range(EXPERTS), 99))


def test_rows_that_are_not_finite_are_told_of_their_expert() -> None:
    model = Mixture().eval()
    batches = [rows_for(COUNTS, k) for k in range(1, 4)]
    batches[0][batches[0][:, 0] == 4, 3] = math.nan
    with pytest.raises(ValueError, match=r"expert_4\.up"):
        compress(model, keep_params=0.5, calibration=batches, progress=False, **UNIFORM)


def test_a_mixture_is_gathered_once_however_small_the_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts: list[list[str]] = []
    gather = Pools._gather

    def counted(self: Pools, part: Sequence[list[str]]) -> None:
        parts.append([told(names) for names in part])
        gather(self, part)

    monkeypatch.setattr(Pools, "_gather", counted)
    second = Mixture(1)
    model = nn.Sequential(Mixture(0), nn.Linear(WIDTH, 1 + WIDTH), second).eval()
    with torch.no_grad():  # which sends all rows to the first expert of the second one
        model[1].weight[0], model[1].bias[0] = 0.0, 0.0  # type: ignore[operator, index]  # of a Linear
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    data = Calibration.of([Batch.of(rows_for((90,) * EXPERTS, 1))], 0.0)
    trace = record(model, names, data.batches[0])
    pools = Pools(model, names, trace, replace(data, room=1))
    found = {name: pools.of(name) for name in in_order(names, trace)}
    assert parts[:2] == [[f"{k}.experts.*.up", f"{k}.experts.*.down"] for k in (0, 2)]
    assert len(parts) == 2
    assert all(
        (found[name] is None) != name.startswith("0.experts") for name in names if "up" in name
    )
    assert found["1"] is None
    assert [pool.layers for pool in pools.told] == ["0.experts.*.up"]

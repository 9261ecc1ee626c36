"""The given model, its batches and torch's generators are as they were, whatever a forward does."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tensorlrf
from tensorlrf import SVD
from tensorlrf.compression import _latency, compress, frontier, plan
from tensorlrf.compression.calibration.batches import call, fresh, list_batches
from tensorlrf.compression.plan.times import _whole as planned_whole
from tensorlrf.compression.tuning import _orders, _whole
from tensorlrf.nn import factorize
from tensorlrf.nn.copies import replica
from tests.compression.networks import Snapshot, relative, set_weights
from tests.compression.tuning.tuned import CHAIN, WHOLE, Clock
from tests.draws import seeded32


class Count(nn.Module):
    """Counts rows in a buffer, in a view of it, in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(2))
        self.register_buffer("last", self.n[1:])
        self.rows, self.seen = 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.n += len(x)
        self.rows += len(x)
        self.seen.append(len(x))
        assert torch.equal(self.n[1:], self.last)
        return x


class Leaky(nn.Module):
    """A recurrence with its state in a buffer, over the calls of one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)
        self.register_buffer("state", torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            self.state = torch.tanh(self.inner(x) + self.state)
        return self.state


class Merges(nn.Module):
    """An adapter that is merged into the weight by eval(), as some are."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.delta = nn.Linear(32, 32), nn.Parameter(torch.ones(32, 32))

    def train(self, mode: bool = True) -> Merges:
        if not mode and self.training:
            self.base.weight.data += self.delta.data
        elif mode and not self.training:
            self.base.weight.data -= self.delta.data
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


class Rebinds(nn.Module):
    """Puts new memory under a parameter, and takes a gradient, in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            (x.detach() * self.scale).sum().backward()
        self.scale.data = self.scale.data * 2
        return x * self.scale


class Scaled(nn.Module):
    """Torch itself scales the rows of the table that are looked up, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 32, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(4, device=x.device)).sum(0)


class Noise(nn.Module):
    """Draws, in eval mode too, in all the ways there are."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, 0.1, training=True)
        x = x + 0.01 * torch.randn_like(x) + 0.01 * torch.randn(x.shape[-1]).to(x)
        x = x + 0.01 * torch.rand(()) + 0.01 * torch.randint(3, ())
        x = x[:, torch.randperm(x.shape[-1])].sort(-1).values
        return x + 0.01 * torch.empty_like(x).exponential_() + torch.bernoulli(x.sigmoid())


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x.relu_()


PARTS: dict[str, Callable[[], nn.Module]] = {
    "buffer": Count,
    "recurrence": Leaky,
    "merge": Merges,
    "rebind": Rebinds,
    "max_norm": Scaled,
    "noise": Noise,
    "in place": InPlace,
    "batch norm": lambda: nn.BatchNorm1d(32),
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(32, 32)),
}


def net(part: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 32), PARTS[part](), nn.Linear(32, 32), nn.Tanh())
    return set_weights(model).train()


XS = [seeded32(160, 32, seed=k) for k in range(3)]


def run_all(model: nn.Module) -> None:
    for x in XS:
        model(x)


def steps(given: nn.Module) -> dict[str, Callable[[], object]]:
    options: dict[str, Any] = {"keep_params": 0.5, "skip": [], "random_state": 1}
    return {
        **{
            f"{target}, rerun {rerun}": lambda t=target, r=rerun: compress(
                given, calibration=list(XS), target=t, rerun=r, affine=True, **options
            )
            for target in ("original", "prefix", "independent")
            for rerun in (False, True)
        },
        "function": lambda: compress(given, calibration=run_all, **options),
        "latency": lambda: plan(given, keep_params=0.5, objective="latency", example=XS[0]),
        "time": lambda: compress(given, keep_latency=0.9, skip=[], example=XS[0]),
        "frontier": lambda: frontier(
            given,
            list(XS),
            shares=(0.5,),
            skip=[],
            allocation="energy",
            example=XS[0],
            progress=False,
        ).apply(0.5),
        "example": lambda: compress(given, example=XS[0], **options),
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    times = defaultdict(lambda: 1.0, {"torch": 2.0, "dense": 2.0})
    monkeypatch.setattr(_latency, "time_calls", Clock(times))
    monkeypatch.setattr(planned_whole, "time_calls", Clock(times))
    monkeypatch.setattr(_whole, "time_calls", Clock(WHOLE))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("quick")
def test_the_given_model_stays_as_it_is(part: str) -> None:
    given = net(part)
    given(XS[0].clone())  # so that there is a state to lose
    given.zero_grad(set_to_none=True)
    before, draws = Snapshot(given), torch.get_rng_state()
    values = [x.clone() for x in XS]
    for name, step in steps(given).items():
        step()
        before.check()
        assert torch.equal(torch.get_rng_state(), draws), name
        assert all(torch.equal(x, value) for x, value in zip(XS, values, strict=True)), name


@pytest.mark.parametrize("part", PARTS)
def test_tuning_changes_path_tables_alone(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(part)
    model[0] = factorize(model[0], "svd", 8)
    monkeypatch.setattr(_latency, "time_calls", Clock(CHAIN))
    monkeypatch.setattr(_whole, "time_calls", Clock(WHOLE))
    monkeypatch.setattr(_orders, "time_calls", Clock({"rows": 1.0, "columns": 1.0}))
    before, draws = Snapshot(model), torch.get_rng_state()
    tensorlrf.tune(model, XS[0])
    before.check()
    assert torch.equal(torch.get_rng_state(), draws)
    assert model[0].path_table.lookup(160) == "chain"


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
def test_passes_do_not_meet_in_a_state(target: str, rerun: bool) -> None:
    """A recurrence whose state is in a buffer: every batch starts from the state of the model."""
    given = net("recurrence").eval()
    small, report = compress(
        given, method=SVD(rank=30), calibration=list(XS), target=target, rerun=rerun, skip=[]
    )
    with torch.no_grad():
        wanted, got = copy.deepcopy(given)(XS[-1]), copy.deepcopy(small)(XS[-1])
    assert report.model_error == pytest.approx(relative(got, wanted), rel=1e-4)
    row = report.layer("1.inner")
    assert row.samples == 3 * 2 * 160
    assert row.output_error is not None
    assert row.output_error < 0.1


def test_the_same_noise_reaches_both_models() -> None:
    """A pass of the given model and one of the compressed model draw the same numbers, so that a
    model compared with itself has no error, and what is fitted is no difference of noises."""
    given = net("noise").eval()
    for x in XS:
        y = call(replica(given), x, 2)
        assert torch.equal(call(replica(given), x, 2), y)
        assert not torch.equal(call(replica(given), x, 3), y)


def test_other_threads_draw_as_if_they_were_alone() -> None:
    """Nothing is drawn from torch's own generator, and it is not set back: neither for the order of
    a DataLoader, nor for a model that draws."""
    given = net("noise")
    loader = DataLoader(TensorDataset(seeded32(480, 32)), batch_size=160, shuffle=True)
    stop = threading.Event()
    drawn: list[int] = []

    def draw() -> None:
        while not stop.wait(1e-3):
            drawn.append(int(torch.randint(2**60, ())))

    with torch.random.fork_rng([]):  # of this test alone
        torch.manual_seed(5)
        other = threading.Thread(target=draw)
        other.start()
        try:
            for target in ("original", "independent"):
                compress(given, keep_params=0.5, calibration=loader, target=target)
        finally:
            stop.set()
            other.join()
    own = torch.Generator().manual_seed(5)
    assert len(drawn) > 10
    assert drawn == [int(torch.randint(2**60, (), generator=own)) for _ in drawn]


# ---- batches ------------------------------------------------------------------------------------


class Cache:
    """Keeps keys from call to call, as those of language models do."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        twin = Cache()
        twin.keys = copy.deepcopy(self.keys, memo)
        return twin

    def update(self, x: Tensor) -> Tensor:
        self.keys.append(x)
        return torch.cat(self.keys)


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor, past: Any, told: dict[str, Any]) -> Tensor:
        x -= 1
        told["calls"] = told.get("calls", 0) + 1
        told["list"].append(x)
        return self.last(past.update(self.first(x)))


def cached_batches() -> list[dict[str, Any]]:
    graph = torch.ones(4, 32, requires_grad=True) * 2
    batches = []
    for k in range(3):
        past = Cache()
        past.update(graph)
        batches.append({"x": seeded32(160, 32, seed=k), "past": past, "told": {"list": []}})
    return batches


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("target", ["original", "prefix", "independent"])
def test_every_pass_gets_its_own_copy_of_a_batch(target: str, rerun: bool) -> None:
    given, batches = set_weights(Cached()), cached_batches()
    small, report = compress(
        given, keep_params=0.5, calibration=batches, target=target, rerun=rerun, skip=[]
    )
    for k, batch in enumerate(batches):
        assert torch.equal(batch["x"], seeded32(160, 32, seed=k))
        assert len(batch["past"].keys) == 1
        assert batch["told"] == {"list": []}
    # 164 rows a batch reach the last layer, and no more in later passes.
    assert report.layer("last").samples == 2 * 164
    with torch.no_grad():
        wanted, got = given(**cached_batches()[-1]), small(**cached_batches()[-1])
    assert report.model_error == pytest.approx(relative(got, wanted), rel=1e-4)


def test_a_function_may_use_its_tensors_and_caches_again() -> None:
    """What the model was called with is noted as it was at that call."""
    held, past = torch.zeros(4, 32), Cache()

    def run(model: nn.Module) -> None:
        for k in range(3):
            held.copy_(torch.full((4, 32), float(k)))
            model(held, past, {"list": []})

    batches = list_batches(run, replica(set_weights(Cached())))
    assert [float(b.args[0][0, 0]) for b in batches] == [0.0, 1.0, 2.0]
    assert [len(b.args[1].keys) for b in batches] == [0, 1, 2]


def test_a_copy_takes_no_more_than_the_batch_and_keeps_what_cannot_be_copied() -> None:
    lock, whole = threading.Lock(), torch.zeros(1000, 10)
    given = {
        "x": whole[:2],
        "again": [whole[:2]],
        "lock": lock,
        "graph": whole.requires_grad_() * 2,
    }
    got = fresh(given)
    assert got["x"].untyped_storage().nbytes() == 2 * 10 * 4
    assert got["lock"] is lock
    assert not got["graph"].requires_grad
    shared = [whole]
    twin = fresh([shared, shared])
    assert twin[0][0] is twin[1][0]


# ---- replicas -----------------------------------------------------------------------------------


def test_a_replica_shares_the_memory_of_parameters_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8), nn.BatchNorm1d(8))
    model[0].weight.note = "kept"
    model[0].register_buffer("row", model[0].weight.detach()[0])
    model[0].tied = model[0].weight
    twin = replica(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p is not q
        assert p.data_ptr() == q.data_ptr()
    assert twin[0].weight.note == "kept"
    assert twin[0].tied is twin[0].weight
    assert twin[0].row.data_ptr() == model[0].weight.data_ptr()
    assert twin[2].running_mean.data_ptr() != model[2].running_mean.data_ptr()
    assert model.training
    assert not any(m.training for m in twin.modules())
    with torch.no_grad():
        x = seeded32(3, 2, 8)
        assert torch.equal(twin[1](x)[0], model[1](x)[0])

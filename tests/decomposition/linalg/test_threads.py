"""How many threads are in force where, and that nobody else's number changes. No times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tensorlrf
from tensorlrf.decomposition import evbmf_rank
from tensorlrf.decomposition.linalg import cores, threads
from tensorlrf.decomposition.linalg._gram import descending_eigh, mode_gram
from tensorlrf.decomposition.linalg.cores import Cores, busy, quota
from tensorlrf.decomposition.linalg.threads import (
    CROSSOVER,
    cores_for,
    limited,
    problem,
    threaded,
    threads_for,
)

KINDS = sorted(CROSSOVER)


class Numbers(TorchDispatchMode):
    """torch's number of threads at each of its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.seen.add(torch.get_num_threads())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def four() -> Iterator[None]:
    """torch has four threads, on a machine of 16 cores that nobody else uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "look", lambda: Cores(16, 16))


def of_another_thread() -> int:
    """The number in a thread that begins now."""
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    return seen[0]


counts = st.integers(1, 256)


@given(kind=st.sampled_from(KINDS), most=counts, machine=counts, allowed=counts, busy=counts)
def test_below_the_crossover_one(
    kind: Any, most: int, machine: int, allowed: int, busy: int
) -> None:
    work = CROSSOVER[kind] * 0.999
    assert threads_for(kind, work, most, Cores(machine, allowed, None, busy)) == 1


@given(kind=st.sampled_from(KINDS), most=st.sampled_from([1, 2, 16]), work=st.floats(1, 1e6))
def test_a_large_step_on_an_idle_host_has_all_of_torchs(kind: Any, most: int, work: float) -> None:
    assert threads_for(kind, CROSSOVER[kind] * work, most, Cores(16, 16)) == most


@given(
    most=counts,
    machine=counts,
    allowed=counts,
    granted=st.none() | st.floats(0.01, 300),
    busy=st.integers(0, 400),
)
def test_a_large_step_takes_what_is_free_and_one_at_the_least(
    most: int, machine: int, allowed: int, granted: float | None, busy: int
) -> None:
    cores = Cores(machine, allowed, granted, busy)
    taken = threads_for("product", 1e15, most, cores)
    assert 1 <= taken <= most
    if taken > 1:
        assert taken <= allowed
        assert taken + busy <= machine
        assert granted is None or taken <= granted
    else:
        assert most == 1 or min(allowed, granted or allowed) < 2 or machine - busy < 2


@pytest.mark.parametrize(
    ("cores", "free"),
    [
        (Cores(2, 2), 2),
        (Cores(2, 2, busy=2), 1),
        (Cores(2, 2, busy=1), 1),
        (Cores(16, 16, busy=2), 14),
        (Cores(64, 4, busy=20), 4),  # others have cores of their own
        (Cores(64, 64, quota=2.0), 2),
        (Cores(64, 64, quota=0.5), 1),
        (Cores(64, 64, quota=2.5, busy=63), 1),
    ],
)
def test_free_cores(cores: Cores, free: int) -> None:
    assert cores.free == free


def written(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("texts", "least"),
    [
        ({"p/self/cgroup": "0::/\n", "g/cpu.max": "max 100000\n"}, None),
        ({"p/self/cgroup": "0::/a/b\n", "g/a/b/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "p/self/cgroup": "0::/a/b\n",
                "g/a/b/cpu.max": "max 100000\n",
                "g/a/cpu.max": "400000 100000\n",
            },
            4.0,
        ),
        (
            {
                "p/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/x\n0::/\n",
                "g/cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n",
                "g/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                "g/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "g/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                "p/self/cgroup": "1:cpu:/gone\n",
                "g/cpu/cpu.cfs_quota_us": "50000\n",
                "g/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group(
    tmp_path: Path, texts: dict[str, str], least: float | None
) -> None:
    written(tmp_path, texts)
    assert quota(tmp_path / "p", tmp_path / "g") == least


@pytest.mark.parametrize(
    ("running", "own", "others"), [(1, 1, 0), (3, 1, 2), (3, 2, 1), (3, 3, 0), (17, 1, 16)]
)
def test_own_threads_are_no_neighbours(tmp_path: Path, running: int, own: int, others: int) -> None:
    states = {f"self/task/{k}/stat": f"{k} (a) b) {'R' if k < own else 'S'} 1 2" for k in range(20)}
    written(tmp_path, {"loadavg": f"9.00 9.00 9.00 {running}/99 123\n", **states})
    assert busy(tmp_path) == others


@pytest.mark.parametrize("text", ["", "nothing here", "1 2 3 x/y 5"])
def test_where_the_system_does_not_tell_nobody_is_there(tmp_path: Path, text: str) -> None:
    assert busy(written(tmp_path, {"loadavg": text})) == 0


def test_a_moments_work_is_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([1, 0, 0])
    monkeypatch.setattr(cores, "_others", lambda proc: next(looks))
    assert busy() == 0


def small(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MATRIX, CUBE, STACK, EYE = small(24, 16), small(6, 5, 4), small(5, 24, 16), torch.eye(16)

SMALL: dict[str, Callable[[], object]] = {
    "svd": lambda: tensorlrf.svd(MATRIX, 3),
    "svd in a metric": lambda: tensorlrf.svd(MATRIX, 3, gram=EYE),
    "svd randomized": lambda: tensorlrf.svd(MATRIX, 3, solver="randomized", random_state=0),
    "svd of a batch": lambda: tensorlrf.svd(STACK, 3, batch_dims=1),
    "cp": lambda: tensorlrf.cp(CUBE, 2, random_state=0, n_iter_max=5),
    "tucker": lambda: tensorlrf.tucker(CUBE, 2),
    "tt": lambda: tensorlrf.tt(CUBE, 2),
    "tt_matrix": lambda: tensorlrf.tt_matrix(MATRIX, 2),
    "tr": lambda: tensorlrf.tr(CUBE, 2, random_state=0, n_iter_max=5),
    "kron": lambda: tensorlrf.kron(MATRIX, 1),
    "blr": lambda: tensorlrf.blr(MATRIX, 2, block=8),
    "hodlr": lambda: tensorlrf.hodlr(MATRIX, error=0.5),
    "hierarchical": lambda: tensorlrf.hierarchical(MATRIX, error=0.5),
    "monarch": lambda: tensorlrf.monarch(MATRIX, 0.5),
    "blast": lambda: tensorlrf.blast(MATRIX, 0.5),
    "scree": lambda: tensorlrf.scree(MATRIX),
    "evbmf": lambda: evbmf_rank(MATRIX),
}


@pytest.mark.usefixtures("four", "idle")
@pytest.mark.parametrize("name", SMALL)
def test_a_small_problem_runs_on_one_thread(name: str) -> None:
    with Numbers() as numbers:
        SMALL[name]()
    assert numbers.seen == {1}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four", "idle")
@pytest.mark.parametrize("name", ["cp", "tucker", "svd", "tt"])
def test_a_problem_of_many_entries_has_torchs_number(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CROSSOVER, "sweep", 100)
    with Numbers() as numbers:
        SMALL[name]()
    assert numbers.seen == {4}
    monkeypatch.setattr(threads, "look", lambda: Cores(16, 16, busy=13))
    with Numbers() as numbers:
        SMALL[name]()
    assert numbers.seen == {3}
    monkeypatch.setattr(threads, "look", lambda: Cores(16, 16, busy=16))
    with Numbers() as numbers:
        SMALL[name]()
    assert numbers.seen == {1}


@pytest.mark.usefixtures("four", "idle")
def test_a_large_step_of_a_small_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CROSSOVER, "spectrum", 16**3)
    monkeypatch.setitem(CROSSOVER, "product", 16 * 16 * 24)
    square = small(15, 15)
    with problem():
        with Numbers() as numbers:
            descending_eigh(mode_gram(MATRIX, 1))
        assert 4 in numbers.seen
        with Numbers() as numbers:
            descending_eigh(mode_gram(square, 0))
        assert numbers.seen == {1}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("asked", [1, 2, 16])
def test_never_more_than_the_user_gave_torch(asked: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(asked)
    try:
        with problem():
            assert torch.get_num_threads() == 1
            with cores_for("product", 1e12):
                assert torch.get_num_threads() == asked
            with limited(1), cores_for("product", 1e12):
                assert torch.get_num_threads() == 1
            with problem(10**12):  # within another one
                assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == asked
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("four", "idle")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_or_an_interrupt_sets_it_back(error: type[BaseException]) -> None:
    @threaded
    def fails(tensor: Tensor) -> None:
        assert torch.get_num_threads() == 1
        with cores_for("spectrum", 1e12):
            assert torch.get_num_threads() == 4
            raise error

    with pytest.raises(error):
        fails(small(2, 2))
    assert torch.get_num_threads() == 4
    assert of_another_thread() == 4


@pytest.mark.usefixtures("four", "idle")
def test_threads_of_others_keep_their_number() -> None:
    entered, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def other() -> None:
        seen.append(torch.get_num_threads())
        entered.set()
        go_on.wait()
        seen.append(torch.get_num_threads())
        torch.set_num_threads(3)  # for itself, and for threads that begin from now on
        seen.append(torch.get_num_threads())

    running = threading.Thread(target=other)
    running.start()
    entered.wait()
    with problem():
        assert torch.get_num_threads() == 1
        assert of_another_thread() == 4
        go_on.set()
        running.join()
        assert of_another_thread() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    assert of_another_thread() == 3
    assert seen == [4, 4, 3]


@pytest.mark.usefixtures("idle")
def test_the_number_that_nobody_has_set_stays_so() -> None:
    torch.get_num_threads()
    before = of_another_thread()
    with problem():
        assert of_another_thread() == before
    assert of_another_thread() == before


@pytest.mark.usefixtures("four", "idle")
def test_a_graph_passes_through() -> None:
    weight = small(12, 8).requires_grad_()
    tensorlrf.svd(weight, 2, differentiable=True).to_dense().square().sum().backward()
    assert weight.grad is not None
    assert torch.get_num_threads() == 4

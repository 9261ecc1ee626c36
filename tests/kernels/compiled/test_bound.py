"""A call that is repeated makes the very launches that it would make anew, and looks nothing up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from bench.fake_driver import FakeDriver, fake_driver
from tensorlrf_kernels import (
    _bound,
    _tables,
    chips,
    kron_linear,  # noqa: F401  its op is registered
    lowrank_linear,  # noqa: F401
    lowrank_swiglu,  # noqa: F401
)
from tensorlrf_kernels._library import on_gpu
from tensorlrf_kernels.launches import LaunchConfig, Problem

pytestmark = pytest.mark.aot

Operands = tuple[Tensor | None, ...]
Call = tuple[str, Operands, tuple[Any, ...]]
DTYPE = torch.float16


def some(*size: int) -> Tensor:
    return torch.empty(size, dtype=DTYPE)


def decode() -> Call:
    return "lowrank_linear", (some(3, 256), some(64, 256), some(128, 64), None, None), (None, False)


def prefill() -> Call:
    operands = some(2, 96, 256), some(64, 256), some(128, 64), some(128), some(2, 96, 128)
    return "lowrank_linear", operands, ("gelu", True)


def swiglu() -> Call:
    factors = some(64, 256), some(128, 64), some(64, 256), some(128, 64), some(128), None
    return "lowrank_swiglu", (some(3, 256), *factors), (True,)


def kron() -> Call:
    return "kron_linear", (some(5, 1024), some(2, 32, 32), some(2, 32, 32), None, None), (None,)


CALLS: tuple[Callable[[], Call], ...] = (decode, prefill, swiglu, kron)


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    _bound.forget()
    with fake_driver() as fake:
        yield fake
    _bound.forget()


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that Triton's own dispatch was asked for."""
    names: list[str] = []
    run = JITFunction.run

    def noted(self: Any, *args: Any, **named: Any) -> Any:
        names.append(self.__name__)
        return run(self, *args, **named)

    monkeypatch.setattr(JITFunction, "run", noted)
    return names


def run(call: Call) -> Any:
    op, operands, flags = call
    return on_gpu[op](*operands, *flags)


def parts(made: Any) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def told(driver: FakeDriver, call: Call, made: Any) -> list[Any]:
    """The launches since the last look, tensors by what they are in the call."""
    given = ((k, t) for k, t in enumerate(call[1]) if t is not None)
    roles = {t.data_ptr(): f"operand {k}" for k, t in given}
    for k, t in enumerate(parts(made)):
        roles.setdefault(t.data_ptr(), f"result {k}")

    def told_of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return roles.get(value.data_ptr(), "between"), value.dtype, value.shape, value.stride()

    found = [(grid, [told_of(value) for value in args]) for grid, args in driver.launched]
    driver.launched.clear()
    return found


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_a_repeated_call_is_the_same_launch(
    driver: FakeDriver, looked_up: list[str], make: Callable[[], Call]
) -> None:
    first = make()
    anew = told(driver, first, made := run(first))
    assert looked_up
    assert len(anew) == len(looked_up)
    looked_up.clear()
    again = make()  # other tensors of the same kind
    repeated = told(driver, again, others := run(again))
    assert not looked_up
    assert repeated == anew
    for one, other in zip(parts(made), parts(others), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        assert one.numel() == 0 or one.data_ptr() != other.data_ptr()


def changed(call: Call, place: int, operand: Tensor | None) -> Call:
    op, operands, flags = call
    return op, (*operands[:place], operand, *operands[place + 1 :]), flags


def test_another_kind_of_call_is_looked_up(driver: FakeDriver, looked_up: list[str]) -> None:
    op, operands, _ = call = decode()
    x, right = operands[:2]
    assert x is not None
    assert right is not None
    run(call)
    shifted = some(x.numel() + 1)[1:].view(x.shape)
    residual = some(3, 128)
    others = [
        changed(call, 0, some(4, 256)),
        changed(call, 0, shifted),
        changed(call, 1, some(256, 64).T),
        changed(call, 3, some(128)),
        changed(call, 4, residual),
        (op, operands, ("relu", False)),
        (op, operands, (None, True)),
    ]
    for other in others:
        looked_up.clear()
        run(other)
        assert looked_up
        looked_up.clear()
        run(other)
        assert not looked_up


def test_an_operand_that_is_there_twice_is_never_bound(
    driver: FakeDriver, looked_up: list[str]
) -> None:
    factor = some(2, 32, 32)
    twice = changed(changed(kron(), 1, factor), 2, factor)
    run(twice)
    driver.launched.clear()
    apart = kron()
    looked_up.clear()
    launches = told(driver, apart, run(apart))
    assert looked_up
    assert "operand 1" in str(launches)
    assert "operand 2" in str(launches)


def test_what_is_tuned_is_chosen_anew(driver: FakeDriver, looked_up: list[str]) -> None:
    call = decode()
    run(call)
    looked_up.clear()
    asked: list[object] = []
    with _tables.tuning_by(lambda *problem: asked.append(problem)):
        run(call)
    assert len(asked) == 1
    assert looked_up
    problem = Problem(3, 128, 256, 64, DTYPE)
    config = _tables.choose("lowrank_linear", "forward", problem, torch.device("cpu"))
    assert config is not None
    better = LaunchConfig(config.kernel, config.blocks, 8, config.num_stages, config.programs, True)
    key = ("lowrank_linear", "forward", _tables.dtype_key(problem), problem.bucket)
    try:
        _tables.remember(chips.H200, "lowrank_linear", "forward", problem, better)
        looked_up.clear()
        run(call)
        assert looked_up
    finally:
        del _tables._entries(chips.H200.name)[key]
        _tables.choose.cache_clear()


def test_a_refusal_leads_to_launches_apart(
    driver: FakeDriver, looked_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device may refuse a cooperative launch that it made before, and again when asked anew."""
    call = decode()
    run(call)
    (bound,) = _bound._bound.values()

    def refuse(*_: Any) -> None:
        raise RuntimeError("[CUDA]: too many blocks in cooperative launch")

    ready = bound.launches[0]
    monkeypatch.setitem(
        _bound._bound, *_bound._bound, _bound.Bound(
            bound.made, bound.counted, (_bound.Ready(refuse, *list(vars(ready).values())[1:]),),
            bound.returns, bound.alone,
        )
    )  # fmt: skip
    looked_up.clear()
    run(call)
    assert looked_up

"""The launches of a harvest are found without a GPU, and what is not compiled is listed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.harvest import check, launches
from bench.harvest import compile as compiling
from bench.harvest.check import CHECKS
from tensorlrf_kernels.chips import H200

LISTED = {
    "kron_linear ragged": {"forward", "backward"},
    "lowrank_linear decode": {"decode", "backward"},
    "blr_linear flagship": {"shrink", "expand", "panels"},
    "cp_conv2d ragged": {"forward", "taps_backward"},
    "tucker_conv2d ragged": {"forward"},
    "mttkrp ragged": {"contract"},
    "lowrank_embedding ragged": {"forward", "segments"},
    "CP training": {"forward", "taps_backward"},
    "training SwiGLU M=8192": {"prefill", "backward"},
    "conv resnet50 64-64 3x3 at 56, batch 32": {"forward"},
}


@pytest.mark.parametrize("name", sorted({*LISTED, *map(" ".join, CHECKS)}))
def test_the_launches_of_the_work_are_found_without_a_gpu(name: str) -> None:
    calls = dict(compiling.needed(H200))[name]()
    assert calls, "the library would be compared with itself"
    assert LISTED.get(name, set()) <= {call.config.kernel for call in calls}
    for call in calls:
        assert not any(isinstance(value, torch.Tensor) for value in call.args.values())


def test_convolutions_are_listed_with_the_images_that_they_have() -> None:
    calls = dict(compiling.needed(H200))["conv resnet50 256-256 3x3 at 14, batch 32"]()
    assert {(call.args["H"], call.args["W"]) for call in calls} == {(14, 14)}
    assert {call.op for call in calls} == {"cp_conv2d", "tucker_conv2d"}


def test_addresses_that_are_no_multiples_of_sixteen_are_known() -> None:
    whole = launches._pointers({"x": torch.empty(64, dtype=torch.float16)})["x"]
    part = launches._pointers({"x": torch.empty(64, dtype=torch.float16)[3:]})["x"]
    assert (whole.data_ptr() % 16, part.data_ptr() % 16) == (0, 6)


def test_nothing_pretends_any_more_afterwards() -> None:
    with pytest.raises(ZeroDivisionError):
        launches.recorded(lambda: 1 / 0, H200)
    x = torch.ones(2)
    assert x.device.type == "cpu"
    assert type(x) is torch.Tensor
    assert torch.cuda.is_available() or not hasattr(torch.cuda.current_device, "mock")


def test_what_there_was_no_time_for_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = launches.recorded(lambda: check.check_of("mttkrp ragged").run(
        *check.check_of("mttkrp ragged").operands()), H200)[0]  # fmt: skip
    monkeypatch.setattr(
        compiling, "listed", lambda *_: iter([("a case", call, "one"), ("a case", call, "two")])
    )
    told: list[dict[str, Any]] = []
    compiling.run(H200, told.append, end=0.0)
    assert [line["row"].get("outcome") for line in told] == ["skipped", None]
    assert told[0]["row"]["launch"].startswith("a case: mttkrp contract")
    assert told[0]["row"]["reason"] == "no time"
    compiling.run(H200, told.append, end=float("inf"), most=-1)
    assert told[-2]["row"]["reason"] == "beyond the most"

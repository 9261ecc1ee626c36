"""What was measured is not measured again, and what comes of it is what it would have been."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorlrf
from tensorlrf.compression.losses import _probe
from tensorlrf.errors import ArgumentError, FileError, FileFormatError
from tests.abuse.course import Course, Run
from tests.compression.journal.calls import (
    CALLS,
    MEASURING,
    QUIET,
    Stopped,
    batches,
    compress,
    evaluate,
    frontier,
    net,
    plan,
    sensitivity,
    stopping,
    told,
)
from tests.files.kills import quick_disk

__all__ = ["quick_disk"]
SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("quick_disk")

FILE = "measured.journal"


@pytest.fixture(autouse=True)
def one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is room for one, so that there are many parts."""
    monkeypatch.setattr(_probe, "parted", lambda sizes, _: [[name] for name in sizes])


LIKE_ANOTHER = ("compress, max_drop",)
"""That others nearly are: in the slow suite alone."""


@pytest.mark.parametrize(
    "name", [n if n not in LIKE_ANOTHER else pytest.param(n, marks=SLOW) for n in MEASURING]
)
def test_a_call_that_is_stopped_again_and_again_comes_to_the_same(
    name: str, tmp_path: Path
) -> None:
    act, each = MEASURING[name]
    undisturbed, runs = act(None), 0
    while True:
        runs += 1
        try:
            with stopping(each, written=runs % 2 == 0):
                found = act(tmp_path / "j")
            break
        except Stopped:
            continue
    assert found == undisturbed
    assert runs > 1
    CALLS.clear()
    with stopping(1, written=False) as kept:
        assert act(tmp_path / "j") == undisturbed
    assert (CALLS, kept) == ([], [0])
    assert {path.name for path in (tmp_path / "j").iterdir()} >= {FILE}


def test_metrics_of_the_loss_are_those_that_were_gathered(tmp_path: Path) -> None:
    undisturbed = compress(None, metric="loss")
    with pytest.raises(Stopped), stopping(5, written=True):
        compress(tmp_path, metric="loss")
    names = {path.name for path in tmp_path.iterdir()}
    kinds = ("metrics", "directions")
    assert names == {FILE, *(f"{kind}-{k}.safetensors" for kind in kinds for k in range(4))}
    (tmp_path / "metrics-2.safetensors").unlink()
    assert compress(tmp_path, metric="loss") == undisturbed
    assert {path.name for path in tmp_path.iterdir()} == names
    data = bytearray((tmp_path / "metrics-1.safetensors").read_bytes())
    data[-3] ^= 4
    (tmp_path / "metrics-1.safetensors").write_bytes(data)
    with pytest.raises(FileFormatError, match="damaged"):
        compress(tmp_path, metric="loss")


def test_directions_of_outputs_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they serve a frontier, and what it carries out."""
    undisturbed, small = look(None, evaluate), look(None, evaluate).apply(0.4)
    with pytest.raises(Stopped), stopping(8, written=True):
        look(tmp_path, evaluate)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(_probe, "bases_of", never)
    found = look(tmp_path, evaluate)
    assert found == undisturbed
    assert told(*found.apply(0.4)) == told(*small)


# ---- evaluate ------------------------------------------------------------------------------------


class Interrupted:
    """`evaluate`, which presses Ctrl-C at its n-th call."""

    __qualname__ = "evaluate"

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, model: nn.Module) -> list[float]:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return evaluate(model)


@pytest.mark.parametrize("n", [2, 5])
def test_an_interrupt_in_the_middle_of_evaluate(n: int, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        look(tmp_path, Interrupted(n))
    assert "the same call goes on" in stop.value.__notes__[0]
    assert look(tmp_path, Interrupted(0)) == look(None, Interrupted(0))


def look(folder: Path | None, judge: Any) -> tensorlrf.Frontier:
    return tensorlrf.frontier(
        net(), batches(), shares=(0.8, 0.4), allocation="uniform", evaluate=judge, journal=folder,
        **QUIET,
    )  # fmt: skip


def test_a_metric_that_compares_with_its_first_model_meets_it_again(tmp_path: Path) -> None:
    def comparing(stop: int) -> Any:
        seen: list[torch.Tensor] = []

        def to_the_first(model: nn.Module) -> float:
            found = model(batches()[5])
            seen.append(found)
            if len(seen) == stop:
                raise KeyboardInterrupt
            return -float((found - seen[0]).square().mean())

        return to_the_first

    with pytest.raises(KeyboardInterrupt):
        look(tmp_path, comparing(4))
    assert look(tmp_path, comparing(0)) == look(None, comparing(0))


def test_a_metric_of_the_same_name_that_says_another_thing_is_refused(tmp_path: Path) -> None:
    def judging(bias: float, stop: int) -> Any:
        def the_metric(model: nn.Module) -> float:
            CALLS.append(model)
            if len(CALLS) == stop:
                raise KeyboardInterrupt
            return bias + float(model(batches()[5]).square().mean())

        return the_metric

    CALLS.clear()
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path, judging(0.0, 4))
    with pytest.raises(ArgumentError, match="of the given model, and said"):
        look(tmp_path, judging(1.0, 0))


# ---- other journals ------------------------------------------------------------------------------


def other_net() -> nn.Module:
    other = tensorlrf.densify(net())
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-3
    return other


def test_the_journal_of_another_call_is_refused_by_what_differs(tmp_path: Path) -> None:
    sensitivity(tmp_path, rule="energy")
    found = (tmp_path / FILE).read_bytes()
    asked: dict[str, Any] = {"rule": "energy", "journal": tmp_path, **QUIET}
    for model, data, more, says in (
        (net(), batches(), {"rule": "fisher"}, "rule was 'energy', is 'fisher'"),
        (net(), batches(), {"loss": "kl"}, "loss was 'auto', is 'kl'"),
        (net(), batches(), {"random_state": 1}, "random_state was 0, is 1"),
        (net(), batches(), {"holdout": 0.2}, "holdout was 0.1, is 0.2"),
        (net(), batches(), {"skip": ["0"]}, "layers was"),
        (net(), batches(), {"readout": torch.relu}, "readout was None, is"),
        (net(), batches(), {"groups": [0, 0, 1, 1, 2, 2]}, "calibration was"),
        (net(), batches()[:5], {}, "calibration was"),
        (net(), [batches()[0].reshape(20, 2, 12), *batches()[1:]], {}, "calibration was"),
        (net(), None, {}, "calibration was"),
        (other_net(), batches(), {}, "another call has measured: weights was"),
    ):
        with pytest.raises(ArgumentError, match=says):
            tensorlrf.sensitivity(model, data, **{**asked, **more})
    with pytest.raises(ArgumentError, match="call was 'sensitivity', is 'plan'"):
        plan(tmp_path)
    with pytest.raises(ArgumentError, match="call was 'sensitivity', is 'frontier'"):
        frontier(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(ArgumentError, match=f"threads was {before}, is {before + 1}"):
            sensitivity(tmp_path, rule="energy")
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / FILE).read_bytes() == found


def test_a_torn_last_line_was_not_written_and_any_other_is_damage(tmp_path: Path) -> None:
    file, undisturbed = tmp_path / FILE, sensitivity(tmp_path, rule="energy")
    data = file.read_bytes()
    for cut in (1, 40, len(data.splitlines(keepends=True)[-1])):
        file.write_bytes(data[:-cut])
        assert sensitivity(tmp_path, rule="energy") == undisturbed
        assert file.read_bytes() == data
    file.write_bytes(data[:30])
    assert sensitivity(tmp_path, rule="energy") == undisturbed
    at = data.index(b'"energy"', len(data.splitlines()[0]))
    for damaged in (data[:at] + b"E" + data[at + 1 :], b"{}\n" + data, b"no journal\n"):
        file.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"is damaged.*give another folder as journal="):
            sensitivity(tmp_path, rule="energy")
        assert file.read_bytes() == damaged


def test_two_runs_exclude_each_other(tmp_path: Path) -> None:
    def within(model: nn.Module) -> float:
        with pytest.raises(FileError, match="is going on already; wait for it"):
            look(tmp_path, within)
        return 0.5

    look(tmp_path, within)


def test_what_cannot_be_kept_is_told_before_any_work(tmp_path: Path) -> None:
    for state in (None, torch.Generator(), True):
        with pytest.raises(ArgumentError, match="must be an int with journal="):
            sensitivity(tmp_path / "j", random_state=state)
    with pytest.raises(ArgumentError, match="method='modular'"):
        compress(tmp_path / "j", method="modular")
    with pytest.raises(ArgumentError, match="is no path"):
        sensitivity(3)  # type: ignore[arg-type]  # what is tested
    assert not (tmp_path / "j").exists()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "j" / FILE).mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "j"):
        with pytest.raises(FileError):
            sensitivity(folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_loses_nothing_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopping(0, written=True) as kept:
        sensitivity(tmp_path / "whole", rule="energy")
    whole = kept[0]
    own, left = os.write, [sum(p.stat().st_size for p in (tmp_path / "whole").iterdir()) // 2]

    def write(file: int, data: Any) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        n = own(file, bytes(data)[: left[0]])
        left[0] -= n
        return n

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(FileError, match="No space left"):
            sensitivity(tmp_path / "j", rule="energy")
    with stopping(0, written=True) as kept:
        assert sensitivity(tmp_path / "j", rule="energy") == sensitivity(None, rule="energy")
    assert 0 < kept[0] < whole


# ---- kills ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["measured", "frontier", "compress, max_drop"])
def test_kill_9_at_random_instants(name: str, tmp_path: Path) -> None:
    act, _ = MEASURING[name]
    undisturbed, kills, draw = act(None), 0, random.Random(name)

    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "told").write_text(act(folder / "j"))

    course = Course.of(partial(write, tmp_path / "undisturbed"))
    for trial in count():
        code = None
        while code != 0:
            run = Run.of(partial(write, tmp_path / f"{trial}"))
            if run.comes_to(*course.at(draw.random()), course):
                run.kill()
            code = run.ended()
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert (tmp_path / f"{trial}" / "told").read_text() == undisturbed
        if kills >= 8:
            break

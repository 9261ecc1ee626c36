"""The driver of a harvest: phases against the clock, each case in a process that may break.

It imports nothing that takes time, and waits for nothing without a limit. A case ends as one of

    done         with all its rows
    failed       an exception, told by its worker, which goes on
    crashed      its process ended
    timed out    its seconds were over: its process was killed
    cut off      those of the phase were
    not reached  it never began

and whatever rows it had told by then are kept.
"""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from bench.harvest.journal import Journal
from bench.harvest.plan import Phase, Task
from bench.harvest.process import PATIENCE, STUCK, Worker

RESERVE = 6.0  # s at the end, to kill what runs and to write the summary
STARTING = 60.0  # s for a process to import what it needs, which is not the case's time
LEAST = 0.25  # s that a killed process is waited for, however late it is
SPARE = 3  # processes that are started ahead of their first case: an import takes seconds
Start = Callable[[str, str], Worker]
"""Phase and op to a worker."""
Place = tuple[str, str]  # phase and op


@dataclass
class _Running:
    """A case in hand."""

    task: Task
    worker: Worker
    since: float  # of the case
    limit: float
    skip: tuple[str, ...]  # parts that were begun before
    begun: list[str] = field(default_factory=list)  # parts of it
    failed: str = ""

    @property
    def name(self) -> str:
        """Of the part that is in hand, or of the whole."""
        return self.begun[-1] if self.begun else self.task.case


class Driver:
    """One harvest."""

    def __init__(
        self,
        phases: Sequence[Phase],
        start: Start,
        journal: Journal,
        *,
        seconds: float,
        since: float | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`seconds` in all, shared out as the phases' are; `since`, as of time.monotonic()."""
        self._start, self._journal, self._say = start, journal, say
        self._since = time.monotonic() if since is None else since
        scale = seconds / sum(phase.seconds for phase in phases)
        self._phases = [
            phase._replace(
                seconds=scale * phase.seconds,
                tasks=tuple(replace(t, seconds=scale * t.seconds) for t in phase.tasks),
            )
            for phase in phases
        ]
        self._end_of_all = self._since + seconds
        self._last = self._end_of_all - scale * RESERVE
        self._stopped = ""
        self._workers: dict[Place, Worker] = {}
        self._fresh: set[Place] = set()  # those that were asked nothing yet
        self._unready: dict[Place, float] = {}  # those that import yet, and until when they may
        self._broken: dict[Place, str] = {}  # how those ended that were not asked
        self._running: dict[Place, _Running] = {}
        self._selector = selectors.DefaultSelector()
        heard, self._wake = os.pipe()
        self._selector.register(heard, selectors.EVENT_READ)
        self._waiting: list[tuple[str, Task, tuple[str, ...]]] = [
            (phase.name, task, ()) for phase in self._phases for task in phase.tasks
        ]
        self.outcomes: list[dict[str, Any]] = []
        self.rows = 0

    def run(self) -> None:
        """All phases; whatever comes, no process is left, and the summary is written."""
        end = time.monotonic()
        try:
            for phase in self._phases:
                end = min(end + phase.seconds, self._last)
                self._phase(phase, end)
        except BaseException as reason:
            self._stopped = f"{type(reason).__name__} {reason}".strip()
            raise
        finally:
            for worker in self._workers.values():
                worker.strike()
            for place in list(self._running):
                self._end(place, "cut off", self._stopped)
            for place in list(self._workers):
                self._drop(place)
            self._not_reached()
            self._selector.close()
            self._journal.summary(self.summary())

    def stop(self, reason: str) -> None:
        """Have `run` end soon; for a handler of signals."""
        self._stopped = reason
        os.write(self._wake, b".")

    def summary(self, *, running: bool = False) -> dict[str, Any]:
        """Outcomes by phase, and what was not done with its reason."""
        of_phase: dict[str, dict[str, int]] = {phase.name: {} for phase in self._phases}
        for one in self.outcomes:
            counts = of_phase[one["phase"]]
            counts[one["outcome"]] = counts.get(one["outcome"], 0) + 1
        return {
            "seconds": round(time.monotonic() - self._since, 1),
            "running": running,
            "stopped": self._stopped,
            "rows": self.rows,
            "phases": of_phase,
            "not_done": [one for one in self.outcomes if one["outcome"] != "done"],
        }

    # ---- a phase --------------------------------------------------------------------------------

    def _phase(self, phase: Phase, end: float) -> None:
        self._say(f"{self._now()} {phase.name}: {end - time.monotonic():.0f} s at most")
        while (now := time.monotonic()) < end and not self._stopped:
            for place in [p for p, r in self._running.items() if now >= r.limit]:
                self._end(place, "timed out", "")
            for place in [p for p, until in self._unready.items() if now >= until]:
                self._broken[place] = f"{self._drop(place)}; it was not ready in time"
            self._crash_broken(phase)
            self._hand_out(phase, end)
            self._prepare(phase)
            if not self._running and all(name != phase.name for name, *_ in self._waiting):
                break
            limits = [end, *self._unready.values(), *(r.limit for r in self._running.values())]
            self._listen(max(0.0, min(limits) - time.monotonic()))
        own = [place for place in self._workers if place[0] == phase.name]
        for place in own:
            self._workers[place].strike()  # all of them, before the first is waited for
        for place in list(self._running):
            self._end(place, "cut off", self._stopped or "the phase's time was over")
        for place in own:
            if place in self._workers:
                self._drop(place)
        self._not_reached(phase.name)
        self._journal.summary(self.summary(running=True))

    def _not_reached(self, phase: str = "") -> None:
        """What waits, of a phase or in all, will not be done."""
        for each in [each for each in self._waiting if each[0] == (phase or each[0])]:
            self._waiting.remove(each)
            name, task, skip = each
            reason = f"from {len(skip)} parts on" if skip else self._stopped
            self._outcome(name, task.op, task.case, "not reached", reason, 0.0)

    def _hand_out(self, phase: Phase, end: float) -> None:
        """Ask the processes that are ready and idle, for the first of what waits."""
        for each in list(self._waiting):
            name, task, skip = each
            place = (name, task.op)
            if len(self._running) >= phase.side_by_side or name != phase.name:
                return
            if place in self._running or place in self._unready or place not in self._workers:
                continue
            self._waiting.remove(each)
            self._fresh.discard(place)
            worker, now = self._workers[place], time.monotonic()
            limit = min(end, now + task.seconds)
            self._running[place] = _Running(task, worker, now, limit, skip)
            left = (end if task.again else limit) - now
            worker.ask({"case": task.case, "seconds": left, "skip": skip})

    def _crash_broken(self, phase: Phase) -> None:
        """A case whose process ended before it was asked; the next of its op has a new one."""
        for each in list(self._waiting):
            name, task, _ = each
            if name == phase.name and (name, task.op) in self._broken:
                self._waiting.remove(each)
                reason = self._broken.pop((name, task.op))
                self._outcome(name, task.op, task.case, "crashed", reason, 0.0)

    def _prepare(self, phase: Phase) -> None:
        """Start the processes of the next cases, which import what they need meanwhile."""
        places = dict.fromkeys((name, task.op) for name, task, _ in self._waiting)
        idle = [p for p in places if p not in self._running and p not in self._broken]
        own = [place for place in idle if place[0] == phase.name]
        for place in own[: phase.side_by_side - len(self._running) + SPARE]:
            self._worker(place)
        for place in idle:
            if len(self._fresh) >= SPARE:
                return
            self._worker(place)

    # ---- workers --------------------------------------------------------------------------------

    def _worker(self, place: Place) -> Worker:
        if place not in self._workers:
            worker = self._workers[place] = self._start(*place)
            self._fresh.add(place)
            self._unready[place] = time.monotonic() + STARTING
            for pipe in (worker.out, worker.err):
                self._selector.register(pipe, selectors.EVENT_READ, (place, worker))
        return self._workers[place]

    def _listen(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.data is None:  # woken
                continue
            place, worker = key.data
            if self._workers.get(place) is not worker:
                continue  # dropped a moment ago
            if key.fd == worker.err:
                text, more = worker.said()
                self._journal.log(text)
                if not more:
                    self._selector.unregister(worker.err)
                continue
            lines, more = worker.lines()
            for line in lines:
                self._line(place, line)
            if not more and place in self._running:
                self._end(place, "crashed", "")
            elif not more:
                fresh, how = place in self._fresh, self._drop(place)
                if fresh:
                    self._broken[place] = how

    def _drop(self, place: Place) -> str:
        """End a worker, after the last line that it wrote; returns how it ended."""
        worker = self._workers[place]
        how = worker.kill(max(LEAST, min(PATIENCE, self._end_of_all - time.monotonic())))
        for line in worker.lines()[0]:
            self._line(place, line)
        self._journal.log(worker.said()[0])
        for pipe in (worker.out, worker.err):
            with suppress(KeyError):
                self._selector.unregister(pipe)
        worker.close()
        del self._workers[place]
        self._fresh.discard(place)
        self._unready.pop(place, None)
        if worker.rest:
            how += f"; its last line was cut off: {worker.rest[:80].decode(errors='replace')!r}"
        return how

    def _end(self, place: Place, outcome: str, reason: str) -> None:
        """Of a case, and of its process with it."""
        running = self._running[place]
        how = self._drop(place)
        if self._running.pop(place, None) is None:
            return  # it was done, and its last lines had not been read
        told = how if outcome == "crashed" or STUCK in how or "cut off" in how else ""
        reason = "; ".join(filter(None, (reason, told)))
        spent = time.monotonic() - running.since
        self._outcome(*place, running.name, outcome, reason, spent)
        task = running.task
        if task.again and running.begun and outcome in ("crashed", "timed out"):
            again = replace(task, again=task.again - 1)
            self._waiting.insert(0, (place[0], again, (*running.skip, *running.begun)))

    # ---- lines ----------------------------------------------------------------------------------

    def _line(self, place: Place, line: bytes) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            told = None
        running = self._running.get(place)
        if isinstance(told, dict) and "ready" in told:
            self._unready.pop(place, None)
        elif not isinstance(told, dict) or running is None:
            self._journal.log(line + b"\n")
        elif "row" in told:
            self._row(place, running.name, told["row"])
        elif "begin" in told:
            running.begun.append(str(told["begin"]))
            running.limit = time.monotonic() + running.task.seconds
        elif "failed" in told:
            running.failed = str(told["failed"])
        elif "done" in told:
            del self._running[place]
            outcome = "failed" if running.failed else "done"
            spent = time.monotonic() - running.since
            self._outcome(*place, running.task.case, outcome, running.failed, spent)

    def _row(self, place: Place, case: str, values: dict[str, Any]) -> None:
        head = {"phase": place[0], "op": place[1], "case": case, "at": self._at()}
        self._journal.row({**head, **values})
        self.rows += 1
        if values.get("say"):
            self._say(f"{self._now()} {values['say']}")

    def _outcome(
        self, phase: str, op: str, case: str, outcome: str, reason: str, seconds: float
    ) -> None:
        one = {"phase": phase, "op": op, "case": case, "outcome": outcome, "reason": reason}
        self.outcomes.append(one)
        self._journal.row(
            {**one, "at": self._at(), "kind": "outcome", "seconds": round(seconds, 2)}
        )
        if outcome not in ("done", "not reached"):
            self._say(f"{self._now()} {outcome}: {phase} {case} {reason[:300]}".rstrip())

    def _at(self) -> float:
        return round(time.monotonic() - self._since, 2)

    def _now(self) -> str:
        return f"[{self._at():6.1f}]"

"""The course of a refinement: phase after phase of AdamW under one budget, judged on held-out
batches.

Training goes on from the state with the lowest held-out loss. What is returned is another matter:
a state is kept where its loss is lower than that of the one kept before by more than chance. Small
gains add up: the next one is compared with what was kept, not with the last checkpoint.

The batch of a step is a function of the seed and of the number of the step alone, so that a course
goes on from a journal as it would have gone on by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.compression.refinement._judgement import HeldOut, Judgement
from tensorlrf.compression.refinement._objective import Objective
from tensorlrf.compression.refinement._phases import Phase
from tensorlrf.compression.refinement._processes import Processes
from tensorlrf.compression.refinement._refinement import Checkpoint
from tensorlrf.compression.refinement._settings import Settings
from tensorlrf.compression.refinement._student import State, Student

CHECKPOINTS = 20
"""About so many, over the whole budget."""

JUDGING = 0.2
"""Most of the time that judging may take, more or less."""

GAIN = 0.01
"""Share of the loss that a checkpoint must win for a phase to go on that is not the last: a model
that was fitted to data wins little by its parts."""

TURNS = 2
"""Checkpoints in a row that are no better than the best, after which training goes back to it."""

SMALLER = 0.4
"""Of the rate, after each time of going back."""

WARM = 0.1
"""Share of a phase in which the rate rises. Until AdamW has averaged squares over some batches, a
first one included, it makes steps of full size of gradients that are noise for the most part."""

LOSS_SCALE = 2.0**14
"""Of gradients in float16, at first."""


@dataclass
class Progress:
    """Where a course is: all that a journal holds beside tensors.

    phase      index of the phase
    began      share of the budget that was spent when it began
    made       the same when its AdamW was made, anew after each time that it went back
    first      step at which it began
    step       steps so far
    judged_at  step of the last checkpoint
    stale      checkpoints of the phase since the lowest held-out loss
    spent      whether the phase has won too little to go on
    seconds    so far
    lowest     held-out loss
    kept       how the state that is kept was judged; None while that is no number
    rate       of the phase, as a share of the one that was given
    scale      of losses on the way back
    summed, counted   training losses since the last checkpoint
    """

    phase: int = 0
    began: float = 0.0
    made: float = 0.0
    first: int = 0
    step: int = 0
    judged_at: int = -1
    stale: int = 0
    spent: bool = False
    seconds: float = 0.0
    lowest: float | None = None
    kept: Judgement | None = None
    skipped: int = 0
    rate: float = 1.0
    scale: float = 1.0
    summed: float = 0.0
    counted: int = 0
    curve: tuple[Checkpoint, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Course:
    """fitted  batches to train on
    held_out  what is judged by
    started   when, by the monotonic clock
    advance   called with a word after each step
    save      called at each checkpoint, where set
    """

    def __init__(
        self,
        student: Student,
        phases: Sequence[Phase],
        objective: Objective,
        fitted: Sequence[Batch],
        held_out: HeldOut,
        settings: Settings,
        seed: int,
        started: float,
        processes: Processes,
        advance: Callable[[str], None],
    ) -> None:
        self.student, self.phases, self.objective = student, phases, objective
        self.fitted, self.held_out, self.settings = fitted, held_out, settings
        self.seed, self.processes = seed, processes
        self.advance = advance
        self.save: Callable[[Course], None] | None = None
        self.at = Progress(scale=LOSS_SCALE if settings.dtype is torch.float16 else 1.0)
        self.kept: State = student.state()
        self.lowest = self.kept
        self.optimiser: torch.optim.AdamW | None = None
        self._ends = settings.ends([phase.name for phase in phases])
        self._started = started
        self._lasted = {"step": 0.0, "judge": 0.0}

    def go_on(
        self, at: Progress, kept: State, lowest: State, now: State, moments: dict[str, State]
    ) -> None:
        """From where a journal ends: `moments` are those of AdamW, by the name of a parameter."""
        self.at, self.kept, self.lowest = at, kept, lowest
        self._started = time.monotonic() - at.seconds
        self.student.restore(now)
        self.optimiser = self._made_optimiser(moments)

    def run(self) -> str:
        """Until the budget ends, or nothing gets better; why it ended.

        Ctrl-C ends it too, once the model has been judged as it came. The student has the state
        that was kept then.
        """
        reason = "the budget is spent"
        try:
            if not self.at.curve:
                self._judge("given")
            while self.at.phase < len(self.phases):
                self._run_phase()
                if self.at.stale >= self.settings.patience:
                    reason = f"no better for {self.settings.patience} checkpoints"
                else:
                    reason = "the budget is spent"
                self._next_phase()
        except KeyboardInterrupt:
            if not self.at.curve:
                raise
            reason = "interrupted"
        self.student.restore(self.kept)
        return reason

    # ---- a phase ----------------------------------------------------------------------------

    def _run_phase(self) -> None:
        phase, at = self.phases[self.at.phase], self.at
        if self.optimiser is None:
            self._renew()
        began = time.monotonic()
        while not at.spent and at.stale < self.settings.patience and not self._is_over():
            self._step(phase)
            self.advance(f"{phase.name}, held-out loss {at.lowest or math.inf:.4g}")
            is_due = self._is_due()
            self._lasted["step"] = time.monotonic() - began
            if is_due:
                self._judge(phase.name)
            began = time.monotonic()
        if at.judged_at < at.step:
            self._judge(phase.name)

    def _next_phase(self) -> None:
        self.student.restore(self.lowest)
        self.optimiser = None
        at = self.at
        at.phase, at.stale, at.first, at.began = at.phase + 1, 0, at.step, self._spent()
        at.spent, at.summed, at.counted, at.rate = False, 0.0, 0, 1.0

    def _go_back(self) -> None:
        """To the lowest loss, from which the phase goes on in smaller steps."""
        self.student.restore(self.lowest)
        self._renew()
        self.at.rate *= SMALLER

    def _renew(self) -> None:
        """An optimiser that knows nothing yet."""
        self.optimiser, self.at.made = self._made_optimiser({}), self._spent()

    def _made_optimiser(self, moments: dict[str, State]) -> torch.optim.AdamW:
        """With a rate of its own for each tensor: factors of one weight differ in scale as their
        format has it."""
        groups = [
            {"params": [p], "scale": self.student.scales[name]}
            for name, p in self.student.masters.items()
        ]
        made = torch.optim.AdamW(groups, lr=self.settings.lr, weight_decay=0.0)
        for name, p in self.student.masters.items():
            if name in moments:
                made.state[p] = {key: t.clone() for key, t in moments[name].items()}
        return made

    # ---- a step -----------------------------------------------------------------------------

    def _step(self, phase: Phase) -> None:
        at, accumulate = self.at, self.settings.accumulate
        assert self.optimiser is not None
        self.optimiser.zero_grad(set_to_none=True)
        lost = 0.0
        for k in range(accumulate):
            twin = self.student.twin(lambda name: phase.trains(name, at.step - at.first))
            batch = self._batch(at.step * accumulate + k)
            lost += phase.backward(twin, batch, at.step - at.first, at.scale) / accumulate
            self.student.take(twin, at.scale * accumulate)
        masters = list(self.student.masters.values())
        self.processes.average(masters)
        at.step += 1
        if self._is_finite(lost, masters):
            rate = self.settings.lr * at.rate * self._rate()
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            self.optimiser.step()
            self.student.write()
            at.summed, at.counted = at.summed + lost, at.counted + 1
        self.optimiser.zero_grad(set_to_none=True)

    def _is_finite(self, lost: float, masters: Sequence[Tensor]) -> bool:
        """Whether a step can be made. Gradients that float16 has no room for halve their scale; all
        else that is no finite number is counted."""
        grads = [p.grad for p in masters if p.grad is not None] or [masters[0].new_zeros(1)]
        sums = torch.stack([grad.double().sum().to(masters[0].device) for grad in grads])
        (wrong,) = self.processes.summed([0.0 if math.isfinite(lost) else 1.0], masters[0])
        if not wrong and bool(sums.isfinite().all()):
            return True
        if not wrong and self.at.scale > 1:
            self.at.scale /= 2
        else:
            self.at.skipped += 1
        return False

    def _batch(self, k: int) -> Batch:
        """The k-th of all: each once, in an order drawn anew, then again."""
        epoch, place = divmod(k, len(self.fitted))
        draws = torch.Generator("cpu").manual_seed((self.seed + epoch) % 2**63)
        order = torch.randperm(len(self.fitted), generator=draws, dtype=torch.int64, device="cpu")
        return self.fitted[int(order[place])]

    def _rate(self) -> float:
        """A warm-up, also after going back, and half a cosine over the phase (Loshchilov & Hutter
        2017), in the middle of the step that was just counted: the last one is one too."""
        at, steps = self.at, self.settings.steps
        room = self._ends[at.phase] - at.began
        if room <= 0:
            return 0.0
        middle = self._spent() - (0.0 if steps is None else 0.5 / steps)
        done = min(1.0, max(0.0, (middle - at.began) / room))
        warm = min(1.0, max(0.0, (middle - at.made) / (WARM * room)))
        return warm * 0.5 * (1 + math.cos(math.pi * done))

    # ---- the budget -------------------------------------------------------------------------

    def _seconds(self) -> float:
        like = next(iter(self.student.masters.values()))
        self.at.seconds = self.processes.agreed(time.monotonic() - self._started, like)
        return self.at.seconds

    def _spent(self) -> float:
        """Share of the budget."""
        if self.settings.steps is not None:
            return self.at.step / self.settings.steps
        assert self.settings.seconds is not None
        return self._seconds() / self.settings.seconds

    def _is_over(self) -> bool:
        """Whether there is no room in the phase for one more step, and to judge it."""
        if self.settings.steps is not None:
            return self.at.step >= round(self._ends[self.at.phase] * self.settings.steps)
        assert self.settings.seconds is not None
        like = next(iter(self.student.masters.values()))
        more = self.processes.agreed(self._lasted["step"] + self._lasted["judge"], like)
        end = self._ends[self.at.phase] * self.settings.seconds
        return self._seconds() + more > end

    def _is_due(self) -> bool:
        at = self.at
        if self.settings.steps is not None:
            return at.step - at.judged_at >= max(1, self.settings.steps // CHECKPOINTS)
        assert self.settings.seconds is not None
        like = next(iter(self.student.masters.values()))
        least = self.processes.agreed(self._lasted["judge"] / JUDGING, like)
        since = self._seconds() - at.curve[-1].seconds
        return since >= max(self.settings.seconds / CHECKPOINTS, least)

    # ---- judging ----------------------------------------------------------------------------

    def _wins(self, held: float | None) -> bool:
        """Whether a held-out loss is so much below the lowest that a phase before the last goes
        on."""
        if held is None or self.at.lowest is None:
            return held is not None
        return self.at.lowest - held > GAIN * abs(self.at.lowest)

    def _judge(self, phase: str) -> None:
        at, began = self.at, time.monotonic()
        like = next(iter(self.student.masters.values()))
        judged = self.held_out.judge(self.student.model, self.objective, self.processes, like)
        held = judged.value if math.isfinite(judged.value) else None
        kept, is_last = not at.curve, at.phase + 1 == len(self.phases)
        at.spent = bool(at.curve) and not is_last and not self._wins(held)
        if held is not None and (at.lowest is None or held < at.lowest):
            self.lowest, at.lowest, at.stale = self.student.state(), held, 0
            if at.kept is None or judged.fall(at.kept) > 0:
                self.kept, at.kept, kept = self.lowest, judged, True
        elif at.curve:
            at.stale += 1
            if held is None or at.stale % TURNS == 0:
                self._go_back()
        training = at.summed / at.counted if at.counted else None
        told = Checkpoint(phase, at.step, round(self._seconds(), 3), training, held, kept)
        at.curve, at.judged_at = (*at.curve, told), at.step
        at.summed, at.counted = 0.0, 0
        if self.save is not None and self.processes.is_first:
            self.save(self)
        self._lasted["judge"] = time.monotonic() - began

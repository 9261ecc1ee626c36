"""From a compressed model to a better one, by the outputs of the given model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._heads import heads_of
from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._uncompiled import uncompiled
from tensorlrf.compression._unpacked import unpacked
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import call, list_batches
from tensorlrf.compression.checkpoint._architecture import describe
from tensorlrf.compression.journal._identity import checksum_of_batches, checksum_of_model
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.compression.refinement._blocks import blocks_of
from tensorlrf.compression.refinement._course import Course
from tensorlrf.compression.refinement._journal import Journal
from tensorlrf.compression.refinement._judgement import HeldOut
from tensorlrf.compression.refinement._objective import Loss, Objective, Wanted
from tensorlrf.compression.refinement._phases import (
    PHASES,
    Block,
    Global,
    Local,
    Passes,
    Phase,
)
from tensorlrf.compression.refinement._processes import Processes
from tensorlrf.compression.refinement._refinement import Refinement
from tensorlrf.compression.refinement._settings import Settings
from tensorlrf.compression.refinement._student import Student, within
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, lowered_by
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.arguments import PathLike
from tensorlrf.nn import FactoredLayer
from tensorlrf.nn.copies import replica
from tensorlrf.nn.whole import check_whole


def refine(
    small: nn.Module,
    model: nn.Module,
    data: Any,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    loss: Loss = "auto",
    readout: Readout | None = None,
    labels: Iterable[Any] | None = None,
    phases: Sequence[str] | None = None,
    look_ahead: bool = False,
    lr: float = 2e-3,
    patience: int = 4,
    holdout: float = 0.1,
    groups: Any = None,
    accumulate: int = 1,
    dtype: torch.dtype | None = None,
    checkpointing: bool = False,
    lora: int | None = None,
    journal: PathLike | None = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> tuple[nn.Module, Refinement]:
    """A copy of a compressed model, trained to follow the given one, and how that went.

    Three phases share one budget. In "local" each factored layer follows the given one on its
    inputs; in "block" each block (what a ModuleList or Sequential repeats) follows the given one,
    on what the compressed blocks before it deliver; in "global" the outputs follow, or the user's
    own loss falls. What a phase does not need the next one has: one before the last ends where a
    checkpoint wins less than a hundredth of the loss. Only factors, norms and biases (parameters
    with one axis) are trained, in eval mode, by AdamW. The model is judged on held-out batches, at
    the beginning and then at about twenty checkpoints: after two in a row that are no better than
    the best it goes on from the best in smaller steps. A state is kept where its loss is lower than
    that of the one kept before by more than chance: by the bound on paired differences over groups,
    or samples, with 95% confidence. The last one kept is returned, which may be the model as it
    came: it is never worse than it was. Ctrl-C ends it and returns what was kept so far.

    Parameters
    ----------
    small : Module
        The compressed model, which stays as it is. Inside DistributedDataParallel its processes
        train one copy together, each on batches of its own.
    model : Module
        The given one, which stays as it is.
    data : iterable of batches, DataLoader or callable
        Inputs, as `apply` takes them; two batches at the least.
    seconds, steps : float, int
        The budget, one of them: seconds, or steps of the optimiser.
    loss : {"auto", "kl", "cosine", "relative"}, callable, or a tuple of one of each
        What is brought down, and judged by: how far the outputs are from those of `model`, as in
        `sensitivity`; a function from what the model returns, and the labels of the batch where
        there are `labels`, to one number; or the sum of both.
    readout : callable, optional
        What counts of the outputs, as in `sensitivity`.
    labels : iterable, optional
        What a function in `loss` takes beside the outputs: an entry for each batch of `data`.
    phases : sequence of {"local", "block", "global"}, optional
        Only these. By default all, those aside that the model has no parts for.
    look_ahead : bool
        In "block", one block at a time, judged also by the outputs of the whole model through the
        blocks behind it.
    lr : float
        The rate, relative to the root mean square of each tensor: in every phase it rises over a
        tenth of its room, then falls by half a cosine.
    patience : int
        Checkpoints in a row without a better state after which a phase ends.
    holdout : float
        Share of the batches to judge by, as in `apply`.
    groups : sequence, optional
        What each batch is of, as in `apply`: a picture or a document that is judged by is none that
        is trained on, and states are compared group by group. Without it, sample by sample.
    accumulate : int
        Batches for one step.
    dtype : dtype, optional
        torch.bfloat16 or torch.float16: autocast runs the training passes in it. Steps and
        judgements are in the dtypes of the model, in float32 at the least where numbers add up.
    checkpointing : bool
        Keep only the inputs of blocks for the pass back through the whole model, and run them
        again.
    lora : int, optional
        Train changes of this rank in place of the factors that have more numbers, which saves
        memory of gradients and of the optimiser; they are merged at the end.
    journal : str or PathLike, optional
        A folder. At each checkpoint it gets all that is needed to go on; the same call goes on from
        there.
    random_state : int or Generator, optional
        Of the order of batches; torch's own generator stays as it was.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    model : Module
        The copy, its flags as in `small`; without DistributedDataParallel.
    report : Refinement
        Its held-out loss over seconds.

    Raises
    ------
    ArgumentError
        For models of different architectures; where nothing can be trained, or no batch be held
        out; for batches, labels or outputs that do not fit; for a journal of another run.
    FileError, FileFormatError
        For a journal that cannot be written, or is damaged.

    References
    ----------
    Hinton, Vinyals & Dean 2015 (distillation); Hu et al. 2022 (low-rank changes); Liang & Zeger
    1986 (the bound).

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> small, _ = tensorlrf.compress(model, keep_params=0.5, skip=[])
    >>> batches = [torch.rand(16, 32) for _ in range(8)]
    >>> better, report = tensorlrf.refine(small, model, batches, steps=20)
    >>> report.after <= report.before
    True
    """
    settings = Settings(
        seconds, steps, phases, look_ahead, lr, patience, holdout, accumulate, dtype,
        checkpointing, lora,
    )  # fmt: skip
    settings.check()
    started = time.monotonic()
    given, processes = Processes.of(uncompiled(small))
    teacher, _ = Processes.of(uncompiled(model))
    given, teacher = uncompiled(given), uncompiled(teacher)
    _check_models(given, teacher)
    teacher = unpacked(teacher)
    with torch.inference_mode(False), without_autocast():
        held = Calibration.of(
            list_batches(data, replica(teacher), argument="data"), holdout, groups
        )
        return refined(
            given, teacher, held, settings, loss, readout, labels, journal, random_state, progress,
            processes, started,
        )  # fmt: skip


def refined(
    small: nn.Module,
    model: nn.Module,
    data: Calibration,
    settings: Settings,
    loss: Loss,
    readout: Readout | None,
    labels: Iterable[Any] | None,
    journal: PathLike | None,
    random_state: int | torch.Generator | None,
    progress: bool,
    processes: Processes,
    started: float,
) -> tuple[nn.Module, Refinement]:
    """`refine` on batches of which some are held out, from `started` on by the monotonic clock."""
    if not data.held_out:
        raise ArgumentError(
            f"data has {len(data.batches)} batch, and none can be held out to judge by; give two "
            "at the least"
        )
    first = call(replica(model), data.held_out[0], argument="data")
    objective = Objective.of(loss, readout, labels, data.batches, first, bool(heads_of(model)))
    held = HeldOut.of(data.held_out, _wanted(objective, model, data), data.groups)
    draws = _cpu(random_state)
    drawn = torch.randint(2**62, (1,), generator=draws, dtype=torch.int64, device=draws.device)
    seed, kept = int(drawn), None
    if journal is not None:
        run = {
            **settings.to_dict(),
            "loss": objective.unit,
            "small": checksum_of_model(small),
            "model": checksum_of_model(model),
            "data": checksum_of_batches(data.batches, objective.labels),
            "groups": list(data.groups or ()),
        }
        kept = Journal.at(journal, run)
        seed = kept.seed(otherwise=seed)
    student = Student(small, settings.lora, torch.Generator().manual_seed(seed))
    phases = _phases(student, model, objective, settings)
    with (
        lowered_by(partial(_less, settings, model)),
        progress_bar("refine", settings.steps, progress) as advance,
    ):
        course = Course(
            student, phases, objective, data.fitted, held, settings, seed, started, processes,
            advance,
        )  # fmt: skip
        if kept is not None:
            kept.follow(course)
        reason = course.run()
    report = Refinement(
        unit=objective.unit,
        trained=student.size,
        batches=len(data.fitted),
        held_out=len(data.held_out),
        groups=0 if course.at.kept is None else len(course.at.kept.lost),
        skipped=course.at.skipped,
        reason=reason,
        curve=course.at.curve,
    )
    return student.finished(), report


def _less(settings: Settings, model: nn.Module) -> str:
    """What lowers the memory of training."""
    ways = ["smaller batches (--batch-size), with accumulate= (--accumulate) as many in a step"]
    if not settings.checkpointing and blocks_of(model):
        ways.append("checkpointing=True (--checkpointing) keeps the inputs of blocks alone")
    if settings.lora is None:
        ways.append("lora= (--lora) trains changes of a low rank")
    return f"while the model was trained: {'; '.join(ways)}"


def _wanted(objective: Objective, teacher: nn.Module, held: Calibration) -> list[Wanted]:
    """What the given model returns for the batches held out. Labels of all batches are looked at:
    better told before anything is trained."""
    if objective.labels is not None:
        for batch in held.fitted:
            objective.of_function(call(replica(teacher), batch, argument="data"), batch)
    found = []
    for batch in held.held_out:
        rows = objective.wanted(call(replica(teacher), batch, argument="data"), batch)
        if not all(bool(torch.isfinite(one).all()) for one in rows):
            raise ArgumentError(
                f"data: what model returns for batch {batch.index} contains NaN or Inf, beside "
                "which no loss is a number; look at that batch, or give readout= for a part of it"
            )
        found.append(rows)
    return found


def _cpu(random_state: int | torch.Generator | None) -> torch.Generator:
    return generator(random_state, torch.device("cpu"))


def _check_models(small: Any, model: Any) -> None:
    """Raise ArgumentError for what is no pair of a compressed model and the one it was."""
    for name, one in (("small", small), ("model", model)):
        if not isinstance(one, nn.Module):
            raise ArgumentError(f"{name} is a {type(one).__name__}; pass a torch.nn.Module")
        check_whole(one, "refine, whose processes each have the model,", name)
    ours, given = describe(small), describe(model)
    for place in {**ours, **given}:
        a, b = ours.get(place), given.get(place)
        if a != b:
            shown = repr(place) if place else "the model itself"
            raise ArgumentError(
                f"small and model are of different architectures: {shown} is {a or 'missing'} in "
                f"small, {b or 'missing'} in model; give the model that small was made of"
            )


def _phases(
    student: Student, teacher: nn.Module, objective: Objective, settings: Settings
) -> list[Phase]:
    """Those that are wanted and have something to train. Raises ArgumentError where one that was
    asked for has not."""
    layers = [n for n, m in student.given.named_modules() if isinstance(m, FactoredLayer)]
    blocks = blocks_of(teacher)
    if settings.checkpointing and not blocks:
        raise ArgumentError(
            "checkpointing=True runs blocks again, and model has none: no ModuleList or Sequential "
            "repeats a module in it"
        )
    passes = Passes(settings.dtype, blocks if settings.checkpointing else ())
    holding = [b for b in blocks if any(within(name, b) for name in student.names)]
    ahead = objective if settings.look_ahead else None
    found: dict[str, Phase | None] = {
        "local": Local(teacher, passes, layers) if layers else None,
        "block": Block(teacher, passes, holding, ahead) if holding else None,
        "global": Global(teacher, passes, objective),
    }
    for name in settings.phases or ():
        if found[name] is None:
            lack = "factored layer" if name == "local" else "block with something to train"
            raise ArgumentError(f"phases has {name!r}, and small has no {lack}; leave it out")
    wanted = settings.phases or PHASES
    return [phase for name in PHASES if name in wanted and (phase := found[name]) is not None]

"""`sensitivity`: what each layer of a model can lose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._survey import included, survey, without_skipped
from tensorlrf.compression._unpacked import shared_model
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.group._alike import check_alike
from tensorlrf.compression.group._group import ranks_here
from tensorlrf.compression.journal._identity import identity
from tensorlrf.compression.journal._kept import kept_in
from tensorlrf.compression.losses._output_loss import Readout
from tensorlrf.compression.losses._probe import Probe
from tensorlrf.compression.plan.allocation import AUTO, LOSSES
from tensorlrf.compression.plan.sensitivity import Sensitivity
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.files.arguments import PathLike


def sensitivity(
    model: nn.Module,
    calibration: Any = None,
    *,
    rule: str = AUTO,
    skip: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    loss: str = AUTO,
    readout: Readout | None = None,
    holdout: float = 0.1,
    groups: Any = None,
    journal: PathLike | None = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> Sensitivity:
    """What each layer of a model can lose, rank by rank, the others left as they are.

    It holds for every budget and every format: plans are made of it without another pass.

    Parameters
    ----------
    model : Module
        Stays as it is.
    calibration : iterable of batches, DataLoader or callable, optional
        Inputs, as `apply` takes them. Without, the spectra of the weights tell what they can.
    rule : str
        "fisher": from gradients of the outputs, one pass forward and one forth and back of as many
        batches as tell it.
        "measured": from the outputs with one layer cut at a time, two passes over the inputs held
        out for each layer. "energy": the share of the energy of a layer's own outputs that a cut
        leaves out, whatever becomes of it. "auto": measured where convolutions hold most of the
        weights, else fisher. Published rules, each as the loss that its ranks make least:
        "effective_rank" (D-Rank), "spectrum_shape" (WeLore; of the weights alone) and
        "block_influence" (MoDeGPT; for models with blocks whose outputs have the shape of their
        inputs).
    skip, include : str or sequence of str, optional
        Layers that are not looked at, and kinds that are not by default, as in `plan`.
    loss : {"auto", "kl", "cosine", "relative"}
        What an error of the outputs costs: the KL divergence from the given model's distribution,
        of logits; 1 - cosine, of embeddings; the squared relative error, of anything. "auto": KL
        for logits, else the relative error.
    readout : callable, optional
        What counts of the model's outputs: a function of what it returns to one tensor, as the mean
        over tokens of a sentence encoder. By default all its floating-point tensors.
    holdout : float
        Share of the batches on which "measured" judges, as in `apply`.
    groups : sequence, optional
        Labels of what batches are of, as in `apply`.
    journal : str or PathLike, optional
        A folder that gets what is measured, as it is measured; the same call goes on from there.
    random_state : int or Generator, optional
        Of the directions that are drawn.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    Sensitivity

    Raises
    ------
    ArgumentError
        For an unknown word, a rule that needs calibration where there is none, batches or outputs
        that cannot be, and NaN or Inf on the way; for a journal of another call, and one with a
        `random_state` that is no int.
    FileError, FileFormatError
        For a journal that cannot be written, that another call is at, or that is damaged.

    Warns
    -----
    CalibrationWarning
        Where the model cannot be differentiated, so that losses are measured instead.

    References
    ----------
    Martens 2020 (curvature); Hsu et al. 2022 (Fisher-weighted low rank); Mi et al. 2025 (D-Rank);
    Jaiswal et al. 2024 (WeLore); Lin et al. 2025 (MoDeGPT); Men et al. 2024 (block influence).

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> found = tensorlrf.sensitivity(model, [torch.rand(64, 64)], skip=[], progress=False)
    >>> found.layer("0").loss_at(2048) >= found.layer("0").loss_at(3072)
    True
    """
    if rule not in (AUTO, *LOSSES):
        raise unknown("rule", rule, (AUTO, *LOSSES))
    with ranks_here(calibration is not None) as group:
        model = shared_model(model, group)
        wanted = without_skipped(survey(model), model, skip, included(include))
        names = [one.name for one in wanted if one.eligible]
        if not names:
            raise ArgumentError("model has no layer that could be factored; see tensorlrf.plan")
        asked = {
            "call": "sensitivity", "rule": rule, "loss": loss, "readout": readout,
            "holdout": holdout, "layers": names, "random_state": random_state,
        }  # fmt: skip
        check_alike(group, model, {**asked, "journal": journal is not None})
        data = Calibration.read(calibration, model, holdout, groups=groups, group=group)
        of = partial(identity, model, data, None, asked)
        with (
            kept_in(journal, group, random_state, of) as kept,
            torch.inference_mode(False),
            without_autocast(),
        ):
            probe = Probe(
                model, names, data, loss, readout, random_state, progress and group.is_first,
                kept=kept,
            )  # fmt: skip
            return probe.sensitivity(rule)

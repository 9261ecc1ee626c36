"""The rows of `bench/allocation.py`, and the ranks of each: found, or read from the cache."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tensorlrf
from bench.allocation_peers import asvd, planned, svd_llm_v2
from bench.judged import FIGURES
from bench.plan_order import output_energies
from bench.resident import Resident
from bench.subjects import Subject
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.losses._curvature import output_metrics
from tensorlrf.compression.losses._probe import Probe

SENSED = (
    "fisher",
    "measured",
    "energy",
    "effective_rank",
    "spectrum_shape",
    "block_influence",
)
AFTER_BASES = ("fisher", "measured", "energy", "effective_rank")
"""Rules that begin with the directions of the layers' outputs."""
HERE = ("svd_llm_v2", "asvd")
RULES = ("uniform", "auto", *SENSED, *HERE)
ORDERS = ("order-fisher", "order-measured")

HELD_OUT = 0.25
"""Of the calibration inputs, where plans are put in order."""

SHARES: dict[str, tuple[float, ...]] = {
    "minilm": (0.6, 0.4, 0.25),
    "efficientnet": (0.9, 0.8, 0.6),
    "smollm2": (0.9, 0.8, 0.6),
    "smollm2_mixed": (0.9, 0.8, 0.6),
    "own_cnn": (0.25,),
    "detector": (0.25, 0.12),
}


FITS = ("independent", "original")
METRICS = ("outputs", "loss", "auto")

ALSO = (
    ("uniform", "original", "outputs"),
    ("fisher", "original", "outputs"),
    ("measured", "original", "outputs"),
    ("fisher", "independent", "loss"),
    ("fisher", "original", "loss"),
    ("auto", "original", "auto"),
)
"""(rule, target, metric) of the rows that are fitted otherwise."""


@dataclass(frozen=True)
class Spec:
    """A row: a model, a rule and the share of the parameters to keep; the dense model keeps 1. And
    `target` and `metric` of the fit."""

    model: str
    rule: str
    keep: float
    target: str = "independent"
    metric: str = "outputs"

    @classmethod
    def of(cls, text: str) -> Spec:
        """ "minilm:fisher:.6" or "minilm:fisher:.6:original:loss". Raises ValueError."""
        model, rule, share, *fit = [*text.split(":"), *[""] * 2][: max(3, text.count(":") + 1)]
        try:
            keep = float(share)
        except ValueError:
            keep = 0.0
        known = len(fit) <= 2 and all(w in ws for w, ws in zip(fit, (FITS, METRICS), strict=False))
        if not 0 < keep <= 1 or not known:
            raise ValueError(
                "a row is MODEL:RULE:SHARE[:TARGET[:METRIC]] with a share in (0, 1], such as "
                f"minilm:fisher:.6 or minilm:fisher:.6:original:loss, got {text!r}"
            )
        if model not in SHARES:
            raise ValueError(f"the model must be one of {', '.join(SHARES)}, got {model!r}")
        if rule not in ("dense", *RULES, *ORDERS):
            raise ValueError(
                f"the rule must be dense or one of {', '.join((*RULES, *ORDERS))}, got {rule!r}"
            )
        return cls(model, rule, keep, *fit)

    def __str__(self) -> str:
        usual = Spec(self.model, self.rule, self.keep)
        fit = [] if self == usual else [self.target]
        fit += [] if self.metric == usual.metric else [self.metric]
        return ":".join([self.model, self.rule, f"{self.keep:g}", *fit])


def specs_of(model: str) -> list[Spec]:
    """All rows of a model."""
    rows = [Spec(model, "dense", 1.0)]
    for keep in SHARES[model]:
        rows += [Spec(model, rule, keep) for rule in (*RULES, *ORDERS)]
        rows += [Spec(model, rule, keep, *fit) for rule, *fit in ALSO]
    return rows


class Finder:
    """Finds the ranks of one model's rows; its passes over inputs are made once."""

    def __init__(
        self, model: str, about: Subject, dense: nn.Module, batches: list[Any], cache: Path
    ) -> None:
        self.model, self.dense, self.batches, self.cache = model, dense, batches, cache
        self.figure, self.skip = FIGURES[model], list(about.skip)
        self.peak_mb = 0.0

    @cached_property
    def probe(self) -> Probe:
        """What tells how sensitive layers are, and the loss of a model that is cut."""
        plan = tensorlrf.plan(self.dense, keep_params=1.0, skip=self.skip)
        names = [row.name for row in plan.layers if row.eligible]
        data = Calibration.read(self.batches, self.dense, HELD_OUT)
        loss, readout = self.figure.loss, self.figure.readout
        return Probe(self.dense, names, data, loss, readout, 0, progress=False, every=True)

    @cached_property
    def bases_s(self) -> float:
        """CPU seconds of the pass that most rules begin with."""
        start = time.process_time()
        for _ in self.probe.parts():
            pass
        return time.process_time() - start

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What errors of the layers' outputs cost the model."""
        data, names = self.probe.data, list(self.probe.names)
        draws = torch.Generator().manual_seed(0)
        return output_metrics(self.dense, names, data, self.probe.output_loss, draws, lambda: None)

    def plan(self, rule: str, keep: float) -> tuple[tensorlrf.Plan, float]:
        """(the plan of a rule, the CPU seconds that it takes from the model on)."""
        uniform = tensorlrf.plan(self.dense, keep_params=keep, skip=self.skip)
        if rule == "uniform":
            return uniform, 0.0
        base = {"asvd": "measured", "svd_llm_v2": "energy"}.get(rule, rule)
        found, seconds = self.sensitivity(base)
        start = time.process_time()
        if rule == "asvd":
            made = planned(uniform, asvd(found.layers, keep), found.layers)
        elif rule == "svd_llm_v2":
            names = [row.name for row in found.layers]
            energies = output_energies(self.dense, names, self.batches)
            made = planned(uniform, svd_llm_v2(found.layers, energies, keep), found.layers)
        else:
            made = tensorlrf.plan(self.dense, keep_params=keep, skip=self.skip, sensitivity=found)
        return made, seconds + time.process_time() - start

    def sensitivity(self, rule: str) -> tuple[tensorlrf.Sensitivity, float]:
        """(by a rule, CPU seconds), from the cache, or found and put there."""
        path = self.cache / f"{self.model}-{rule}-{len(self.batches)}.json"
        if not path.exists():
            resident = Resident()
            before = self.bases_s if rule in AFTER_BASES else 0.0
            start = time.process_time()
            found = self.probe.sensitivity(rule)
            content = {
                "seconds": before + time.process_time() - start,
                "peak_mb": resident.peak_mb(),
                "sensitivity": json.loads(found.to_json()),
            }
            self.cache.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(content))
        content = json.loads(path.read_text())
        self.peak_mb = max(self.peak_mb, content["peak_mb"] or 0.0)
        known = tensorlrf.Sensitivity.from_json(json.dumps(content["sensitivity"]))
        return known, content["seconds"]

    def compressed(self, spec: Spec) -> tuple[nn.Module, tensorlrf.Report]:
        """With the ranks that "auto" chooses."""
        return tensorlrf.compress(
            self.dense,
            keep_params=spec.keep,
            calibration=self.batches,
            skip=self.skip,
            target=spec.target,
            metric=spec.metric,
            allocation="auto",
            loss=self.figure.loss,
            readout=self.figure.readout,
            progress=False,
        )


def spaced(batches: list[Any], n: int | None) -> list[Any]:
    """At most so many of them, evenly spaced: they may be in order of length."""
    return batches if n is None else batches[:: -(-len(batches) // n)]


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)

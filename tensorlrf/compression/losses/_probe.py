"""From a model and calibration inputs to what each of its layers can lose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._heads import heads_of
from tensorlrf.compression._progress import Advance, progress_bar
from tensorlrf.compression._survey import kind_of
from tensorlrf.compression.calibration._dense_layer import dense_layer_at, tied_places
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._memory import parted
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.calibration.batches import Batch, call
from tensorlrf.compression.checkpoint._architecture import fingerprint
from tensorlrf.compression.group._group import ALONE, Alone
from tensorlrf.compression.journal._kept import NOT_KEPT, Kept
from tensorlrf.compression.losses._bases import Basis, basis_bytes, spectra, sums_bytes
from tensorlrf.compression.losses._curvature import (
    GradientMoments,
    gradient_bytes,
    metrics_of,
    with_room,
)
from tensorlrf.compression.losses._fisher import bases_of, fisher_losses
from tensorlrf.compression.losses._influence import influences
from tensorlrf.compression.losses._kept import KeptOfLayers, Losses
from tensorlrf.compression.losses._measured import Wanted, loss_of, measured_losses
from tensorlrf.compression.losses._output_loss import OutputLoss, Readout
from tensorlrf.compression.losses._published import (
    Sizes,
    block_influence_losses,
    effective_rank_losses,
    spectrum_shape_losses,
)
from tensorlrf.compression.losses._weights import weight_energies
from tensorlrf.compression.moments._fitted import Reader
from tensorlrf.compression.moments._moments import Moments
from tensorlrf.compression.plan.allocation import AUTO, RULES_ON_INPUTS
from tensorlrf.compression.plan.sensitivity import Sensitivity, row_of
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import (
    ArgumentError,
    CalibrationWarning,
    GroupError,
    is_out_of_memory,
    warn,
)
from tensorlrf.files.sealed import canonical, checksum_of
from tensorlrf.nn.copies import copy_of, replica

OUTPUTS_PART = 4
"""Of the room for a model's statistics its outputs on the batches held out may have this part."""

OF_WEIGHTS = "squared relative error of the weight"
OF_OUTPUTS = "squared relative error of the layer's outputs"


@dataclass
class Probe:
    """A model whose layers are cut, to see what that costs: all that rules have in common.

    weighs   whether passes for "fisher" also gather what errors of the outputs cost
    every    whether directions of outputs are those of all inputs, as cuts that stay want them
    moments  of the inputs, where there are no batches
    metrics  that, of the layers that gradients reach, where such passes were made
    kept     what an earlier call has measured, and where this one keeps it
    """

    model: nn.Module
    names: Sequence[str]
    data: Calibration | None
    loss: str = AUTO
    readout: Readout | None = None
    random_state: int | torch.Generator | None = 0
    progress: bool = True
    weighs: bool = False
    every: bool = False
    moments: Moments | None = None
    metrics: dict[str, Metrics] = field(default_factory=dict)
    kept: Kept = NOT_KEPT
    _known: dict[str, Sensitivity] = field(default_factory=dict)
    _bases: dict[str, Basis] = field(default_factory=dict)
    _lost: dict[frozenset[tuple[str, int]], float] = field(default_factory=dict)

    @property
    def judging(self) -> list[Batch]:
        """The batches held out; where there are none, those to fit to."""
        assert self.data is not None
        return self.data.judging

    @cached_property
    def output_loss(self) -> OutputLoss:
        """What counts of the outputs, as the first batch has them."""
        classifies = bool(heads_of(self.model))
        return OutputLoss.of(self.loss, self.readout, self._one[1], classifies)

    @property
    def _one(self) -> tuple[Batch, Any]:
        """A batch, and what the given model puts out there: on all ranks the same."""
        assert self.data is not None
        if self.data.group.size == 1:
            return self.judging[0], self._wanted[0]
        return self.data.first, call(replica(self.model), self.data.first)

    def _bytes(self, name: str) -> int:
        """Of a layer; the sums of its outputs are given up before gradients are summed."""
        site = dense_layer_at(self.model, name)
        weighed = gradient_bytes(site) if name in self._weighed else 0
        return max(sums_bytes(site), basis_bytes(site) + weighed)

    @cached_property
    def _weighed(self) -> list[str]:
        """The layers whose metrics are gathered."""
        assert self.data is not None
        return with_room(self.model, self.names, self.data.room) if self.weighs else []

    @cached_property
    def _tied(self) -> dict[str, str]:
        """What else runs on the weight of a layer -> that layer."""
        return tied_places(self.model, self.names)

    @property
    def hears(self) -> bool:
        """Whether anything of the outputs counts: there may be no tensor among them."""
        batch, wanted = self._one
        return self.output_loss.hears(wanted, batch)

    @cached_property
    def _parts(self) -> list[list[str]]:
        """The layers, as many at a time as there is room for."""
        assert self.data is not None
        return parted({name: self._bytes(name) for name in self.names}, self.data.room)

    @property
    def _found(self) -> KeptOfLayers:
        return KeptOfLayers(self.kept, self.model)

    def parts(self) -> Iterator[dict[str, Basis]]:
        """Bases of the layers that calibration reaches, part by part."""
        for k in range(len(self._parts)):
            yield self._part(k)

    def _part(self, k: int) -> dict[str, Basis]:
        """Those of a part; where it is the only one, they are held."""
        if self._bases:
            return self._bases
        bases = self._found.bases(k, self._parts[k])
        if bases is None:
            bases = self._bases_of(self._parts[k])
            self._found.put_bases(k, bases)
        if len(self._parts) == 1:
            self._bases = bases
        return bases

    def _bases_of(self, names: Sequence[str]) -> dict[str, Basis]:
        assert self.data is not None
        with progress_bar("look at outputs", None, self.progress) as advance:
            return bases_of(
                self.model, names, self.data.fitted, lambda: advance(""), every=self.every,
                group=self.data.group,
            )  # fmt: skip

    def sensitivity(self, rule: str) -> Sensitivity:
        """By a rule. Raises ArgumentError for one that needs calibration where there is none."""
        if self.data is None:
            if rule in RULES_ON_INPUTS:
                raise ArgumentError(f"the rule {rule!r} looks at inputs; give calibration=")
            return self._by_spectra("energy" if rule == AUTO else rule, self._weight_energies())
        told = rule != AUTO
        rule = rule if told else self._suitable()
        if rule not in self._known:
            self._known[rule] = self._by(rule, told=told)
        return self._known[rule]

    def _by(self, rule: str, *, told: bool) -> Sensitivity:
        """`told`: whether somebody asked for this very rule."""
        if rule == "block_influence":
            return self._by_influence()
        if rule == "spectrum_shape":
            return self._by_spectra(rule, self._weight_energies())
        losses: dict[str, Losses] = {}
        if rule not in RULES_ON_INPUTS:
            for k in range(len(self._parts)):
                losses |= self._spectra(k)
            return self._by_spectra(rule, losses)
        unit = self.output_loss.unit
        if rule == "fisher":
            try:
                losses = self._fisher()
                if losses:
                    return self._told(rule, unit, losses)
                reason = "its outputs have no gradient"
            except GroupError:
                raise
            # What fails in the model's own code is told as a batch that it cannot take.
            except (RuntimeError, ArgumentError) as error:
                reason = str(error).partition("\n")[0]
                if is_out_of_memory(error):  # which was to be had
                    told, reason = True, f"memory ends, and smaller batches take less: {reason}"
            if told:
                warn(
                    f"the model cannot be differentiated ({reason}): losses are measured instead",
                    CalibrationWarning,
                )
        with progress_bar("measure", len(self.names), self.progress) as advance:
            for k in range(len(self._parts)):
                losses |= self._measured(k, advance)
        return self._told("measured", unit, losses)

    def _spectra(self, k: int) -> dict[str, Losses]:
        """The energies of the outputs of a part of the layers."""
        names = self._parts[k]
        found = self._found.all_losses("energy", names)
        if found is None:
            found = spectra(self._part(k))
            self._found.put("energy", names, found)
        return found

    def _measured(self, k: int, advance: Advance) -> dict[str, Losses]:
        """With one layer of a part cut at a time."""
        names = self._parts[k]
        known = self._found.losses("measured", names)
        for name in known:
            advance(name, earlier=True)
        losses = {name: found for name, found in known.items() if found is not None}
        if len(known) == len(names):
            return losses
        bases = {name: own for name, own in self._part(k).items() if name not in known}
        self._found.put("measured", [n for n in names if n not in {*known, *bases}], {})
        for name, found in measured_losses(
            self.model, bases, spectra(bases), self._wanted, self.judging, self.output_loss,
            self._group,
        ):  # fmt: skip
            losses[name] = found
            self._found.put("measured", [name], losses)
            advance(name)
        return losses

    def _fisher(self) -> dict[str, Losses]:
        """With the same cotangents for each part of the layers."""
        assert self.data is not None
        losses: dict[str, Losses] = {}
        draws = generator(self.random_state, dense_layer_at(self.model, self.names[0]).device)
        begin = draws.get_state()
        self.__dict__.pop("_wanted", None)  # made again: gradients want the room
        for k, names in enumerate(self._parts):
            weighed = [name for name in names if name in self._weighed]
            known = self._found.all_losses("fisher", names)
            metrics = self._found.metrics(k, weighed) if known is not None and weighed else {}
            if known is not None and metrics is not None:
                losses |= known
                self.metrics |= metrics
                continue
            bases = self._part(k)
            draws.set_state(begin)
            gradients = {
                name: GradientMoments.of(dense_layer_at(self.model, name))
                for name in weighed
                if name in bases
            }
            with progress_bar("differentiate", None, self.progress) as advance:
                found = fisher_losses(
                    self.model, bases, self.data.fitted, self.output_loss, draws,
                    lambda: advance(""), gradients, self._tied, self._group,
                )  # fmt: skip
            metrics = metrics_of(gradients)
            if weighed:
                self._found.put_metrics(k, metrics)
            self._found.put("fisher", names, found)
            losses |= found
            self.metrics |= metrics
        return losses

    def forget(self) -> None:
        """Give up all that takes memory."""
        self._bases, self.metrics = {}, {}
        self.__dict__.pop("_wanted", None)

    def _by_spectra(self, rule: str, energies: Mapping[str, Losses]) -> Sensitivity:
        """By energies beyond each rank: of the outputs where there are inputs, else of weights."""
        if rule == "energy":
            seen = self.data is not None or self.moments is not None
            return self._told(rule, OF_OUTPUTS if seen else OF_WEIGHTS, energies)
        sizes = {name: Sizes.of(dense_layer_at(self.model, name)) for name in energies}
        if rule == "effective_rank":
            told = effective_rank_losses(sizes, energies)
            return self._told(rule, "effective rank over rank, by type", told)
        told = {name: spectrum_shape_losses(sizes[name], energies[name]) for name in energies}
        return self._told(rule, "parameters by singular values", told)

    def _by_influence(self) -> Sensitivity:
        assert self.data is not None
        found = self._found.influences(self.names)
        if not found:
            with progress_bar("look at blocks", len(self.data.fitted), self.progress) as advance:
                found = influences(
                    self.model, self.names, self.data.fitted, lambda: advance(""), self._group
                )
            self._found.put_influences(found)
        if not found:
            raise ArgumentError(
                "rule='block_influence' compares what blocks get and give, and no layer of the "
                "model lies in a list of modules whose outputs have the shape of their inputs; "
                "take rule='fisher' or 'measured'"
            )
        least = min(found.values())
        losses = {
            name: block_influence_losses(Sizes.of(dense_layer_at(self.model, name)), value - least)
            for name, value in found.items()
        }
        return self._told("block_influence", "parameters by influence", losses)

    def _weight_energies(self) -> dict[str, Losses]:
        reader = None if self.moments is None else Reader(self.moments)
        found: dict[str, Losses] = {}
        for name in self.names:
            known = self._found.all_losses("weights", [name])
            if known is None:
                site = dense_layer_at(self.model, name)
                seen = None if reader is None else reader.of(name, site)
                own = None if seen is None else seen.fit()
                known = {name: weight_energies(site, name, own)}
                self._found.put("weights", [name], known)
            found |= known
        return found

    def cut(
        self, ranks: Mapping[str, int], metrics: Mapping[str, Metrics] = MappingProxyType({})
    ) -> nn.Module:
        """A copy of the model with these layers cut to these ranks of their own bases, in metrics
        of their outputs where there are some."""
        working = copy_of(self.model)
        for bases in self.parts():
            for name in ranks.keys() & bases.keys():
                site = dense_layer_at(working, name)
                site.make_ordinary()
                site.write(bases[name].within(metrics.get(name)).truncated(site, ranks[name]))
        return working

    def loss_at(
        self, ranks: Mapping[str, int], metrics: Mapping[str, Metrics] = MappingProxyType({})
    ) -> float:
        """The loss of the whole model on the inputs held out, with these layers cut so."""
        key = frozenset(ranks.items())
        if not metrics and key in self._lost:
            return self._lost[key]
        of = checksum_of(canonical(dict(ranks)))
        metric = "metrics of the loss" if metrics else ""
        lost = self.kept.number(
            ("loss", of, metric), lambda: self.loss_of(self.cut(ranks, metrics))
        )
        if not metrics:
            self._lost[key] = lost
        return lost

    def loss_of(self, model: nn.Module) -> float:
        """The loss of any model beside the given one, on the same inputs."""
        return loss_of(model, self._wanted, self.judging, self.output_loss, self._group)

    @property
    def _group(self) -> Alone:
        """Of the ranks that have batches."""
        return ALONE if self.data is None else self.data.group

    @cached_property
    def _wanted(self) -> Wanted:
        """What the given model puts out there."""
        assert self.data is not None
        return Wanted(self.model, self.judging, self.data.room / OUTPUTS_PART)

    def _suitable(self) -> str:
        sites = [dense_layer_at(self.model, name) for name in self.names]
        convs = sum(math.prod(site.shape) for site in sites if site.taps is not None)
        return "measured" if 2 * convs > sum(math.prod(site.shape) for site in sites) else "fisher"

    def _told(self, rule: str, unit: str, losses: Mapping[str, Losses]) -> Sensitivity:
        rows = []
        for name in self.names:
            if name in losses:
                site = dense_layer_at(self.model, name)
                kind = kind_of(site.module)
                rows.append(row_of(name, kind, site.shape, site.groups, losses[name]))
        return Sensitivity(fingerprint(self.model), rule, unit, tuple(rows))

"""What a probe has found of layers, as a journal has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.journal._kept import Kept, number, numbers
from tensorlrf.decomposition.second_moments import OutputMetric
from tensorlrf.errors import FileFormatError
from tensorlrf.files.strict import JsonNode

Losses = Sequence[float]
"""At every rank from 0 on to the full."""


@dataclass(frozen=True)
class KeptOfLayers:
    """kept  where it is
    model    whose layers these are
    """

    kept: Kept
    model: nn.Module

    def losses(self, rule: str, names: Iterable[str]) -> dict[str, Losses | None]:
        """Of these layers, those that are there; None of one that was found to have none.

        Raises FileFormatError for what are none.
        """
        found: dict[str, Losses | None] = {}
        for name in names:
            node = self.kept.find("losses", rule, name)
            if node is not None:
                read = partial(_losses, dense_layer_at(self.model, name))
                found[name] = node.maybe(read)
        return found

    def all_losses(self, rule: str, names: Sequence[str]) -> dict[str, Losses] | None:
        """Of all of these that have some; None where not all are there."""
        found = self.losses(rule, names)
        if len(found) < len(names):
            return None
        return {name: losses for name, losses in found.items() if losses is not None}

    def put(self, rule: str, names: Iterable[str], losses: Mapping[str, Losses]) -> None:
        """Keep those of these layers, and of which there are none."""
        self.kept.put(
            {
                ("losses", rule, name): numbers(losses[name]) if name in losses else None
                for name in names
            }
        )

    def influences(self, names: Sequence[str]) -> dict[str, float]:
        """Of the blocks of these layers; empty where they are not there."""
        node = self.kept.find("influence")
        found = {} if node is None else node.each(JsonNode.word_or_number)
        return {name: found[name] for name in names if name in found}

    def put_influences(self, found: Mapping[str, float]) -> None:
        if found:
            self.kept.put({("influence",): {name: number(value) for name, value in found.items()}})

    def metrics(self, part: int, names: Iterable[str]) -> dict[str, Metrics] | None:
        """Of the outputs of a part of the layers; None where they are not there."""
        tensors = self.kept.tensors(_file(part))
        if tensors is None:
            return None
        found: dict[str, Metrics] = {}
        for name in names:
            site = dense_layer_at(self.model, name)
            own = [tensors.get(f"{name}/{k}") for k in range(site.groups)]
            self._check(name, site, own)
            if any(rows is not None for rows in own):
                found[name] = [
                    None if rows is None else OutputMetric(rows.to(site.device)) for rows in own
                ]
        return found

    def _check(self, name: str, site: DenseLayer, own: Sequence[Tensor | None]) -> None:
        side = site.shape[0] // site.groups
        for rows in own:
            if rows is not None and (rows.shape != (side, side) or not rows.is_floating_point()):
                raise FileFormatError(
                    f"{self.kept.folder} is damaged: the outputs of {name} have no metric of shape "
                    f"{tuple(rows.shape)}; give another folder as journal="
                )

    def put_metrics(self, part: int, metrics: Mapping[str, Metrics]) -> None:
        self.kept.put_tensors(
            _file(part),
            {
                f"{name}/{k}": one.rows
                for name, own in metrics.items()
                for k, one in enumerate(own or ())
                if one is not None
            },
        )


def _file(part: int) -> str:
    return f"metrics-{part}"


def _losses(site: DenseLayer, at: JsonNode) -> Losses:
    entries = at.entries()
    if len(entries) != min(site.shape[0] // site.groups, site.columns) + 1:
        at.wrong(f"a loss for every rank of a weight {site.shape}")
    return [entry.word_or_number() for entry in entries]

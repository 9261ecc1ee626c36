"""What a probe has found of layers, as a journal has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer, dense_layer_at
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.journal._kept import Kept, number, numbers
from tensorlrf.compression.losses._bases import Basis
from tensorlrf.decomposition.second_moments import OutputMetric
from tensorlrf.errors import FileFormatError
from tensorlrf.files.strict import JsonNode

Losses = Sequence[float]
"""At every rank from 0 on to the full."""

ROWS, COLUMNS, ENERGIES, SAMPLES = "rows", "columns", "energies", "samples"
"""Of a basis: its vectors row by row in memory or column by column, and the rest."""


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

    def bases(self, part: int, names: Iterable[str]) -> dict[str, Basis] | None:
        """Of a part of the layers; None where they are not there."""
        tensors = self.kept.tensors(f"directions-{part}")
        if tensors is None:
            return None
        found: dict[str, Basis] = {}
        for name in names:
            columns = tensors.get(f"{name}/{COLUMNS}")
            vectors = tensors.get(f"{name}/{ROWS}") if columns is None else columns.mT
            energies, samples = (tensors.get(f"{name}/{what}") for what in (ENERGIES, SAMPLES))
            if vectors is None or energies is None or samples is None:
                continue
            site = dense_layer_at(self.model, name)
            side, full = site.shape[0] // site.groups, _full(site)
            self._check(name, vectors, (site.groups, side, full), torch.float32)
            self._check(name, energies, (site.groups, full), torch.float64)
            self._check(name, samples, (), torch.int64)
            vectors, energies = vectors.to(site.device), energies.to(site.device)
            found[name] = Basis(vectors, energies, samples=int(samples))
        return found

    def put_bases(self, part: int, bases: Mapping[str, Basis]) -> None:
        found: dict[str, Tensor] = {}
        for name, one in bases.items():
            samples = torch.tensor(one.samples, dtype=torch.int64, device="cpu")
            # As they lie in memory, for products go by that to the last bit.
            by_rows = one.vectors.is_contiguous()
            vectors = {ROWS: one.vectors} if by_rows else {COLUMNS: one.vectors.mT}
            own = {**vectors, ENERGIES: one.energies, SAMPLES: samples}
            found |= {f"{name}/{what}": t for what, t in own.items()}
        self.kept.put_tensors(f"directions-{part}", found)

    def metrics(self, part: int, names: Iterable[str]) -> dict[str, Metrics] | None:
        """Of the outputs of a part of the layers; None where they are not there."""
        tensors = self.kept.tensors(f"metrics-{part}")
        if tensors is None:
            return None
        found: dict[str, Metrics] = {}
        for name in names:
            site = dense_layer_at(self.model, name)
            own = [tensors.get(f"{name}/{k}") for k in range(site.groups)]
            side = site.shape[0] // site.groups
            for rows in own:
                if rows is not None:
                    self._check(name, rows, (side, side), torch.float32)
            if any(rows is not None for rows in own):
                found[name] = [
                    None if rows is None else OutputMetric(rows.to(site.device)) for rows in own
                ]
        return found

    def _check(self, name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if t.shape != shape or t.dtype != dtype:
            raise FileFormatError(
                f"{self.kept.folder} is damaged: of {name} there is a tensor {tuple(t.shape)} of "
                f"dtype {t.dtype}, not {shape} of {dtype}; give another folder as journal="
            )

    def put_metrics(self, part: int, metrics: Mapping[str, Metrics]) -> None:
        self.kept.put_tensors(
            f"metrics-{part}",
            {
                f"{name}/{k}": one.rows
                for name, own in metrics.items()
                for k, one in enumerate(own or ())
                if one is not None
            },
        )


def _full(site: DenseLayer) -> int:
    """The full rank of each group."""
    return min(site.shape[0] // site.groups, site.columns)


def _losses(site: DenseLayer, at: JsonNode) -> Losses:
    entries = at.entries()
    if len(entries) != _full(site) + 1:
        at.wrong(f"a loss for every rank of a weight {site.shape}")
    return [entry.word_or_number() for entry in entries]

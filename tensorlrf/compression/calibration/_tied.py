"""An embedding whose table is the weight of a head as well: the metric of its fit is that of both.

With D = W - A of the table (V, d), p the shares of the tokens and h what the head is given, the two
lose, each relative to what it puts out,

    sum_v p_v D_v R D_v^T / e   and   sum_v p_v E(D_v h)^2 / f,

    e = sum_v W_v R W_v^T,            f = sum_v E(W_v h)^2,

with R the metric of what is looked up, the plain one where there is no other. Tokens count in the
head by their share too: to second order the divergence of its distribution is the mean square of
the logits' errors by what each token is likely to be. The sum of both is one form,

    sum_v p_v D_v (R / e + G / f) D_v^T,   G = E[h h^T],

in which the nearest matrix of a rank has a closed form.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tensorlrf.compression.calibration._calibrate import at_once
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration, check_statistics
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.calibration._trace import record
from tensorlrf.decomposition.linalg.compact import dense
from tensorlrf.decomposition.second_moments import OutputMetric
from tensorlrf.decomposition.shrinkage import mean_eigenvalue


def with_heads(
    model: nn.Module, tables: Mapping[str, Sequence[str]], data: Calibration
) -> Calibration:
    """The calibration with the metrics of embeddings, each with the layers that are tied to it, by
    one pass of the given model over the batches."""
    heads = [
        name
        for names in tables.values()
        for name in names
        if not dense_layer_at(model, name).is_table
    ]
    if not heads:
        return data
    trace = record(model, heads, data.first)
    grams: dict[str, Tensor] = {}
    for name, moments in itertools.chain(*at_once(model, heads, trace, data)):
        seen = moments.fit()
        check_statistics(name, seen)
        grams[name] = dense(seen[0].shrunk(seen[0].warranted).gram)
    metrics: dict[str, Metrics] = dict(data.metrics)
    for table, names in tables.items():
        weight = dense_layer_at(model, table).weight.to(torch.float64)  # (d, V)
        known = data.metrics_of(table)
        own = None if known is None else known[0]
        forms = [torch.eye(len(weight), dtype=torch.float64, device=weight.device)]
        forms = forms if own is None else [own.rows.to(torch.float64)]
        forms += [grams[name] for name in names if name in grams]
        energies = [float(((form @ weight) * weight).sum()) for form in forms]
        parts = [form / energy for form, energy in zip(forms, energies, strict=True) if energy > 0]
        if len(parts) > 1:
            both = torch.stack(parts).sum(0)
            metrics[table] = [OutputMetric(both / mean_eigenvalue(both))]
    return replace(data, metrics=metrics)

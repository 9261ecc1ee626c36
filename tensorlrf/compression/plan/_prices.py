"""What each rank of a layer costs, in what a budget counts.

Parameters and bytes follow from sizes; FLOPs from the inputs that a batch brings each layer, on the
path that its rows take; times are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tensorlrf.compression._work import work
from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.plan._drafts import Draft
from tensorlrf.compression.plan._stand_ins import any_factors
from tensorlrf.compression.plan._uniform import Scale
from tensorlrf.compression.plan.times._seconds import LayerTimes, Sample, check_sizes
from tensorlrf.decomposition.configs import Method
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.ops import best_path, profile_of
from tensorlrf.ops.buckets import bucket


def params_of(drafts: Sequence[Draft]) -> list[Scale]:
    """Of each draft, which is to be factored, the parameters when dense and at each rung of its
    ladder."""
    return [_params(draft) for draft in drafts]


def bytes_of(drafts: Sequence[Draft]) -> list[Scale]:
    """Likewise the bytes."""
    return [_bytes(draft) for draft in drafts]


def times_of_rungs(drafts: Sequence[Draft], times: Sequence[LayerTimes]) -> list[Scale]:
    """Likewise the seconds, by the times of the layers."""
    found = []
    for draft, one in zip(drafts, times, strict=True):
        assert draft.ladder is not None
        found.append(Scale(one.dense, tuple(one.at(rung.params) for rung in draft.ladder.rungs)))
    return found


def reached(word: str, scales: list[Scale], sample: Sample) -> list[Scale]:
    """What the sample does not reach costs nothing. Raises ArgumentError where that is all."""
    if not any(scale.dense for scale in scales):
        raise ArgumentError(
            f"{sample.argument}: the batch takes the model through none of the layers that are to "
            f"be factored, so that {word}= has nothing to count"
        )
    return scales


def _weight(draft: Draft) -> Tensor:
    assert draft.layer is not None
    return draft.layer.weight


def _rungs(draft: Draft) -> list[Method]:
    assert draft.ladder is not None
    return [draft.method_at(rung) for rung in draft.ladder.rungs]


def _params(draft: Draft) -> Scale:
    assert draft.ladder is not None
    return Scale(draft.ladder.dense, tuple(rung.params for rung in draft.ladder.rungs))


def _bytes(draft: Draft) -> Scale:
    assert draft.ladder is not None
    assert draft.method is not None
    weight = _weight(draft)
    size, shape = weight.element_size(), tuple(weight.shape)
    rungs = tuple(draft.method.bytes_at(rung, shape, size) for rung in draft.ladder.rungs)
    return Scale(size * draft.ladder.dense, rungs)


# ---- FLOPs ---------------------------------------------------------------------------------------


def flops_of(model: nn.Module, drafts: Sequence[Draft], sample: Sample) -> list[Scale]:
    """Likewise the FLOPs on a sample. Raises ArgumentError for a method whose sizes only the fit
    can tell, and for a sample that the model cannot take."""
    for draft in drafts:
        check_sizes("keep_flops", draft, structured=False)
    names = [draft.name for draft in drafts]
    trace = record(model, names, sample.batch, sample.argument)
    known: dict[Hashable, Scale] = {}
    found = []
    for draft in drafts:
        layer, inputs = draft.layer, trace.inputs.get(draft.name, [])
        assert layer is not None
        if draft.name in trace.readers or not inputs:
            found.append(Scale(0.0, (0.0,) * len(_rungs(draft))))
            continue
        key = (layer.plain, layer.shape, layer.weight.dtype, draft.method, tuple(inputs))
        if key not in known:
            done = [_work_at(layer, method, inputs) for method in _rungs(draft)]
            known[key] = Scale(done[0][0], tuple(after for _, after in done))
        found.append(known[key])
    return found


def _work_at(
    layer: DenseLayer, method: Method, inputs: Sequence[tuple[int, ...]]
) -> tuple[int, int]:
    """(FLOPs dense, at the method's rank) on inputs of these shapes."""
    values = partial(_blank, layer.weight.dtype)
    factors = any_factors(layer, method, values)
    assert factors is not None
    done = work(layer.plain, factors, inputs, _path_for(layer, factors))
    return done.dense, done.factored


def _blank(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _path_for(layer: DenseLayer, factors: Factors) -> Callable[[int], str]:
    """The path that a new layer takes for so many rows, where the weight is."""
    profile, plain = profile_of(layer.device), layer.plain
    stride, adjoint = plain.stride or None, plain.is_transposed
    return lambda rows: best_path(
        factors, bucket(rows), stride=stride, profile=profile, transposed=adjoint
    )

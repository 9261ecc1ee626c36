"""Layers that a pass calls several times: what comes behind sees all their calls compressed."""

from __future__ import annotations

from contextlib import closing
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import tensorlrf
from tensorlrf.compression._unpacked import unpacked_model
from tensorlrf.compression.calibration._calibrate import calibrated
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.calibration.batches import list_batches
from tests.compression.networks import UNIFORM, set_weights
from tests.draws import seeded32

BATCHES = [seeded32(60 + k, 12, seed=k) for k in range(3)]


class Loop(nn.Module):
    """Two layers in three turns, one before and one behind."""

    turns: ClassVar[int] = 3
    passes: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.turn, self.inner, self.last = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        type(self).passes += 1
        x = torch.tanh(self.first(x))
        for _ in range(self.turns):
            x = torch.tanh(self.turn(x))
            x = x + torch.tanh(self.inner(x))
        out: Tensor = self.last(x)
        return out


class Once(Loop):
    """Every layer once."""

    turns = 1


def inputs_of(model: nn.Module, name: str) -> Tensor:
    """What reaches a layer over all batches and calls, (N, n)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    with torch.no_grad():
        for batch in BATCHES:
            model(batch)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("lags", [False, True])
def test_moments_are_those_behind_compressed_calls(rerun: bool, lags: bool) -> None:
    given, model = set_weights(Loop()), set_weights(Loop())
    names, data = (
        ["first", "turn", "inner", "last"],
        Calibration.of(list_batches(BATCHES, model), 0.0),
    )
    trace = record(model, names, data.batches[0])
    assert trace.again == {"turn", "inner"}
    passes = calibrated(
        model, names, trace, data, rerun=rerun, original=given if lags else None
    )  # fmt: skip
    order = []
    with closing(passes) as parts:
        for layers in parts:
            for name, moments in layers:
                order.append(name)
                (seen,) = moments.fit()
                x = inputs_of(model, name).double()
                assert seen.count == len(x)
                torch.testing.assert_close(seen.gram, x.T @ x / len(x))
                if lags:
                    assert seen.lag is not None
                    layer = given.get_submodule(name)
                    e = (inputs_of(given, name) - x).double() @ layer.weight.detach().double().T
                    torch.testing.assert_close(seen.lag.cross, e.T @ x / len(x))
                layer = dense_layer_at(model, name)
                layer.write(0.5 * layer.weight)
    assert order == names


def test_one_more_pass_for_each_and_none_for_others() -> None:
    for kind, again in ((Once, 0), (Loop, 2)):
        kind.passes = 0
        model = set_weights(kind())
        tensorlrf.compress(
            model, keep_params=0.6, calibration=BATCHES, target="prefix", holdout=0, **UNIFORM
        )
        # Two tell what the batches and the order are; then one of each batch, and those anew.
        assert kind.passes == 2 + len(BATCHES) * (1 + again)


def test_recurrences_renew_their_own_calls() -> None:
    """Within one forward; over several of them the pass has to begin anew."""
    torch.manual_seed(0)
    model = unpacked_model(nn.LSTM(8, 8))
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    (batch,) = list_batches([seeded32(5, 2, 8)], model)
    trace = record(model, names, batch)
    assert max(trace.calls.values()) == 5
    assert trace.again == frozenset()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.own(self.own(x)[0])[0]
            return out

    names = [f"own.{name}" for name in names]
    assert record(Twice(), names, batch).again == frozenset(names)


def test_layers_that_albert_shares_are_fitted_as_by_passes_anew() -> None:
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=64, embedding_size=16, hidden_size=32, num_attention_heads=2,
        intermediate_size=48, num_hidden_layers=4, max_position_embeddings=16,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = set_weights(transformers.AlbertModel(config).eval())
    draws = torch.Generator("cpu").manual_seed(0)
    batches = [torch.randint(0, 64, (8, 16), generator=draws, device="cpu") for _ in range(4)]
    found = [
        tensorlrf.compress(
            model, keep_params=0.5, calibration=batches, rerun=rerun, **UNIFORM
        )[1]
        for rerun in (False, True)
    ]  # fmt: skip
    assert found[0].layers == found[1].layers
    assert found[0].model_error == found[1].model_error

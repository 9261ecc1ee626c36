"""Why a layer cannot be replaced, by nothing but itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tensorlrf.errors import TensorlrfError, UnsupportedError
from tensorlrf.nn import FactoredConv2d, FactoredLinear, factorize
from tensorlrf.nn.obstacles import check_layer, plain_layer, why_not
from tests.ops.samples import random_factors


def with_(layer: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    change(layer)
    return layer


def as_parameter(layer: nn.Module, weight: Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Wrapped(torch.Tensor):
    """A tensor subclass, as sharding and quantisation libraries have."""


class Linear8bit(nn.Linear):
    """As quantisation libraries derive theirs."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward((16 * input).round() / 16)


def plain_attribute(layer: nn.Module) -> nn.Module:
    weight = layer._parameters.pop("weight")
    layer.register_buffer("weight", weight)
    return layer


GOOD: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(4, 5),
    lambda: nn.Linear(4, 5, bias=False).half(),
    lambda: nn.Conv1d(4, 6, 3, padding="same"),
    lambda: nn.Conv2d(4, 6, 3, groups=2, padding_mode="reflect", padding=1),
    lambda: nn.Conv3d(4, 6, 3).bfloat16(),
    lambda: nn.Conv2d(1, 6, 3),
    lambda: nn.Linear(4, 5).requires_grad_(False).eval(),
]
BAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "factored": (lambda: FactoredLinear(random_factors("cp", (5, 4))), "factors already"),
    "lazy": (lambda: nn.LazyLinear(5), "lazy: run the model once"),
    "lazy conv": (lambda: nn.LazyConv1d(5, 3), "lazy: run the model once"),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(4, 5)), "parametrised"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 5)), "parametrised"),
    "spectral norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 5)), "weight is computed by"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(4, 5), "weight", 2), "weight is computed"),
    "bias pruned": (lambda: prune.l1_unstructured(nn.Linear(4, 5), "bias", 2), "bias is computed"),
    "no parameter": (lambda: plain_attribute(nn.Linear(4, 5)), "is no parameter of its own"),
    "hook": (
        lambda: with_(nn.Linear(4, 5), lambda m: m.register_full_backward_hook(lambda *_: None)),
        r"has hooks (backward_hooks)",
    ),
    "state hook": (
        lambda: with_(nn.Linear(4, 5), lambda m: m.register_state_dict_pre_hook(lambda *_: None)),
        r"has hooks (state_dict_pre_hooks)",
    ),
    "forward": (
        lambda: with_(nn.Linear(4, 5), lambda m: setattr(m, "forward", lambda x: x)),
        "forward is replaced on the instance",
    ),
    "parameter more": (
        lambda: with_(nn.Linear(4, 5), lambda m: setattr(m, "scale", nn.Parameter(torch.ones(1)))),
        "holds more than weight and bias (scale)",
    ),
    "module more": (
        lambda: with_(nn.Linear(4, 5), lambda m: setattr(m, "lora", nn.Linear(4, 2))),
        "holds more than weight and bias (lora)",
    ),
    "meta": (lambda: nn.Linear(4, 5, device="meta"), "on the meta device"),
    "complex": (lambda: nn.Linear(4, 5, dtype=torch.complex64), "complex64, not floating point"),
    "int8": (
        lambda: as_parameter(nn.Linear(4, 5), torch.ones(5, 4, dtype=torch.int8)),
        "int8, not floating point",
    ),
    "int8 subclass": (
        lambda: as_parameter(Linear8bit(4, 5), torch.ones(5, 4, dtype=torch.int8)),
        "int8, not floating point",
    ),
    "float8": (
        lambda: as_parameter(nn.Linear(4, 5), torch.ones(5, 4).to(torch.float8_e4m3fn)),
        "float8_e4m3fn",
    ),
    "tensor subclass": (
        lambda: as_parameter(nn.Linear(4, 5), torch.ones(5, 4).as_subclass(Wrapped)),
        "its weight is a Wrapped, no ordinary tensor",
    ),
    "sparse": (
        lambda: as_parameter(nn.Linear(4, 5), torch.eye(5, 4).to_sparse()),
        "sparse_coo, not dense",
    ),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), "depthwise convolution (groups=4)"),
    "depthwise 1d": (lambda: nn.Conv1d(4, 4, 3, groups=4), "depthwise convolution (groups=4)"),
    "depthwise transposed": (
        lambda: nn.ConvTranspose1d(4, 8, 3, groups=4),
        "depthwise convolution (groups=4)",
    ),
    "subclass": (
        lambda: Linear8bit(4, 5),
        "whose forward is not that of a Linear",
    ),
    "norm": (lambda: nn.LayerNorm(4), "neither Linear nor a convolution"),
    "embedding": (
        lambda: nn.Embedding(4, 5, max_norm=1.0),
        "max_norm=1.0 rescales single rows of the weight",
    ),
    "read by its parent": (
        lambda: nn.MultiheadAttention(4, 2).out_proj,
        "its weight is read by MultiheadAttention",
    ),
    "container": (lambda: nn.Sequential(nn.Linear(4, 5)), "neither Linear nor a convolution"),
}


REMEDIES = {
    "lazy": "is a LazyLinear; lazy: run the model once",
    "parametrised": "remove_parametrizations",
    "orthogonal": "remove_parametrizations",
    "pruned": "a Linear; its weight is computed by a hook .*prune.*; remove it first",
    "hook": "register them on the new",
    "forward": r"its forward is replaced on the instance; restore it first \(del",
    "subclass": "is a Linear8bit; subclass of Linear whose forward is not .*register_plain",
    "depthwise": "leave it dense",
    "factored": "runs on factors already",
}
"""What `factorize` says can be done."""


@pytest.mark.parametrize("make", GOOD)
def test_nothing_against_it(make: Callable[[], nn.Module]) -> None:
    layer = make()
    assert why_not(layer) == ""
    plain = plain_layer(layer)
    assert plain is not None
    assert plain.kind == type(layer).__name__
    assert check_layer(layer, type(layer), "layer") == plain


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("case", BAD)
def test_the_reason(case: str) -> None:
    make, reason = BAD[case]
    layer = make()
    assert reason in why_not(layer)
    assert not why_not(layer).endswith((".", ";", " "))
    with pytest.raises(TensorlrfError, match=REMEDIES.get(case, "^layer is |meta device")):
        factorize(layer, "svd", 2)
    if case == "meta":
        # A layer may be made like it; only its values are missing.
        assert check_layer(layer, nn.Linear, "like") == plain_layer(layer)
        return
    assert plain_layer(layer) is None
    with pytest.raises(UnsupportedError) as caught:
        check_layer(layer, nn.Linear, "like")
    message = str(caught.value)
    assert message.startswith("like is a ")
    assert reason in message or "pass a torch.nn.Linear" in message


def test_empty_weights() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        layer = nn.Linear(0, 5)
    assert why_not(layer) == "its weight is empty"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_modules() -> None:
    quantised = torch.ao.nn.quantized.dynamic.Linear(4, 5)
    assert why_not(quantised) == "quantised; compress the float model, then quantise it"
    qat = torch.ao.nn.qat.dynamic.Linear(
        4, 5, qconfig=torch.ao.quantization.default_dynamic_qat_qconfig
    )
    assert "holds more than weight and bias (weight_fake_quant)" in why_not(qat)


def test_the_kind_that_is_wanted_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"^layer is a Linear; pass a torch\.nn\.Conv2d$"):
        check_layer(nn.Linear(4, 5), nn.Conv2d, "layer")
    with pytest.raises(UnsupportedError, match=r"^like is a Conv1d; pass a torch\.nn\.Conv2d$"):
        FactoredConv2d.from_factors(random_factors("cp", (6, 4, 3, 3)), nn.Conv1d(4, 6, 3))


def weight_norm_then(*, parametrised: bool) -> nn.Module:
    layer = nn.Linear(4, 5)
    if parametrised:
        return parametrize.remove_parametrizations(parametrizations.weight_norm(layer), "weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.remove_weight_norm(nn.utils.weight_norm(layer))


def spectral_norm_then(*, parametrised: bool) -> nn.Module:
    layer = nn.Linear(4, 5)
    if parametrised:
        return parametrize.remove_parametrizations(parametrizations.spectral_norm(layer), "weight")
    normed = nn.utils.spectral_norm(layer)
    normed(torch.ones(1, 4))
    return nn.utils.remove_spectral_norm(normed)


@pytest.mark.parametrize("make", [weight_norm_then, spectral_norm_then])
@pytest.mark.parametrize("parametrised", [True, False])
def test_a_norm_that_was_removed_is_no_obstacle(
    make: Callable[..., nn.Module], parametrised: bool
) -> None:
    layer = make(parametrised=parametrised)
    assert why_not(layer) == ""
    assert isinstance(factorize(layer, "svd", 1), FactoredLinear)
    # A hook of the user's own beside what torch left behind counts.
    layer.register_load_state_dict_pre_hook(lambda *_: None)
    assert "load_state_dict_pre_hooks" in why_not(layer)

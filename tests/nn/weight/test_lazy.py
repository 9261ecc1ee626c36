"""`.weight` is free to be looked at, made when it is used, and refuses to be written to."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tensorlrf
from tensorlrf.errors import UnsupportedError
from tensorlrf.nn import FactoredEmbedding, FactoredLayer
from tensorlrf.nn._hf_conv1d import FactoredHFConv1D
from tests.nn.samples import KINDS, factored, input_of, of_kind
from tests.ops.samples import FORMATS, MATRIX_FORMATS, random_factors

EVERY = [
    *((format, kind) for format in FORMATS for kind in KINDS if format != "tucker_partial"),
    *((format, "linear") for format in MATRIX_FORMATS),
    *((format, "embedding") for format in ("lowrank", "cp", "tucker", "tt")),
    *((format, "Conv1D") for format in ("lowrank", "cp", "tucker")),
]


def layer_of(format: str = "lowrank", kind: str = "linear") -> FactoredLayer:
    if kind == "embedding":
        return FactoredEmbedding(random_factors(format, (6, 4)))
    if kind == "Conv1D":
        return FactoredHFConv1D(random_factors(format, (5, 4)))
    return factored(*of_kind(format, kind))


# ---- looking -------------------------------------------------------------------------------------

LOOKS: dict[str, Callable[[Tensor], object]] = {
    "dtype": lambda w: w.dtype,
    "device": lambda w: w.device,
    "shape": lambda w: w.shape,
    "ndim": lambda w: w.ndim,
    "is_cuda": lambda w: w.is_cuda,
    "is_cpu": lambda w: w.is_cpu,
    "is_meta": lambda w: w.is_meta,
    "layout": lambda w: w.layout,
    "requires_grad": lambda w: w.requires_grad,
    "grad": lambda w: w.grad,
    "itemsize": lambda w: w.itemsize,
    "nbytes": lambda w: w.nbytes,
    "size": lambda w: (w.size(), w.size(0), w.size(-1)),
    "stride": lambda w: w.stride(),
    "numel": lambda w: (w.numel(), w.nelement(), torch.numel(w)),
    "dim": lambda w: (w.dim(), w.ndimension()),
    "len": len,
    "element_size": lambda w: w.element_size(),
    "is_contiguous": lambda w: w.is_contiguous(),
    "floating": lambda w: (w.is_floating_point(), torch.is_floating_point(w), w.is_complex()),
    "get_device": lambda w: w.get_device(),
    "tensor": lambda w: (isinstance(w, Tensor), torch.is_tensor(w), isinstance(w, nn.Parameter)),
    "data": lambda w: (w.data.dtype, w.detach().shape, w.data.requires_grad, w.data.device),
    "new": lambda w: (
        w.new_zeros(3),
        w.new_ones((2, 2)),
        w.new_tensor([1, 2]),
        w.new_full((1,), 3),
    ),
    "like": lambda w: (torch.zeros_like(w), torch.ones_like(w), torch.empty_like(w).shape),
    "to": lambda w: (torch.ones(2).to(w), torch.ones(2).type_as(w), torch.ones(2, dtype=w.dtype)),
    "hash": lambda w: hash(w) == hash(w),
}


@pytest.mark.parametrize("look", LOOKS)
def test_looking_costs_no_weight(look: str, rebuilds: list[object]) -> None:
    for kind in ("linear", "conv", "grouped", "embedding", "Conv1D"):
        layer = layer_of("lowrank", kind)
        layer.requires_grad_(kind != "conv")
        with torch.no_grad():
            dense = layer.factors.to_dense()
        truth = nn.Parameter(dense.T if kind == "Conv1D" else dense, layer.left.requires_grad)
        del rebuilds[:]
        seen, want = LOOKS[look](layer.weight), LOOKS[look](truth)
        assert rebuilds == []
        if look == "tensor":  # it is a tensor, and no parameter
            assert seen == (True, True, False)
        elif look in ("new", "like", "to"):
            torch.testing.assert_close(seen, want)
        else:
            assert seen == want


@pytest.mark.parametrize(("format", "kind"), EVERY)
def test_what_is_seen_is_what_is_made(format: str, kind: str) -> None:
    layer = layer_of(format, kind)
    seen, made = layer.weight, layer.weight.clone()
    assert type(made) is Tensor
    want = layer.factors.to_dense()
    assert torch.equal(made, want.T if kind == "Conv1D" else want)
    for what in (Tensor.size, Tensor.stride, Tensor.dim, Tensor.numel, Tensor.get_device):
        assert what(seen) == what(made)
    assert (seen.dtype, seen.device, seen.layout) == (made.dtype, made.device, made.layout)
    half = layer.half()
    assert half.weight.dtype == half.weight.clone().dtype == torch.float16
    assert layer.to("meta").weight.device == torch.device("meta")


def test_looking_follows_the_layer_and_is_never_stale() -> None:
    layer = layer_of()
    weight, before = layer.weight, layer.weight.clone()
    layer.left.data.mul_(2)
    assert torch.equal(weight, 2 * before)


# ---- using ---------------------------------------------------------------------------------------

USES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "linear": lambda w, x: F.linear(x, w),
    "t": lambda w, x: w.t() @ torch.ones(5, dtype=w.dtype),
    "T": lambda w, x: x @ w.T,
    "rmatmul": lambda w, x: w @ x.T,
    "mT": lambda w, x: x @ w.mT.contiguous(),
    "einsum": lambda w, x: torch.einsum("oi,bi->bo", w, x),
    "addmm": lambda w, x: torch.addmm(torch.ones(5, dtype=w.dtype), x, w.t()),
    "to": lambda w, x: w.to(torch.float32),
    "same": lambda w, x: w.to(torch.float64) * 1,
    "double": lambda w, x: w.double() + 0,
    "half": lambda w, x: w.half(),
    "norm": lambda w, x: (w.norm(), torch.linalg.vector_norm(w), w.abs().max()),
    "add": lambda w, x: (w + 1, 1 - w, w * w, w / 2, -w, w**2, w > 0, w == w),
    "index": lambda w, x: (w[0] * 1, w[:, 1] + 0, w[0, 0] + 0, w[w > 0]),
    "rows": lambda w, x: [row.sum() for row in w],
    "cat": lambda w, x: torch.cat([w, w]),
    "stack": lambda w, x: torch.stack([w, w.clone()]),
    "split": lambda w, x: [part.sum() for part in w.split(2)],
    "reshape": lambda w, x: w.reshape(-1).view(4, 5).sum(0),
    "functional": lambda w, x: torch.func.functional_call(
        nn.Linear(4, 5, bias=False, dtype=w.dtype), {"weight": w}, (x,)
    ),
    "vmap": lambda w, x: torch.vmap(lambda row: F.linear(row, w))(x),
    "repr": lambda w, x: repr(w.detach()),
    "equal": lambda w, x: (w.equal(w), torch.allclose(w, w)),
    "svd": lambda w, x: torch.linalg.svdvals(w),
    "detached": lambda w, x: (w.data + 1, w.detach() @ x.T, w.data.clone().zero_()),
    "numpy": lambda w, x: (w.detach().numpy() + 1, np.asarray(w.data) * 2),
    "list": lambda w, x: (w.detach().tolist(), float(w.detach()[0, 0])),
    "copied": lambda w, x: torch.zeros(5, 4, dtype=w.dtype).copy_(w),
    "pickled": lambda w, x: pickle.loads(pickle.dumps(w.detach())),
    "deep copied": lambda w, x: copy.deepcopy(w.detach()),
}


@pytest.mark.parametrize("use", USES)
def test_functions_of_torch_take_it(use: str) -> None:
    layer = layer_of()
    x = input_of("linear")
    got, want = USES[use](layer.weight, x), USES[use](layer.factors.to_dense(), x)
    if isinstance(want, str):
        assert got == want
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(("format", "kind"), EVERY)
def test_gradients_flow_to_the_factors(format: str, kind: str) -> None:
    layer = layer_of(format, kind)
    parameters = layer._sources()
    dense = layer.factors.to_dense()
    dense = dense.T if kind == "Conv1D" else dense
    weights = torch.arange(dense.numel(), dtype=dense.dtype).reshape(dense.shape)
    want = torch.autograd.grad((dense * weights).sum(), parameters, allow_unused=True)
    got = torch.autograd.grad((layer.weight * weights).sum(), parameters, allow_unused=True)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with torch.no_grad():
        assert not (layer.weight * weights).requires_grad
    with torch.inference_mode():
        assert torch.equal(layer.weight * weights, dense * weights)


def test_one_use_makes_it_once(rebuilds: list[object]) -> None:
    layer = layer_of()
    del rebuilds[:]
    F.linear(input_of("linear"), layer.weight)
    assert len(rebuilds) == 1
    del rebuilds[:]
    transposed = layer.weight.T  # a view of what was made
    transposed @ transposed.T
    assert len(rebuilds) == 1


def test_decompositions_take_it() -> None:
    layer = layer_of()
    again = tensorlrf.svd(layer.weight, 2)
    assert again.rel_error(layer.weight) < 1e-12
    assert layer.factors.rel_error(layer.weight) == 0.0


# ---- writing -------------------------------------------------------------------------------------


ZEROS = torch.zeros(5, 4, dtype=torch.float64)
INITS = (
    *("zeros_", "ones_", "normal_", "uniform_", "trunc_normal_", "eye_", "orthogonal_"),
    *("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"),
)
WRITES = [
    "m.weight += 1",
    "m.weight.data += 1",
    "m.weight.data += torch.ones(5, 3).double() @ torch.ones(3, 4).double()",
    "m.weight.data -= 1",
    "w = m.weight; w *= 2",
    "m.weight[0] = 0",
    "m.weight.data = ZEROS",
    "m.weight.grad = ZEROS",
    "m.weight.requires_grad = False",
    "m.weight = nn.Parameter(ZEROS)",
    "m.weight = ZEROS",
    "m.weight = None",
    *(f"nn.init.{name}(m.weight)" for name in INITS),
    "nn.init.constant_(m.weight, 2.0)",
    "nn.init.sparse_(m.weight, 0.5)",
    "m.weight.copy_(ZEROS)",
    "m.weight.data.copy_(ZEROS)",
    "m.weight.detach().zero_()",
    "m.weight.data.normal_()",
    "m.weight.mul_(2)",
    "m.weight.data[0].fill_(1)",
    "m.weight[0].zero_()",
    "m.weight.view(-1)[3:].zero_()",
    "m.weight.t().zero_()",
    "m.weight.T.mul_(2)",
    "m.weight.unbind()[0].zero_()",
    "m.weight.chunk(2, dim=1)[1].zero_()",
    "next(iter(m.weight)).zero_()",
    "m.weight.double().zero_()",
    "m.weight.to(torch.float64).zero_()",
    "m.weight.contiguous().zero_()",
    "m.weight.reshape(4, 5).zero_()",
    "m.weight.masked_fill_(ZEROS == 0, 1.0)",
    "m.weight.index_put_((torch.tensor([0]),), ZEROS[0])",
    "m.weight.scatter_(0, torch.zeros(1, 4, dtype=torch.long), ZEROS)",
    "m.weight.clamp_(0)",
    "m.weight.set_(ZEROS)",
    "m.weight.resize_(2)",
    "m.weight.squeeze_()",
    "m.weight.detach_()",
    "m.weight.requires_grad_(False)",
    "m.weight.share_memory_()",
    "m.weight.apply_(lambda v: v)",
    "m.weight.register_hook(print)",
    "m.weight.retain_grad()",
    "m.weight.data_ptr()",
    "m.weight.untyped_storage()",
    "torch.from_dlpack(m.weight.detach())",
    "torch.add(ZEROS, 1, out=m.weight)",
    "torch.add(ZEROS, 1, out=m.weight.data)",
    "torch.mul(ZEROS, 1, out=m.weight[:5])",
    "torch.relu_(m.weight)",
    "F.relu(m.weight, inplace=True)",
    "F.dropout(m.weight, 0.5, True, True)",
    "torch._foreach_add_([m.weight], 1.0)",
    "torch._foreach_mul_([ZEROS.clone(), m.weight.data], 2.0)",
    "torch.ops.aten.add_(m.weight, 1)",
    "torch.ops.aten.mul_.Tensor(m.weight, ZEROS)",
    "torch.nn.utils.vector_to_parameters(ZEROS.flatten(), [m.weight])",
    "nn.Parameter(m.weight)",
    "nn.Parameter(m.weight.data)",
]
"""Statements of a user of the layer m."""


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("grad", [False, True])
def test_a_write_is_an_error_and_changes_nothing(write: str, grad: bool) -> None:
    layer = layer_of()
    layer.requires_grad_(grad)
    before, versions = layer.factors.to_dense(), [p._version for p in layer.parameters()]
    # Where torch itself refuses an out= or a set_ with grad, that is an error as well.
    refused = pytest.raises((UnsupportedError, RuntimeError))
    with torch.random.fork_rng([]), torch.set_grad_enabled(grad), refused as raised:
        exec(write, {**globals(), "m": layer})
    if not grad:
        assert isinstance(raised.value, UnsupportedError)
        assert "tensorlrf.densify" in str(raised.value)
        assert "tensorlrf.nn.factorize" in str(raised.value)
        assert len(str(raised.value)) < 500
    assert torch.equal(layer.factors.to_dense(), before)
    assert [p._version for p in layer.parameters()] == versions


@pytest.mark.parametrize(("format", "kind"), EVERY)
def test_every_layer_refuses_writes(format: str, kind: str) -> None:
    layer = layer_of(format, kind)
    before = layer.weight.clone()
    for write in (
        lambda: layer.weight.data.add_(1),
        lambda: nn.init.zeros_(layer.weight),
        lambda: layer.weight[0].zero_(),
        lambda: setattr(layer, "weight", nn.Parameter(before)),
    ):
        with pytest.raises(UnsupportedError, match="is made of the factors"):
            write()
    assert torch.equal(layer.weight, before)


def test_what_torch_would_hang_on_the_layer_is_an_error() -> None:
    layer = layer_of()
    for hang in (
        lambda: nn.utils.parametrizations.weight_norm(layer),
        lambda: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
        lambda: layer.register_parameter("weight", nn.Parameter(ZEROS)),
        lambda: layer.register_buffer("weight", ZEROS),
        lambda: layer.load_state_dict({"weight": ZEROS}),
        lambda: delattr(layer, "weight"),
    ):
        with pytest.raises((KeyError, ValueError, TypeError, RuntimeError, AttributeError)):
            hang()


def test_numpy_gives_it_to_be_read() -> None:
    layer = layer_of()
    for array in (layer.weight.detach().numpy(), np.asarray(layer.weight.data)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_writes_that_work_go_to_the_factors_and_the_bias() -> None:
    """`factors` are views of the parameters in every format, and the bias is one."""
    for format, kind in EVERY:
        layer = layer_of(format, kind)
        for tensor in layer.factors.tensors().values():
            with torch.no_grad():
                tensor.zero_()
        assert layer.weight.abs().sum() == 0
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.fill_(3)
            assert torch.equal(layer.state_dict()["bias"], torch.full_like(layer.bias, 3))


def test_others_may_be_given_its_numbers() -> None:
    layer, linear = layer_of(), nn.Linear(4, 5, dtype=torch.float64)
    linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    assert torch.equal(linear.weight, layer.weight)
    nn.init.zeros_(linear.weight)
    linear.weight.data.copy_(layer.weight)
    assert torch.equal(linear.weight, layer.weight)
    linear.weight = nn.Parameter(layer.weight.clone())
    assert torch.equal(linear.weight, layer.weight)
    with pytest.raises(RuntimeError):  # not memory that is not there
        linear.weight.data = layer.weight
    file = io.BytesIO()
    torch.save({"w": layer.weight}, file)
    file.seek(0)
    assert torch.equal(torch.load(file)["w"], layer.weight)

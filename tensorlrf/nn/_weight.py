"""The dense weight that factors stand for, as a tensor that is made where its numbers are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tensorlrf.errors import UnsupportedError

# What is known of a tensor without its numbers.
_LOOKS = frozenset(
    ["shape", "dtype", "device", "layout", "ndim", "itemsize", "nbytes", "requires_grad", "is_leaf",
     "grad", "grad_fn", "names", "is_cpu", "is_cuda", "is_ipu", "is_maia", "is_meta", "is_mkldnn",
     "is_mps", "is_mtia", "is_nested", "is_quantized", "is_sparse", "is_sparse_csr", "is_vulkan",
     "is_xla", "is_xpu", "__len__", "dim", "dim_order", "element_size", "get_device", "is_complex",
     "is_conj", "is_contiguous", "is_floating_point", "is_inference", "is_neg", "is_same_size",
     "is_signed", "ndimension", "nelement", "numel", "size", "storage_offset", "stride"]
)  # fmt: skip
# What makes a tensor that is like it.
_LIKE = frozenset(
    ["type_as", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros",
     "empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like",
     "zeros_like"]
)  # fmt: skip
# Writes that do not end in an underscore; hooks; and its memory, which is gone after each use.
_REFUSED = frozenset(
    ["__set__", "__delete__", "__setitem__", "retain_grad", "register_hook",
     "register_post_accumulate_grad_hook", "data_ptr", "storage", "untyped_storage",
     "_typed_storage", "__dlpack__", "__cuda_array_interface__"]
)  # fmt: skip


class DenseWeight(Tensor):
    """What `layer.weight` of a factored layer is.

    Its sizes, dtype and device cost nothing. Its numbers are made of the factors, as they are then,
    in every function that takes them, and are not kept; clone it to use them more than once.
    Gradients flow to the factors. A write to it, or to a view of it, raises UnsupportedError.
    """

    _made: Callable[[], Tensor]
    _home: torch.device
    _is_hf_initialized = True
    """By this transformers tells which weights are not to be drawn anew while a file is loaded."""

    @staticmethod
    def __new__(
        cls, made: Callable[[], Tensor], blank: Tensor, device: torch.device, requires_grad: bool
    ) -> Self:
        """made() makes the numbers; `blank` has its sizes, strides and dtype, on meta."""
        # Whatever passes by the functions below finds memory on meta, and no numbers in it.
        weight: Self = Tensor._make_subclass(cls, blank, requires_grad, dispatch_device=True)
        weight._made = made
        weight._home = device
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name == "device":
            return args[0]._home
        if name in _LOOKS or (name == "to" and not isinstance(args[0], cls)):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name in ("detach", "data"):
            return args[0]._detached()
        if name == "__deepcopy__":
            return args[0]._made().detach().clone()
        return _computed(func, name, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0]._home
        return _computed(func, _name(func), args, kwargs or {})

    def _detached(self) -> DenseWeight:
        return DenseWeight(lambda: self._made().detach(), self._like("meta"), self._home, False)

    def _like(self, device: str | torch.device) -> Tensor:
        """Of its sizes, strides and dtype, without its numbers."""
        with torch._C.DisableTorchFunctionSubclass():
            return torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device=device)


def _computed(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """func on the numbers. Where they change, that write would be lost, and where the result shares
    their memory, writes to it would be."""
    in_place = name in _REFUSED or (name.endswith("_") and not name.endswith("__"))
    if in_place and _is_first(args, kwargs):
        raise refused_write(name)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    weights = {k: leaf for k, leaf in enumerate(leaves) if isinstance(leaf, DenseWeight)}
    used = {k: w._like(w._home) if name in _LIKE else w._made() for k, w in weights.items()}
    args, kwargs = pytree.tree_unflatten([used.get(k, x) for k, x in enumerate(leaves)], spec)
    plain = [t for t in used.values() if type(t) is Tensor and not t.is_inference()]
    versions = [t._version for t in plain]
    out = func(*args, **kwargs)
    if versions != [t._version for t in plain]:
        raise refused_write(name)
    return pytree.tree_map(lambda one: _read_only(one, plain), out)


def _read_only(out: Any, used: list[Tensor]) -> Any:
    if isinstance(out, np.ndarray):
        out.flags.writeable = False
    if type(out) is not Tensor or not _shares(out, used):
        return out
    with torch.no_grad():
        blank = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device="meta")
    return DenseWeight(lambda: out, blank, out.device, out.requires_grad)


def _shares(out: Tensor, used: list[Tensor]) -> bool:
    return any(torch._C._is_alias_of(out, t) for t in used)  # type: ignore[attr-defined]


def _name(func: Any) -> str:
    """Of a function, a method, an operator, or of the attribute that is read."""
    name: str = func.__name__
    return str(func.__self__.__name__) if name == "__get__" else name.partition(".")[0]


def _is_first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function that writes to its first argument writes to such a weight."""
    first = args[:1] or tuple(kwargs.values())[:1]
    return any(isinstance(t, DenseWeight) for t in pytree.tree_leaves(first))


def refused_write(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} on the weight of a factored layer: the weight is made of the factors for each "
        "use, so a write to it would be lost, and so is its memory. Put a new weight into a dense "
        "layer and factor that (tensorlrf.densify, tensorlrf.nn.factorize); train or freeze "
        "layer.parameters(); take weight.clone() for a tensor of its own"
    )

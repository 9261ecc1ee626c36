"""What the factored layers share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError, unknown
from tensorlrf.factors import Factors
from tensorlrf.factors.kinds import format_of
from tensorlrf.nn._freezable import Freezable
from tensorlrf.nn._weight import DenseWeight, refused_write
from tensorlrf.nn.ranks._cut import Cut, cut
from tensorlrf.ops import PathTable, device_key, paths_of
from tensorlrf.ops.forms.lowering import Layer, Lowered, lowered
from tensorlrf.ops.fused import check_layer_path


class FactoredLayer(Freezable, ABC):
    """A layer whose weight is a factors object: one Parameter for each of its tensors.

    Indices, and those without elements, are buffers: data-parallel training waits for a gradient of
    every parameter, and they never get one. The parameters are named as the format names its
    tensors, "left" or "core", with a dot as an underscore, "factors_0". They are copies: training
    the layer leaves the factors it was made of as they were.

    Parameters
    ----------
    factors : Factors
    bias : Tensor of shape (out,) or None
        Of the dtype and on the device of the factors.
    paths : tuple of str
        The paths that the layer can take.

    Attributes
    ----------
    stands_for : str
        The type name of the layer that it replaces.
    recipe : dict
        How its factors were made, as plain JSON values; empty where nobody said.
    measured : dict
        Key of a device (`device_key`) -> path table that was measured there.

    Examples
    --------
    >>> layer = tensorlrf.nn.factorize(torch.nn.Linear(64, 32), "svd", 4)
    >>> [name for name, _ in layer.named_parameters()]
    ['left', 'right', 'bias']
    >>> torch.allclose(layer.weight, layer.factors.to_dense())
    True
    """

    kind: ClassVar[type[nn.Module]]  # the torch layer that it stands in for
    bias: nn.Parameter | None
    _layer: Layer  # what it is to a form
    _rank: int | tuple[int, ...] | None = None  # of the leading terms that it runs on; None: all
    _cuts: tuple[Cut, ...] | None = None  # what of each tensor belongs to these
    _whole: Any = None  # what it had when it ran on all of them
    _runs: dict[str, Lowered]  # path of a table that it has had -> its code

    def __init__(self, factors: Factors, bias: Tensor | None, paths: tuple[str, ...]) -> None:
        super().__init__()
        self._runs = {}
        self._rank = self._cuts = None
        self._asked: list[Any] = []  # by whom it is asked to run on leading terms; see leading.py
        check_bias(bias, factors)
        self._paths = paths
        self._format = type(factors)
        self._meta = factors._context()
        self._names = {name: name.replace(".", "_") for name in factors.tensors()}
        kept = self._kept_as(factors)
        self._sizes = {name: tuple(factors.tensors()[name].shape) for name in kept}
        indices = factors.index_dtypes(self._meta)
        for name, tensor in factors.tensors().items():
            tensor = tensor.reshape(kept[name]) if name in kept else tensor
            if tensor.numel() and name not in indices:
                self.register_parameter(self._names[name], _own(tensor))
            else:
                self.register_buffer(self._names[name], tensor.detach().clone())
        self.register_parameter("bias", None if bias is None else _own(bias))
        self._device_type = factors.device.type
        self._home = (factors.device, factors.dtype)
        self.stands_for = self.kind.__name__
        self.also_held: dict[str, tuple[int, ...]] = {}  # by what it stands for, beside its weight
        self.recipe: dict[str, Any] = {}
        self.measured: dict[str, PathTable] = {}

    # ---- what a layer supplies --------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_factors(cls, factors: Factors, like: Any) -> Self:
        """A layer that runs on `factors` with the options, bias and dtype of `like`."""

    @abstractmethod
    def _rows(self, x: Tensor) -> int:
        """Rows M of the output for the input x."""

    @abstractmethod
    def _default_path_table(self, frozen: bool = False) -> PathTable:
        """The path table by the cost model of the device, for the layer frozen or not."""

    def _find_paths(self, factors: Factors) -> tuple[str, ...]:
        """The paths that the layer can take on these factors, where they are."""
        return paths_of(factors)

    def _check_fused(self) -> None:
        """Where the layer has no path "fused", the error says what the kernel lacks."""
        check_layer_path("fused", self.paths, self._here())

    # ---- the weight -------------------------------------------------------------------------

    @property
    def factors(self) -> Factors:
        """The factors object made of the parameters as they are now.

        Inside a `rank_scale` it has the terms that the layer runs on, as views.
        """
        whole = self._assembled()
        return whole if self._rank is None else whole.leading(self._rank)

    def _here(self) -> Factors:
        """In the sizes of the factors that this process runs on: all, or its part of a mesh."""
        return self.factors

    def _assembled(self) -> Factors:
        # The parts were checked when the layer was built.
        tensors = {name: self._tensor(attribute) for name, attribute in self._names.items()}
        for name, sizes in self._sizes.items():
            tensors[name] = tensors[name].reshape(sizes)
        return self._format._assemble(tensors, self._meta)

    @property
    def weight(self) -> Tensor:
        """The dense weight, to be read.

        Its sizes, dtype and device cost nothing, its numbers are made of the factors in every
        function that takes them. Differentiable in the parameters. A write to it, or to
        `weight.data`, would be lost and raises UnsupportedError. Inside what torch.compile or
        torch.export trace it is an ordinary tensor, and no write is refused.
        """
        if torch.compiler.is_compiling():  # a graph drops what it makes for its dtype alone
            return self._made_weight()
        sources = self._sources()
        blank = self._blank_weight()
        requires_grad = any(p.requires_grad for p in sources)
        return DenseWeight(self._made_weight, blank, sources[0].device, requires_grad)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise refused_write("assignment")
        super().__setattr__(name, value)

    def _made_weight(self) -> Tensor:
        return self.factors.to_dense().contiguous()

    def _blank_weight(self) -> Tensor:
        """In the sizes and strides of the dense weight, on meta."""
        factors = self.factors
        return torch.empty(factors.shape, dtype=factors.dtype, device="meta")

    def _kept_as(self, factors: Factors) -> dict[str, tuple[int, ...]]:
        """Tensors of the factors that the layer keeps in another shape -> that shape."""
        return {}

    def _run_by(self, table: PathTable) -> None:
        """Take the path that the table names, for which there is straight code from here on."""
        for path in table.paths:
            if path != "dense" and path not in self._runs:
                factors = self._here()
                kept = self._kept_as(factors)
                self._runs[path] = lowered(self._layer, path, factors, kept)
        self._path_table = table

    def _held(self) -> list[Any]:
        """The tensors of the factors as the layer keeps them, or the leading terms of these."""
        own = self._parameters
        held: list[Any] = [
            own[name] if name in own else getattr(self, name) for name in self._names.values()
        ]
        if self._cuts is None:
            return held
        return [cut(tensor, sizes) for tensor, sizes in zip(held, self._cuts, strict=True)]

    def _tensor(self, attribute: str) -> Any:
        # From the dict where possible: getattr costs as much as a small product. It is needed
        # where parametrize or prune has put a computed tensor in the place of a parameter.
        own = self._parameters
        return own[attribute] if attribute in own else getattr(self, attribute)

    def _sources(self) -> list[Tensor]:
        empty = self._buffers
        return [self._tensor(name) for name in self._names.values() if name not in empty]

    # ---- the path ---------------------------------------------------------------------------

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that the layer can take."""
        return self._paths

    @property
    def timed_paths(self) -> tuple[str, ...]:
        """Those that a measurement chooses from; none where there is no choice."""
        return self.paths

    @property
    def path_table(self) -> PathTable:
        """Rows M -> path.

        Made by the cost model, and remade when the layer changes its kind of device; can be set.
        Not part of the state dict. A layer with tables in `measured` takes the one of its device
        and dtype, if it is there, whenever either changes.
        """
        return self._path_table

    @path_table.setter
    def path_table(self, table: PathTable) -> None:
        if not isinstance(table, PathTable):
            raise ArgumentError(
                f"path_table={table!r} is a {type(table).__name__}; pass a PathTable, such as "
                "PathTable.single('chain')"
            )
        for path in table.paths:
            if path == "fused":
                self._check_fused()
            if path not in self.paths:
                raise unknown("path_table: path", path, self.paths)
        self._run_by(table)
        self._own_table = False

    @property
    def device_key(self) -> str:
        """What a time measured on this layer depends on.

        That is its device and software, its dtype, and whether it is frozen.
        """
        return self._key(self.is_frozen)

    def _key(self, frozen: bool) -> str:
        factors = self._here()
        key = f"{device_key(factors.device)}, {str(factors.dtype).removeprefix('torch.')}"
        key = key if self._rank is None else f"{key}, rank {self._rank}"
        return f"{key}, frozen" if frozen else key

    def set_measured(self, key: str, table: PathTable) -> None:
        """Keep what was measured under `key`, and run by it where that is the layer's own key.

        Parameters
        ----------
        key : str
            A `device_key`.
        table : PathTable

        Raises
        ------
        ArgumentError
            Where `table` is no path table, or names a path that the layer cannot take although the
            key is its own.
        """
        if not isinstance(table, PathTable):
            raise ArgumentError(
                f"table={table!r} is a {type(table).__name__}; pass a PathTable, such as "
                "PathTable.single('chain')"
            )
        if key == self.device_key:
            self.path_table = table
            self._own_table = True
        self.measured[key] = table

    def _freeze_as_measured(self) -> None:
        """Where it is the frozen layer that was measured on this device."""
        if self._key(frozen=True) in self.measured and self._can_freeze():
            self.freeze()

    def _known_path_table(self) -> PathTable:
        """The table that was measured on this device, else the cost model's."""
        table = self.measured.get(self.device_key) if self.measured else None
        known = table is not None and set(table.paths) <= set(self.paths)
        return table if table is not None and known else self._default_path_table(self.is_frozen)

    def _choose(self) -> None:
        """The table that the layer would choose itself."""
        self._run_by(self._known_path_table())
        self._own_table = True

    def _rechoose(self) -> None:
        if self._own_table:
            self._choose()

    def _on_path(self, path: str) -> Self:
        """A twin in eval mode on the same parameters, on `path` alone, that can be frozen alone."""
        twin: Self = object.__new__(type(self))  # copy.copy refuses parametrized modules
        vars(twin).update(vars(self))
        twin._frozen = None
        twin.training = False
        twin.path_table = PathTable.single(path)
        return twin

    def _path(self, x: Tensor) -> str:
        """The path for this input, by its shape alone."""
        entries = self._path_table.entries
        if len(entries) == 1:
            return entries[0][1]
        if torch.compiler.is_exporting():
            return _frozen_path(self._path_table, self._rows(x))
        return self._path_table.lookup(self._rows(x))

    # ---- as a module ------------------------------------------------------------------------

    def _traced(self, x: fx.Proxy, *more: Any) -> Any:
        """What torch.fx records: one call of this layer, as of torch's own layers.

        A path is chosen by shapes, which a symbolic input does not have.
        """
        tracer: Any = x.tracer
        if tracer.root is self:
            raise UnsupportedError(
                f"a {type(self).__name__} is one call in a graph of torch.fx, so it cannot be the "
                "whole of it; trace a module that holds it, such as nn.Sequential(layer)"
            )
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, *more), {})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every .to(), .cuda(), .half(), .to_empty() comes through here.
        super()._apply(fn, recurse)
        self._follow_device()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Files of transformers have a tensor without elements where the dense weight would be.
        held = state_dict.get(f"{prefix}weight")
        if isinstance(held, Tensor) and held.numel() == 0 and "weight" not in self._parameters:
            del state_dict[f"{prefix}weight"]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._follow_device()  # assign=True may bring tensors of another device

    def _follow_device(self) -> None:
        factors = self._here()
        home = (factors.device, factors.dtype)
        if home == self._home:
            return
        self._home = home
        if factors.device.type != self._device_type:
            self._device_type = factors.device.type
            self._paths = self._find_paths(factors)
            self._choose()
        elif self.measured:
            self._choose()

    def __getstate__(self) -> dict[str, Any]:
        # A copy stays at its rank, and nobody will take that back.
        return {**super().__getstate__(), "_asked": []}

    def extra_repr(self) -> str:
        factors = self.factors
        dense = math.prod(factors.shape)
        share = factors.n_params / dense if dense else 1.0
        return (
            f"{self._options_repr()}{self._bias_repr()}, format={format_of(factors)}, "
            f"rank={factors.rank}, share={share:.1%}, path={self._path_table}"
            f"{', frozen' * self.is_frozen}"
        )

    def _bias_repr(self) -> str:
        return f", bias={self.bias is not None}"

    @abstractmethod
    def _options_repr(self) -> str:
        """Sizes and options, as torch prints them."""


def check_bias(bias: Tensor | None, factors: Factors) -> None:
    """None, or one element an output, of the dtype and on the device of the factors."""
    if bias is None:
        return
    if not isinstance(bias, Tensor) or tuple(bias.shape) != factors.shape[:1]:
        got = tuple(bias.shape) if isinstance(bias, Tensor) else repr(bias)
        raise ShapeError(f"bias is {got}; it must be None or a tensor ({factors.shape[0]},)")
    if bias.dtype != factors.dtype or bias.device != factors.device:
        raise ArgumentError(
            f"bias is {bias.dtype} on {bias.device}, the factors {factors.dtype} on "
            f"{factors.device}; bring them together with .to()"
        )


def _own(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def _frozen_path(table: PathTable, rows: int) -> str:
    """One path for an exported program: the first whose bucket is sure to hold all rows that the
    program may meet, the last one where nothing bounds them. Guards nothing on a dynamic batch."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    for limit, path in table.entries:
        if limit is None or statically_known_true(rows <= limit):
            return path
    raise AssertionError("the last entry has no limit")

"""A module that keeps its matrices packed, and the same with a layer for each of them.

torch keeps the gates of an LSTM, the projections of an attention and the experts of a mixture in
tensors of their own making, which no layer stands for. Unpacked, each matrix is an nn.Linear on the
very same memory: whatever is known of linear layers (their moments, what an error of them costs,
every format) holds for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn.obstacles import hooks_of
from tensorlrf.nn.tensors import is_known

Join = Callable[[list[Tensor]], Tensor]

_BY_TYPE: dict[type[nn.Module], type[Unpacked]] = {}
_BY_STRUCTURE: list[tuple[Callable[[nn.Module], bool], type[Unpacked]]] = []


class Unpacked(nn.Module, ABC):
    """A module with an nn.Linear, or a factored one, for each matrix that another keeps packed.

    What `factorize` gives for a module with several matrices; `FactoredLSTM` and the others are of
    this type.
    """

    stands_for: ClassVar[str]
    """The type name of the packed module."""

    renews: ClassVar[bool] = False
    """Whether a forward, within which hooks put other weights into layers that it calls several
    times, gives what these give from the first call on."""

    def __init_subclass__(
        cls,
        *,
        packed: type[nn.Module] | None = None,
        where: Callable[[nn.Module], bool] | None = None,
    ) -> None:
        """Declares it as what a torch module of exactly that type, or of a structure, becomes."""
        super().__init_subclass__()
        if packed is not None:
            _BY_TYPE[packed] = cls
        if where is not None:
            _BY_STRUCTURE.append((where, cls))

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    @abstractmethod
    def from_packed(cls, module: Any) -> Self:
        """The same module on the same memory: its layers are dense, their weights views.

        Parameters
        ----------
        module : Module
            The packed one; it stays as it is.

        Returns
        -------
        Unpacked
            Its options, training flag, dtype, device and requires_grad are those of `module`.

        Raises
        ------
        ArgumentError, UnsupportedError
            Where it is another module, or something hangs on it.
        """

    @abstractmethod
    def pack(self, *, values: bool = True) -> nn.Module:
        """The packed module, on memory of its own.

        Parameters
        ----------
        values : bool
            Whether it has them; else it is on the meta device.

        Returns
        -------
        Module
            Its matrices are the weights of the layers, those of factored ones computed.
        """

    @classmethod
    def differs(cls, module: nn.Module) -> str:
        """Why the forward of `module`, on which nothing hangs, is not what is known of it.

        Parameters
        ----------
        module : Module
            A packed one.

        Returns
        -------
        str
            Empty where it is.
        """
        return ""

    def gates_of(self, name: str) -> int:
        """How many gates the weight of a layer of it has stacked, of equally many rows each.

        Parameters
        ----------
        name : str
            Of the layer, as in `named_children`.

        Returns
        -------
        int
            1 for none.
        """
        return 1

    @property
    def is_factored(self) -> bool:
        """Whether a matrix of it is held as factors."""
        return any(isinstance(module, FactoredLayer) for module in self.modules())


def gates_at(model: nn.Module, name: str) -> int:
    """How many gates the layer of that qualified name has; 1 for none."""
    above, _, own = name.rpartition(".")
    holder = model.get_submodule(above)
    return holder.gates_of(own) if isinstance(holder, Unpacked) else 1


def unpacked_type(module: nn.Module) -> type[Unpacked] | None:
    """What the module would become; None where it keeps nothing packed."""
    if parametrize.is_parametrized(module):
        return _BY_TYPE.get(type(module).__bases__[0])
    found = _BY_TYPE.get(type(module))
    if found is None and not isinstance(module, Unpacked):
        found = next((cls for holds, cls in _BY_STRUCTURE if holds(module)), None)
    return found


def why_not_unpacked(module: nn.Module) -> str:
    """Why a module that keeps matrices packed must stay so; empty where it need not."""
    return next(_obstacles(module), "")


def check_packed(module: Any, kind: type[Unpacked], argument: str) -> None:
    """`module` is one that `kind` unpacks. Raises ArgumentError or UnsupportedError."""
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"{argument} is a {type(module).__name__}; pass a {kind.stands_for}")
    if unpacked_type(module) is not kind:
        raise UnsupportedError(
            f"{argument} is a {type(module).__name__}; pass exactly a {kind.stands_for}"
        )
    why = why_not_unpacked(module)
    if why:
        raise UnsupportedError(f"{argument} is a {type(module).__name__}: {why}")


def _obstacles(module: nn.Module) -> Iterator[str]:
    if parametrize.is_parametrized(module):
        yield "parametrised; remove_parametrizations first"
    hooks = hooks_of(module)
    if hooks:
        yield f"has hooks ({', '.join(hooks)}), which a new module would not have"
    if "forward" in vars(module):
        yield "its forward is replaced on the instance"
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            yield "lazy: run the model once, then compress it"
        elif not is_known(parameter) or type(parameter) is not nn.Parameter:
            yield f"its {name} is a {type(parameter).__name__}, no ordinary parameter"
        elif not parameter.is_floating_point():
            yield f"its {name} is {str(parameter.dtype).removeprefix('torch.')}, not floating point"
    kind = unpacked_type(module)
    if kind is not None and (differs := kind.differs(module)):
        yield differs


def linear_on(weight: Tensor, bias: Tensor | None, like: nn.Module) -> nn.Linear:
    """A dense layer on the memory of these, which may be parts of parameters of `like`."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = _on(weight)
    layer.bias = None if bias is None else _on(bias)  # type: ignore[assignment]
    return layer.train(like.training)


def _on(part: Tensor) -> nn.Parameter:
    return nn.Parameter(part.detach(), requires_grad=part.requires_grad)


def weight_of(layers: Sequence[Any], *, values: bool, join: Join = torch.cat) -> nn.Parameter:
    """The dense weights of layers as one parameter, on memory of its own or on meta."""
    with torch.no_grad():
        parts = [_weight(layer) if values else _blank(layer.weight) for layer in layers]
    needed = any(
        p.requires_grad for one in layers for k, p in one.named_parameters() if k != "bias"
    )
    return nn.Parameter(join(parts), requires_grad=needed)


def bias_of(layers: Sequence[Any], *, values: bool, join: Join = torch.cat) -> nn.Parameter:
    """Their biases likewise, zeros where there is none."""
    parts = []
    for layer in layers:
        bias: Tensor | None = layer.bias
        weight = layer.weight
        device = weight.device if values else torch.device("meta")
        zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=device)
        parts.append(zeros if bias is None else bias.detach() if values else _blank(bias))
    needed = any(one.bias is None or one.bias.requires_grad for one in layers)
    return nn.Parameter(join(parts), requires_grad=needed)


def alone(parts: list[Tensor]) -> Tensor:
    """The one tensor, on memory of its own."""
    (part,) = parts
    return part.clone()


def _weight(layer: Any) -> Tensor:
    made: Tensor = layer.factors.to_dense() if isinstance(layer, FactoredLayer) else layer.weight
    return made.detach()


def _blank(t: Tensor) -> Tensor:
    return torch.empty(tuple(t.shape), dtype=t.dtype, device="meta")

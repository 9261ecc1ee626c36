"""Parameters that are tensor subclasses, such as quantised or sharded ones: how to read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tensorlrf.errors import ArgumentError

Values = Callable[[Any], Tensor]
"""From a tensor of a subclass to an ordinary one of the same shape, dtype and device."""

_REGISTERED: dict[type[Tensor], Values] = {}


def register_tensor(cls: type[Tensor], values: Values) -> None:
    """Let layers be replaced whose weight is exactly a `cls`, by the numbers that `values` reads.

    For quantised weights, whose layer is then factored as if it held what they stand for. Without
    it such layers are left, and the plan says so.

    Parameters
    ----------
    cls : type
        A subclass of torch.Tensor.
    values : callable
        From such a tensor to an ordinary one of the shape, dtype and device that it shows.

    Raises
    ------
    ArgumentError
        Where `cls` is no such subclass, or is registered already.

    Examples
    --------
    >>> class Doubled(torch.Tensor):
    ...     pass
    >>> tensorlrf.nn.register_tensor(Doubled, lambda t: 2 * t.as_subclass(torch.Tensor))
    """
    if not (isinstance(cls, type) and issubclass(cls, Tensor)) or cls in (Tensor, nn.Parameter):
        raise ArgumentError(f"cls={cls!r} is no subclass of torch.Tensor that need be registered")
    if cls in _REGISTERED:
        raise ArgumentError(f"cls={cls.__qualname__} is known already; a type is registered once")
    _REGISTERED[cls] = values


def is_known(tensor: Tensor | None) -> bool:
    """Whether it is no tensor, an ordinary one, or one whose class was registered."""
    return tensor is None or type(tensor) in (nn.Parameter, Tensor, *_REGISTERED)


def values_of(tensor: Tensor) -> Tensor:
    """The numbers of a known tensor as an ordinary one, detached; an ordinary one is not copied.

    Raises ArgumentError where a registered function gives something else.
    """
    read = _REGISTERED.get(type(tensor))
    if read is None:
        return tensor.detach()
    made = read(tensor.detach())
    alike = isinstance(made, Tensor) and type(made) in (Tensor, nn.Parameter)
    if not alike or (made.shape, made.dtype, made.device) != (
        tensor.shape,
        tensor.dtype,
        tensor.device,
    ):
        shown = f"{type(made).__name__} of {tuple(made.shape)}, {made.dtype}" if alike else made
        raise ArgumentError(
            f"values of {type(tensor).__qualname__} gave {shown}; it must give an ordinary tensor "
            f"of {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"
        )
    return made.detach()

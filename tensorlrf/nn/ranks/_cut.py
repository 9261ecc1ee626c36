"""What of a tensor belongs to the leading terms of factors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Cut(NamedTuple):
    """The leading entries along every dimension.

    shape  in which the tensor is cut, where it is kept in another
    sizes  how many entries along each dimension of that
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]


def cut(tensor: Tensor, to: Cut) -> Tensor:
    """A view, where the tensor as it is kept can be seen in that shape."""
    tensor = tensor.reshape(to.shape)
    for dim, (whole, size) in enumerate(zip(to.shape, to.sizes, strict=True)):
        if size != whole:
            tensor = tensor.narrow(dim, 0, size)
    return tensor

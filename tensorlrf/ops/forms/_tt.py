"""A tensor train, whose cores are a chain of convolutions: into the ranks, one along each axis, and
out of them."""

from __future__ import annotations

from collections.abc import Iterator

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import TTFactors
from tensorlrf.ops.forms._form import Form, Terms, no_network
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Paths


class TTForm(Form[TTFactors]):
    """One convolution a core, from the input channels to the output channels."""

    def conv(self, f: TTFactors, conv: Conv) -> Paths:
        order = train_order(conv.axes + 2)
        if f.modes != order:
            raise UnsupportedError(
                f"factors is a train of the modes {f.modes}; a convolution runs on one of the "
                f"modes {order}: decompose with modes={order}"
            )
        last, *cores, first = f.cores  # each (r, n, r'), or a stack of such
        lines = []
        for k, core in enumerate(reversed(cores)):
            before, n = core.shape[-1], core.shape[-2]
            kernel = core.transpose(-2, -1).reshape(-1, before, *conv.line(n, k))
            lines.append(conv.taps(kernel, range(k, k + 1)))  # (g r, r', .., n, ..)
        into, out = conv.pointwise(first[..., 0]), conv.pointwise(last[..., 0, :, :])
        return {"chain": (into, *lines, out)}

    def network(self, f: TTFactors, modes: str, fresh: Iterator[str]) -> Terms:
        if len(f.cores) != len(modes):
            raise no_network(f)
        bonds = [next(fresh) for _ in (*f.cores, None)]
        return [
            (bonds[k] + modes[mode] + bonds[k + 1], core)
            for k, (mode, core) in enumerate(zip(f.modes, f.cores, strict=True))
        ]


def train_order(order: int) -> tuple[int, ...]:
    """The modes of the train that is a chain of convolutions.

    From the output channels over the last to the first axis to the input channels.

    Parameters
    ----------
    order : int
        Of the kernel, its axes and two.

    Returns
    -------
    tuple of int

    Examples
    --------
    >>> tensorlrf.ops.train_order(4)
    (0, 3, 2, 1)
    """
    return (0, *range(order - 1, 0, -1))

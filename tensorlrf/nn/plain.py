"""What a layer computes, told as a plain torch layer: options, padding on each side, groups.

Some subclasses compute just what their base does, others with zeros put around the input first.
Some are known here, told by module path and class name, so that nothing is imported; others can be
registered. Of all others it is seen what they hand to torch (`behaviour/seen.py`). None of this is
believed before `behaviour/mismatch.py` has run both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.ops.geometry import adjoint

Pads = tuple[int, ...] | tuple[tuple[int, int], ...]

BASES: dict[str, type[nn.Module]] = {
    "Linear": nn.Linear,
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Conv3d": nn.Conv3d,
    "ConvTranspose1d": nn.ConvTranspose1d,
    "ConvTranspose2d": nn.ConvTranspose2d,
    "ConvTranspose3d": nn.ConvTranspose3d,
}
HF_CONV1D = "Conv1D"
TABLES: dict[str, type[nn.Module]] = {
    "Embedding": nn.Embedding,
    "EmbeddingBag": nn.EmbeddingBag,
}
"""Layers that look up rows of their weight (n, d): linear ones of (d, n) on indicators of rows."""
KINDS = (*BASES, HF_CONV1D, *TABLES)


@dataclass(frozen=True)
class Plain:
    """A layer that computes what a plain one does with its `weight` and `bias`.

    Parameters
    ----------
    kind : str
        "Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d" and so on, or "Conv1D", the
        transposed linear layer of transformers; or "Embedding" or
        "EmbeddingBag".
    stride, padding, dilation, groups, padding_mode
        Of a convolution, one int an axis. Padding is "same", "valid", one int an axis, or
        (before, after) an axis where the two sides differ: then of zeros. Of a transposed one, one
        int an axis.
    output_padding
        Of a transposed convolution, one int an axis.

    Raises
    ------
    ArgumentError
        Where these do not fit together.

    Examples
    --------
    >>> plain = tensorlrf.nn.Plain.of(torch.nn.Conv2d(4, 8, 3, padding=1))
    >>> plain.kind, plain.stride, plain.padding
    ('Conv2d', (1, 1), (1, 1))
    """

    kind: str
    stride: tuple[int, ...] = ()
    padding: str | Pads = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind", self.kind, KINDS)
        some = ("output_padding",) if self.is_transposed else ()
        for argument in ("stride", "dilation", "padding", *some):
            value = getattr(self, argument)
            if not isinstance(value, str) and len(value) != self.axes:
                raise ArgumentError(
                    f"{argument}={value!r} must have {self.axes} entries for a {self.kind}"
                )
        if self.output_padding and not self.is_transposed:
            raise ArgumentError(
                f"output_padding={self.output_padding!r} is an option of transposed convolutions, "
                f"and kind={self.kind!r}"
            )
        if self.is_transposed and (isinstance(self.padding, str) or self.is_uneven):
            raise ArgumentError(
                f"padding={self.padding!r} must have one int an axis for a {self.kind}"
            )
        if self.is_uneven and self.padding_mode != "zeros":
            raise ArgumentError(
                f"padding={self.padding!r} with padding_mode={self.padding_mode!r}: two sides that "
                "differ are of zeros"
            )

    @classmethod
    def of(cls, layer: Any) -> Plain:
        """As the base of `layer` computes: for a subclass that leaves the forward of its base.

        Parameters
        ----------
        layer : Module

        Returns
        -------
        Plain

        Raises
        ------
        ArgumentError
            Where it is no Linear, convolution or Conv1D.
        """
        if is_hf_conv1d(layer):
            return cls(HF_CONV1D)
        base = base_of(layer)
        if base is None:
            raise ArgumentError(
                f"layer is a {type(layer).__name__}; pass one of {', '.join(KINDS)}"
            )
        if base == "Linear":
            return cls(base)
        pads = layer.padding
        return cls(
            base,
            tuple(layer.stride),
            pads if isinstance(pads, str) else tuple(pads),
            tuple(layer.dilation),
            layer.groups,
            layer.padding_mode,
            tuple(layer.output_padding) if layer.transposed else (),
        )

    @property
    def axes(self) -> int:
        """Axes that a convolution slides along; 0 for a linear layer."""
        return int(self.kind[-2]) if self.kind.startswith("Conv") and self.kind[-1] == "d" else 0

    @property
    def is_transposed(self) -> bool:
        """It is a transposed convolution."""
        return self.kind.startswith("ConvTranspose")

    @property
    def is_uneven(self) -> bool:
        """The padding is given as (before, after)."""
        return any(isinstance(p, tuple) for p in self.padding)

    @property
    def conv_options(self) -> dict[str, Any]:
        """What a factored convolution takes.

        Stride, padding, dilation and padding_mode, or output_padding of a transposed one.
        """
        last = "output_padding" if self.is_transposed else "padding_mode"
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", last)}

    # ---- the weight, outputs first -----------------------------------------------------------

    def outputs_first(self, weight: Tensor) -> Tensor:
        """The weight of such a layer as (out, in / groups, ...), which its factors stand for.

        A view of it, but for a transposed convolution with groups.
        """
        if self.kind == HF_CONV1D or self.kind in TABLES:
            return weight.T
        return adjoint(weight, self.groups) if self.is_transposed else weight

    def as_torch_has(self, weight: Tensor) -> Tensor:
        """The inverse of `outputs_first`, which is its own."""
        return self.outputs_first(weight)

    def shape_of(self, weight: Tensor) -> tuple[int, ...]:
        """The shape of `outputs_first(weight)`."""
        first, second, *kernel = weight.shape
        if self.kind == HF_CONV1D or self.kind in TABLES:
            return second, first
        if self.is_transposed:
            return second * self.groups, first // self.groups, *kernel
        return tuple(weight.shape)


Describe = Callable[[Any], Plain | str]
"""From a layer to what it computes, or to the reason why no plain layer does."""

_REGISTERED: dict[type[nn.Module], Describe] = {}


def register_plain(cls: type[nn.Module], describe: Describe) -> None:
    """Let layers of exactly the type `cls` be replaced, as what `describe(layer)` says they are.

    A subclass that computes what its base does with the same options needs none: that is found by
    running it. What is said is checked on every layer: its forward runs on a small random input
    beside the plain one, and where they differ the layer stays.

    Parameters
    ----------
    cls : type
        A subclass of torch.nn.Linear, of a convolution or of a transposed one, of the same weight
        and bias.
    describe : callable
        From a layer to a `Plain`, or to a sentence why this layer is none.

    Raises
    ------
    ArgumentError
        Where `cls` is no such subclass or is known already.

    Examples
    --------
    For a subclass that puts zeros before the start of a sequence:

    >>> class Causal(torch.nn.Conv1d):
    ...     def forward(self, x):
    ...         return super().forward(torch.nn.functional.pad(x, (2, 0)))
    >>> def describe(layer):
    ...     return tensorlrf.nn.Plain("Conv1d", layer.stride, ((2, 0),), layer.dilation)
    >>> tensorlrf.nn.register_plain(Causal, describe)
    >>> tensorlrf.nn.factorize(Causal(8, 8, 3), "svd", 2).padding
    ((2, 0),)
    """
    if not (isinstance(cls, type) and issubclass(cls, tuple(BASES.values()))):
        raise ArgumentError(
            f"cls={cls!r} is no subclass of torch.nn.{', '.join(BASES)}; only those have a "
            "factored form"
        )
    if cls in BASES.values() or cls in _REGISTERED or _known(cls) is not None:
        raise ArgumentError(f"cls={cls.__qualname__} is known already; a type is registered once")
    _REGISTERED[cls] = describe


def is_hf_conv1d(layer: object) -> bool:
    """Exactly the Conv1D of transformers, which is not imported for it."""
    cls = type(layer)
    return cls.__name__ == HF_CONV1D and cls.__module__ == "transformers.pytorch_utils"


def is_table(layer: object) -> bool:
    """An embedding or a subclass of one, whatever that does."""
    return isinstance(layer, tuple(TABLES.values()))


def base_of(layer: object) -> str | None:
    """The name of the torch layer that it is or derives from, of those that have factored forms."""
    return next((name for name, base in BASES.items() if isinstance(layer, base)), None)


def told_of(layer: nn.Module) -> Plain | str | None:
    """What is told of what the layer computes, or the reason why no plain layer does; None of a
    subclass of which nothing is known. Nothing is run.

    Raises ArgumentError where a registered function gives neither.
    """
    cls = type(layer)
    if cls in BASES.values() or is_hf_conv1d(layer):
        return Plain.of(layer)
    describe = _REGISTERED.get(cls) or _known(cls)
    if describe is not None:
        given = describe(layer)
        if not isinstance(given, (Plain, str)) or given == "":
            raise ArgumentError(
                f"describe of {cls.__qualname__} gave {given!r}; it must give a Plain or a "
                "sentence why there is none"
            )
        if isinstance(given, Plain) and given.kind != base_of(layer):
            raise ArgumentError(
                f"describe of {cls.__qualname__} gave kind={given.kind!r}; its base is a "
                f"{base_of(layer)}"
            )
        return given
    if cls in TABLES.values():
        return Plain(cls.__name__)
    return "neither Linear nor a convolution" if base_of(layer) is None else None


def is_told(layer: nn.Module) -> bool:
    """Whether it is known what a subclass computes."""
    return type(layer) in _REGISTERED or _known(type(layer)) is not None


# ---- subclasses that are known --------------------------------------------------------------


def _static_same(conv: Any) -> Plain | str:
    """efficientnet's Conv2dStaticSamePadding: zeros for one size of image, then its own."""
    ahead = conv.static_padding
    if isinstance(ahead, nn.ZeroPad2d):
        left, right, top, below = ahead.padding
    elif type(ahead).__name__ == "Identity":
        left = right = top = below = 0
    else:
        return f"pads by a {type(ahead).__name__}, not by zeros"
    if isinstance(conv.padding, str) or min(left, right, top, below) < 0:
        return "pads in a way that this version does not know"
    dy, dx = conv.padding
    rows, columns = (top + dy, below + dy), (left + dx, right + dx)
    even = rows[0] == rows[1] and columns[0] == columns[1]
    return _conv2d(conv, (rows[0], columns[0]) if even else (rows, columns))


def _dynamic_same(conv: Any) -> Plain | str:
    """Zeros so that the output is ceil(size / stride) large (TensorFlow's "SAME")."""
    # (ceil(n / s) - 1) s + 1 <= n, so that a kernel of one never reaches beyond the input.
    if tuple(conv.kernel_size) == (1, 1):
        return _conv2d(conv, (0, 0))
    return "pads by the size of its input"


def _conv2d(conv: Any, padding: Pads) -> Plain:
    return Plain("Conv2d", tuple(conv.stride), padding, tuple(conv.dilation), conv.groups)


def _read_by_attention(_: Any) -> str:
    return "its weight is read by MultiheadAttention, which does not call it"


_EFFICIENTNETS = ("efficientnet_lite_pytorch", "efficientnet_pytorch")
_KNOWN: dict[str, tuple[tuple[str, ...], Describe]] = {
    "Conv2dStaticSamePadding": (_EFFICIENTNETS, _static_same),
    "Conv2dDynamicSamePadding": (_EFFICIENTNETS, _dynamic_same),
    "Conv2dSame": (("timm",), _dynamic_same),
    "NonDynamicallyQuantizableLinear": (("torch",), _read_by_attention),
}
"""Class name -> (packages that have it, what it computes)."""


def _known(cls: type) -> Describe | None:
    packages, describe = _KNOWN.get(cls.__name__, ((), None))
    return describe if cls.__module__.partition(".")[0] in packages else None

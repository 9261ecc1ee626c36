"""What a layer computes, told as a plain torch layer: options, padding on each side, groups.

Layers are replaced by exact type. Some subclasses compute just what a plain layer does, most often
with zeros put around the input first; those known here are told by module path and class name, so
that nothing is imported, and others can be registered. What is told of a subclass is not believed
before `mismatch` has run both.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.nn.copies import replica

Pads = tuple[int, ...] | tuple[tuple[int, int], ...]

BASES: dict[str, type[nn.Module]] = {
    "Linear": nn.Linear,
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Conv3d": nn.Conv3d,
}
_AXES = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}
HF_CONV1D = "Conv1D"
KINDS = (*BASES, HF_CONV1D)
_ZERO_PADS = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}


@dataclass(frozen=True)
class Plain:
    """A layer that computes what a plain one does with its `weight` and `bias`.

    Parameters
    ----------
    kind : str
        "Linear", "Conv1d", "Conv2d", "Conv3d", or "Conv1D", the transposed linear layer of
        transformers.
    stride, padding, dilation, groups, padding_mode
        Of a convolution, one int an axis. Padding is "same", "valid", one int an axis, or
        (before, after) an axis where the two sides differ: then of zeros.

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

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind", self.kind, KINDS)
        for argument in ("stride", "dilation", "padding"):
            value = getattr(self, argument)
            if not isinstance(value, str) and len(value) != self.axes:
                raise ArgumentError(
                    f"{argument}={value!r} must have {self.axes} entries for a {self.kind}"
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
            Where it is no Linear, Conv1d, Conv2d, Conv3d or Conv1D.
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
        )

    @property
    def axes(self) -> int:
        """Axes that a convolution slides along; 0 for a linear layer."""
        return _AXES.get(self.kind, 0)

    @property
    def is_uneven(self) -> bool:
        """The padding is given as (before, after)."""
        return any(isinstance(p, tuple) for p in self.padding)

    @property
    def conv_options(self) -> dict[str, Any]:
        """What a factored convolution takes: stride, padding, dilation and padding_mode."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
        }


Describe = Callable[[Any], Plain | str]
"""From a layer to what it computes, or to the reason why no plain layer does."""

_REGISTERED: dict[type[nn.Module], Describe] = {}


def register_plain(cls: type[nn.Module], describe: Describe) -> None:
    """Let layers of exactly the type `cls` be replaced, as what `describe(layer)` says they are.

    What is said is checked on every layer: its forward runs on a small random input beside the
    plain one, and where they differ the layer stays.

    Parameters
    ----------
    cls : type
        A subclass of torch.nn.Linear, Conv1d, Conv2d or Conv3d, of the same weight and bias.
    describe : callable
        From a layer to a `Plain`, or to a sentence why this layer is none.

    Raises
    ------
    ArgumentError
        Where `cls` is no such subclass or is known already.

    Examples
    --------
    For a subclass that only initialises its weight in another way:

    >>> class Orthogonal(torch.nn.Linear):
    ...     def reset_parameters(self):
    ...         torch.nn.init.orthogonal_(self.weight)
    >>> tensorlrf.nn.register_plain(Orthogonal, tensorlrf.nn.Plain.of)
    >>> type(tensorlrf.nn.factorize(Orthogonal(8, 8), "svd", 2)).__name__
    'FactoredLinear'
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


def base_of(layer: object) -> str | None:
    """The name of the torch layer that it is or derives from, of those that have factored forms."""
    return next((name for name, base in BASES.items() if isinstance(layer, base)), None)


def plain_of(layer: nn.Module) -> Plain | str:
    """What the layer computes, or the reason why no plain layer does. Nothing is run.

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
    base = base_of(layer)
    if base is not None:
        return f"subclass of {base}; only the exact type is replaced"
    if getattr(layer, "transposed", False) is True:
        return "transposed convolution"
    return "neither Linear nor a convolution"


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


# ---- the plain layer itself -----------------------------------------------------------------


def torch_layer(plain: Plain, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """The torch layer that `plain` stands for, on these very parameters.

    weight  in the layout of the layer; bias (out,) or None

    Where the padding differs from side to side, an nn.Sequential of ZeroPad and convolution. The
    Conv1D of transformers needs transformers.
    """
    # On meta nothing is initialised: no time is spent and no random number drawn.
    with torch.device("meta"):
        layer: nn.Module
        if plain.kind == HF_CONV1D:
            layer = importlib.import_module("transformers.pytorch_utils").Conv1D(
                *weight.shape[::-1]
            )
            bias = nn.Parameter(weight.new_zeros(weight.shape[1])) if bias is None else bias
        elif plain.kind == "Linear":
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        else:
            make: Any = BASES[plain.kind]
            layer = make(
                weight.shape[1] * plain.groups,
                weight.shape[0],
                tuple(weight.shape[2:]),
                stride=plain.stride,
                padding=0 if plain.is_uneven else plain.padding,
                dilation=plain.dilation,
                groups=plain.groups,
                bias=False,
                padding_mode=plain.padding_mode,
            )
    layer.weight = weight
    layer.bias = bias  # type: ignore[assignment]
    if not plain.is_uneven:
        return layer
    # F.pad counts from the last axis.
    sides = [n for pads in reversed(plain.padding) for n in _pair(pads)]
    zeros: Any = _ZERO_PADS[plain.axes]
    return in_turn([zeros(tuple(sides)), layer])


def in_turn(layers: list[nn.Module], *, whole: bool = False) -> nn.Module:
    """The layers one after the other; one alone is itself, unless the `whole` is to hold it.

    The nn.Sequential has an empty `weight` that is in no state dict: models ask a layer for
    `.weight.dtype` or `.weight.device` (CLIP and T5 of transformers do), and it follows .to().
    """
    if len(layers) == 1 and not whole:
        return layers[0]
    made = nn.Sequential(*layers)
    last = next(layers[-1].parameters())
    made.register_buffer("weight", last.detach().new_empty(0), persistent=False)
    return made


def _pair(pads: Any) -> tuple[int, int]:
    return pads if isinstance(pads, tuple) else (pads, pads)


def mismatch(layer: Any, plain: Plain) -> str:
    """Why the forward of `layer` is not what `plain` says; empty where it is.

    Both run in eval mode without grad on one small random input, the layer as a copy on the same
    parameters. A layer on the meta device is believed, and one of exactly a torch type is.
    """
    weight, bias = layer.weight, layer.bias
    if weight.is_meta or type(layer) in BASES.values() or is_hf_conv1d(layer):
        return ""
    draws = torch.Generator().manual_seed(0)
    shape = _probe_shape(layer, plain)
    x = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
    x = x.to(weight.device, weight.dtype)
    device = weight.device.type
    try:
        twin = replica(layer)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            want = torch_layer(plain, weight, bias).eval()(x)
            got = twin(x)
    except Exception as error:
        return f"its forward fails on a small input ({type(error).__name__}: {error})"
    differs = "its forward differs from what this version knows"
    if not isinstance(got, Tensor) or got.shape != want.shape or got.dtype != want.dtype:
        return differs
    # The terms of an output are at most |x| |w| together (Cauchy-Schwarz), and rounding errors of a
    # sum of n terms grow like sqrt(n) of it. Half types sum in float32, a GPU may multiply in TF32.
    n = weight[0].numel()
    eps = torch.finfo(weight.dtype).eps
    sums = max(min(eps, torch.finfo(torch.float32).eps), 2.0**-10 if device == "cuda" else 0.0)
    size = weight.detach().flatten(1).float().norm(dim=1) * x.float().norm()
    if bias is not None:
        size = size + bias.detach().float().abs()
    bound = 8 * (eps + math.sqrt(n) * sums) * size
    bound = bound.reshape(-1, *[1] * plain.axes)  # along the channels, or the last dimension
    # A weight that is not finite tells nothing: around it, zeros make NaN or are left out.
    same = ((got - want).abs() <= bound) | ~bound.isfinite()
    return "" if bool(same.all()) else differs


def _probe_shape(layer: Any, plain: Plain) -> tuple[int, ...]:
    """A batch of two; along each axis the kernel fits a few times, in each another number."""
    if not plain.axes:
        return (2, layer.weight.shape[1])
    reach = (
        d * (k - 1) + 1 + (3 + axis) * s
        for axis, (k, s, d) in enumerate(
            zip(layer.weight.shape[2:], plain.stride, plain.dilation, strict=True)
        )
    )
    return (2, layer.weight.shape[1] * plain.groups, *reach)

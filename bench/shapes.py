"""The layers that the benchmarks run: shapes of known networks, and ranks by break-even.

The break-even rank is the one at which the factors hold as many numbers as the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors

SHARES = (0.25, 0.5)
RANK_MULTIPLE = 16


@dataclass(frozen=True)
class Conv:
    """A convolution (O, I, kh, kw) on a batch of square images, with its usual padding."""

    network: str
    out: int
    inp: int
    kernel: tuple[int, int]
    side: int
    stride: int = 1
    batch: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out, self.inp, *self.kernel)

    @property
    def padding(self) -> tuple[int, int]:
        return (self.kernel[0] // 2, self.kernel[1] // 2)

    @property
    def rows(self) -> int:
        return self.batch * (-(-self.side // self.stride)) ** 2

    def __str__(self) -> str:
        kh, kw = self.kernel
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return (
            f"{self.network} {self.inp}-{self.out} {kh}x{kw}{stride} at {self.side}, "
            f"batch {self.batch}"
        )


@dataclass(frozen=True)
class Linear:
    """A linear layer (m, n) on `rows` tokens."""

    network: str
    out: int
    inp: int
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out, self.inp)

    def __str__(self) -> str:
        return f"{self.network} {self.inp}-{self.out}, {self.rows} tokens"


# Every distinct convolution with k > 1 of ResNet-50 (He et al. 2016, v1.5 strides) at 224 pixels.
RESNET50 = tuple(
    Conv("resnet50", *layer, batch=batch)
    for batch in (1, 8)
    for layer in (
        (64, 3, (7, 7), 224, 2),
        (64, 64, (3, 3), 56, 1),
        (128, 128, (3, 3), 56, 2),
        (128, 128, (3, 3), 28, 1),
        (256, 256, (3, 3), 28, 2),
        (256, 256, (3, 3), 14, 1),
        (512, 512, (3, 3), 14, 2),
        (512, 512, (3, 3), 7, 1),
    )
)

# The linear layers of a BERT-base block (Devlin et al. 2019), 128 tokens, batch 1 and 8.
BERT_BASE = tuple(
    Linear("bert-base", out, inp, rows)
    for rows in (128, 1024)
    for out, inp in ((768, 768), (3072, 768), (768, 3072))
)

# The distinct linear layers of a Llama-3-8B block (Grattafiori et al. 2024): queries and output,
# keys and values, gate and up, down; with those of BERT-base they are what kernels are timed on.
LLAMA3_8B = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
KERNEL_LAYERS = tuple(("llama3-8b", out, inp) for out, inp in LLAMA3_8B) + tuple(
    ("bert-base", out, inp) for out, inp in ((768, 768), (3072, 768), (768, 3072))
)
KERNEL_ROWS = (1, 16, 128, 2048, 8192)
KERNEL_RANKS = (32, 64, 128, 256, 512, 1024)


def kernel_ranks(out: int, inp: int) -> tuple[int, ...]:
    """The ranks to time for a weight (out, inp): those that save something."""
    return tuple(r for r in KERNEL_RANKS if r * (out + inp) < out * inp)


def held_out(out: int, inp: int, rank: int) -> bool:
    """Whether tuning must not see this layer at this rank: a third of all, each rank among them."""
    layer = [(o, i) for _, o, i in KERNEL_LAYERS].index((out, inp))
    return (layer + KERNEL_RANKS.index(rank)) % 3 == 2


# What the fused convolutions are timed on: those of ResNet-50 above, every distinct one of VGG-16
# (Simonyan & Zisserman 2015) at 224 pixels, and of the decoder of CRAFT (Baek et al. 2019), whose
# trunk is VGG-16, at 512. The one with dilation 6 has no kernel: it is part of the whole network.
_VGG16 = (
    *((64, 3, 224), (64, 64, 224), (128, 64, 112), (128, 128, 112), (256, 128, 56)),
    *((256, 256, 56), (512, 256, 28), (512, 512, 28), (512, 512, 14)),
)
_CRAFT = (
    (256, 512, 32),
    (128, 256, 64),
    (64, 128, 128),
    (32, 64, 256),
    (32, 32, 256),
    (16, 32, 256),
)
CONV_LAYERS = (
    *(replace(conv, batch=1) for conv in RESNET50[: len(RESNET50) // 2]),
    *(Conv("vgg16", out, inp, (3, 3), side) for out, inp, side in _VGG16),
    *(Conv("craft", out, inp, (3, 3), side) for out, inp, side in _CRAFT),
)
# The goals are about three of them, each at the ranks beside it.
FLAGSHIPS = tuple(
    (Conv("resnet50", n, n, (3, 3), side, batch=32), ranks)
    for n, side, ranks in ((64, 56, (64,)), (128, 28, (64,)), (256, 14, (64, 128)))
)
KERNEL_CONVS = (
    *(conv for conv, _ in FLAGSHIPS),
    *(
        conv
        for batch in (32, 8, 1)
        for layer in CONV_LAYERS
        if (conv := replace(layer, batch=batch)) not in [c for c, _ in FLAGSHIPS]
    ),
)
CONV_RANK_SHARES = (0.125, 0.25, 0.5, 1.0)  # of the channels
LEAST_CONV_RANK = 16


def conv_ranks(conv: Conv) -> tuple[int, ...]:
    """The ranks to time, by shares of the channels; those of an image do not limit them."""
    channels = conv.out if conv.inp < LEAST_CONV_RANK else min(conv.out, conv.inp)
    ranks = (max(LEAST_CONV_RANK, round(share * channels)) for share in CONV_RANK_SHARES)
    return tuple(dict.fromkeys(ranks))


def conv_held_out(conv: Conv, rank: int) -> bool:
    """Whether tuning must not see this convolution at this rank: a third, whatever the batch."""
    layer = CONV_LAYERS.index(replace(conv, batch=1))
    return (layer + conv_ranks(conv).index(rank)) % 3 == 2


# A check on the cost model's profile, which was set on the layers above: VGG-16, ResNet-34 at 320
# pixels, an asymmetric kernel of Inception-v3, CRAFT, GPT-2 medium. Not a blind one: the regret on
# these layers, at other ranks, was seen in the same sweep.
HELD_OUT_CONVS = (
    Conv("vgg16", 128, 64, (3, 3), 112),
    Conv("vgg16", 256, 256, (3, 3), 56),
    Conv("vgg16", 512, 512, (3, 3), 28),
    Conv("vgg16", 512, 512, (3, 3), 14),
    Conv("resnet34", 64, 64, (3, 3), 80),
    Conv("resnet34", 256, 128, (3, 3), 40, 2),
    Conv("inception3", 192, 160, (1, 7), 17),
    Conv("craft", 128, 384, (3, 3), 40),
)
HELD_OUT_LINEARS = tuple(
    Linear("gpt2-medium", out, inp, rows)
    for rows in (1, 16, 256)
    for out, inp in ((1024, 1024), (4096, 1024), (1024, 4096))
)


def break_even(format: str, shape: tuple[int, ...]) -> float:
    """The rank, equal on both channel modes for "tucker", at which nothing is saved."""
    dense = math.prod(shape)
    if format == "lowrank":
        return dense / (shape[0] + dense // shape[0])
    if format == "cp":
        return dense / sum(shape)
    if format == "tucker":
        taps, channels = math.prod(shape[2:]), shape[0] + shape[1]
        return (math.sqrt(channels**2 + 4 * taps * dense) - channels) / (2 * taps)
    raise ValueError(f"format={format!r}: choose lowrank, cp or tucker")


def rank_at(format: str, shape: tuple[int, ...], share: float) -> int:
    """`share` of the break-even rank, rounded up to a multiple of 16, the width of a vector."""
    return max(1, math.ceil(share * break_even(format, shape) / RANK_MULTIPLE)) * RANK_MULTIPLE


def sample(
    format: str,
    shape: tuple[int, ...],
    rank: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Factors:
    """Random factors of a weight. A Tucker rank above the number of channels leaves them whole."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        if torch.device(device).type == "meta":
            return torch.empty(size, device=device, dtype=dtype)
        values = torch.randn(*size, generator=generator) / math.sqrt(size[-1])
        return values.to(device, dtype)

    if format == "lowrank":
        return LowRank(normal(shape[0], rank), normal(rank, math.prod(shape[1:])), shape)
    if format == "cp":
        return CPFactors(
            torch.ones(rank, device=device, dtype=dtype), [normal(n, rank) for n in shape]
        )
    modes = tuple(k for k in (0, 1) if shape[k] > rank)
    core = normal(*(rank if k in modes else n for k, n in enumerate(shape)))
    if core.ndim == 4:
        core = core.contiguous(memory_format=torch.channels_last)
    return TuckerFactors(core, tuple(normal(shape[k], rank) for k in modes), modes)

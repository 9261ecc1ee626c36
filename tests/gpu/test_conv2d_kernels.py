"""The kernels of tucker_conv2d and cp_conv2d on a GPU: the laws, and what is their own.

Needs torch, Triton and pytest alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.nn import FactoredConv2d
from tensorlrf.ops import PathTable
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.cp_conv2d import reference as cp_reference
from tensorlrf_kernels.geometry import Geometry
from tensorlrf_kernels.tucker_conv2d import reference as tucker_reference
from tensorlrf_kernels.tucker_conv2d import tucker_conv2d
from tests.gpu.test_on_device import conv_factors
from tests.kernels.drawn import conv, cp_conv
from tests.kernels.drawn.lowrank import roundoff
from tests.laws.device import NormLaws

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("ieee_float32", "launches_succeed")]

LAYERS = (  # batch, channels, rank, image, kernel, geometry
    (1, (1, 1), 1, (1, 1), (1, 1), Geometry()),
    (4, (64, 64), 64, (56, 56), (3, 3), Geometry(padding=(1, 1))),
    (2, (128, 100), 33, (28, 30), (3, 3), Geometry((2, 1), (1, 1), (1, 2))),
    (2, (256, 256), 128, (14, 14), (3, 3), Geometry(padding=(1, 1))),
    (1, (300, 70), 200, (9, 150), (1, 7), Geometry(padding=(0, 3))),
    (3, (17, 19), 5, (40, 23), (7, 5), Geometry((4, 3), (3, 2), (2, 4))),
)


class ConvLaws(NormLaws):
    """Sizes are batch, channels, rank, image, kernel and geometry; the term is the bias."""

    cases = traineds = LAYERS
    few = LAYERS[1:3]
    layouts = tuple(conv.LAYOUTS)
    ways = ((False, None, "channels last"), (True, "gelu", "rows"), (True, "silu", "gaps"))

    def off(self, dtype: torch.dtype) -> float:
        # Intermediates are rounded to the dtype three times on the longest way.
        return 8 * roundoff(dtype) + 1e-5

    def scratch(self, o: Any, y: Tensor) -> Sequence[int]:
        return (len(y), 512, *y.shape[2:])

    def test_autocast_and_empty_batches(self) -> None:
        o = self.draw(LAYERS[1], torch.float32)
        with torch.autocast("cuda", torch.bfloat16):
            assert self.run(o).dtype == torch.bfloat16
        o.x = o.x[:0]
        assert self.run(o).shape == (0, 64, 56, 56)


class TestTuckerConv2d(ConvLaws):
    drawn = conv

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "channels last"
    ) -> conv.ConvOperands:
        return conv.draw_conv(*case, dtype, bias=terms, layout=layout, device="cuda")

    def run(self, o: Any, activation: str | None = None) -> Tensor:
        return tucker_conv2d(o.x, o.core, o.out_factor, None, o.bias, *o.geometry, activation)

    def definition(self, o: Any, leaves: Sequence[Tensor], activation: str | None) -> Tensor:
        x, core, out, bias = leaves
        return tucker_reference.tucker_conv2d(
            x, core, out, None, bias, *o.geometry, activation=activation
        )


class TestCPConv2d(ConvLaws):
    drawn = cp_conv

    def draw(
        self, case: Any, dtype: torch.dtype, *, terms: bool = True, layout: str = "channels last"
    ) -> cp_conv.CPOperands:
        return cp_conv.draw_cp(*case, dtype, bias=terms, layout=layout, device="cuda")

    def leaves(self, o: Any) -> list[Tensor]:
        return [t for t in (o.x, *o.factors, o.bias) if t is not None]

    def run(self, o: Any, activation: str | None = None) -> Tensor:
        return cp_conv2d(o.x, *o.factors, o.bias, *o.geometry, activation)

    def definition(self, o: Any, leaves: Sequence[Tensor], activation: str | None) -> Tensor:
        return cp_reference.cp_conv2d(*leaves, *o.geometry, activation=activation)


@pytest.mark.parametrize("format", ["svd", "cp", "tucker"])
def test_layers_on_a_gpu_have_the_path(format: str) -> None:
    conv = torch.nn.Conv2d(40, 48, (3, 5), stride=(1, 2), padding=1)
    layer = FactoredConv2d.from_factors(conv_factors()[format].to(torch.float32), like=conv)
    assert "fused" not in layer.paths
    layer = layer.cuda()
    layer.path_table = PathTable.single("fused")
    x = torch.randn(2, 40, 30, 31, device="cuda")
    wide = torch.nn.functional.conv2d(
        x.double(), layer.weight.double(), layer.bias.double(), (1, 2), 1
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        y = layer(x.contiguous(memory_format=layout))
        assert y.is_contiguous(memory_format=layout)
        assert float((y.double() - wide).norm() / wide.norm()) < 1e-5

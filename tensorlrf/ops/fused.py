"""The path "fused": where there is a kernel, and how it would be launched."""

from __future__ import annotations

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.ops.checks import check_path
from tensorlrf.ops.forms._structure import of_structure
from tensorlrf.ops.forms.lowering import CONV, CONV_TRANSPOSE, LINEAR, Layer, symbolic_paths
from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import HAS_TRITON, LaunchConfig, Workload


def layer_of(factors: Factors, *, transposed: bool = False) -> Layer:
    """The layer that has these factors: order 2 is linear, 3 to 5 a convolution."""
    if len(factors.shape) == 2:
        return LINEAR
    return CONV_TRANSPOSE if transposed else CONV


def fuses(factors: Factors, layer: Layer | None = None) -> bool:
    """Whether there is a kernel for the layer that has these factors: of a linear one on two
    matrices, or on a structured format of sizes that its kernel takes; of a convolution in two axes
    on CP, low rank, and Tucker with a factor behind the core."""
    layer = layer_of(factors) if layer is None else layer
    return layer.is_in_form(factors) and "fused" in path_names(factors, layer)


def paths_here(layer: Layer, factors: Factors) -> tuple[str, ...]:
    """The paths that the form tells of, where the factors are: "fused" needs an NVIDIA GPU and
    Triton."""
    names = path_names(factors, layer)
    here = HAS_TRITON and factors.device.type == "cuda"
    return ("dense", *names) if here else ("dense", *[n for n in names if n != "fused"])


@of_structure
def path_names(factors: Factors, layer: Layer) -> tuple[str, ...]:
    """The paths beside "dense" that the form tells of."""
    return tuple(symbolic_paths(layer, factors).paths)


def check_layer_path(
    path: str, paths: tuple[str, ...], factors: Factors, layer: Layer | None = None
) -> None:
    """The path is one of `paths`; of a kernel that the layer `has`, and that cannot run here, the
    error says why."""
    if path == "fused" and path not in paths and fuses(factors, layer):
        raise UnsupportedError(
            f"path='fused' is a GPU kernel, and {_lacking(factors)}, or choose 'chain'"
        )
    check_path(path, paths)


def _lacking(factors: Factors) -> str:
    if factors.device.type != "cuda":
        return f"the factors are on {factors.device}; move them to an NVIDIA GPU with .to('cuda')"
    return "" if HAS_TRITON else "Triton cannot be imported; install the triton of this torch"


def fused_problem(
    factors: Factors, rows: int, *, tf32: bool = False
) -> tuple[str, Workload] | None:
    """The op, and what it is to compute, for a layer on `factors` with M output rows; None where
    no kernel is meant for these. Of Tucker convolutions, what is behind the first 1 x 1."""
    kernel = symbolic_paths(layer_of(factors), factors).kernel
    return None if kernel is None else kernel.problem(rows, factors.dtype, tf32)


def fused_launch(
    factors: Factors, rows: int, chip: Chip, *, tf32: bool = False
) -> LaunchConfig | None:
    """How the kernel would be launched on the chip; None where the chain runs in its place."""
    kernel = symbolic_paths(layer_of(factors), factors).kernel
    return None if kernel is None else kernel.launch(rows, factors.dtype, chip, tf32)

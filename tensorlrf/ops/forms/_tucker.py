"""A core with a factor for some of its modes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tensorlrf.ops.forms._form import Form, Terms
from tensorlrf.ops.forms.shared._kernels import TwoMatrices, behind_a_convolution
from tensorlrf.ops.forms.shared._lookup import lookups
from tensorlrf.ops.forms.shared._slide import Conv
from tensorlrf.ops.forms.stages import Matrix, Paths, Stage


class TuckerForm(Form[TuckerFactors]):
    """Into the ranks of the core by the factor of the inputs, the core itself, out of them by the
    factor of the outputs (Kim et al. 2016, section 3.2, for a kernel). A mode left whole needs no
    product; factors of the taps are multiplied into the core."""

    def linear(self, f: TuckerFactors) -> Paths:
        given = dict(zip(f.modes, f.factors, strict=True))
        chain = [Matrix(given[1].T)] if 1 in given else []
        chain += [Matrix(f.core)]
        chain += [Matrix(given[0])] if 0 in given else []
        paths: Paths = {"chain": tuple(chain)}
        if given:
            paths["fused"] = (TwoMatrices(_as_two_matrices(f.core, given)),)
        return paths

    def conv(self, f: TuckerFactors, conv: Conv) -> Paths:
        given = dict(zip(f.modes, f.factors, strict=True))
        core = f.core  # (r_0, r_1, *k), or a stack of such
        for mode in range(2, conv.axes + 2):
            if mode in given:
                core = _along(core, given[mode], mode)
        core = core.reshape(-1, *core.shape[-1 - conv.axes :])  # (g r_0, r_1, *k)
        chain: list[Stage] = []
        if 1 in given:
            chain += [conv.pointwise(given[1].mT, inner=0 in given)]
        chain += [conv.taps(core)]
        if 0 not in given:
            return {"chain": tuple(chain)}
        fused = behind_a_convolution(conv, core, given[0], given.get(1))
        return {"chain": (*chain, conv.pointwise(given[0])), **fused}

    def embedding(self, f: TuckerFactors, padding_idx: int | None) -> Paths:
        given = dict(zip(f.modes, f.factors, strict=True))
        matrices = [given[0]] if 0 in given else []
        matrices += [f.core]
        return lookups([*matrices, given[1].T] if 1 in given else matrices, padding_idx)

    def kernels(self, f: TuckerFactors, conv: Conv) -> dict[str, tuple[int, ...]]:
        rows, *others = f.core.shape[-2 - conv.axes :]
        return {"core": (conv.groups * rows, *others)}

    def rows_of(self, f: TuckerFactors) -> str:
        return "factors.0" if 0 in f.modes else "core"

    def network(self, f: TuckerFactors, modes: str, fresh: Iterator[str]) -> Terms:
        core, factors = list(modes), []
        for k, factor in zip(f.modes, f.factors, strict=True):
            core[k] = next(fresh)
            factors.append((modes[k] + core[k], factor))
        return [("".join(core), f.core), *factors]


def _as_two_matrices(core: Tensor, given: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """right (r, n) and left (m, r) with the core on the side that leaves the smaller rank."""
    if 1 not in given:
        return core, given[0]
    if 0 not in given:
        return given[1].T, core
    if core.shape[1] <= core.shape[0]:
        return given[1].T, given[0] @ core
    return core @ given[1].T, given[0]


def _along(core: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """core x_mode matrix, or of stacks each."""
    if matrix.ndim == 2:
        return mode_product(core, matrix, mode)
    if len(matrix) == 1:
        return mode_product(core[0], matrix[0], mode)[None]
    moved = core.movedim(mode + 1, -1)  # (g, ..., r)
    product = moved.flatten(1, -2) @ matrix.mT  # (g, product of the others, n)
    return product.reshape(*moved.shape[:-1], -1).movedim(-1, mode + 1)

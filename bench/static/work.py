"""How often each loop of the kernels is passed, by all programs of a launch together.

Loops are named by their function and variable, as `bench.static.source` finds them; a loop that is
not here has no bound, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tensorlrf_kernels.launches import Call


class Sizes(dict[str, Any]):
    """What a launch is given by name: sizes, constants, tiles, and its grid."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def sizes_of(call: Call) -> Sizes:
    """Of a launch."""
    numbers = {name: value for name, value in call.args.items() if isinstance(value, int)}
    return Sizes(numbers | dict(call.constants) | dict(call.config.blocks) | {"grid": call.grid})


Passes = Mapping[str, Callable[[Sizes], float]]


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _ranges(v: Sizes) -> float:
    """Tiles of columns, of which each of SPLIT programs has a range."""
    return v.grid * _up(_up(v.N, v.BN), v.SPLIT)


def _shrinks(v: Sizes) -> int:
    return _up(v.R, v.BR) * _up(v.K, v.CHUNK)


def _row_tasks(v: Sizes) -> int:
    return _chunks(v) * v.CHUNK // v.BM if v.BY_ROWS else 0


def _chunks(v: Sizes) -> int:
    return _up(v.M, v.CHUNK)


def _column_steps(v: Sizes) -> int:
    return _up(v.M, v.BM) * _up(v.N, v.BC) if v.BY_COLUMNS else 0


_SHRINK_AND_EXPAND: Passes = {
    "prefill.k": lambda v: v.grid * _up(v.K, v.BK),
    "prefill.n": _ranges,
    "_rows_backward.n": lambda v: _row_tasks(v) * _up(v.N, v.BN),
    "_rows_backward.k": lambda v: _row_tasks(v) * _up(v.K, v.BK),
    "_columns_backward.m": _column_steps,
}


def _kron_rows(v: Sizes) -> int:
    return v.ROWS * _up(v.M1, v.BM1) * _up(v.M2, v.BM2)


def _places(v: Sizes) -> int:
    return v.P * v.TILES * _up(v.R, v.BR)


PASSES: Mapping[str, Passes] = {
    "lowrank_linear": {
        **_SHRINK_AND_EXPAND,
        "decode.tile": _shrinks,
        "decode.k": lambda v: _shrinks(v) * _up(v.CHUNK, v.BK),
        "bring.s": lambda v: _up(v.R, v.BR) * _up(_up(v.K, v.CHUNK), v.BS),
        "wait.while": lambda v: 0,  # how long others take is not in the code
        "decode.n": lambda v: _up(v.N, v.BN),
        "decode.r": lambda v: _up(v.N, v.BN) * _up(v.R, v.BE),
    },
    "lowrank_swiglu": _SHRINK_AND_EXPAND,
    "kron_linear": {
        "forward.row": _kron_rows,
        "forward.s": lambda v: _kron_rows(v) * v.S,
        "forward.k": lambda v: _kron_rows(v) * v.S * _up(v.N2, v.BK2),
        "forward.l": lambda v: _kron_rows(v) * v.S * _up(v.N2, v.BK2) * _up(v.N1, v.BK1),
    },
    "cp_conv2d": {
        "forward.k": lambda v: v.grid * _up(v.C, v.BK),  # of each vertical tap
        "expand.n": lambda v: v.grid * _up(v.N, v.BN),
    },
    "tucker_conv2d": {
        "forward.step": lambda v: v.grid * v.KH * v.KW * _up(v.C, v.BK),
        "expand.n": _ranges,
    },
    "mttkrp": {"contract.s": lambda v: _places(v) * v.UNITS * v.STEPS},
    "lowrank_embedding": {
        "forward.n": _ranges,
        "forward.r": lambda v: _ranges(v) * _up(v.R, v.BK),
    },
    "tt_embedding": {"forward.each": lambda v: v.grid * v.EACH},
}
# Tasks that a persistent grid shares out before its programs wait for each other.
TASKS: Mapping[str, Callable[[Sizes], int]] = {
    "lowrank_linear decode": _shrinks,
    "lowrank_swiglu decode": lambda v: (_up(v.G, v.BR) + _up(v.U, v.BR)) * _up(v.K, v.CHUNK),
    "blr_linear decode": lambda v: v.TASKS,
}
# Which share of the passes does what a pass may leave out; 0, and so a lower bound, for all others.
AT_TIMES: Mapping[str, Callable[[Sizes], float]] = {"contract.s": lambda v: 1 / v.STEPS}
# The operand that comes from memory, and once, by the first name in the address of its load; others
# are read by all programs, from the cache.
STREAMED: Mapping[str, tuple[str, ...]] = {
    "lowrank_linear prefill": ("x",),
    "lowrank_linear decode": ("right",),
    "lowrank_linear backward": ("dy",),
    "lowrank_swiglu prefill": ("x",),
    "lowrank_swiglu decode": ("source",),
    "kron_linear forward": ("where",),
    "cp_conv2d forward": ("x",),
    "tucker_conv2d forward": ("x",),
    "blr_linear shrink": ("x",),
    "blr_linear expand": ("t",),
    "mttkrp contract": ("places",),
}

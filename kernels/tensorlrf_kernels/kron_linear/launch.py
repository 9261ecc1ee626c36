"""How the kernels of `kron_linear` are launched, from shapes, dtype and chip alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import torch

from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.launches import LaunchConfig, power_above
from tensorlrf_kernels.lowrank_linear.launch import DTYPES

LEAST_SIZE, MOST_SIZE = 16, 128  # of a factor; a product on tensor cores takes 16 at least
MOST_TERMS = 16
MOST_HELD = 4  # terms that stay on chip: their products are unrolled


class KronProblem(NamedTuple):
    """What a launch is chosen for: y (rows, m1 m2) from x (rows, n1 n2) by `terms` pairs of factors
    (m1, n1) and (m2, n2)."""

    rows: int
    m1: int
    n1: int
    m2: int
    n2: int
    terms: int
    dtype: torch.dtype
    tf32: bool = False  # whether float32 products may be made in it

    @property
    def served(self) -> bool:
        """Whether there are kernels for it."""
        sizes = (self.m1, self.n1, self.m2, self.n2)
        fits = all(LEAST_SIZE <= size <= MOST_SIZE for size in sizes)
        return fits and self.rows > 0 and 1 <= self.terms <= MOST_TERMS and self.dtype in DTYPES

    @property
    def bucket(self) -> str:
        """Every size rounded up to a power of two."""
        return "x".join(str(power_above(size)) for size in self[:6])

    @property
    def swapped(self) -> KronProblem:
        """The same with the roles of the factors exchanged."""
        return self._replace(m1=self.m2, n1=self.n2, m2=self.m1, n2=self.n1)

    @property
    def turned(self) -> KronProblem:
        """The product with the transposed weight."""
        return self._replace(m1=self.n1, n1=self.m1, m2=self.n2, n2=self.m2)

    @property
    def padded(self) -> tuple[int, int, int, int]:
        """m1, n1, m2, n2, each as the next power of two: tiles have no other sizes."""
        m1, n1, m2, n2 = (power_above(size) for size in self[1:5])
        return m1, n1, m2, n2

    @property
    def half(self) -> bool:
        """Whether the operands have 16 bits."""
        return self.dtype is not torch.float32

    @property
    def unrolled(self) -> bool:
        """Whether products are made without tensor cores."""
        return not self.half and not self.tf32


def forward(problem: KronProblem, chip: Chip) -> LaunchConfig | None:
    """The launch of y = activation(x W^T + bias + residual), W = sum of kron(a_s, b_s).

    SWAP = 1 is the order in which the product with b comes first. None where no kernel serves: a
    factor's size is from 16 to 128, there are at most 16 terms, and the dtype is one of DTYPES.
    """
    if not problem.served:
        return None
    # Of equals the order as given, whose stores are in rows.
    ways = (_ordered(problem, 0, chip), _ordered(problem.swapped, 1, chip))
    return min(ways, key=itemgetter(0))[1]


def _ordered(problem: KronProblem, swap: int, chip: Chip) -> tuple[float, LaunchConfig]:
    """Multiply-adds of a row, and the launch, with a first."""
    m1, n1, m2, n2 = problem.padded
    BM1, BM2 = _tile(problem, chip)
    width = problem.dtype.itemsize
    factors = problem.terms * (BM1 * n1 + BM2 * n2) * width
    # Without wgmma held factors take registers, which float16 needs for its powers of two.
    few = problem.dtype is torch.float16 and chip.capability < (9, 0)
    hold = problem.terms <= (2 if few else MOST_HELD) and 3 * factors <= chip.shared_memory
    hold = hold and (problem.half or (problem.tf32 and max(n1, n2) <= 64))
    warps = _warps(problem, BM1, max(BM2, n2))
    if BM1 < 64:
        # Without wgmma what is held is held in registers, by every second warp anew.
        hold = hold and factors + n1 * n2 * width <= 144 * 64 * warps
    if hold:
        BK1, BK2 = n1, n2
    else:
        # But for wgmma in tall tiles, the widest spill.
        narrow = BM1 < 64 and chip.capability < (9, 0)
        wide = BM1 > 64 and chip.capability[0] == 9
        BM2 = BM2 if wide else min(BM2, 32 if narrow else 64)
        BK1, BK2 = min(n1, _depth(problem)), min(n2, _depth(problem))
        warps = _warps(problem, BM1, max(BM2, BK2))
    passing = (BK1 * BK2 if hold else BK1 * BK2 + BM1 * BK1 + BM2 * BK2) * width
    # What is stored crosses shared memory as well.
    fixed = factors * hold + BM1 * BM2 * width
    registers = BM1 * (BM2 + BK2) // (32 * warps) + 32 + 24 * (problem.terms - 1) * hold

    def resident(stages: int) -> int:
        """Programs of a multiprocessor, about, by shared memory and registers: they hide from each
        other that the two products of a row wait for one another."""
        by_memory = chip.shared_memory // (fixed + stages * passing)
        return min(by_memory, 65536 // (32 * warps * registers), 12)

    most = 2 if chip.capability >= (10, 0) else 3
    stages = max(1, min(most, (chip.shared_memory - fixed) // passing))
    if hold and stages == 3 and resident(2) > resident(3) < 3:
        stages = 2
    blocks = {"BM1": BM1, "BM2": BM2, "BK1": BK1, "BK2": BK2, "HOLD": int(hold), "SWAP": swap}
    programs = chip.multiprocessors * max(1, resident(stages))
    work = m1 * n2 * (n1 * (m2 // BM2) + m2) * _slow(problem, BM1, chip)
    return work, LaunchConfig("forward", blocks, warps, stages, programs, registers=255)


def _tile(problem: KronProblem, chip: Chip) -> tuple[int, int]:
    """BM1 and BM2, of a program's part of a row of y."""
    m1, _, m2, _ = problem.padded
    most = 128 if problem.half else 64
    BM1, BM2 = min(m1, most), min(m2, most)
    # With tiles for half the multiprocessors each program gets less of y. Nothing is made twice for
    # a block of rows of a; for one of b the first product is, which is little.
    while 2 * problem.rows * (m1 // BM1) * (m2 // BM2) <= chip.multiprocessors:
        if BM1 > LEAST_SIZE:
            BM1 //= 2
        elif BM2 > LEAST_SIZE:
            BM2 //= 2
        else:
            break
    return BM1, BM2


def _depth(problem: KronProblem) -> int:
    """Longest product of tiles that pass by."""
    return 64 if problem.half else 32 if problem.tf32 else 16


def _warps(problem: KronProblem, rows: int, columns: int) -> int:
    """Of a program whose largest product has so many rows and columns."""
    if problem.unrolled:
        return 8
    # Warps side by side would exchange what is between the products; those of wgmma come in fours.
    if rows >= 64:
        return min(8, rows // 16)
    size = rows * columns
    if problem.half:
        return min(8, max(rows // 16, size // 512))
    # In TF32 the smallest tiles spill with fewer warps, larger ones beside held factors with more.
    return min(8, max(rows // 16, size // 256, min(4, size // 128)))


def _slow(problem: KronProblem, rows: int, chip: Chip) -> float:
    """By what a product takes longer in short tiles, which wgmma has none for."""
    return 2.1 if chip.capability >= (9, 0) and problem.half and rows < 64 else 1.0


def backward(problem: KronProblem, chip: Chip) -> LaunchConfig | None:
    """The launch of the gradient in a: dy_row b_s x_row^T summed over chunks of CHUNK rows. That of
    the swapped problem is the gradient in b. SWAP = 1 makes its transpose, from x on."""
    if not problem.served:
        return None
    # da (m1, n1) = (dy b) x^T by way of (m1, n2); its transpose = (x b^T) dy^T by way of (n1, m2).
    ways = (_gradient(problem, 0, chip), _gradient(problem.turned, 1, chip))
    return min(ways, key=itemgetter(0))[1]


def _gradient(problem: KronProblem, swap: int, chip: Chip) -> tuple[float, LaunchConfig]:
    """Multiply-adds of a row, and the launch, with a gradient (m1, n1)."""
    m1, n1, m2, n2 = problem.padded
    most = 128 if problem.half else 64
    BM = min(m1, most)
    BN = min(n1, most if BM > 64 else 64)
    # Before wgmma operands take registers, and float16's second accumulator more of them.
    early = chip.capability < (9, 0)
    if early and problem.dtype is torch.float16:
        BN = min(BN, 64)
    whole = problem.half and not (early and BM > 64)
    depth = MOST_SIZE if whole else _depth(problem)
    BK, BL = min(m2, depth), min(n2, depth)
    warps = _warps(problem, BM, max(BN, BL))
    tiles = -(-m1 // BM) * -(-n1 // BN)
    chunks = max(1, 4 * chip.multiprocessors // (problem.terms * tiles))
    CHUNK = power_above(max(1, problem.rows // chunks))
    held = BK * BL if whole else 0
    passing = BM * BK + BL * BN + (0 if whole else BK * BL)
    room = (chip.shared_memory - 1024) // problem.dtype.itemsize - held
    stages = max(1, min(3, room // passing))
    blocks = {"BM": BM, "BN": BN, "BK": BK, "BL": BL, "CHUNK": CHUNK, "SWAP": swap}
    work = m1 * n2 * (m2 * (n1 // BN) + n1) * _slow(problem, BM, chip)
    return work, LaunchConfig("backward", blocks, warps, stages, registers=255)


def neighbours(config: LaunchConfig, problem: KronProblem, chip: Chip) -> Iterator[LaunchConfig]:
    """Launches of the same kernel that differ from `config` in one size, for tuning to try."""
    steps = {
        "forward": dict.fromkeys(("BM1", "BM2", "BK1", "BK2"), (16, 128)),
        "backward": {**dict.fromkeys(("BM", "BN", "BK", "BL"), (16, 128)), "CHUNK": (1, 2**15)},
    }
    for name, (least, most) in steps[config.kernel].items():
        for size in (config.blocks[name] // 2, config.blocks[name] * 2):
            blocks = {**config.blocks, name: size}
            if least <= size <= most and holds(blocks, problem):
                yield replace(config, blocks=blocks)
    for name in ("SWAP", "HOLD"):
        if name in config.blocks:
            blocks = {**config.blocks, name: 1 - config.blocks[name]}
            if holds(blocks, problem):
                yield replace(config, blocks=blocks)
    yield from config.rescheduled(least_warps=1)
    yield from config.regridded(chip, 16)


def holds(blocks: Mapping[str, int], problem: KronProblem) -> bool:
    """Whether factors that are to stay on chip fit into their tiles."""
    if not blocks.get("HOLD"):
        return True
    p = problem.swapped if blocks["SWAP"] else problem
    return p.n1 <= blocks["BK1"] and p.n2 <= blocks["BK2"]

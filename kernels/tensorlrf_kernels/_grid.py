"""Work that programs of one launch share: parts that are added up, and a barrier between phases.

Counters are int32 zeros and are left so: [0] counts the blocks of t that are whole, [1] the
programs that have left, [2 + block] the parts of a block that have arrived.

A fence of the device stands where something is handed on: before a part is counted, and before a
block is. All else is relaxed: who leaves has done all its looking, a counter that is reset is asked
for by nobody until the next launch, and the end of a launch is a fence. Every interleaving of it is
tried in tests/kernels/protocol.
"""

import triton
import triton.language as tl

from tensorlrf_kernels.launches import POLLS

MOST_POLLS: tl.constexpr = tl.constexpr(POLLS)


@triton.jit
def bring(
    part, partials, t, counters, block, split, splits, place, inside, size,
    SIGNAL: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Store part (BM, BR), one of `splits` of a block of t. The last to bring one adds them all up
    in a fixed order, BS at a time, and stores the block; with SIGNAL it counts it as whole.

    place of the elements in t, those inside it, and the size of t, which a split of partials has.
    """
    tl.store(partials + split * size + place, part, mask=inside)
    tl.debug_barrier()
    if tl.atomic_add(counters + 2 + block, 1, sem="acq_rel") == splits - 1:
        total = tl.zeros((BM, BR), dtype=tl.float32)
        for s in range(0, splits, BS):
            parts = s + tl.arange(0, BS)
            several = tl.load(
                partials + parts[:, None, None] * size + place[None, :, :],
                mask=(parts < splits)[:, None, None] & inside[None, :, :], other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
            total += tl.sum(several, axis=0)
        tl.store(t + place, total.to(t.dtype.element_ty), mask=inside)
        if SIGNAL:
            tl.debug_barrier()
            tl.atomic_add(counters, 1, sem="release")
        tl.atomic_xchg(counters + 2 + block, 0, sem="relaxed")


@triton.jit
def wait(counters, blocks):
    """Until all blocks are whole; every program must run at once. With MOST_POLLS, a device
    assertion fails where they still are not after as many looks."""
    ready = tl.atomic_add(counters, 0, sem="acquire")
    if MOST_POLLS == 0:
        while ready < blocks:
            ready = tl.atomic_add(counters, 0, sem="acquire")
    else:
        polls = 1
        while (ready < blocks) & (polls < MOST_POLLS):
            ready = tl.atomic_add(counters, 0, sem="acquire")
            polls += 1
        tl.device_assert(ready >= blocks, "grid barrier: the other programs have not come")


@triton.jit
def leave(counters, programs):
    """The last of the programs to leave makes the counters ready for the next launch."""
    if tl.atomic_add(counters + 1, 1, sem="relaxed") == programs - 1:
        tl.atomic_xchg(counters, 0, sem="relaxed")
        tl.atomic_xchg(counters + 1, 0, sem="relaxed")

"""A kernel that does nothing but wait for all its programs, over and over."""

import triton
import triton.language as tl


@triton.jit
def barriers(counter, TIMES: tl.constexpr):
    """TIMES grid barriers; the counter begins at zero."""
    programs = tl.num_programs(0)
    for k in range(TIMES):
        tl.atomic_add(counter, 1, sem="acq_rel")
        reached = tl.atomic_add(counter, 0, sem="acquire")
        while reached < (k + 1) * programs:
            reached = tl.atomic_add(counter, 0, sem="acquire")

"""A grid of blocks that share their bases: down by the right ones, across the grid for each rank,
up by the left ones."""

from __future__ import annotations

from tensorlrf.factors import BlastFactors
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms.shared._block_kernel import BlockKernel
from tensorlrf.ops.forms.stages import Einsum, Join, Paths, Split, cut, widened
from tensorlrf_kernels.blr_linear import blast_linear
from tensorlrf_kernels.blr_linear.forms import blast_form


class BlastForm(Form[BlastFactors]):
    """Three batched products (Lee et al. 2024, "BLAST", algorithm 1)."""

    def linear(self, f: BlastFactors) -> Paths:
        (p, mb, _), (q, _, nb), (m, n) = f.left.shape, f.right.shape, f.shape
        chain = (
            *widened(n, q * nb),
            Split((q, nb)),
            Einsum("...qn,qrn->...qr", f.right),
            Einsum("...qr,pqr->...pr", f.scales),
            Einsum("...pr,pmr->...pm", f.left),
            Join(),
            *cut(p * mb, m),
        )
        form = blast_form(tuple(f.left.shape), tuple(f.right.shape), (m, n))
        fused = BlastKernel((f.left, f.right, f.scales, (m, n)), blocks=form)
        return {"chain": chain, **fused.path()}

    def count_dense(self, f: BlastFactors, counter: Counter) -> bool:
        # As if all columns of blocks were made at once.
        (p, mb, r), (q, _, nb) = f.left.shape, f.right.shape
        counter.merge(p * q * mb * r)
        counter.products(p * q, mb, r, nb)
        return True


class BlastKernel(BlockKernel):
    """All three products."""

    op = blast_linear

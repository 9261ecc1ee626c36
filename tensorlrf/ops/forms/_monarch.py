"""Two block-diagonal factors and a permutation between and behind them."""

from __future__ import annotations

from tensorlrf.factors import MonarchFactors
from tensorlrf.ops.forms._form import Form
from tensorlrf.ops.forms.shared._block_kernel import BlockKernel
from tensorlrf.ops.forms.stages import Einsum, Join, Paths, Permute, Split, cut, widened
from tensorlrf_kernels.blr_linear import monarch_linear
from tensorlrf_kernels.blr_linear.forms import monarch_form


class MonarchForm(Form[MonarchFactors]):
    """Two batched products, one a block-diagonal factor."""

    def linear(self, f: MonarchFactors) -> Paths:
        Q, S, K, r = f.left.shape
        P, (m, n) = f.right.shape[3], f.shape
        chain = (
            *widened(n, K * P),
            Split((K, P)),
            Einsum("...kp,kcp->...kc", f.right.flatten(1, 2)),  # (..., K, Q r)
            Permute(K, Q, r),  # (..., Q, K r)
            Einsum("...qc,qsc->...sq", f.left.flatten(2), copied=True),  # (..., S, Q)
            Join(),
            *cut(S * Q, m),
        )
        form = monarch_form(tuple(f.left.shape), tuple(f.right.shape), (m, n))
        fused = MonarchKernel((f.left, f.right, (m, n)), blocks=form)
        return {"chain": chain, **fused.path()}


class MonarchKernel(BlockKernel):
    """Both products."""

    op = monarch_linear

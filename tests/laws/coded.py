"""The laws of factors and of methods for formats of which some tensors are whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf.errors import RankError
from tensorlrf.factors import Factors
from tests.laws.factors import FactorLaws
from tests.laws.fits import SHARES
from tests.laws.refusals import MethodRefusals


class CodedLaws(FactorLaws):
    """Subclass it as `FactorLaws`, where numbers are floats times or beside whole numbers."""

    def floats(self, f: Factors) -> list[str]:
        """The names of the tensors that are in floating point."""
        indices = f.index_dtypes(f.meta())
        return [name for name in f.tensors() if name not in indices]

    def test_multilinear_in_each_tensor(self) -> None:
        """In each that is a float of one product: scaled alone, it scales what it is part of."""
        f, g = self.sample(0), self.sample(1)
        whole = f.to_dense()
        for name in self.floats(f):
            tensors = f.tensors()

            def made(tensor: Tensor, name: str = name) -> Tensor:
                return type(f).from_tensors({**f.tensors(), name: tensor}, f.meta()).to_dense()

            own, other = tensors[name], g.tensors()[name]
            rest = made(torch.zeros_like(own))
            expected = 2 * (whole - rest) + (made(other) - rest) + rest
            torch.testing.assert_close(made(2 * own + other), expected, rtol=1e-11, atol=1e-11)

    def test_counts_what_is_stored(self) -> None:
        f, held = self.sample(), 0
        for name, t in f.tensors().items():
            held += t.numel() * (8 if name in self.floats(f) else t.element_size())
        floats = sum(f.tensors()[name].numel() for name in self.floats(f))
        assert f.n_bytes == held
        assert f.to(torch.float16).n_bytes == held - 6 * floats
        assert f.n_params >= sum(t.numel() for t in f.tensors().values())

    def test_gradients_reach_every_tensor(self) -> None:
        f, names = self.sample(), self.floats(self.sample())

        def dense(*tensors: Tensor) -> Tensor:
            named = dict(zip(names, tensors, strict=True))
            return type(f).from_tensors({**f.tensors(), **named}, f.meta()).to_dense()

        leaves = [f.tensors()[name].detach().requires_grad_() for name in names]
        assert torch.autograd.gradcheck(dense, leaves)

    def test_detach_cuts_the_graph(self) -> None:
        f = self.sample().map(lambda t: t.detach().requires_grad_())
        assert all(f.tensors()[name].requires_grad for name in self.floats(f))
        assert not any(t.requires_grad for t in f.detach().tensors().values())


def shares_of_bytes(laws: type[MethodRefusals]) -> type[MethodRefusals]:
    """The laws of a method of which a share counts bytes, those of codes and scales."""

    class OfBytes(laws):  # type: ignore[valid-type, misc]  # a class that is made
        def test_a_share_is_an_upper_bound_of_the_parameters(self) -> None:
            weight, sizes = self.weight(), []
            for share in (*SHARES, 1e-9):
                try:
                    sizes.append(self.fit(weight, share).factors.n_bytes)
                except RankError:  # of a sum with what is always as large
                    assert share == 1e-9
                    sizes.append(0)
            *sizes, least = sizes
            for share, size in zip(SHARES, sizes, strict=True):
                bound = weight.nbytes * (1.0 if share == "same" else float(share))
                assert size <= max(bound, least), share
            assert sizes == sorted(sizes)
            assert sizes[-1] > least

    return OfBytes

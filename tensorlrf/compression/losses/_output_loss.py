"""How far the outputs of two models are apart, in units that mean something; and its gradients.

All three losses are, near the given model, half the mean square of what a random cotangent sees of
a change of the outputs, a Gaussian one: for the KL divergence, whose Hessian is the Fisher
information diag(p) - p p^T at the logits (Amari 1998; Martens 2020), one of that covariance. Labels
drawn from p have it as well, but of a model that is sure of its answers few of them tell anything,
and those few a lot. One backward pass a draw tells of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.compression.calibration._outputs import tensors_of
from tensorlrf.compression.calibration.batches import Batch
from tensorlrf.errors import ArgumentError, unknown

UNITS = {
    "kl": "nats a row",
    "cosine": "1 - cosine",
    "relative": "squared relative error",
}
LOSSES = ("auto", *UNITS)

AT_ONCE = 1 << 21
"""Numbers of outputs that are compared at a time: float64 copies of all logits of a language model
may be larger than it."""

Readout = Callable[[Any], Tensor]
"""Of what a model returns the tensor that counts."""


@dataclass(frozen=True)
class OutputLoss:
    """What an error in the outputs costs.

    kind     "kl" of logits (..., classes), "cosine" of embeddings (..., d), "relative" of anything
    readout  what counts of the outputs; None for all their floating-point tensors, of transformers'
             outputs with logits these
    """

    kind: str
    readout: Readout | None = None

    @classmethod
    def of(cls, kind: str, readout: Readout | None, output: Any, classifies: bool) -> OutputLoss:
        """With "auto", the one that suits the outputs: KL for logits, of a classifier's single
        tensor too, else relative error. Raises ArgumentError."""
        if kind not in LOSSES:
            raise unknown("loss", kind, LOSSES)
        if readout is not None and not callable(readout):
            raise ArgumentError(
                f"readout is a {type(readout).__name__}; pass a function of what the model returns"
            )
        if kind == "auto":
            found = cls("kl", readout).counted(output)
            single = len(found) == 1 and found[0].ndim >= 2
            has_logits = readout is None and isinstance(getattr(output, "logits", None), Tensor)
            kind = "kl" if has_logits or (classifies and single) else "relative"
        return cls(kind, readout)

    @property
    def unit(self) -> str:
        return UNITS[self.kind]

    def hears(self, output: Any, batch: Batch) -> bool:
        """Whether anything of an output counts."""
        return any(rows.numel() > 0 for rows in self.rows(output, batch))

    def cotangent(self, output: Any, batch: Batch, draws: torch.Generator) -> tuple[Tensor, float]:
        """(a scalar whose gradient is the drawn cotangent, what its squares are to be divided by).

        Over draws, the mean square of its change, over twice the second number summed over all
        batches, is the loss.
        """
        total, count = None, 0.0
        for rows in self.rows(output, batch):
            part, weight = self._drawn(rows, draws)
            total, count = part if total is None else total + part, count + weight
        if total is None:
            raise ArgumentError("readout: there is no floating-point tensor in the outputs")
        return total, count

    def between(self, wanted: Any, got: Any, batch: Batch) -> tuple[float, float]:
        """(the loss of `got` beside `wanted`, summed; what it is to be divided by), in float64."""
        lost, whole = self.apart(self.rows(wanted, batch), got, batch, torch.float64)
        return float(lost), whole

    def apart(
        self,
        wanted: Sequence[Tensor],
        got: Any,
        batch: Batch,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, float]:
        """The same beside the `rows` of an output, with the loss as a tensor, to be differentiated
        in `got`.

        Raises ArgumentError where outputs cannot be compared.
        """
        total, count = torch.zeros((), dtype=dtype, device="cpu"), 0.0
        for lost, whole in self._apart(wanted, got, batch, dtype):
            total, count = total.to(lost.device) + lost.sum(), count + float(whole.sum())
        return total, count

    def by_sample(self, wanted: Sequence[Tensor], got: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(samples,) each, in float64 on the CPU: what `apart` sums up. Outputs that are not laid
        out by samples count as those of one.
        """
        outputs = self.counted(got)
        places = [self._samples_of_rows(t, batch) for t in outputs]
        n = 1 if any(at is None for at in places) else batch.samples
        sums = torch.zeros(2, n, dtype=torch.float64, device="cpu")
        for at, row in zip(places, self._apart(wanted, got, batch, torch.float64), strict=True):
            parts = torch.stack(row).cpu()
            if n == 1 or at is None:
                sums += parts.sum(1, keepdim=True)
            else:
                sums.index_add_(1, at.cpu(), parts)
        return sums[0], sums[1]

    def _apart(
        self, wanted: Sequence[Tensor], got: Any, batch: Batch, dtype: torch.dtype
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each tensor that counts the loss of its rows, and what these are to be divided by."""
        found = self.rows(got, batch)
        if [t.shape for t in wanted] != [t.shape for t in found]:
            shapes = [", ".join(str(tuple(t.shape)) for t in side) for side in (wanted, found)]
            raise ArgumentError(
                f"readout: outputs of {shapes[0]} and {shapes[1]} cannot be compared"
            )
        for one, other in zip(wanted, found, strict=True):
            rows = max(1, AT_ONCE // max(1, one.shape[-1]))
            pairs = zip(torch.split(one, rows), torch.split(other, rows), strict=True)
            parts = [self.between_rows(a.to(dtype), b.to(dtype)) for a, b in pairs]
            lost, whole = (torch.cat(part) for part in zip(*parts, strict=True))
            yield lost, whole

    def _samples_of_rows(self, t: Tensor, batch: Batch) -> Tensor | None:
        """The sample that each of the `rows` of an output is of; None where these are none."""
        n = batch.samples
        if t.ndim < 2 or t.shape[0] != n:
            return None
        of = torch.arange(n, device=t.device)
        mask = batch.mask if self.readout is None else None
        if mask is not None and t.device == mask.device and t.shape[:2] == mask.shape:
            if t.ndim < 3:
                return None
            return of[:, None].expand(mask.shape)[mask].repeat_interleave(t[0, 0, ..., 0].numel())
        return of.repeat_interleave(t[0, ..., 0].numel())

    def rows(self, output: Any, batch: Batch) -> list[Tensor]:
        """The tensors that count, each as (rows, n), without padding."""
        mask = batch.mask if self.readout is None else None
        found = []
        for t in self.counted(output):
            if mask is not None and t.device == mask.device and t.shape[:2] == mask.shape:
                t = t[mask]
            found.append(t.flatten(0, -2) if t.ndim > 1 else t[None])
        return found

    def counted(self, output: Any) -> list[Tensor]:
        """The tensors that count, as they are."""
        if self.readout is not None:
            told = self.readout(output)
            if not isinstance(told, Tensor) or not told.is_floating_point():
                raise ArgumentError(
                    f"readout returns a {type(told).__name__}; it must return a floating-point "
                    "tensor"
                )
            return [told]
        logits = getattr(output, "logits", None)
        return [logits] if isinstance(logits, Tensor) else list(tensors_of(output))

    def _drawn(self, rows: Tensor, draws: torch.Generator) -> tuple[Tensor, float]:
        values = rows.float() if self.kind == "kl" else rows
        values = F.normalize(rows, dim=-1) if self.kind == "cosine" else values
        v = torch.randn(values.shape, generator=draws, dtype=torch.float32, device=draws.device)
        v = v.to(values.device, values.dtype)
        if self.kind == "kl":
            s = F.softmax(values.detach(), dim=-1).sqrt()  # of length one
            v = s * (v - s * (s * v).sum(-1, keepdim=True))
        if self.kind != "relative":
            return (v * values).sum(), float(rows.shape[0])
        # The loss is the square itself, not half of it.
        return (v * values).sum(), float(rows.detach().double().square().sum()) / 2

    def between_rows(self, wanted: Tensor, got: Tensor) -> tuple[Tensor, Tensor]:
        """(rows,) each: the loss of each row, and what their sum is to be divided by."""
        if self.kind == "kl":
            logs, others = F.log_softmax(wanted, dim=-1), F.log_softmax(got, dim=-1)
            lost = (logs.exp() * (logs - others)).sum(-1)
            return lost, torch.ones_like(lost)
        if self.kind == "cosine":
            lost = 1 - F.cosine_similarity(wanted, got, dim=-1)
            return lost, torch.ones_like(lost)
        return (wanted - got).square().sum(-1), wanted.square().sum(-1)

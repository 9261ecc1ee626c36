"""Where the time of factored convolutions goes on a CPU, and what four ideas make of it.

    python bench/conv_stages.py --results bench/results/cpu      # half an hour
    python bench/conv_stages.py --batches 1 --layers 2           # a part

Every distinct k > 1 convolution of ResNet-50 with 64 channels or more, and those of VGG-16 at 56
pixels or fewer, channels_last, at 1/4 and 1/2 of the break-even rank, in turn with the dense layer:

chain     library calls as a layer makes them, for CP with one depthwise k x k in the middle
packed    the same, its weights once put into the order of memory that oneDNN asks for
given     pointwise stages as matrix products into memory that is there already
images    one image after the other, so that what lies between stages stays in the cache
bfloat16  the chain, and the dense layer it is measured by, on 16-bit tensors

`efficiency` is the share of the saved arithmetic that becomes speed: dense time over this one, over
dense operations over those of the chain. `bound` is the efficiency that memory leaves: the chain's
operations at the speed that the dense layer has, or x read and y written once ("memory"),
whichever is more. GF/s of the stages are by themselves, in the order in which they run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from bench.report import Row, geometric_mean, machine, write_results  # noqa: E402
from bench.shapes import CONV_LAYERS, SHARES, Conv, rank_at, sample  # noqa: E402
from bench.turns import Turns  # noqa: E402
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors  # noqa: E402

FORMATS = ("lowrank", "tucker", "cp")
BATCHES = (1, 16)
SECONDS = 0.7  # a case, all who take part
LAST = torch.channels_last

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Stage:
    """One convolution of a chain, its weight in channels_last."""

    weight: Tensor
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def pointwise(self) -> bool:
        return self.weight.shape[2:] == (1, 1) and self.stride == 1 and self.groups == 1

    def flops(self, y: Tensor) -> int:
        """Of the output y: two operations a product."""
        return 2 * y.numel() * self.weight[0].numel()

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, self.stride, self.padding, 1, self.groups)

    def packed(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """On a weight in oneDNN's own order, which it makes anew in each call otherwise."""
        stride, padding = [self.stride] * 2, list(self.padding)
        order = (padding, stride, [1, 1], self.groups)
        own = torch._C._nn.mkldnn_reorder_conv2d_weight(
            self.weight.to_mkldnn(), *order, list(x.shape)
        )
        run = torch.ops.mkldnn._convolution_pointwise
        return lambda t: run(t, own, None, *order, "none", [], "")


def stages(factors: Factors, case: Conv) -> list[Stage]:
    """The chain of a kernel."""
    taps = {"stride": case.stride, "padding": case.padding}
    if isinstance(factors, LowRank):
        kernel = factors.right.reshape(-1, case.inp, *case.kernel)
        return [Stage(_last(kernel), **taps), Stage(_last(factors.left[:, :, None, None]))]
    if isinstance(factors, CPFactors):
        out, inp, rows, columns = factors.factors
        middle = torch.einsum("hr,wr->rhw", rows, columns)[:, None]
        return [
            Stage(_last(inp.T[:, :, None, None])),
            Stage(_last(middle), **taps, groups=len(middle)),
            Stage(_last((out * factors.weights)[:, :, None, None])),
        ]
    assert isinstance(factors, TuckerFactors)
    given = dict(zip(factors.modes, factors.factors, strict=True))
    chain = [Stage(_last(given[1].T[:, :, None, None]))] if 1 in given else []
    chain += [Stage(_last(factors.core), **taps)]
    return chain + ([Stage(_last(given[0][:, :, None, None]))] if 0 in given else [])


def _last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=LAST)


def in_turn(chain: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for stage in chain:
        x = stage(x)
    return x


def packed(chain: Sequence[Stage], x: Tensor) -> Call:
    made = []
    t = x
    for stage in chain:
        made.append(stage.packed(t))
        t = stage(t)
    return lambda: in_turn(made, x)


def given(chain: Sequence[Stage], x: Tensor) -> Call:
    """Pointwise stages by `mm(out=)`, each into memory of its own that later calls use again."""
    made: list[Callable[[Tensor], Tensor]] = []
    t = x
    for stage in chain:
        y = stage(t)
        made.append(_into(stage.weight, y) if stage.pointwise else stage)
        t = y
    return lambda: in_turn(made, x)


def _into(weight: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
    matrix = weight[:, :, 0, 0].T
    place = torch.empty_like(like, memory_format=LAST)
    flat = place.permute(0, 2, 3, 1).reshape(-1, place.shape[1])
    assert flat.data_ptr() == place.data_ptr()

    def run(t: Tensor) -> Tensor:
        torch.mm(t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]), matrix, out=flat)
        return place

    return run


def images(chain: Sequence[Stage], x: Tensor) -> Call:
    """One image after the other; the last stage writes its part of y where it belongs."""
    y = torch.empty_like(in_turn(chain, x), memory_format=LAST)

    def run() -> Tensor:
        for k in range(len(x)):
            y[k : k + 1] = in_turn(chain, x[k : k + 1])
        return y

    return run


def measure(case: Conv, format: str, share: float) -> tuple[list[Row], dict[str, float]]:
    """Rows of a case, and the efficiency of each way."""
    rank = rank_at(format, case.shape, share)
    draws = torch.Generator().manual_seed(1)
    x = _last(torch.randn(case.batch, case.inp, case.side, case.side, generator=draws))
    dense = Stage(_last(torch.randn(case.shape, generator=draws)), case.stride, case.padding)
    chain = stages(sample(format, case.shape, rank), case)
    half = [replace(stage, weight=stage.weight.bfloat16()) for stage in (dense, *chain)]
    x16 = x.bfloat16()
    y = in_turn(chain, x)
    calls: dict[str, Call] = {
        "dense": lambda: dense(x),
        "dense, packed": packed([dense], x),
        "chain": lambda: in_turn(chain, x),
        "packed": packed(chain, x),
        "given": given(chain, x),
        "dense, bfloat16": lambda: half[0](x16),
        "bfloat16": lambda: in_turn(half[1:], x16),
        "memory": _once(x, y),
    }
    if case.batch > 1:
        calls["images"] = images(chain, x)
    for name in ("packed", "given", "images"):
        if name in calls:
            torch.testing.assert_close(
                calls[name](), y, rtol=1e-3, atol=1e-3 * float(y.abs().max())
            )
    once = sum(statistics.median(Turns.take(calls, 1).samples[name]) for name in calls)
    taken = Turns.take(calls, max(5, min(60, int(SECONDS / once))))
    seconds = {name: statistics.median(found) for name, found in taken.samples.items()}

    speeds, work, t = [], 0, x
    for stage in chain:
        following = stage(t)
        alone = Turns.take({"": lambda s=stage, t=t: s(t)}, 7)
        speeds.append(stage.flops(following) / statistics.median(alone.samples[""]) / 1e9)
        work += stage.flops(following)
        t = following
    saved = dense.flops(y) / work
    least = max(work / (dense.flops(y) / seconds["dense"]), seconds["memory"])
    label = f"{case}, {format} {share}"
    rows, efficiencies = [], {"bound": seconds["dense"] / least / saved}
    for name, found in taken.samples.items():
        info: dict[str, Any] = {}
        if not name.startswith("dense") and name != "memory":
            base = "dense, bfloat16" if name == "bfloat16" else "dense"
            ratio = statistics.median(taken.ratios(name, base))
            efficiencies[name] = ratio / saved
            info = {"over dense": round(ratio, 2), "efficiency": round(ratio / saved, 2)}
        if name == "chain":
            info |= {
                "rank": rank,
                "saved": round(saved, 2),
                "bound": round(efficiencies["bound"], 2),
                "GF/s by stage": " ".join(f"{speed:.0f}" for speed in speeds),
            }
        if name == "dense":
            info = {"GF/s by stage": f"{dense.flops(y) / seconds['dense'] / 1e9:.0f}"}
        rows.append(Row(label, name, seconds[name], min(found), len(found), info))
    return rows, efficiencies


def _once(x: Tensor, y: Tensor) -> Call:
    """x read and y written once, into memory that is there."""
    place = torch.empty_like(y)

    def run() -> Tensor:
        x.sum()
        return place.fill_(1)

    return run


def cases(batches: Sequence[int], most: int | None) -> Iterator[Conv]:
    chosen = [
        conv
        for conv in CONV_LAYERS
        if conv.inp >= 64
        and (conv.network == "resnet50" or (conv.network == "vgg16" and conv.side <= 56))
    ]
    for batch in batches:
        yield from (replace(conv, batch=batch) for conv in chosen[:most])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, help="folder to write conv_stages.* into")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--layers", type=int, help="only so many layers")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    arguments = parser.parse_args()

    rows: list[Row] = []
    with torch.inference_mode():
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            found: dict[tuple[str, int, float], list[dict[str, float]]] = {}
            for case in cases(arguments.batches, arguments.layers):
                for format in FORMATS:
                    for share in SHARES:
                        made, efficiencies = measure(case, format, share)
                        rows += [
                            replace(row, case=f"{row.case}, {threads} threads") for row in made
                        ]
                        found.setdefault((format, case.batch, share), []).append(efficiencies)
            for (format, batch, share), several in found.items():
                mean = {
                    name: round(geometric_mean([one[name] for one in several]), 2)
                    for name in several[0]
                }
                label = f"all layers, {format} {share}, batch {batch}, {threads} threads"
                print(label, mean, flush=True)
                rows.append(Row(label, "efficiency, geometric mean", 0, 0, 0, dict(mean)))
    if arguments.results is not None:
        note = __doc__.split("\n\n", 2)[2].strip()
        write_results(arguments.results, "conv_stages", rows, machine("cpu"), note)


if __name__ == "__main__":
    main()

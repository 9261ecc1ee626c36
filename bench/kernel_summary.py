"""What a GPU run came to: the goals with what was measured, and the regret of the chosen paths."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.report import Row, geometric_mean
from bench.shapes import FLAGSHIPS


def summary(rows: Sequence[Row]) -> list[str]:
    """The goals, each with what was measured."""
    lines = ["", "what, against: measured (goal)"]
    few = _ratios(rows, lambda i: i.get("M", 999) <= 128 and i.get("rank", 999) <= 512)
    lines.append(_line("lowrank_linear, M <= 128, r <= 512, chain", few, ">= 1.3x"))
    first = [v for k, v in few.items() if " 4096x4096," in k]
    lines.append(_line("  of these 4096x4096", dict(enumerate(first)), ">= 1.3x"))
    many = _ratios(rows, lambda i: i.get("M") == 8192 and i.get("rank", 999) <= 128)
    lines.append(_line("lowrank_linear, M = 8192, r <= 128, chain", many, ">= 1.0x"))
    over = {
        f"{row.case} {row.variant}": row.info["over_floor"]
        for row in rows
        if row.info.get("path") == "fused"
        and row.info.get("M") == 8192
        and row.info["rank"] <= 128
        and "launch" in row.info
        and "op" not in row.info
    }
    lines.append(_line("  time over the floor", over, "<= 1.35", least=False))
    lines += [*_convolutions(rows), *_others(rows)]
    for word, goal in (("MLP, M=8192, r=128", ">= 1.5x"), ("training step", ">= 1.2x")):
        for case in dict.fromkeys(row.case for row in rows if word in row.case):
            own = {row.variant: row for row in rows if row.case == case}
            if {"chain", "fused"} <= set(own):
                ratio = own["chain"].median_s / own["fused"].median_s
                words = f"{case}, chain: {ratio:.2f}x ({goal})"
                if "peak_MiB" in own["fused"].info:
                    peaks = [own[k].info["peak_MiB"] for k in ("chain", "fused")]
                    words += f", peak memory {peaks[0]:.0f} -> {peaks[1]:.0f} MiB"
                lines.append(words)
    for name, keep in (
        ("all shapes", lambda info: True),
        ("shapes left out of tuning", lambda info: bool(info.get("held_out"))),
    ):
        regrets = regret(rows, keep)
        if regrets:
            mean, worst = statistics.fmean(regrets.values()) - 1, max(regrets.values()) - 1
            where = max(regrets, key=regrets.__getitem__)
            lines.append(
                f"regret of the chosen path, {name}: mean {mean:.1%}, worst {worst:.1%} at {where} "
                f"of {len(regrets)} (<= 5%, <= 15%)"
            )
    errors: dict[str, list[float]] = {}
    for row in rows:
        if row.info.get("error") is not None:
            errors.setdefault(row.info.get("path") or row.variant, []).append(row.info["error"])
    lines += [f"error of {name}: at most {max(each):.2e}" for name, each in errors.items()]
    return lines


def _convolutions(rows: Sequence[Row]) -> list[str]:
    """The fused convolutions over the chain, and over the best of dense and fold: those that the
    goals are about one by one, and all of a format together."""
    time = {(row.case, row.variant): row.median_s for row in rows}
    goals = {(str(conv), rank) for conv, ranks in FLAGSHIPS for rank in ranks}
    lines = []
    over: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if not row.info.get("op", "").endswith("conv2d") or row.info.get("path") != "fused":
            continue
        what = row.variant.removeprefix("fused ")
        others = [
            time[row.case, way] for way in ("dense", f"fold {what}") if (row.case, way) in time
        ]
        chain = time.get((row.case, f"chain {what}"), math.nan) / row.median_s
        best = min(others, default=math.nan) / row.median_s
        for against, ratio in (("the chain", chain), ("the best of dense and fold", best)):
            of_format = over.setdefault(row.info["format"], {}).setdefault(against, {})
            of_format[f"{row.case} {what}"] = ratio
        if (row.case, row.info["rank"]) in goals:
            lines.append(
                f"{row.info['op']}, {row.case}, {what}: {chain:.2f}x the chain, "
                f"{best:.2f}x the best of dense and fold"
            )
    for format, ratios in over.items():
        for against, each in ratios.items():
            lines.append(_line(f"fused {format} convolutions, {against}", each, "choice by table"))
    return lines


# Beginning of a case's name -> the goal: over the fastest library form, over dense, and the time
# over the floor.
GOALS = {
    "kron 64x64 (x) 64x64 s=1, M=8192": ">= 2.5x, >= 5x, <= 1.5",
    "kron 64x64 (x) 64x64 s=1, M=2048": ">= 2.5x, >= 5x, <= 1.5",
    "kron 64x64 (x) 64x64 s=2, M=8192": ">= 2.5x, >= 5x, <= 1.5",
    "kron 64x64 (x) 64x64 s=2, M=2048": ">= 2.5x, >= 5x, <= 1.5",
    "kron 64x64 (x) 64x64 s=4, M=8192": ">= 2.5x, >= 4x, <= 2",
    "kron 64x64 (x) 64x64 s=4, M=2048": ">= 2.5x, >= 4x, <= 2",
    "tt 8^4 R=8, M=8192": ">= 3x the chain of cores, >= 2x",
    "tt 8^4 R=16, M=8192": ">= 3x the chain of cores, >= 1x",
    "blr b=256 r=16, M=8192": ">= 1.3x",
    "blr b=512 r=32, M=8192": ">= 1.15x",
    "blr b=256 r=16, M=16": ">= 1.5x",
    "blr b=512 r=32, M=16": ">= 1.5x",
    "embedding 131072x4096, M=8192, r=256": ">= 1.1x",
    "mttkrp 400x400x400 r=64": ">= 2x Khatri-Rao and GEMM, >= 1x",
    "mttkrp 512x512x3x3 r=128": ">= 2x Khatri-Rao and GEMM, >= 1x",
}
LIBRARY = ("chain", "fold", "two steps", "einsum")


def _others(rows: Sequence[Row]) -> list[str]:
    """The kernels of structured layers, tables and MTTKRP that a goal is about, one by one."""
    time = {(row.case, row.variant): row.median_s for row in rows}
    lines = []
    for row in rows:
        goal = next((goal for case, goal in GOALS.items() if row.case.startswith(case)), None)
        if goal is None or row.variant != "fused":
            continue
        ways = [way for way in (*LIBRARY, "dense") if (row.case, way) in time]
        ratios = [f"{time[row.case, way] / row.median_s:.2f}x {way}" for way in ways]
        words = [*ratios, f"{row.info.get('over_floor', math.nan):.2f} over the floor"]
        if "peak_MiB" in row.info:
            words.append(f"{row.info['peak_MiB']:.0f} MiB")
        lines.append(f"{row.case}: {', '.join(words)} ({goal})")
    return lines


def regret(rows: Sequence[Row], keep: Callable[[dict[str, Any]], bool]) -> dict[str, float]:
    """Case, format, rank -> time of the path that the cost model chose over that of the fastest."""
    found: dict[str, float] = {}
    for case in dict.fromkeys(row.case for row in rows):
        own = [row for row in rows if row.case == case and "chosen" in row.info]
        dense = [row for row in rows if row.case == case and row.variant == "dense"]
        factored = [row for row in own if row.variant != "dense"]
        for rank in dict.fromkeys((row.info.get("format"), row.info["rank"]) for row in factored):
            of_rank = [r for r in factored if (r.info.get("format"), r.info["rank"]) == rank]
            times = {row.info["path"]: row.median_s for row in of_rank}
            # A table that is kept for lookups takes the memory that the factors were to save.
            if dense and "embedding" not in case:
                times["dense"] = dense[0].median_s
            # Where no kernel serves, "fused" is the chain.
            times.setdefault("fused", times.get("chain", math.inf))
            if keep(of_rank[0].info) and of_rank[0].info["chosen"] in times:
                found[" ".join((case, *filter(None, rank[:1]), f"r={rank[1]}"))] = times[
                    of_rank[0].info["chosen"]
                ] / min(times.values())
    return found


def _ratios(rows: Sequence[Row], keep: Callable[[dict[str, Any]], bool]) -> dict[str, float]:
    """Case and rank -> time of the chain over that of lowrank_linear's kernel."""
    time = {(row.case, row.variant): row.median_s for row in rows}
    return {
        f"{row.case} r={row.info['rank']}": time[row.case, f"chain r={row.info['rank']}"]
        / row.median_s
        for row in rows
        if row.info.get("path") == "fused"
        and "launch" in row.info
        and "op" not in row.info
        and keep(row.info)
    }


def _line(what: str, ratios: Mapping[Any, float], goal: str, *, least: bool = True) -> str:
    if not ratios:
        return f"{what}: not measured ({goal})"
    worst = (min if least else max)(ratios, key=ratios.__getitem__)
    return (
        f"{what}: {geometric_mean(list(ratios.values())):.2f} geometric mean of {len(ratios)}, "
        f"worst {ratios[worst]:.2f} at {worst} ({goal})"
    )

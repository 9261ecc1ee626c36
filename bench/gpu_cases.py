"""All that the GPU run times, in its order: above the files that make the cases of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bench.conv_cases import conv_case, conv_training_case
from bench.kernel_cases import Case, linear_case, mlp_case, swiglu_training_case, training_case
from bench.lowrank_embedding_cases import embedding_cases
from bench.mttkrp_cases import CASES, mttkrp_case
from bench.network_cases import NETWORKS, network_case
from bench.shapes import FLAGSHIPS, KERNEL_CONVS, KERNEL_LAYERS, KERNEL_ROWS
from bench.sparse_mttkrp_cases import SPARSE, sparse_mttkrp_case
from bench.structured_cases import N_GOALS, structured_cases, training_cases


def all_cases() -> list[tuple[str, Callable[[], Case]]]:
    """Names, and what makes the case: what the goals are about first, then the rest."""
    cases: list[tuple[str, Callable[[], Case]]] = []

    def add(name: str, make: Callable[..., Case], *args: Any) -> None:
        cases.append((name, partial(make, *args)))

    def add_linears(layers: Sequence[tuple[str, int, int]]) -> None:
        for network, out, inp in layers:
            for M in KERNEL_ROWS:
                add(f"linear {network} {out}x{inp} M={M}", linear_case, network, out, inp, M)

    add_linears(KERNEL_LAYERS[:1])
    for case in KERNEL_CONVS[: len(FLAGSHIPS)]:
        add(f"conv {case}", conv_case, case)
    structured, trained = list(structured_cases()), list(training_cases())
    cases += structured[:N_GOALS]
    add("CP training", conv_training_case, KERNEL_CONVS[0], 64)
    embeddings = list(embedding_cases())
    cases += embeddings[:2]
    for sizes, columns, left in CASES[:4]:
        add(f"mttkrp {sizes} {left}", mttkrp_case, sizes, columns, left)
    for name, build, size in NETWORKS:
        for format in ("lowrank", "cp"):
            shape = "x".join(map(str, size))
            add(f"network {name} {shape} {format}", network_case, name, build, size, format)
    add("mlp M=8192", mlp_case, 8192, 128)
    add("training M=8192", training_case, 8192, 64)
    add("training M=8192 gelu", training_case, 8192, 64, 4096, "gelu")
    add("training SwiGLU M=8192", swiglu_training_case, 8192, 64)
    for M in (1, 16, 128, 2048):
        add(f"mlp M={M}", mlp_case, M, 128)
    add_linears(KERNEL_LAYERS[1:])
    add("mlp M=8192 r=64", mlp_case, 8192, 64)
    add("training M=8192 r=128", training_case, 8192, 128)
    cases += [*trained, *structured[N_GOALS:], *embeddings[2:]]
    for sizes, columns, left in CASES[4:]:
        add(f"mttkrp {sizes} {left}", mttkrp_case, sizes, columns, left)
    for nnz, rows, size, columns in SPARSE:
        add(f"sparse mttkrp {nnz} in {rows}", sparse_mttkrp_case, nnz, rows, size, columns)
    for case in KERNEL_CONVS[len(FLAGSHIPS) :]:
        add(f"conv {case}", conv_case, case)
    return cases

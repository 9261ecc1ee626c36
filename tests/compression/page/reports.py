"""Reports of models that nobody made: values of every kind, and of any size."""

from __future__ import annotations

from tensorlrf.compression import (
    Checkpoint,
    Frontier,
    FrontierPoint,
    Latency,
    LayerReport,
    LayerSensitivity,
    Quality,
    Refinement,
    Report,
    Sensitivity,
    Totals,
)

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm")


def factored(name: str, k: int) -> LayerReport:
    return LayerReport(
        name=name, places=(name,), kind="Linear", eligible=True, format="lowrank",
        rank=64 + 8 * (k % 9), reason="", params_before=589_824,
        params_after=100_000 + 997 * k % 400_000, bytes_before=2_359_296, bytes_after=400_000,
        flops_before=7_549_747_200 + k, flops_after=3_221_225_472 - k,
        weight_error=0.02 + 0.013 * (k % 40), output_error=0.001 * 1.3 ** (k % 17), held_out=True,
        samples=8192, data_aware=True, path="chain", shrinkage=0.02, metric="loss",
    )  # fmt: skip


def staying(name: str, reason: str) -> LayerReport:
    return LayerReport(
        name, (name,), "LayerNorm", False, None, None, reason, 1536, 1536, 6144, 6144
    )


def report_of(modules: int) -> Report:
    """Blocks of eight, of which the last one stays."""
    rows = []
    for k in range(modules):
        name = f"model.layers.{k // 8}.{KINDS[k % 8]}"
        stays = k % 8 == 7
        rows.append(
            staying(name, "neither Linear nor a convolution") if stays else factored(name, k)
        )
    before, after = (sum(getattr(r, f"params_{w}") for r in rows) for w in ("before", "after"))
    return Report(
        keep_params=0.5, error=None, target="original", affine=False, batches=32, held_out=4,
        layers=tuple(rows), model=Totals(before, after, 4 * before, 4 * after),
        model_error=0.0521, model_error_interval=(0.0483, 0.0562),
        latency=Latency(0.0181, 0.0123),
        quality=Quality(0.912, 0.905, 0.007, 0.011, 400, 20, 0.0, 9, 0.01, 0.003, 0.006, 0.01),
        refinement=refinement_of(12),
    )  # fmt: skip


def refinement_of(states: int) -> Refinement:
    curve = [Checkpoint("given", 0, 0.0, None, 0.31, True)]
    for k in range(1, states):
        loss = 0.31 * 0.93**k + 0.02 * (k % 3)
        curve += [Checkpoint("global", 50 * k, 9.5 * k, 0.3 / k, loss, k % 3 < 2)]
    return Refinement("nats a token", 1_000_000, 28, 4, 16, 1, "the budget is spent", tuple(curve))


def sensitivity_of(report: Report) -> Sensitivity:
    rows = [
        LayerSensitivity(
            row.name, "Linear", (768, 768), 1, (0, 192, 384, 768),
            (0.4 * 1.17 ** (k % 23), 0.02 * 1.2 ** (k % 19), 0.001, 0.0),
        )
        for k, row in enumerate(report.layers)
        if row.factored
    ]  # fmt: skip
    return Sensitivity("0" * 64, "fisher", "nats a token", tuple(rows))


def frontier_of(report: Report) -> Frontier:
    points = [
        FrontierPoint("dense", None, 1_000_000, 4_000_000, None, 0.0, 0.912, None, None, 0.018)
    ]
    for share in (0.9, 0.7, 0.5, 0.3):
        size = int(1_000_000 * share)
        points.append(
            FrontierPoint(
                "factors", share, size, 4 * size, 0.1 / share, 0.12 / share,
                0.912 - 0.02 / share, 0.02 / share, 0.03 / share, 0.018 * share, 0.017 * share,
            )
        )  # fmt: skip
    points.append(FrontierPoint("int8", None, 1_000_000, 1_050_000, None, 0.01, 0.91, 0.002, 0.01))
    return Frontier("nats a token", 0.0, tuple(points), (), sensitivity_of(report))

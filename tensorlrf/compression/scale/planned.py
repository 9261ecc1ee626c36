"""The plan for a checkpoint, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

from tensorlrf.compression.methods import AUTO, Given
from tensorlrf.compression.plan._check_plan import check_plan
from tensorlrf.compression.plan._plan import Plan
from tensorlrf.compression.plan._planned import planned
from tensorlrf.compression.plan._request import Request
from tensorlrf.compression.plan.budget import Budget
from tensorlrf.compression.scale.architecture import Architecture
from tensorlrf.errors import ArgumentError


def checkpoint_plan(
    known: Architecture,
    *,
    keep_params: float | None = None,
    error: float | None = None,
    method: Given = "svd",
    skip: str | Sequence[str] | None = None,
) -> Plan:
    """What `compress_checkpoint` would do. Raises as `tensorlrf.plan`."""
    request = Request.of(
        Budget.of(keep_params=keep_params, error=error), method, skip, None, "size", None, AUTO,
        None, AUTO, None, 0, False,
    )  # fmt: skip
    made, _, _ = planned(known.model, request, None, found=known.survey())
    return made if known.named is None else known.named.explained(made)


def plan_for(
    known: Architecture,
    plan: Plan | None,
    *,
    keep_params: float | None,
    error: float | None,
    method: Given,
    skip: str | Sequence[str] | None,
) -> Plan:
    """The `plan` of a user, or one that is made. Raises ArgumentError where it is for another
    checkpoint, and beside other arguments that say what is to be done."""
    if plan is None:
        return checkpoint_plan(
            known, keep_params=keep_params, error=error, method=method, skip=skip
        )
    if keep_params is not None or error is not None or method != "svd" or skip is not None:
        raise ArgumentError("plan= says what is to be done; leave out budgets, method= and skip=")
    found = known.survey()
    check_plan(known.model, plan, found, values=False)
    tables = {one.name for one in found if one.is_table}
    for row in plan.factored:
        if row.name in tables:
            raise ArgumentError(
                f"plan: {row.name} is an embedding, which a run by layers leaves as it is; set its "
                "method to null, or factor it with tensorlrf.compress, the model in memory"
            )
    return plan

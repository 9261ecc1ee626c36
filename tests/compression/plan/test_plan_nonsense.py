"""Plans edited by hand into nonsense: always an error of ours that names what is wrong."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorlrf import Plan, apply, plan
from tensorlrf.errors import TensorlrfError
from tests.compression.networks import set_weights
from tests.json_trees import Way, put, ways


def net() -> nn.Module:
    return set_weights(
        nn.Sequential(
            nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(1),
            nn.Linear(32, 16), nn.LayerNorm(16),
        )
    )  # fmt: skip


MODEL = net()
TEXT = plan(MODEL, keep_params=0.5, method={"0": "tucker", "*": "svd"}).to_json()


def carried_out(values: Any) -> None:
    made = Plan.from_json(json.dumps(values))
    str(made)
    made.to_markdown()
    assert Plan.from_json(made.to_json()) == made
    apply(MODEL, made)


def changed(way: Way, value: Any) -> dict[str, Any]:
    """The plan with one entry replaced; ... takes it out."""
    values: dict[str, Any] = json.loads(TEXT)
    put(values, way, value)
    return values


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("layers.3.method.rank", 17, r"layer '4': rank=17 is above min\(m, n\) = 16"),
        ("layers.3.method.rank", -4, "layer '4': rank=-4 must be"),
        ("layers.3.method.rank", 2.5, "rank=2.5 is a float, so a share"),
        ("layers.3.method.rank", [2, 2], "'4': rank=.2, 2. is a tuple; svd takes one int"),
        ("layers.3.method.rank", None, "'4': 4: the method svd needs a rank or an error"),
        ("layers.3.method.rank", 10**400, "rank=1000"),
        ("layers.2.method.rank", 5, r"layer '2': rank=5 is above min\(m, n\) = 4"),
        ("layers.0.method", {"name": "cp", "rank": 10**12}, "layer '0': rank=.* use at most 72"),
        ("layers.3.method.name", "qr", "layer '4': method='qr' is unknown; choose one of svd"),
        ("layers.3.method.name", None, "must be an object with a 'name'"),
        ("layers.3.method.sweeps", 4, "layer '4': sweeps= is no option of method 'svd'"),
        ("layers.0.method.tol", "x", r"layer '0': tol='x' must lie in \[0, 1\)"),
        ("layers.3.method", "svd", "method of layer '4' is 'svd', not dict or null"),
        ("layers.3.method", ..., "layer '4' has the entries"),
        ("layers.3", ..., "4 of the model is not in it.*set its method to null"),
        ("layers.3.name", "5", "layer '5' stands twice"),
        ("layers.3.name", "9", "layer '9': its places are 4, itself not among them"),
        ("layers.3.places", ["4", "5"], "4 is at 4, 5 there, but at 4 in the model"),
        ("layers.3.shape", [32, 16], r"4 has a weight \(32, 16\).*\(16, 32\) in 1 in the model"),
        ("layers.3.shape", [16, -32], r"shape \(16, -32\)"),
        ("layers.3.shape", [], "4 cannot be eligible"),
        ("layers.2.groups", 0, "in 0 groups"),
        ("layers.2.groups", 3, "in 3 groups"),
        ("layers.3.params", 5, r"params=5 is not what a weight \(16, 32\) has"),
        ("layers.4.eligible", True, "cannot be eligible"),
        ("layers.4.method", {"name": "svd", "rank": 2}, "5 cannot be factored: neither"),
        ("layers.1.eligible", 1, "eligible of layer '1' is 1, not bool"),
        ("layers.3.extra", 1, "layer '4' has the entries"),
        ("layers", {}, "no layer gets factors|is not in it"),
        ("layers", None, "no plan"),
        ("architecture", "0" * 64, "architecture of the model is not the one"),
        ("architecture", 5, "architecture of it is 5, not str"),
        ("keep_params", "half", "keep_params of it is 'half'"),
        ("keep_params", 1.5, "keep_params is 1.5"),
        ("keep_flops", True, "keep_flops of it is True"),
        ("keep_bytes", 0.5, "keep_params and keep_bytes are two budgets"),
        ("allotment", None, "allotment of it is None, not dict"),
        ("allotment.rule", "greed", "allotment has the rule 'greed'"),
        ("allotment.rule", "auto", "allotment has the rule 'auto'"),
        ("allotment.rule", ..., "allotment has the entries"),
        ("allotment.predicted_loss", -1.0, "allotment has a number that is no loss"),
        ("allotment.cost", float("nan"), "allotment has a number that is no loss"),
        ("allotment.candidates", [{"rule": "fisher"}], "candidates of allotment has the entries"),
        ("folded", 5, "folded of it is 5, not dict or null"),
        ("version", 7, "a plan of format version 7, this is 6; update tensorlrf"),
        ("version", 0, "a plan of format version 0, which there is not"),
    ],
)  # fmt: skip
def test_nonsense_is_named(change: str, value: Any, message: str) -> None:
    """A change is such as "layers.0.method.rank"."""
    way = tuple(int(part) if part.isdigit() else part for part in change.split("."))
    with pytest.raises(TensorlrfError, match=message):
        carried_out(changed(way, value))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "7", '"plan"', "{}", "{", TEXT[:-40], "[" * 10**5]
)
def test_other_text_is_no_plan(text: str) -> None:
    with pytest.raises(TensorlrfError, match="no plan"):
        Plan.from_json(text)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "4", "svd", "cp", "auto", "Linear", "hooi", "\ud800", "[b]"])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "rank", "error", "tol", "candidates"]), inner)
    ),
    max_leaves=6,
)


@given(st.sampled_from(ways(json.loads(TEXT))), anything | st.just(...))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_change_is_carried_out_or_refused(change: Way, value: Any) -> None:
    with contextlib.suppress(TensorlrfError):  # and nothing else
        carried_out(changed(change, value))

"""What a past version wrote loads to the same bits."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tensorlrf import Auto, Plan, io
from tensorlrf.compression import LayerPlan
from tensorlrf.compression.methods import config_of, words
from tensorlrf.decomposition.config import Method
from tensorlrf.factors import FORMATS
from tests.golden.difference import difference
from tests.golden.models import methods, plain_plans, plan_of
from tests.golden.samples import ALL_FORMATS, LAYERS_OF
from tests.golden.write import FILES, told, told_file

WRITTEN = sorted(p.with_name(p.name.replace(".told.txt", "")) for p in FILES.rglob("*.told.txt"))
SUFFIXES = ("", ".safetensors", ".json")


def written(name: str) -> Path:
    """The file, or folder, of that name without its suffix."""
    (path,) = [p for p in (FILES / f"{name}{s}" for s in SUFFIXES) if p.exists()]
    return path


@pytest.mark.parametrize("name", [str(p.relative_to(FILES)) for p in WRITTEN])
def test_it_is_read_as_it_was(name: str) -> None:
    path = written(name)
    found = difference(told_file(path).read_text(), told(path))
    if found:
        pytest.fail(f"{path.relative_to(FILES)}\n{found}", pytrace=False)


@pytest.mark.parametrize("word", words())
def test_a_plan_is_what_would_be_planned_today(word: str) -> None:
    old = Plan.from_json((FILES / f"plans/{word}.json").read_text())
    today = plan_of(methods()[word])
    rows = tuple(as_it_was(row, was) for row, was in zip(today.layers, old.layers, strict=True))
    assert old == replace(today, layers=rows)


def as_it_was(row: LayerPlan, was: LayerPlan) -> LayerPlan:
    """Before embeddings could be factored, plans said nothing of their weights; convolutions with
    groups stayed in formats that serve them now, and had another reason in the others."""
    if row.groups > 1 and was.method is None:
        return replace(row, method=None, reason=was.reason, eligible=was.eligible)
    if row.kind != "Embedding" or was.shape:
        return row
    return replace(row, shape=(), reason="neither Linear nor a convolution")


def test_plans_without_options_are_what_would_be_planned_today() -> None:
    """But for defaults that were others."""
    for word, plan in plain_plans().items():
        old = Plan.from_json((FILES / f"plans/{word}.json").read_text())
        for row, today in zip(old.layers, plan.layers, strict=True):
            today = as_it_was(today, row)
            assert row == replace(today, method=with_defaults_of_then(today.method)), word
        assert replace(old, layers=()) == replace(plan, layers=())


def with_defaults_of_then(method: Method | None) -> Method | None:
    """Rings took fewer sweeps, CP began at random and made sweeps whatever its size, CUR picked by
    DEIM."""
    then: dict[str, dict[str, Any]] = {
        "tr": {"n_iter_max": 30, "tol": 1e-4}, "cp": {"init": "random", "solver": "als"},
        "cur": {"sampling": "deim"},
    }  # fmt: skip
    if isinstance(method, Auto):
        was = [with_defaults_of_then(one) for one in method.candidates]
        return replace(method, candidates=tuple(one for one in was if one is not None))
    return method if method is None else replace(method, **then.get(method.word, {}))


def test_every_option_is_another_than_by_default() -> None:
    for word, method in methods().items():
        plain = config_of(word)()
        same = [f.name for f in fields(method) if getattr(method, f.name) == getattr(plain, f.name)]
        # gates= apart goes with the default metric=, and mode= of a ring with the default init=.
        assert set(same) <= {"rank", "error", "n_restarts", "order", "gates", "mode"}, word


def test_there_is_one_of_every_kind() -> None:
    def stems(kind: str) -> set[str]:
        return {p.stem for p in (FILES / kind).iterdir() if ".told" not in p.name}

    held = [f for p in sorted((FILES / "factors").glob("*.safetensors"))
            for f in io.read(p).factors.values()]  # fmt: skip
    own = {f.format for f in FORMATS.values() if f.__module__.startswith("tensorlrf.")}
    assert {f.format for f in held} == own  # tests register others
    assert stems("layers") == set(ALL_FORMATS) == set(LAYERS_OF)
    assert stems("models") == set(words())
    assert stems("plans") == {*methods(), *plain_plans()} >= set(words())
    assert sum(p.stat().st_size for p in FILES.rglob("*.*")) < 1_000_000

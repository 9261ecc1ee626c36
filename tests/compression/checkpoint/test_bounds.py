"""Small files that ask for much: the answer is an error, or takes time in proportion."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorlrf import Plan, Report, compress, io, plan
from tensorlrf.compression.checkpoint._file import load, save
from tensorlrf.compression.checkpoint._inspect import MOST_ROWS, inspect
from tensorlrf.compression.checkpoint._store import pack
from tensorlrf.compression.checkpoint.header import KEY, LONGEST_NAME, Header, Slot
from tensorlrf.decomposition import sizes, svd
from tensorlrf.decomposition.kron import _shapes as _kron_shapes
from tensorlrf.decomposition.kron._shapes import has_proper_pairs, is_composite, proper_pairs
from tensorlrf.errors import FileFormatError, TensorlrfError, UnsupportedError
from tensorlrf.factors import LowRank
from tensorlrf.files.safetensors import opened
from tensorlrf.files.sealed import write_sealed
from tensorlrf.nn import FactoredLinear
from tensorlrf.ops import PathTable
from tests.compression.checkpoint.saved import blank, compressed, same
from tests.files.mutants import file_of, parts_of, resealed

PRIME = (1 << 61) - 1


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 48))


VALUES = json.loads(plan(net(), keep_params=0.5, method="kron").to_json())


def text_with(**changes: Any) -> str:
    row = {**VALUES["layers"][0], **changes}
    row["params"] = math.prod(row["shape"])
    return json.dumps({**VALUES, "layers": [row]})


# ---- plans -------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 60))
@settings(deadline=None)
def test_whether_there_are_pairs_is_known_without_them(m: int, n: int) -> None:
    assert has_proper_pairs(m, n) == bool(proper_pairs(m, n))


def test_primes() -> None:
    def by_trial(n: int) -> bool:
        return any(n % d == 0 for d in range(2, math.isqrt(n) + 1))

    assert all(is_composite(n) == by_trial(n) for n in range(1, 3000))
    assert not is_composite(PRIME)
    assert is_composite(PRIME * PRIME)
    for carmichael in (561, 3215031751, 3825123056546413051):
        assert is_composite(carmichael)


@pytest.mark.parametrize("shape", [[PRIME, PRIME], [(1 << 31) - 1, (1 << 31) - 1]])
def test_a_kronecker_product_of_a_large_prime(
    shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(n: int) -> list[int]:
        raise AssertionError(f"the divisors of {n} are looked for one by one")

    monkeypatch.setattr(_kron_shapes, "divisors", listed)
    with pytest.raises(TensorlrfError, match=r"no divisors to share out|no decomposition"):
        Plan.from_json(text_with(shape=shape))


LARGE = 1 << 40
METHODS: list[dict[str, Any]] = [
    {"name": "svd", "rank": LARGE},
    {"name": "cp", "rank": LARGE},
    {"name": "tucker", "rank": [LARGE, LARGE]},
    {"name": "tt", "rank": LARGE},
    {"name": "tt", "rank": 0.5, "order": 10**9},
    {"name": "tt", "rank": 0.5, "row_sizes": [2] * 10**4},
    {"name": "tt", "rank": 0.5, "row_sizes": [1 << 62] * 64, "column_sizes": [1 << 62] * 64},
    {"name": "tt", "rank": [LARGE] * 10**4},
    {"name": "tr", "rank": LARGE},
    {"name": "tr", "rank": 0.5, "sizes": [[LARGE] * 10**4, [3]]},
    {"name": "kron", "rank": LARGE, "shapes": [[PRIME, 1], [1, PRIME]]},
    {"name": "monarch", "rank": 0.5, "blocks": PRIME},
    {"name": "blast", "rank": 0.5, "blocks": [PRIME, 1]},
    {"name": "hierarchical", "rank": 0.5, "leaf": PRIME},
    {"name": "blr", "rank": 0.5, "block": [PRIME, PRIME]},
    {"name": "auto", "rank": 0.5, "candidates": [{"name": "svd"}] * 10**4},
    {"name": "svd", "rank": 10**4000},
]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "svd", "rank": 4, "n_power_iter": 10**9},
        {"name": "tucker", "rank": 4, "n_iter_max": 10**9, "tol": 0.0},
        {"name": "cp", "rank": 4, "n_restarts": 10**9},
        {"name": "cp", "rank": 4, "solver": "leverage", "n_samples": 1 << 40},
        {"name": "kron", "rank": 4, "n_iter_max": 10**18},
        {"name": "auto", "rank": 0.5, "candidates": [{"name": "cp", "n_iter_max": 10**9}]},
    ],
)
def test_steps_without_an_end(options: dict[str, Any]) -> None:
    with pytest.raises(TensorlrfError, match="more than a plan may ask for"):
        Plan.from_json(text_with(method=options))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
@pytest.mark.parametrize("shape", [[48, 64], [(1 << 31) - 1, (1 << 31) - 1]])
def test_methods_that_ask_for_much(method: dict[str, Any], shape: list[int]) -> None:
    try:
        made = Plan.from_json(text_with(method=method, shape=shape))
    except TensorlrfError:
        return
    str(made)
    made.to_markdown()


def test_sizes_of_digits_are_found_in_few_steps() -> None:
    sizes._balanced.cache_clear()
    assert math.prod(sizes.mode_sizes((1 << 31) - 19, 2)) >= (1 << 31) - 19
    assert sizes._balanced.cache_info().misses < 1000


@pytest.mark.parametrize(
    "shape", [[1 << 32, 4], [1 << 62] * 70, [2] * 65, [1 << 4000, 2], [0, 1 << 62], [-1, -64]]
)
def test_shapes_of_no_weight(shape: list[int]) -> None:
    with pytest.raises(TensorlrfError, match="shape"):
        Plan.from_json(text_with(shape=shape))


def test_names_of_many_layers_are_compared_once() -> None:
    row = VALUES["layers"][0]
    many = [{**row, "name": f"l{k}", "places": [f"l{k}"]} for k in range(20_000)]
    with pytest.raises(FileFormatError, match="'l7' stands twice"):
        Plan.from_json(json.dumps({**VALUES, "layers": [*many, many[7]]}))


def test_a_long_table_ends() -> None:
    row = VALUES["layers"][0]
    many = [{**row, "name": f"l{k}", "places": [f"l{k}"]} for k in range(2100)]
    made = Plan.from_json(json.dumps({**VALUES, "layers": many}))
    assert "and 100 more" in str(made)
    assert "l2099" in made.to_markdown()
    assert MOST_ROWS == 2000


def test_thousands_of_places() -> None:
    places = ["0", *(f"p{k}" for k in range(50_000))]
    made = Plan.from_json(text_with(places=places))
    assert made.layer("p49999").name == "0"


@pytest.mark.parametrize("value", ["1e999", "-Infinity", "NaN", "1" * 4000, "[]", '"\\ud800"'])
def test_numbers_of_a_report(value: str) -> None:
    _, report = compress(net(), keep_params=0.5)
    text = report.to_json()
    for entry in ("params_before", "weight_error", "rank", "shrinkage", "flops_before", "batches"):
        (at,) = {text.index(f'"{entry}": ')}
        begin = at + len(entry) + 4
        end = min(text.index(c, begin) for c in ",}")
        try:
            made = Report.from_json(text[:begin] + value + text[end:])
            str(made)
            made.to_markdown()
        except TensorlrfError:
            continue


# ---- files -------------------------------------------------------------------------------------


def test_many_slots_on_one_tensor(tmp_path: Path) -> None:
    tensors, header = pack(compressed())
    key = header.slots[0].tensor
    more = tuple(Slot(key, {f"gone.{k}": "transient"}) for k in range(8000))
    changed = Header(**{**vars(header), "slots": (*header.slots, *more)})
    write_sealed(tmp_path / "m", KEY, changed.to_text(), tensors, overwrite=False)
    assert same(load(tmp_path / "m", blank()), compressed())
    assert inspect(tmp_path / "m").tensors == len(tensors)


def test_many_layers_on_few_tensors(tmp_path: Path) -> None:
    """A row of the table looks at what is its own."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(60)))
    for k in range(60):
        model[k] = compressed().head
    save(model, tmp_path / "m")
    assert {row.dtype for row in inspect(tmp_path / "m").layers} == {"F32"}


def test_a_file_does_not_ask_for_far_more_memory_than_it_takes(tmp_path: Path) -> None:
    """A layer that was measured frozen is frozen by load, if its dense weight is in proportion."""
    like = nn.utils.skip_init(nn.Linear, 4096, 4096, bias=False)
    for rank, frozen in ((1, False), (2, False), (3, True)):
        factors = LowRank(torch.ones(4096, rank), torch.ones(rank, 4096))
        layer = FactoredLinear.from_factors(factors, like).eval()
        layer.measured = {layer._key(frozen=True): PathTable(((None, "dense"),))}
        save(nn.Sequential(layer), tmp_path / f"{rank}")
        again: Any = load(tmp_path / f"{rank}", nn.Sequential(like).eval())
        assert again[0].is_frozen == frozen


def test_names_so_long_that_to_take_them_apart_takes_for_ever(tmp_path: Path) -> None:
    tensors, header = pack(nn.Linear(2, 2))
    long = Slot(header.slots[0].tensor, {"." * 10**6: "transient"})
    changed = Header(**{**vars(header), "slots": (*header.slots, long)})
    write_sealed(tmp_path / "m", KEY, changed.to_text(), tensors, overwrite=False)
    with pytest.raises(FileFormatError, match="at most 4,096 characters"):
        load(tmp_path / "m", nn.Linear(2, 2))
    model = nn.Module()
    model.add_module("x" * LONGEST_NAME, nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match="characters"):
        save(model, tmp_path / "n")


@pytest.mark.parametrize("shape", [[0, 1 << 62, 1 << 62], [0, 1 << 62], [0] * 64, [0] * 65])
def test_empty_tensors_of_sizes_that_overflow(shape: list[int], tmp_path: Path) -> None:
    tensors, header = pack(nn.Linear(2, 2))
    write_sealed(tmp_path / "m", KEY, header.to_text(), tensors, overwrite=False)
    head, body = parts_of((tmp_path / "m").read_bytes())
    head["more"] = {"dtype": "F32", "shape": shape, "data_offsets": [24, 24]}
    (tmp_path / "f").write_bytes(file_of(head, body))
    with suppress(TensorlrfError), opened(tmp_path / "f") as file:
        assert list(file.tensor("more").shape) == shape
    with pytest.raises(FileFormatError):
        load(tmp_path / "f", nn.Linear(2, 2))


def test_float_sizes_of_factors(tmp_path: Path) -> None:
    io.save_factors(svd(torch.eye(4), 1), tmp_path / "f")
    head, body = parts_of((tmp_path / "f").read_bytes())
    values = json.loads(head["__metadata__"][io.KEY])
    values["entries"][0]["meta"]["shape"] = [4.0, 4]
    (tmp_path / "f").write_bytes(file_of(resealed(head, io.KEY, values), body))
    with pytest.raises(FileFormatError, match="no whole numbers"):
        io.load_factors(tmp_path / "f")

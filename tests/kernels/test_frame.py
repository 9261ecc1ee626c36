"""What every kernel stands on: chips, launch tables, counters, and what happens on failure."""

from __future__ import annotations

import json
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tensorlrf_kernels
from tensorlrf_kernels import _counters, _tables, chips, launches
from tensorlrf_kernels.launches import Call, LaunchConfig, Problem
from tensorlrf_kernels.lowrank_linear import launch, lowrank_linear
from tests.processes import printed

BF16 = torch.bfloat16
PROBLEM = Problem(8192, 4096, 4096, 64, BF16)
CONFIG = LaunchConfig("prefill", {"BM": 64, "BN": 128}, 8, 2)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No memory of what was tuned, said or refused before."""
    for name in ("_failed", "_apart", "_said"):
        monkeypatch.setattr(launches, name, set())
    _tables.choose.cache_clear()
    _tables._entries.cache_clear()
    yield
    _tables.choose.cache_clear()
    _tables._entries.cache_clear()


# ---- chips --------------------------------------------------------------------------------------


def test_a_chip_is_found_by_a_part_of_its_name() -> None:
    assert chips.known_chip("h200") is chips.H200
    with pytest.raises(ValueError, match=r"'NVIDIA'.*NVIDIA H200, NVIDIA A100, NVIDIA B200"):
        chips.known_chip("NVIDIA")


def test_an_unknown_chip_is_derived_from_the_nearest() -> None:
    assert chips.nearest("NVIDIA A100-SXM4-80GB", (8, 0)) is chips.A100
    assert chips.nearest("NVIDIA GeForce RTX 4090", (8, 9)) is chips.A100
    assert chips.nearest("NVIDIA H100 PCIe", (9, 0)) is chips.H200
    assert chips.nearest("NVIDIA X999", (13, 0)) is chips.B200
    assert chips.nearest("Tesla T4", (7, 5)) is chips.A100


def test_other_devices_are_planned_for_as_an_h200() -> None:
    assert chips.chip_of(torch.device("cpu")) is chips.H200


def test_the_tf32_switch_is_torchs_own() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, allowed in (("tf32", True), ("ieee", False)):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert chips.tf32_allowed() == allowed
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# ---- launches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", chips.KNOWN.values(), ids=lambda chip: chip.name)
@pytest.mark.parametrize("dtype", launch.DTYPES, ids=str)
def test_heuristics_serve_every_shape_and_respect_the_chip(
    chip: chips.Chip, dtype: torch.dtype
) -> None:
    for rows in (1, 7, 128, 129, 1000, 10**6):
        for out, inp in ((1, 1), (33, 4097), (4096, 11008), (128256, 4096)):
            for rank in (1, 17, 64, 256, 2000):
                problem = Problem(rows, out, inp, rank, dtype)
                config = launch.forward(problem, chip)
                assert (config is None) == (rows > 128 and rank > 256)
                if config is None:
                    continue
                b = config.blocks
                assert all(size & (size - 1) == 0 for name, size in b.items() if name != "CHUNK")
                assert config.num_stages >= 1
                if config.kernel == "decode":
                    assert rows <= b["BM"]
                    assert -(-rank // b["BR"]) <= launch.MOST_RANK_BLOCKS
                    assert b["CHUNK"] % b["BK"] == 0
                    assert config.programs == chip.multiprocessors
                else:
                    assert rank <= b["BR"]
                again = launch.backward(problem, chip)
                assert again is None or again.blocks["CHUNK"] % again.blocks["BM"] == 0


@pytest.mark.parametrize("size", ["rows", "out", "inp", "rank"])
def test_nothing_is_launched_for_nothing(size: str) -> None:
    problem = PROBLEM._replace(**{size: 0})
    assert launch.forward(problem, chips.H200) is None
    assert launch.backward(problem, chips.H200) is None


def test_nothing_is_launched_in_other_dtypes() -> None:
    assert launch.forward(PROBLEM._replace(dtype=torch.float64), chips.H200) is None


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("rows", [16, 8192])
def test_neighbours_differ_in_one_size_and_lead_back(direction: str, rows: int) -> None:
    problem = PROBLEM._replace(rows=rows)
    start = getattr(launch, direction)(problem, chips.H200)
    found = list(launch.neighbours(start, problem, chips.H200))
    assert len(found) >= 8
    for config in found:
        assert config != start
        changed = {k for k in start.blocks if start.blocks[k] != config.blocks[k]} - {"BS"}
        others = ("num_warps", "num_stages", "programs", "registers")
        assert len(changed) + sum(getattr(config, k) != getattr(start, k) for k in others) == 1
        assert start in list(launch.neighbours(config, problem, chips.H200))


def test_a_launch_is_json_both_ways() -> None:
    assert LaunchConfig.from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG
    assert str(CONFIG) == "prefill BM=64 BN=128 warps=8 stages=2"
    for values in ({}, {"kernel": "x"}, {"kernel": "x", "blocks": {}, "color": 3}):
        with pytest.raises(ValueError, match="not a launch configuration"):
            LaunchConfig.from_json(values)


# ---- tables -------------------------------------------------------------------------------------


def test_a_tuned_launch_serves_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ("lowrank_linear", "forward", "bfloat16", _tables.bucket(PROBLEM))
    path = _tables.write_table(tmp_path, chips.H200, {key: CONFIG})
    assert (
        path.name == f"nvidia-h200-triton-{'.'.join(_tables.triton_version().split('.')[:2])}.json"
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    monkeypatch.setenv(_tables.VARIABLE, str(tmp_path))
    device = torch.device("cpu")  # planned for as an H200
    assert _tables.choose("lowrank_linear", "forward", PROBLEM, device) == CONFIG
    inside = PROBLEM._replace(rows=5000, rank=33)
    assert _tables.choose("lowrank_linear", "forward", inside, device) == CONFIG
    for other in (
        PROBLEM._replace(rows=4096),
        PROBLEM._replace(rank=65),
        PROBLEM._replace(dtype=torch.float16),
    ):
        config = _tables.choose("lowrank_linear", "forward", other, device)
        assert config == launch.forward(other, chips.H200)


def test_a_table_grows_and_keeps_what_it_had(tmp_path: Path) -> None:
    first = ("lowrank_linear", "forward", "bfloat16", "1x1x1x16")
    second = ("lowrank_linear", "backward", "tf32", "2x2x2x16")
    _tables.write_table(tmp_path, chips.H200, {first: CONFIG})
    path = _tables.write_table(tmp_path, chips.H200, {second: replace(CONFIG, num_warps=4)})
    assert _tables._read(path) == {first: CONFIG, second: replace(CONFIG, num_warps=4)}


def test_a_tuned_launch_never_revives_what_no_kernel_serves(tmp_path: Path) -> None:
    problem = PROBLEM._replace(rank=512)
    _tables.remember(chips.H200, "lowrank_linear", "forward", problem, CONFIG)
    assert _tables.choose("lowrank_linear", "forward", problem, torch.device("cpu")) is None


def test_a_damaged_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / _tables.table_name(chips.H200.name, _tables.triton_version())
    path.write_text('{"launches": {"lowrank_linear.forward": {"bfloat16": {"1x1x1x16": 3}}}}')
    monkeypatch.setenv(_tables.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=f"{path.name} is not a table of launches"):
        _tables.tuned(chips.H200, "lowrank_linear", "forward", PROBLEM)


def test_tf32_is_a_dtype_of_its_own() -> None:
    single = PROBLEM._replace(dtype=torch.float32)
    assert _tables.dtype_key(single) == "float32"
    assert _tables.dtype_key(single._replace(tf32=True)) == "tf32"


# ---- counters -----------------------------------------------------------------------------------


def test_counters_are_zero() -> None:
    found = _counters.counters(torch.device("cpu"))
    assert found.dtype == torch.int32
    assert found.numel() == _counters.SLOT
    assert not found.any()


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Counters as a GPU would have them, in this machine's memory; `capturing` says whether a
    graph is being captured."""
    state = SimpleNamespace(capturing=False, pools=[])
    zeros = torch.zeros

    def pool(*size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        made = zeros(*size, dtype=dtype)
        if len(size) == 2:
            state.pools.append(weakref.ref(made))
        return made

    def stream(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=threading.get_ident())

    for name in ("_pools", "_used", "_of_stream"):
        monkeypatch.setattr(_counters, name, {})
    monkeypatch.setattr(torch, "zeros", pool)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(_counters, "SLOTS", 64)
    return state


def test_no_pool_is_freed_under_a_captured_launch(on_cuda: SimpleNamespace) -> None:
    device, addresses = torch.device("cuda:0"), []
    for _ in range(20):  # graphs, each after its warm-up
        on_cuda.capturing = False
        _counters.counters(device)
        on_cuda.capturing = True
        # Of a captured launch only the address is kept.
        addresses += [_counters.counters(device).data_ptr() for _ in range(30)]
    assert len(set(addresses)) == len(addresses)
    assert len(on_cuda.pools) > 5
    assert all(pool() is not None for pool in on_cuda.pools)


def test_threads_never_take_the_same_slot(on_cuda: SimpleNamespace) -> None:
    device = torch.device("cuda:0")
    _counters.counters(device)
    started = threading.Barrier(8)

    def take(_: int) -> list[int]:
        started.wait()
        return [_counters.counters(device).data_ptr() for _ in range(4)]

    on_cuda.capturing = True
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            taken = [slot for slots in pool.map(take, range(8)) for slot in slots]
    finally:
        sys.setswitchinterval(before)
    assert len(set(taken)) == len(taken)


# ---- failures -----------------------------------------------------------------------------------


def execute(error: Exception, config: LaunchConfig = CONFIG) -> tuple[object, list[LaunchConfig]]:
    """`execute` where the launch raises `error`, but for a launch that is not cooperative."""
    tried: list[LaunchConfig] = []

    def build(config: LaunchConfig) -> tuple[list[Call], str]:
        tried.append(config)
        if not config.cooperative and "cooperative" in str(error):
            return [Call("none", config, 1, {"x": torch.ones(1)}, {})], "two launches"
        raise error

    result = launches.execute(
        config, build, op="lowrank_linear", device=torch.device("cpu"), dtype=BF16
    )
    return result, tried


def test_a_kernel_that_does_not_compile_is_named_once() -> None:
    error = RuntimeError("PassManager::run failed")
    with pytest.warns(RuntimeWarning, match=r"lowrank_linear.*bfloat16.*NVIDIA H200.*PassManager"):
        assert execute(error) == (None, [CONFIG])
    assert execute(error) == (None, [])  # neither tried nor said again


def test_the_line_that_called_is_warned_of_and_none_of_torch() -> None:
    layer = "torch.vmap(lambda x: say_once('nothing was launched') or x)(torch.ones(2))"
    ours = {"__name__": "tensorlrf.nn", "torch": torch, "say_once": launches.say_once}
    with pytest.warns(RuntimeWarning, match="nothing was launched") as told:
        exec(layer, ours)
    assert [w.filename for w in told] == [__file__]


def test_a_launch_that_does_not_compile_disables_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "launch", lambda calls: None)
    with pytest.warns(RuntimeWarning, match="BM=64"):
        execute(RuntimeError("PassManager::run failed"))
    taller = replace(CONFIG, blocks={**CONFIG.blocks, "BM": 128})
    for config in (taller, replace(CONFIG, num_warps=4)):
        made = launches.execute(
            config,
            lambda config: ([], config),
            op="lowrank_linear",
            device=torch.device("cpu"),
            dtype=BF16,
        )
        assert made == config
    assert execute(RuntimeError("unreachable")) == (None, [])


def test_errors_of_ours_and_of_the_device_are_raised() -> None:
    for error in (
        TypeError("an argument is missing"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        torch.OutOfMemoryError("out of memory"),
    ):
        with pytest.raises(type(error)):
            execute(error)


def test_a_chip_without_cooperative_launches_gets_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "launch", lambda calls: None)
    error = RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")
    config = replace(CONFIG, cooperative=True)
    result, tried = execute(error, config)
    assert result == "two launches"
    assert [c.cooperative for c in tried] == [True, False]
    assert [c.cooperative for c in execute(error, config)[1]] == [False]
    # Another launch of the op, or of another op, is tried on its own.
    fewer = replace(config, programs=7)
    assert [c.cooperative for c in execute(error, fewer)[1]] == [True, False]


def test_launches_are_equal_and_hashed_by_value() -> None:
    same = replace(CONFIG, blocks={"BN": 128, "BM": 64})
    assert same == CONFIG
    assert len({CONFIG, same, replace(CONFIG, num_warps=4)}) == 2


def test_without_triton_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "HAS_TRITON", False)
    assert execute(RuntimeError("unreachable")) == (None, [])
    old = replace(chips.H200, capability=(7, 5))
    monkeypatch.setattr(launches, "HAS_TRITON", True)
    monkeypatch.setattr(launches, "chip_of", lambda device: old)
    assert execute(RuntimeError("unreachable")) == (None, [])


def test_importing_the_ops_imports_no_compiler() -> None:
    ops = [p.parent.name for p in Path(tensorlrf_kernels.__file__).parent.glob("*/launch.py")]
    assert "lowrank_swiglu" in ops
    code = (
        "import sys, importlib, torch; before = set(sys.modules); "
        f"[importlib.import_module('tensorlrf_kernels.' + op) for op in {ops}]; "
        "new = set(sys.modules) - before; "
        "print([m for m in ('triton', 'torch._dynamo') if m in new])"
    )
    assert printed(code) == "[]"


def test_the_op_runs_where_triton_cannot_be_imported() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch; "
        "from tensorlrf_kernels.lowrank_linear import lowrank_linear; "
        "y = lowrank_linear(torch.ones(2, 3), torch.ones(1, 3), torch.ones(4, 1)); "
        "print(y.sum().item())"
    )
    assert float(printed(code)) == 24.0


def test_too_large_a_rank_for_the_chip_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorlrf_kernels import lowrank_linear as op

    x, right, left = torch.ones(200, 4), torch.ones(300, 4), torch.ones(5, 300)
    with pytest.warns(RuntimeWarning, match="rank 300 is above 256"):
        y, _ = op._forward_cuda(x, right, left, None, None, None, False)
    torch.testing.assert_close(y, lowrank_linear(x, right, left))
    op._forward_cuda(x, right, left, None, None, None, False)

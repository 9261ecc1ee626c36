"""Reading machine code: its loops, its pipes, and what is kept of it."""

from __future__ import annotations

import pytest

from bench.report import Row
from bench.static import __main__ as command
from bench.static.flow import flow_of
from bench.static.goals import GOALS
from bench.static.judge import residents
from bench.static.results import among, kept, worse
from bench.static.sass import PIPES, Instruction, by_pipe, parse
from bench.static.source import loop_at, operand_at
from bench.static.work import PASSES
from tensorlrf_kernels.chips import A100, H200, KNOWN

# An outer loop with an inner one, a part that some passes leave out, and one laid out far away.
CODE = """
//--------------------- .text.kernel ---------------
\t//## File "/somewhere/tensorlrf_kernels/_grid.py", line 49
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/              @P1 BRA `(.L_x_3) ;
.L_x_4:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R0], desc[UR14][R24.64], P4 ;
.L_x_1:
        /*0040*/                   FFMA R2, R2, R3, R4 ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0060*/                   BRA.U UP0, `(.L_x_1) ;
        /*0070*/              @P2 BRA `(.L_x_2) ;
        /*0080*/                   MEMBAR.ALL.GPU ;
.L_x_2:
        /*0090*/             @!P0 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
.L_x_3:
        /*00b0*/                   MUFU.EX2 R5, R5 ;
        /*00c0*/                   BRA `(.L_x_4) ;
.L_x_5:
        /*00d0*/                   BRA `(.L_x_5);
        /*00e0*/                   NOP;
//--------------------- .nv.info ---------------
        /*0000*/                   NOP ;
"""


def opcodes(code: list[Instruction], places: tuple[int, ...]) -> list[str]:
    return [code[k].root for k in places]


def test_loops_are_those_that_all_ways_back_lead_through() -> None:
    code = parse(CODE)
    flow = flow_of(code)
    (outer,) = flow.loops
    (inner,) = outer.inner
    assert opcodes(code, inner.always) == ["FFMA", "HGMMA", "BRA"]
    assert not inner.at_times
    assert opcodes(code, outer.always) == ["IADD3", "BRA", "LDGSTS", "BRA", "BRA"]
    # What was laid out behind the end goes back as well, and is a part of the outer loop alone.
    assert opcodes(code, outer.at_times) == ["MEMBAR", "MUFU", "BRA"]
    assert opcodes(code, flow.always) == ["S2R", "EXIT"]
    assert not flow.at_times
    assert len(flow.reached) == 13  # not what fills the code up


def test_instructions_go_to_pipes() -> None:
    code = parse(CODE)
    reached = [code[k] for k in flow_of(code).reached]
    assert by_pipe(reached) == dict(zip(PIPES, (1, 1, 2, 0, 1, 1, 7), strict=True))
    assert [i.copied for i in reached if i.copied] == [32 * 16]
    assert sum(i.fences_device for i in reached) == 1
    uniform = Instruction("UIADD3", False, -1, "", 0)
    assert [i.pipe for i in (uniform, Instruction("UTCHMMA.2CTA", False, -1, "", 0))] == [
        "uniform", "tensor"
    ]  # fmt: skip


def test_lines_are_of_loops_and_operands() -> None:
    source = "lowrank_linear/kernel.py"
    loops = {loop_at(source, line) for line in range(1, 400)}
    assert {"prefill.k", "prefill.n", "decode.tile", "decode.k", ""} <= loops
    assert {operand_at(source, line) for line in range(1, 80)} == {"x", "right", "left", ""}
    grid = {loop_at("tensorlrf_kernels/_grid.py", line) for line in range(1, 100)}
    assert grid == {"bring.s", "wait.while", ""}
    assert loop_at("elsewhere.py", 3) == ""


def test_residents_follow_the_scarcest() -> None:
    assert residents(255, 1024, 4, H200) == 2
    assert residents(32, 1024, 4, H200) == 16
    assert residents(32, 58368, 4, H200) == 4
    assert residents(32, 58368, 4, A100) == 2


def test_what_is_kept_has_every_goal() -> None:
    assert len({goal.name for goal in GOALS}) == len(GOALS) <= 30
    loops = {goal.of for goal in GOALS if goal.op in PASSES and isinstance(goal.of, str)}
    assert all(any(name in of for of in PASSES.values()) for name in loops - {"backward.row"})
    if kept():
        assert kept().keys() == {(goal.name, chip) for goal in GOALS for chip in KNOWN}


def test_rows_replace_those_of_the_same_launch() -> None:
    first, second = GOALS[0].name, GOALS[1].name
    former = {(name, H200.name): {"registers": 1} for name in (second, first)}
    rows = among(former, [Row(second, H200.name, 0.0, 0.0, 0, {"registers": 2})])
    assert [(row.case, row.info["registers"]) for row in rows] == [(first, 1), (second, 2)]


def test_worse_is_named() -> None:
    before = {
        "registers": 120, "spilled": 0, "shared": 50176, "waves": 1, "fences": 2, "resident": 3,
        "streamed": 32768, "unit": "row", "per_unit": 639.0
    }  # fmt: skip
    assert not worse(before, before)
    assert not worse({**before, "registers": 90, "resident": 4, "per_unit": 600.0}, before)
    now = {**before, "registers": 121, "resident": 2, "per_unit": None}
    assert worse(now, before) == [
        "registers 121, was 120", "None instructions a row, were 639.0", "resident 2, was 3"
    ]  # fmt: skip


def test_without_triton_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--goal", "no such goal"]) == 2
    monkeypatch.setattr(command, "kept", dict)
    assert command.main(["--write", "--chip", "H200"]) == 2
    assert "has no table" in capsys.readouterr().err
    monkeypatch.setattr(command, "HAS_TRITON", False)
    assert command.main([]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert "triton is not installed" in last

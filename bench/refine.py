"""Refinement of compressed models: held-out and test figures before and after, over seconds.

    python bench/refine.py                             all rows that are not there yet
    python bench/refine.py --rows minilm:all           these rows, measured anew
    python bench/refine.py --seconds 60 --results DIR  shorter, elsewhere

Each row is a process of its own on one thread, and the file is written anew after each. Models are
compressed once, and lie in `--work` from then on. A row is MODEL:PHASES, where PHASES is "all" or
one of them. Settings are those of `refine`; what was tried for them was judged on held-out batches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

import tensorlrf  # noqa: E402
from bench.report import machine  # noqa: E402
from bench.subjects import Judge, subject  # noqa: E402

ROWS = tuple(
    f"{name}:{phases}"
    for name in ("minilm", "efficientnet")
    for phases in ("all", "local", "block", "global")
)
NOTE = (
    "Before and after tensorlrf.refine on one thread, one row a process. MiniLM keeps .4 of its 36 "
    "linears, EfficientNet-lite0 .8 of its 1 x 1 convolutions; both compressed by ranks where they "
    "matter and fitted in order. The held-out loss (1 - cosine of pooled embeddings; KL of the "
    "classes) is on calibration batches that were not trained on, a fifth of them: documents, and "
    "all crops of pictures, that no other batch has. Test figures are those of bench/models.py. "
    "Other work ran beside: the seconds are of about a fifth of a core, so read the steps."
)


@dataclass(frozen=True)
class Case:
    """A model to refine.

    dense   as it is compressed and judged
    data    batches, of which whole ones are held out
    budget  arguments of `compress`
    loss    of `refine`
    judge   figures of a model on test inputs
    """

    dense: nn.Module
    data: list[Any]
    budget: dict[str, Any]
    loss: str
    judge: Judge


class Pooled(nn.Module):
    """A sentence encoder that gives the mean over a text's tokens."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """(texts, width)."""
        hidden = self.encoder(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
        ).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def minilm() -> Case:
    """The encoder with its mean over tokens."""
    import minilm as example
    import texts

    about, tokenizer = subject("minilm"), example.load_tokenizer()
    dense = Pooled(about.load()).eval()
    judge = about.judge(dense.encoder)
    data = example.batches(tokenizer, texts.background(), 16, example.CALIBRATION_TOKENS)
    budget = {"keep_params": 0.4, "skip": ["*embeddings*", "*pooler*"], "allocation": "fisher"}
    return Case(dense, data, budget, "cosine", lambda model: judge(model.encoder))


def efficientnet() -> Case:
    """The classifier; a batch has the crops of one picture, so that pictures are held out whole."""
    import efficientnet as example
    from pictures import crops, picture_set

    about = subject("efficientnet")
    dense = about.load()
    data = [
        example.preprocess(crops(p.image, 16, seed))
        for seed, p in enumerate(picture_set("calibration"))
    ]
    budget = {"keep_params": 0.8, "skip": about.skip, "allocation": "fisher"}
    return Case(dense, data, budget, "kl", about.judge(dense))


CASES: dict[str, Callable[[], Case]] = {"minilm": minilm, "efficientnet": efficientnet}
HOLDOUT = 0.2


def compressed(name: str, case: Case, work: Path) -> nn.Module:
    """The compressed model, from the disk where it is there."""
    path = work / f"{name}.safetensors"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        small, _ = tensorlrf.compress(
            case.dense, calibration=case.data, holdout=HOLDOUT, loss=case.loss, progress=False,
            **case.budget,
        )  # fmt: skip
        tensorlrf.save(small, path)
    return tensorlrf.load(path, case.dense)


def measure(spec: str, seconds: float, work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Figures of a row."""
    torch.set_num_threads(1)
    name, _, words = spec.partition(":")
    case = CASES[name]()
    small = compressed(name, case, work)
    phases = None if words == "all" else [words]
    better, report = tensorlrf.refine(
        small, case.dense, case.data, seconds=seconds, loss=case.loss, holdout=HOLDOUT,
        phases=phases, **options,
    )  # fmt: skip
    figures = {"before": case.judge(small), "after": case.judge(better)}
    return {"case": spec, "test": figures, "report": json.loads(report.to_json())}


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        "# refine",
        "",
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
        NOTE,
        "",
        "| case | held-out before | after | test before | test after | steps | seconds | ended |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        report = tensorlrf.Refinement.from_json(json.dumps(row["report"]))
        tests = [_figures(row["test"][when]) for when in ("before", "after")]
        lines.append(
            f"| {row['case']} | {report.before:.4g} | {report.after:.4g} | {tests[0]} | {tests[1]} "
            f"| {report.steps} | {report.seconds:.0f} | {report.reason} |"
        )
    return "\n".join(lines) + "\n"


def _figures(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--work", type=Path, default=ROOT / "build/refine")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rows", nargs="*", default=[], help="of " + ", ".join(ROWS))
    parser.add_argument("--options", type=json.loads, default={}, help="of refine, as JSON")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.seconds, given.work, given.options)))
        return
    path = given.results / "refine.json"
    about = machine("cpu") | {"threads": 1}
    former = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["case"]: row for row in former}
    for spec in given.rows or [row for row in ROWS if row not in rows]:
        command = [sys.executable, __file__, "--measure", spec, "--seconds", str(given.seconds)]
        command += ["--work", str(given.work), "--options", json.dumps(given.options)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{spec}: failed")
            continue
        rows[spec] = json.loads(run.stdout.splitlines()[-1])
        ordered = [rows[row] for row in (*ROWS, *(r for r in rows if r not in ROWS)) if row in rows]
        given.results.mkdir(parents=True, exist_ok=True)
        content = {"machine": about, "note": NOTE, "rows": ordered}
        path.write_text(json.dumps(content, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(ordered, about))
        print(f"{spec}: {_figures(rows[spec]['test']['after'])}")


if __name__ == "__main__":
    main()

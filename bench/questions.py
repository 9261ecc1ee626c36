"""Questions that whoever compresses a model asks, answered by measurement.

    python bench/questions.py                              all rows that are not there yet
    python bench/questions.py --rows order:halves:.5 part  these, measured anew

MiniLM becomes a classifier of short texts: which part of SciPy is this docstring from? Train first
or compress first; calibrate on texts of the task or on others; which matrices can go. Rows are
QUESTION:WHAT:SHARE. Each is a process of its own, and is written as soon as it is measured. All
settings are fixed but the rate of each training, which the validation set decides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# The examples are no package: what follows is found only from here on.
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "examples")]

import minilm  # noqa: E402
import texts  # noqa: E402
import torch  # noqa: E402
from common import call, interval  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from bench import question_models as models  # noqa: E402
from bench.pooled import Pooled  # noqa: E402
from bench.question_texts import Split, docstrings, of_python  # noqa: E402
from bench.report import machine  # noqa: E402

KEEPS = (0.5, 0.25)
ROWS = (
    "order:dense:1",
    *(
        f"order:{what}:{keep:g}"
        for keep in KEEPS
        for what in ("train-compress", "compress-train", "halves")
    ),
    "calibration:news:0.5",
    *(f"calibration:{what}:0.25" for what in ("python", "news", "random")),
    *(f"embeddings:{what}:0.4" for what in ("news", "docstrings", "random")),
    "part:attention:0.25",
    "part:feed-forward:0.625",
    "part:words:0.774",
    "part:words:0.25",
)

ABOUT = {
    "train-compress": "trained for four epochs, then compressed",
    "compress-train": "MiniLM compressed, then trained for four epochs",
    "halves": "trained for two epochs, compressed, trained for two more",
}

NOTE = """all-MiniLM-L6-v2 with a linear head on its mean over tokens: which of ten parts of SciPy \
is a docstring from (its first 32 tokens)? Training, validation and test texts are of different \
files. Compressed are the 36 linears of the encoder, ranks by allocation="fisher", fitted in order \
on the training texts without their labels unless said; the share is that of their weights. \
Training is AdamW over all but the embeddings, on dense weights or on factors, at the better of \
two rates by the validation set. Intervals are 95%, differences in pairs, by bootstrap over the \
files of the test texts. Seconds are CPU seconds of one thread; other work ran beside."""

# ---- one row, in a process of its own ---------------------------------------------------------


class Bench:
    """The texts, and what MiniLM becomes on them."""

    def __init__(self, work: Path) -> None:
        self.work, self.tokenizer = work, minilm.load_tokenizer()
        self.texts = read(work)
        self.train, self.valid, self.test = (
            models.Examples.of(self.tokenizer, self.texts[name])
            for name in ("train", "valid", "test")
        )

    def row(self, spec: str) -> dict[str, Any]:
        question, what, keep = spec.split(":")
        if question == "embeddings":
            return self.embeddings(what, float(keep))
        ask = {"order": self.order, "calibration": self.calibration, "part": self.part}[question]
        model, told = ask(what, float(keep))
        return told | {
            "scores": models.scores(model, self.test),
            "groups": self.test.files.tolist(),
        }

    def order(self, what: str, keep: float) -> tuple[nn.Module, dict[str, Any]]:
        """Train, compress, in the order that is asked for."""
        if what == "dense":
            model, training = models.dense(models.EPOCHS, self.train, self.valid, self.work)
            return model, {"gone": 0, "train_s": training.seconds, "rates": [training.rate]}
        trainings = []
        if what == "compress-train":
            pooled = Pooled(minilm.load_minilm()).eval()
            small, gone, fit = models.compressed(pooled, keep, self.train.batches, "cosine")
            small, training = models.finetuned(
                models.Classifier(small), self.train, self.valid, models.EPOCHS
            )
            trainings.append(training)
        else:
            epochs = models.EPOCHS // 2 if what == "halves" else models.EPOCHS
            model, training = models.dense(epochs, self.train, self.valid, self.work)
            trainings.append(training)
            small, gone, fit = models.compressed(model, keep, self.train.batches, "kl")
            if what == "halves":
                small, training = models.finetuned(
                    small, self.train, self.valid, models.EPOCHS - epochs
                )
                trainings.append(training)
        return small, {
            "gone": gone,
            "fit_s": fit,
            "train_s": sum(t.seconds for t in trainings),
            "rates": [t.rate for t in trainings],
        }

    def calibration(self, what: str, keep: float) -> tuple[nn.Module, dict[str, Any]]:
        """The trained classifier, calibrated on as many tokens of other texts."""
        model, _ = models.dense(models.EPOCHS, self.train, self.valid, self.work)
        batches = models.refilled(self.train.batches, self.stream(what))
        small, gone, fit = models.compressed(model, keep, batches, "kl")
        return small, {"gone": gone, "fit_s": fit}

    def part(self, what: str, keep: float) -> tuple[nn.Module, dict[str, Any]]:
        """The trained classifier, of which one kind of matrices gets smaller."""
        model, _ = models.dense(models.EPOCHS, self.train, self.valid, self.work)
        if what == "words":
            small, gone = models.smaller_embedding(model, keep)
            return small, {"gone": gone}
        method = {"attention": models.ATTENTION, "feed-forward": models.FEED_FORWARD}[what]
        small, gone, fit = models.compressed(model, keep, self.train.batches, "kl", method)
        return small, {"gone": gone, "fit_s": fit}

    def embeddings(self, what: str, keep: float) -> dict[str, Any]:
        """MiniLM as it is, for news, calibrated on as many tokens of these or of other texts."""
        pooled = Pooled(minilm.load_minilm()).eval()
        batches = minilm.calibration_batches(self.tokenizer)[::3]
        if what != "news":
            batches = models.refilled(batches, self.stream(what))
        small, gone, fit = models.compressed(pooled, keep, batches, "cosine")
        cosines = [
            torch.cosine_similarity(call(pooled, batch), call(small, batch))
            for batch in minilm.batches(self.tokenizer, texts.documents())
        ]
        found = torch.cat(cosines).tolist()
        return {
            "gone": gone,
            "fit_s": fit,
            "scores": {"cosine": found},
            "groups": list(range(len(found))),
        }

    def stream(self, what: str) -> Tensor:
        """Token ids of a text, or drawn from the whole vocabulary."""
        if what == "random":
            size = self.tokenizer.vocab_size
            return torch.from_numpy(np.random.default_rng(0).integers(1000, size, 100_000))
        text = {
            "python": of_python,
            "news": lambda: "\n".join(texts.background()),
            "docstrings": lambda: "\n".join(self.texts["train"].texts),
        }[what]()
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids)


def read(work: Path) -> dict[str, Split]:
    """The docstrings, from the disk where they are there."""
    path = work / "docstrings.json"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: vars(split) for name, split in docstrings().items()}))
    return {name: Split(**values) for name, values in json.loads(path.read_text()).items()}


# ---- the files --------------------------------------------------------------------------------


def figures(row: dict[str, Any], key: str, base: dict[str, Any] | None = None) -> str:
    """A mean over texts with its interval over their groups; above that of another row."""
    values = np.array(row["scores"][key])
    if base is not None:
        values = values - np.array(base["scores"][key])
    groups = np.array(row["groups"])
    sums = np.array([values[groups == g].sum() for g in np.unique(groups)])
    counts = np.array([(groups == g).sum() for g in np.unique(groups)])

    def mean(drawn: np.ndarray) -> float:
        return float(sums[drawn].sum() / counts[drawn].sum())

    sign = "" if base is None else "+"
    low, high = interval(mean, len(sums))
    return f"{values.mean():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def markdown(rows: dict[str, dict[str, Any]], about: dict[str, Any]) -> str:
    lines = ["# questions", "", ", ".join(f"{k} {v}" for k, v in about.items()), "", NOTE, ""]
    dense = rows.get("order:dense:1")
    if dense is not None:
        lines += [
            f"Dense, trained for four epochs: {figures(dense, 'right')} right, log loss "
            f"{figures(dense, 'nats')}; {len(dense['groups'])} test texts of "
            f"{len(set(dense['groups']))} files.",
            "",
        ]
    lines += _section(
        "Train first or compress first?", rows, "order", "right",
        lambda what, keep: f"order:train-compress:{keep}",
    )  # fmt: skip
    lines += _section(
        "Calibrate the classifier on which texts? The same, against its own training texts",
        rows, "calibration", "right", lambda what, keep: f"order:train-compress:{keep}",
    )  # fmt: skip
    lines += _section(
        "MiniLM itself, for news: mean cosine to the dense embedding of the 50 Lee documents",
        rows, "embeddings", "cosine", lambda what, keep: f"embeddings:news:{keep}",
    )  # fmt: skip
    lines += _section(
        "Which matrices can go? The trained classifier, one kind of its matrices made smaller",
        rows, "part", "right", lambda what, keep: "order:dense:1",
    )  # fmt: skip
    return "\n".join(lines)


def _section(
    title: str,
    rows: dict[str, dict[str, Any]],
    question: str,
    key: str,
    base_of: Callable[[str, str], str],
) -> list[str]:
    """One question's table, each row against another one in pairs."""
    own = [spec for spec in ROWS if spec.startswith(f"{question}:") and spec in rows]
    own = [spec for spec in own if spec != "order:dense:1"]
    if not own:
        return []
    nats = key == "right"
    head = ["kept", "what", f"{key} [95%]", "above its base [95%]"]
    head += ["log loss above it [95%]"] if nats else []
    head += ["parameters gone", "training", "fit"]
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for spec in own:
        _, what, keep = spec.split(":")
        row, base = rows[spec], rows.get(base_of(what, keep))
        if base is row:
            base = None
        cells = [keep, ABOUT.get(what, what), figures(row, key)]
        cells.append("" if base is None else figures(row, key, base))
        if nats:
            cells.append("" if base is None else figures(row, "nats", base))
        cells.append(f"{row['gone'] / 1e6:.2f} M")
        cells += [f"{row[key]:.0f} s" if key in row else "" for key in ("train_s", "fit_s")]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def write(folder: Path, rows: dict[str, dict[str, Any]], about: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {spec: rows[spec] for spec in ROWS if spec in rows}
    content = {"machine": about, "note": NOTE, "rows": ordered}
    for suffix, text in ((".json", json.dumps(content)), (".md", markdown(ordered, about))):
        path = (folder / "questions").with_suffix(suffix)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(text.rstrip() + "\n")
        os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/cpu")
    parser.add_argument("--work", type=Path, default=ROOT / "build/questions")
    parser.add_argument("--rows", nargs="*", default=[], help="QUESTION or QUESTION:WHAT:SHARE")
    parser.add_argument("--measure", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        print(json.dumps(Bench(given.work).row(given.measure)))
        return
    asked = [
        spec for row in given.rows for spec in ROWS if spec == row or spec.startswith(f"{row}:")
    ]
    if given.rows and not asked:
        parser.error(f"--rows must be of {', '.join(ROWS)}")
    path = given.results / "questions.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    about = machine("cpu") | {"threads": 1}
    for spec in asked or [row for row in ROWS if row not in rows]:
        command = [sys.executable, __file__, "--measure", spec, "--work", str(given.work)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"{spec}: failed", flush=True)
            continue
        rows[spec] = json.loads(run.stdout.splitlines()[-1])
        write(given.results, rows, about)
        means = {key: round(float(np.mean(v)), 4) for key, v in rows[spec]["scores"].items()}
        print(f"{spec}: {means}", flush=True)


if __name__ == "__main__":
    main()

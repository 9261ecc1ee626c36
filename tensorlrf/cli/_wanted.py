"""What a plan is to be made by, as a command line says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tensorlrf.compression import Allocation, Plan, Sensitivity
from tensorlrf.compression.methods import MODULAR, Given
from tensorlrf.compression.plan.allocation import AUTO, RULES_ON_INPUTS
from tensorlrf.compression.plan.budget import ON_INPUTS
from tensorlrf.errors import ArgumentError, FileError, FileFormatError, TensorlrfError


@dataclass(frozen=True)
class Wanted:
    """What a plan is to be made by; see the command.

    budgets  by the arguments of `plan`
    method, allocation  words, or as `plan` takes them, of a recipe
    """

    budgets: Mapping[str, float | None]
    method: Given
    skip: list[str]
    include: list[str]
    allocation: str | Allocation | None
    least_share: float | None
    sensitivity: Path | None
    evaluate: str | None = None
    fold_batch_norms: bool = False
    journal: Path | None = None

    def check(self, source: Path, *, with_text: bool, plan_only: bool) -> None:
        """Raise for what needs inputs, or a model that runs, where there are none."""
        if self.evaluate is not None and not source.is_dir():
            raise ArgumentError(
                f"--evaluate runs the model, and so is for folders with a model of transformers; "
                f"{source} is a file, which is compressed by its weights alone"
            )
        wholes = ["--include"] if self.include else []
        wholes += ["--keep-total"] if self.budgets["keep_total"] is not None else []
        if wholes and not source.is_dir():
            raise ArgumentError(
                f"{wholes[0]} looks at the whole model, and so is for folders with a model of "
                f"transformers; {source} is a file, of which the weights alone are known"
            )
        if self.method == MODULAR and plan_only:
            raise ArgumentError(
                f"--method {MODULAR} makes whole modules smaller, which no plan of layers tells; "
                "leave out --plan-only"
            )
        if self.budgets["max_drop"] is not None and self.evaluate is None:
            raise ArgumentError("--max-drop needs --evaluate, the metric that may fall so far")
        if with_text:
            return
        looks = [_option(w) for w in (*ON_INPUTS, "max_drop") if self.budgets[w] is not None]
        rule = Allocation.of(AUTO if self.allocation is None else self.allocation).rule
        if rule in RULES_ON_INPUTS:
            looks.append(f"--allocation {rule}")
        looks += ["--fold-batch-norms"] if self.fold_batch_norms else []
        looks += [f"--method {MODULAR}"] if self.method == MODULAR else []
        if looks and not source.is_dir():
            raise ArgumentError(
                f"{looks[0]} looks at inputs, and so is for folders with a model of transformers; "
                f"{source} is a file, which is compressed by its weights alone"
            )
        if looks:
            raise ArgumentError(f"{looks[0]} needs --text, from which the inputs come")

    def check_alone(self) -> None:
        """Raise where there is anything beside a plan that is given."""
        options = [_option(word) for word, value in self.budgets.items() if value is not None]
        others = {
            "--method": self.method != "svd",
            "--skip": bool(self.skip),
            "--include": bool(self.include),
            "--fold-batch-norms": self.fold_batch_norms,
            "--allocation": self.allocation is not None,
            "--least-share": self.least_share is not None,
            "--sensitivity": self.sensitivity is not None,
            "--evaluate": self.evaluate is not None,
            "--journal": self.journal is not None,
        }
        options += [option for option, there in others.items() if there]
        if options:
            raise ArgumentError(
                f"--plan says what becomes of every layer: leave out {' and '.join(options)}, or "
                "edit the plan"
            )

    def arguments(self) -> dict[str, Any]:
        """Of `plan`."""
        if self.sensitivity is not None and self.allocation is not None:
            raise ArgumentError(
                "--sensitivity says what layers can lose, and --allocation how to find it; leave "
                "out one of them"
            )
        allocation = Allocation.of(AUTO if self.allocation is None else self.allocation)
        if self.least_share is not None:
            allocation = replace(allocation, least_share=self.least_share)
        return {
            **self.budgets,
            "method": self.method,
            "skip": [glob for glob in self.skip if glob] if self.skip else None,
            "include": self.include,
            "fold_batch_norms": self.fold_batch_norms,
            "allocation": allocation,
            "journal": self.journal,
            "sensitivity": None
            if self.sensitivity is None
            else read_value(Sensitivity, "--sensitivity", self.sensitivity),
        }


V = TypeVar("V", Plan, Sensitivity)


def read_value(kind: type[V], option: str, path: Path) -> V:
    """A value from its JSON."""
    if not path.is_file():
        raise FileError(f"{option} {path} is not a file")
    try:
        return kind.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{option} {path} is no text: {error}") from None
    except TensorlrfError as error:
        raise type(error)(f"{option} {path}: {error}") from None


def _option(word: str) -> str:
    """By which an argument is given on the command line."""
    return f"--{word.replace('_', '-')}"

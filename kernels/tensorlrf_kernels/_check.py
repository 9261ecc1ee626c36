"""Checks of an op's operands: shapes by letters, one dtype, one device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

MOST = 4096  # kinds of calls that are remembered


def check_operands(**operands: tuple[Tensor | None, str]) -> None:
    """Each operand, by name, has the dimensions that its letters name; None is left out.

    A letter stands for one size wherever it occurs, "..." for the leading dimensions of the first
    operand. All are of one floating dtype on one device. Raises ValueError with the operand's
    name, its shape and the remedy.
    """
    sizes: dict[str, tuple[int, str]] = {}
    lead: Sequence[int] | None = None
    first_name, (first, _) = next(iter(operands.items()))
    assert first is not None
    for name, (tensor, letters) in operands.items():
        if tensor is None:
            continue
        named = letters.removeprefix("...")
        leads = len(named) != len(letters)
        shape = tensor.shape
        split = len(shape) - len(named)
        if split < 0 or (split > 0 and not leads):
            raise ValueError(_words(name, tensor, letters))
        if leads:
            lead = shape[:split] if lead is None else lead
            if shape[:split] != lead:
                raise ValueError(
                    f"{_words(name, tensor, letters)}, with the leading dimensions of "
                    f"{first_name}, {tuple(lead)}"
                )
        for letter, size in zip(named, shape[split:], strict=True):
            known, owner = sizes.setdefault(letter, (size, name))
            if known != size:
                raise ValueError(
                    f"{_words(name, tensor, letters)}, with {letter} = {known} as {owner} has it"
                )
        if tensor.dtype != first.dtype:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, {first_name} {first.dtype}; cast one with .to()"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{name} is on {tensor.device}, {first_name} on {first.device}; move one with .to()"
            )
    if not first.is_floating_point():
        raise ValueError(f"{first_name} has dtype {first.dtype}; it must be a floating one")


def _words(name: str, tensor: Tensor, letters: str) -> str:
    wanted = ", ".join(letters).replace("., ., .", "...")
    return f"{name} has shape {tuple(tensor.shape)}; it must be ({wanted})"


def once(check: Callable[..., Any]) -> Callable[..., None]:
    """The check of a call, made once for all calls with the same shapes, dtypes, devices and flags.
    Of no use where sizes are symbols."""
    passed: set[tuple[Hashable, ...]] = set()

    def checked(*given: Any) -> None:
        kind = tuple([(t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in given])
        if kind not in passed:
            check(*given)
            if len(passed) >= MOST:
                passed.clear()
            passed.add(kind)

    return checked

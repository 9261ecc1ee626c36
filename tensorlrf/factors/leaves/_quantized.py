"""Factors, or a matrix as it is, in numbers of eight or four bits with scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tensorlrf.errors import ArgumentError, ShapeError, unknown
from tensorlrf.factors._base import FORMATS, Factors
from tensorlrf.factors.arrays import as_dense, check_together, why_not_dense
from tensorlrf.factors.leaves.codes import (
    DENSE,
    HELD,
    HELD_AS,
    SCALES,
    WEIGHT,
    Sizes,
    blocks_of,
    check_codes,
    decoded,
    encoded,
    held_columns,
    named_parts,
)

_ENDS = (f".{SCALES}", f".{HELD_AS}")


@dataclass(frozen=True, eq=False, repr=False)
class Quantized(Factors):
    """Factors of another format whose numbers are codes of few bits, times scales.

    Every tensor T of the format is kept as `T.codes` and `T.scales`. Seen as a matrix (rows,
    columns), columns its last mode, it is cut into tiles of one size, each of which has one scale.
    `whole()` gives the factors of that format back, in the dtype of the scales, and that is what
    layers compute with. Made by `Quantized.encode(factors, "int8")`, of a tensor too.

    Parameters
    ----------
    parts : dict
        Name -> tensor: `T.scales` (a, b) in floating point, `T.codes` (rows, bytes) in int8, or in
        uint8 for int4, two in a byte along the columns, and for fp8, its bits. Indices of the
        format are as they are there.
    of : str
        Name of the format, such as "lowrank"; "dense" for a matrix as it is, called "weight".
    codes : {"int8", "int4", "fp8"}
        Whole numbers from -127 to 127 or from -7 to 7, or floating point with 4 bits of exponent
        and 3 of mantissa (e4m3).
    of_meta : dict
        `meta()` of the factors; for "dense" the shape.
    sizes : dict
        Name of a tensor of the format -> its shape, and how many tiles (a, b) it has.

    Raises
    ------
    ArgumentError, ShapeError
        Where these do not fit together.

    References
    ----------
    Micikevicius et al. 2022, "FP8 formats for deep learning", table 1.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(64, 48), 8)
    >>> q = tensorlrf.Quantized.encode(f, "int8")
    >>> f.n_bytes, q.n_bytes, q.rel_error(f.to_dense()) < 0.01
    (3584, 960, True)
    """

    parts: dict[str, Tensor]
    of: str
    codes: str
    of_meta: dict[str, Any]
    sizes: dict[str, Sizes]

    format: ClassVar[str] = "quantized"

    @classmethod
    def encode(cls, factors: Any, codes: str = "int8", *, group: int | None = None) -> Quantized:
        """Factors, or a tensor, in few bits: every number goes to the nearest code.

        Parameters
        ----------
        factors : Factors, Tensor or array
            A tensor (m, ...) is quantised as the matrix (m, n).
        codes : {"int8", "int4", "fp8"}
        group : int, optional
            How many numbers have one scale: of a matrix as it is along its inputs, of factors along
            the longer axis of each, as in a (m, r) along its columns; it must divide that. By
            default a row of a matrix has one, and of factors each line along the longer axis.

        Returns
        -------
        Quantized
            Detached. Scales are in the dtype of `factors`; with int8 and int4 no number is off by
            more than half its scale.

        Raises
        ------
        ArgumentError
            For what cannot be quantised, unknown codes, and a group that does not divide.

        Examples
        --------
        >>> w = torch.linspace(-1, 1, 24).reshape(3, 8)
        >>> q = tensorlrf.Quantized.encode(w, "int4", group=4)
        >>> q.n_bytes, bool((q.to_dense() - w).abs().max() <= 1 / 14 + 1e-6)
        (36, True)
        """
        check_codes(codes)
        if isinstance(factors, Factors):
            if isinstance(factors, Quantized) or factors.format == "composite":
                raise ArgumentError(
                    f"factors is a {type(factors).__name__}; quantise factors in floating point, "
                    "those of each part of a sum by themselves"
                )
            of, of_meta, named = factors.format, factors.meta(), factors.tensors()
            indices = factors.index_dtypes(of_meta)
        else:
            tensor = as_dense(factors, "factors")
            if not tensor.is_floating_point() or tensor.ndim < 2 or not tensor.numel():
                raise ArgumentError(
                    f"factors is a tensor of {tensor.dtype} and shape {tuple(tensor.shape)}; pass "
                    "one of two modes or more in floating point"
                )
            of, of_meta = DENSE, {"shape": list(tensor.shape)}
            named, indices = {WEIGHT: tensor.flatten(1)}, {}
        parts: dict[str, Tensor] = {}
        sizes: dict[str, Sizes] = {}
        for name, value in named.items():
            if name in indices:
                parts[name] = value
                continue
            matrix = value.detach().reshape(-1, value.shape[-1])
            rows, columns = matrix.shape
            blocks = blocks_of((rows, columns), group, name, by_rows=of == DENSE)
            wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
            parts |= named_parts(name, *encoded(wide, codes, blocks, matrix.dtype))
            sizes[name] = tuple(value.shape), blocks
        return cls(parts, of, codes, of_meta, sizes)

    # ---- what every format has --------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        if self.of == DENSE:
            return tuple(self.of_meta["shape"])
        return self._blank().shape

    @property
    def rank(self) -> int | tuple[int, ...]:
        """That of the factors; of a matrix as it is its smaller side."""
        if self.of == DENSE:
            m, *others = self.shape
            return min(m, math.prod(others))
        return self._blank().rank

    @property
    def n_params(self) -> int:
        """How many numbers are stored, codes and scales and what indices there are."""
        codes = sum(math.prod(shape) for shape, _ in self.sizes.values())
        packed = {f"{name}.{HELD_AS}" for name in self.sizes}
        return codes + sum(t.numel() for name, t in self.parts.items() if name not in packed)

    def whole(self) -> Factors:
        """The factors that the codes stand for, in the dtype of the scales."""
        if self.of == DENSE:
            raise ArgumentError("a matrix as it is has no factors; use to_dense()")
        return FORMATS[self.of]._assemble(self._decoded(), self.of_meta)

    def _decoded(
        self, unpack: Callable[[Tensor, Tensor, int, str], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The tensors of the format by name; of a matrix as it is `weight`, (m, n)."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.parts.items():
            key, _, kind = name.rpartition(".")
            if key not in self.sizes:
                found[name] = tensor
            elif kind == SCALES:
                (*_, columns), _ = shape, _ = self.sizes[key]
                held = self.parts[f"{key}.{HELD_AS}"]
                matrix = decoded(held, tensor, columns, self.codes, unpack)
                found[key] = matrix.reshape(shape)
        return found

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.parts)

    def meta(self) -> dict[str, Any]:
        sizes = {name: [list(shape), list(blocks)] for name, (shape, blocks) in self.sizes.items()}
        return {"of": self.of, "codes": self.codes, "meta": dict(self.of_meta), "sizes": sizes}

    @classmethod
    def index_dtypes(cls, meta: Mapping[str, Any]) -> dict[str, torch.dtype]:
        held = dict.fromkeys((f"{name}.{HELD_AS}" for name in meta["sizes"]), HELD[meta["codes"]])
        if meta["of"] == DENSE:
            return held
        return {**held, **FORMATS[meta["of"]].index_dtypes(meta["meta"])}

    @classmethod
    def _fields(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
        of, codes, inner = meta["of"], meta["codes"], meta["meta"]
        sizes = {
            name: (tuple(shape), (blocks[0], blocks[1]))
            for name, (shape, blocks) in meta["sizes"].items()
        }
        if of not in (DENSE, *FORMATS) or of == cls.format:
            raise unknown("of", of, [DENSE, *(name for name in FORMATS if name != cls.format)])
        parts: dict[str, Any] = {}
        for name in sizes:
            for kind in (SCALES, HELD_AS):
                parts[f"{name}.{kind}"] = tensors[f"{name}.{kind}"]
        if of != DENSE:
            parts |= {name: tensors[name] for name in FORMATS[of].index_dtypes(inner)}
        return {
            "parts": parts, "of": of, "codes": codes, "of_meta": dict(inner), "sizes": sizes
        }  # fmt: skip

    def check(self) -> None:
        check_codes(self.codes)
        if not self.sizes:
            raise ArgumentError("Quantized: sizes={} names no tensor; use Quantized.encode")
        scales = {name: t for name, t in self.parts.items() if name.endswith(f".{SCALES}")}
        check_together(scales, "Quantized")
        for name, (shape, (a, b)) in self.sizes.items():
            rows, columns = math.prod(shape[:-1]), shape[-1]
            if a < 1 or b < 1 or rows % a or columns % b:
                raise ShapeError(
                    f"Quantized: {name} {shape} is no {a} x {b} tiles of one size; both must "
                    "divide its sides"
                )
            wanted = {SCALES: (a, b), HELD_AS: (rows, held_columns(columns, self.codes))}
            for kind, sizes in wanted.items():
                self._check_part(f"{name}.{kind}", sizes, kind)
        if self.of == DENSE:
            m, *others = self.of_meta["shape"]
            if self.sizes.keys() != {WEIGHT} or self.sizes[WEIGHT][0] != (m, math.prod(others)):
                raise ShapeError(
                    f"Quantized: a matrix {self.of_meta['shape']} has one tensor, {WEIGHT!r}"
                )
            return
        inner = self._blank()
        if inner.tensors().keys() != {n.removesuffix(f".{SCALES}") for n in self.parts} - {
            f"{name}.{HELD_AS}" for name in self.sizes
        }:
            raise ArgumentError(f"Quantized: {sorted(self.sizes)} are not the tensors of {inner}")
        if not any(t.is_meta for t in self.parts.values()):
            inner = self.whole()
        inner.check()

    def _check_part(self, name: str, sizes: tuple[int, int], kind: str) -> None:
        part = self.parts[name]
        if not isinstance(part, Tensor):
            raise ArgumentError(f"Quantized: {name} is a {type(part).__name__}; pass a tensor")
        if (unfit := why_not_dense(part)) is not None:
            raise ArgumentError(f"Quantized: {name} {unfit}")
        wanted = self.dtype if kind == SCALES else HELD[self.codes]
        if part.dtype != wanted or part.device != self.device:
            raise ArgumentError(
                f"Quantized: {name} is {part.dtype} on {part.device}; it must be {wanted} on "
                f"{self.device}: bring it there with .to()"
            )
        if tuple(part.shape) != sizes:
            raise ShapeError(f"Quantized: {name} is {tuple(part.shape)}; it must be {sizes}")

    def _blank(self) -> Factors:
        """The factors without numbers, for what is asked of sizes alone."""
        blank = {
            name: torch.empty(shape, dtype=self.dtype, device="meta")
            for name, (shape, _) in self.sizes.items()
        }
        others = {name: t for name, t in self.parts.items() if not name.endswith(_ENDS)}
        return FORMATS[self.of]._assemble({**blank, **others}, self.of_meta)

    def _dense(self) -> Tensor:
        if self.of == DENSE:
            return self._decoded()[WEIGHT].reshape(self.shape)
        return self.whole()._dense()

    def __repr__(self) -> str:
        what = "a matrix" if self.of == DENSE else self.of
        return f"{super().__repr__()[:-1]}, {what} in {self.codes}, {self.n_bytes:,} bytes)"

"""What config.json tells of layers of low rank, as vLLM's layers are to know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorlrf.compression.checkpoint.header import LayerEntry
from tensorlrf.compression.checkpoint.named_tensors import joined
from tensorlrf.compression.checkpoint.pretrained.quantization import Quantization, parsed
from tensorlrf.errors import UnsupportedError

REMEDY = "write the folder anew from tensorlrf.export(model, for_='vllm')"

_LINEAR = (None, "FactoredLinear", "FactoredHFConv1D")
_TABLE = (None, "FactoredEmbedding")


@dataclass(frozen=True)
class Factored:
    """A layer of low rank: `left` (rows, rank) times `right` (rank, columns).

    name         in the files
    bias         whether it has one; None where that is not known
    left, right  names of the tensors in the files, which layers may have in common
    linear       whether it may be a linear layer
    table        whether it may be an embedding
    """

    name: str
    rows: int
    rank: int
    columns: int
    bias: bool | None
    left: str
    right: str
    linear: bool = True
    table: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Of its tensors, by their names in the files."""
        return {self.left: (self.rows, self.rank), self.right: (self.rank, self.columns)}

    def __str__(self) -> str:
        return f"{self.name!r}, {self.rows} x {self.columns}"


def served(values: Any, path: str) -> dict[str, Factored]:
    """Name of a layer -> what it is, of an entry `quantization_config`.

    Raises FileFormatError where it is damaged or of another version, UnsupportedError where it
    tells of something that vLLM's models do not have.
    """
    told = parsed(values, path)
    _check(told, path)
    return {
        place: _factored(entry, place, told.tied) for entry in told.layers for place in entry.places
    }


def _factored(entry: LayerEntry, place: str, tied: Mapping[str, str]) -> Factored:
    left, right = (joined(place, key) for key in ("left", "right"))
    rows, rank = entry.parts["left"]
    return Factored(
        place,
        rows,
        rank,
        entry.parts["right"][1],
        entry.bias,
        tied.get(left, left),
        tied.get(right, right),
        linear=entry.type in _LINEAR,
        table=entry.type in _TABLE,
    )


def _check(told: Quantization, path: str) -> None:
    """Raise UnsupportedError for all that is no layer of low rank."""
    wrong = [why for entry in told.layers if (why := _why_not(entry))]
    if wrong:
        others = f", and {len(wrong) - 1} more are none either" if wrong[1:] else ""
        raise UnsupportedError(f"path={path!r}: {wrong[0]}{others}; {REMEDY}")
    if told.latents or told.folded:
        place = told.latents[0].place if told.latents else told.folded[0]
        what = "a latent cache" if told.latents else "no normalisation of its own any more"
        raise UnsupportedError(f"path={path!r}: {place!r} has {what}, unlike vLLM's; {REMEDY}")
    if told.resized:
        raise UnsupportedError(
            f"path={path!r}: {told.resized[0].places[0]!r} is smaller than its architecture says, "
            "which vLLM's models cannot be; compress with a method that keeps their sizes"
        )
    for name in told.tied:
        if name.endswith(".bias"):
            raise UnsupportedError(
                f"path={path!r}: {name!r} is one with {told.tied[name]!r}, and vLLM has no biases "
                "in common; give each layer its own"
            )


def _why_not(entry: LayerEntry) -> str | None:
    name = entry.places[0]
    if entry.format != "lowrank":
        return f"{name!r} is of format {entry.format!r}, and vLLM serves lowrank and dense layers"
    if len(entry.shape) != 2 or entry.type not in (*_LINEAR, *_TABLE):
        return (
            f"{name!r} is a {entry.type or 'layer'} of {' x '.join(map(str, entry.shape))}, and "
            "vLLM serves linear layers and embeddings on factors"
        )
    return None


def parts_of(
    prefix: str, layers: Mapping[str, Factored], packed: Mapping[str, list[str]]
) -> list[tuple[str, Factored | None]]:
    """Name and factors of the parts that a linear layer of vLLM has in the files, None for what is
    dense.

    packed  last part of the name of a layer of vLLM -> those that it is made of
    """
    above, _, last = prefix.rpartition(".")
    names = [prefix]
    if prefix not in layers and last in packed:
        names = [joined(above, own) for own in packed[last]]
    return [(name, own if (own := layers.get(name)) and own.linear else None) for name in names]


def table_of(
    prefix: str, shape: tuple[int, int], layers: Mapping[str, Factored], *, head: bool
) -> str | None:
    """The name of an embedding or a head on factors, None for a dense one.

    Some of vLLM's models do not tell the name of their embedding, which is then the one of its
    shape. Raises UnsupportedError where there are several.
    """
    if prefix:
        return prefix if prefix in layers else None
    if head:
        return None
    fits = [
        name
        for name, one in layers.items()
        if one.table and (not one.linear or "embed" in name) and (one.rows, one.columns) == shape
    ]
    if len(fits) > 1:
        raise UnsupportedError(
            f"{fits[0]!r} and {fits[1]!r} are of one shape, and vLLM does not tell which of its "
            "embeddings is which; leave one of them dense"
        )
    return fits[0] if fits else None


def check_bias(factors: Factored | None, has: bool) -> None:
    """Raise UnsupportedError where a layer in the files has a bias, and the one of vLLM has none:
    vLLM would leave it out."""
    if factors is not None and factors.bias and not has:
        raise UnsupportedError(
            f"{factors.name!r} has a bias that its architecture does not have, and that vLLM would "
            "leave out; compress without a bias for it"
        )

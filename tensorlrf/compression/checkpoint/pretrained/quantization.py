"""What config.json says of the factored layers of a model of transformers: `quantization_config`.

Its tensors lie under the names that a state dict has. With what stands here any program builds the
layers that they are for, before it reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tensorlrf.compression.checkpoint._layers import blank_factors
from tensorlrf.compression.checkpoint._store import header_of
from tensorlrf.compression.checkpoint.header import (
    Header,
    LatentEntry,
    LayerEntry,
    SizeEntry,
    latent_of,
    layer_of,
    size_of,
)
from tensorlrf.compression.checkpoint.named_tensors import LASTING, joined, named_tensors
from tensorlrf.compression.plan._versions import recipe_of
from tensorlrf.errors import FileFormatError, TensorlrfError, UnsupportedError
from tensorlrf.files.strict import JsonNode
from tensorlrf.nn import FactoredLayer

METHOD = "tensorlrf"
"""The `quant_method` of transformers and of those who read its folders."""

FORMAT_VERSION = 1

QUANTIZATION = "quantization_config"
"""The entry of config.json."""

_GONE = "Identity()"
"""What `describe` says of a module that a normalisation was folded away for."""

_KEYS = ("quant_method", "format_version", "tensorlrf", "layers", "tied", "plan")
_MAYBE = ("resized", "latents", "extra_state", "folded")

Rename = Callable[[str], str | None]
"""From the name of a module to another one; None where it is left out."""


@dataclass(frozen=True)
class Quantization:
    """The factored layers of a model, and what else its configuration does not tell.

    tied     name of a tensor of a factored layer -> that of another, which it is too
    plan     name of a layer -> how its factors were made
    folded   names of normalisations that were folded into the layers before them
    """

    made_by: str
    layers: tuple[LayerEntry, ...]
    tied: Mapping[str, str]
    plan: Mapping[str, Any] = field(default_factory=dict)
    resized: tuple[SizeEntry, ...] = ()
    latents: tuple[LatentEntry, ...] = ()
    extra_state: Mapping[str, Any] = field(default_factory=dict)
    folded: tuple[str, ...] = ()

    @classmethod
    def of(cls, header: Header, groups: Iterable[list[str]] | None = None) -> Quantization:
        """What a header says.

        groups  the names of each tensor; by default those of the slots
        """
        if groups is None:
            groups = (
                [name for name, role in slot.at.items() if role in LASTING or role is None]
                for slot in header.slots
            )
        places = {place for entry in header.layers for place in entry.places}
        tied = {
            name: names[0]
            for names in groups
            for name in names[1:]
            if name.rpartition(".")[0] in places
        }
        return cls(
            header.made_by,
            header.layers,
            tied,
            header.plan,
            header.resized,
            header.latents,
            header.extra_state,
            tuple(name for name, line in (header.architecture or {}).items() if line == _GONE),
        )

    @classmethod
    def of_model(cls, model: nn.Module) -> Quantization:
        """Of a model as it is.

        Raises as `save` does for state that is not JSON, and UnsupportedError where adapters are on
        factored layers.
        """
        check_bare(model)
        held: dict[int, list[str]] = {}
        for one in named_tensors(model):
            if one.role in LASTING:
                held.setdefault(id(one.tensor), []).append(one.name)
        return cls.of(header_of(model, {}, ()), held.values())

    @property
    def guards(self) -> list[str]:
        """Names under which the dense weights of the factored layers would lie."""
        return [joined(place, "weight") for one in self.layers for place in one.places[:1]]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        layers = {
            entry.places[0]: {"rank": blank_factors(entry, "model").rank, **entry.to_json()}
            for entry in self.layers
        }
        values = {
            "quant_method": METHOD,
            "format_version": FORMAT_VERSION,
            "tensorlrf": self.made_by,
            "layers": layers,
            "tied": dict(self.tied),
            "plan": dict(self.plan),
        }
        more = {
            "resized": [vars(one) for one in self.resized],
            "latents": [one.to_json() for one in self.latents],
            "extra_state": dict(self.extra_state),
            "folded": list(self.folded),
        }
        written: dict[str, Any] = json.loads(
            json.dumps({**values, **{key: value for key, value in more.items() if value}})
        )
        return written

    def renamed(self, name: Rename) -> Quantization:
        """With other names of modules; what has none is left out."""

        def tensor(full: str) -> str | None:
            above, _, last = full.rpartition(".")
            new = name(above)
            return None if new is None else joined(new, last)

        ties = ((tensor(a), tensor(b)) for a, b in self.tied.items())
        return replace(
            self,
            layers=tuple(replace(one, places=at) for one, at in _moved(self.layers, name)),
            tied={a: b for a, b in ties if a is not None and b is not None},
            plan={new: one for old, one in self.plan.items() if (new := name(old)) is not None},
            resized=tuple(replace(one, places=at) for one, at in _moved(self.resized, name)),
            latents=tuple(
                replace(one, place=place, tables=(name(one.tables) or "") if one.tables else "")
                for one in self.latents
                if (place := name(one.place)) is not None
            ),
            extra_state={
                new: one for old, one in self.extra_state.items() if (new := name(old)) is not None
            },
            folded=tuple(new for old in self.folded if (new := name(old)) is not None),
        )


def _moved(entries: Iterable[Any], name: Rename) -> Iterable[tuple[Any, tuple[str, ...]]]:
    for one in entries:
        places = tuple(new for old in one.places if (new := name(old)) is not None)
        if places:
            yield one, places


def check_bare(model: nn.Module) -> None:
    """Raise UnsupportedError where an adapter is on a factored layer, which then stands under a
    name that the architecture does not have."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "base_layer", None), FactoredLayer):
            raise UnsupportedError(
                f"the model has an adapter on the factored layer {name!r}; merge it first "
                "(merge_and_unload of peft), or write the adapter alone (PeftModel.save_pretrained)"
            )


def guard() -> Tensor:
    """What stands under the name of a dense weight, and fits none."""
    return torch.empty(0, dtype=torch.float32, device="cpu")


def parsed(values: Any, path: str) -> Quantization:
    """What stands in a config.json.

    Raises FileFormatError that says what of it is wrong, and where the version is another one.
    """
    try:
        root = JsonNode.of_text(json.dumps(values), path)
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"path={path!r}: {QUANTIZATION} is no JSON: {error}") from None
    version = root["format_version"].whole()
    if version > FORMAT_VERSION:
        raise FileFormatError(
            f"path={path!r} has format version {version} in {QUANTIZATION}; this tensorlrf reads "
            f"up to {FORMAT_VERSION}, a newer one will read it"
        )
    if version < 1:
        raise FileFormatError(
            f"path={path!r} has format version {version} in {QUANTIZATION}, which no tensorlrf "
            "reads any more; write the folder anew with tensorlrf.save"
        )
    root.keys_are(_KEYS, _MAYBE)
    if root["quant_method"].text() != METHOD:
        root["quant_method"].wrong(repr(METHOD))
    keys = root.mapping()
    return Quantization(
        made_by=root["tensorlrf"].text(),
        layers=tuple(_layer(root["layers"][name], name, path) for name in root["layers"].mapping()),
        tied=root["tied"].each(JsonNode.text),
        plan={name: recipe_of(recipe) for name, recipe in root["plan"].mapping().items()},
        resized=tuple(size_of(at) for at in _entries(root, "resized")),
        latents=tuple(latent_of(at) for at in _entries(root, "latents")),
        extra_state=root["extra_state"].mapping() if "extra_state" in keys else {},
        folded=tuple(at.text() for at in _entries(root, "folded")),
    )


def _entries(root: JsonNode, key: str) -> list[JsonNode]:
    return root[key].entries() if key in root.mapping() else []


def _layer(at: JsonNode, name: str, path: str) -> LayerEntry:
    """An entry, once its rank is that of its parts."""
    told = at["rank"]
    own = {key: value for key, value in at.mapping().items() if key != "rank"}
    entry = layer_of(at.over(own))
    if entry.places[0] != name:
        at["places"].wrong(f"a list that begins with {name!r}")
    try:
        rank = blank_factors(entry, path).rank
    except FileFormatError:
        raise
    except TensorlrfError as error:
        raise FileFormatError(f"path={path!r}: the layer {name!r}: {error}") from None
    if told.value != json.loads(json.dumps(rank)):
        raise FileFormatError(
            f"path={path!r}: the layer {name!r} has rank {told.value} in {QUANTIZATION}, and parts "
            f"of rank {rank}; get the folder anew"
        )
    return entry

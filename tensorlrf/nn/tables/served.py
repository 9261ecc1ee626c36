"""Which methods give factors in which rows are looked up."""

from __future__ import annotations

from tensorlrf.decomposition.methods import names, registered
from tensorlrf.ops.forms import formats_with


def methods_for(kind: str) -> list[str]:
    """The words of those that serve an "Embedding" or an "EmbeddingBag"."""
    if kind != "EmbeddingBag":
        return list(names("embedding"))
    formats = set(formats_with("bag"))
    return [
        name
        for name in names("embedding")
        if formats.issuperset(format.__name__ for format in registered(name).gives)
    ]


def no_table(method: str, kind: str) -> str:
    """Why a method gives no factors of such a layer; empty where it does."""
    served = methods_for(kind)
    if method in served:
        return ""
    what = "summed" if kind == "EmbeddingBag" else "looked up"
    return f"{method} gives factors in which no rows are {what}; choose one of {', '.join(served)}"


def only_tables(method: str) -> str:
    """Why a method serves no other layers; empty where it does."""
    if method in names("linear", "conv"):
        return ""
    return f"{method} factors tables of embeddings alone; choose another one, such as 'svd'"

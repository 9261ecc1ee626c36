"""All readers of foreign bytes."""

from __future__ import annotations

from tests.abuse import of_journals, of_runs, of_tensors, of_texts
from tests.abuse.reader import Reader

READERS: dict[str, Reader] = {
    reader.name: reader
    for of in (of_tensors, of_texts, of_runs, of_journals)
    for reader in of.READERS
}
LONG: dict[str, Reader] = {reader.name: reader for reader in of_journals.LONG}
"""Those that run a model on inputs each time."""

HEAVY: dict[str, Reader] = {reader.name: reader for reader in of_tensors.OF_TRANSFORMERS}
"""Those that need transformers, which takes seconds to import."""

ALL = {**READERS, **LONG, **HEAVY}

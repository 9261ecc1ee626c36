"""All readers of foreign bytes."""

from __future__ import annotations

from tests.abuse import of_runs, of_tensors, of_texts
from tests.abuse.reader import Reader

READERS: dict[str, Reader] = {
    reader.name: reader for reader in (*of_tensors.READERS, *of_texts.READERS, *of_runs.READERS)
}
HEAVY: dict[str, Reader] = {reader.name: reader for reader in of_tensors.OF_TRANSFORMERS}
"""Those that need transformers, which takes seconds to import."""

"""The JSON schema of recipes, from the signatures that they follow: run this file to renew it."""

from __future__ import annotations

import json
from pathlib import Path

from tensorlrf import Recipe

SCHEMA = Path(__file__).resolve().parents[1] / "recipes" / "schema.json"


def text() -> str:
    """What the file should hold."""
    return json.dumps(Recipe.schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text())

"""The schema of recipes is the one of the signatures, and says what the recipes are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tensorlrf import Recipe

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("recipe_schema", ROOT / "docs" / "recipe_schema.py")
assert SPEC is not None
assert SPEC.loader is not None
recipe_schema = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipe_schema)
SCHEMA: dict[str, Any] = json.loads(recipe_schema.SCHEMA.read_text())
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
    "boolean": bool, "null": type(None),
}  # fmt: skip


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is valid: by the words of JSON schema that ours uses, and no others."""
    told = {k for k in schema if k not in ("$schema", "$defs", "title", "description", "default")}
    if "$ref" in schema:
        return fits(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema:
        assert told == {"anyOf"}
        return any(fits(value, one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        assert len(told) == 1
        return value in (schema.get("enum") or [schema["const"]])
    if not isinstance(value, TYPES[schema["type"]]):
        return False
    if isinstance(value, bool) and schema["type"] != "boolean":
        return False
    if schema["type"] == "object":
        assert told <= {"type", "properties", "additionalProperties", "required"}
        own, more = schema.get("properties", {}), schema["additionalProperties"]
        return set(schema.get("required", ())) <= set(value) and all(
            fits(v, own[k]) if k in own else more and fits(v, more) for k, v in value.items()
        )
    if schema["type"] == "array":
        assert told <= {"type", "items", "prefixItems", "minItems"}
        first = schema.get("prefixItems", [])
        if len(value) < schema.get("minItems", 0) or (not schema["items"] and value[len(first) :]):
            return False
        rest = [schema["items"]] * len(value[len(first) :])
        return all(fits(v, one) for v, one in zip(value, [*first, *rest], strict=True))
    assert told == {"type"}
    return True


def test_the_schema_is_up_to_date() -> None:
    assert recipe_schema.SCHEMA.read_text() == recipe_schema.text(), "run: make generate"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_fits_it_and_names_it(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert fits(yaml.safe_load(text), SCHEMA)
    Recipe.read(path)


def test_it_tells_right_from_wrong() -> None:
    right = {
        "keep_params": 0.5,
        "method": {"a": {"name": "kron", "shapes": [[2, 3], [4, 5]]}, "b": None, "*": "auto"},
        "allocation": {"rule": "energy", "weights": {"a": 2}},
        "target": "prefix",
        "calibration": {"text": ["a.txt"], "tokens": 96},
    }
    assert fits(right, SCHEMA)
    assert Recipe(right).values
    assert fits({"method": "modular"}, SCHEMA)
    for wrong in (
        {"keep_parms": 0.5}, {"keep_params": "half"}, {"method": "svdd"}, {"affine": 1},
        {"method": {"name": "svd", "leaf": 3}}, {"method": {"a": {"rank": 3}}},
        {"method": {"name": "kron", "shapes": [[2, 3]]}}, {"target": "nowhere"},
        {"calibration": "a.txt"}, {"allocation": {"rul": "energy"}},
    ):  # fmt: skip
        assert not fits(wrong, SCHEMA), wrong
